package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// What is wide enough to be warned of, where every SYN between a rule's clients and a server's addresses and ports is queued.
const (
	// wideHostBits is the part of a prefix's addresses that tells hosts apart: 256 and more are hardly all FTP servers.
	wideHostBits = 8
	// widePorts is more passive ports than most servers are set up with; among more there are those of other services.
	widePorts = 1024
)

// warn notes what holds together but is hardly meant.
func (b *builder) warn() {
	for i := range b.p.Rules {
		b.warnRule(i)
	}
	for i, s := range b.p.Servers {
		key := index("servers", i)
		if !b.ruled(i) {
			b.warning(key, "no rule names server %q, so every connection to it is denied", s.Name)
		}
		if r := b.terminatedBy(i); r != nil {
			b.warnTerminated(key, &b.p.Servers[i], r)
		}
		b.warnQueued(key, i)
	}
	if b.p.FailOpen {
		b.warning("fail", "open: when the queue is full or ftpalg is gone, control connections pass unread")
	}
}

func (b *builder) warnRule(i int) {
	r, key := &b.p.Rules[i], index("rules", i)
	for j := range b.p.Rules[:i] {
		if first := &b.p.Rules[j]; first.shadows(r) {
			b.warning(key, "rule %q can never match: rule %q before it has all its clients and servers; put it first", r.Name, first.Name)
			break
		}
	}
	if r.Action == Deny {
		return
	}
	if len(r.Allow) > 0 && !r.allow["USER"] {
		b.warning(key+".commands.allow", "rule %q does not allow USER, so nobody can log in%s", r.Name, choice(r.Action == Inspect, " in clear text", ""))
	}
	switch {
	case r.Action == Inspect && r.RequireTLS && !r.OpaquePinhole:
		b.warning(key, "rule %q demands TLS and gives encrypted sessions no pinhole, so nothing can be transferred", r.Name)
	case r.Action == Terminate && (!r.OpaquePinhole || r.OpaqueActive):
		b.warning(b.given(key+".opaque", key+".opaque-active"), "rule %q terminates, so nothing stays encrypted, and opaque and opaque-active mean nothing", r.Name)
	}
	if r.Action == Inspect && r.OpaquePinhole {
		b.warnUnseen(key, r)
	}
	b.warnRenamed(key, r)
	if r.TLS.CA != "" && !r.RequireTLS {
		b.warning(key+".tls.client-ca", "rule %q asks for certificates in TLS, and lets clients do without TLS; set require: tls", r.Name)
	}
}

// warnRenamed is for a path that nothing may be fetched from, and out of which files may be renamed, to be fetched from elsewhere.
func (b *builder) warnRenamed(key string, r *Rule) {
	if !r.takes("RETR") || !r.takes("RNFR") || !r.takes("RNTO") || r.denied["RETR"] == nil {
		return
	}
	stays := func(name string) bool {
		d := r.denied["RNFR"]
		return d != nil && slices.ContainsFunc(d.paths, func(dir string) bool { return under(name, dir) })
	}
	for _, name := range r.denied["RETR"].paths {
		if !stays(name) {
			b.warning(key+".commands.deny", "rule %q denies RETR %s, and allows to rename what is there and fetch it by another path; deny RNFR %s too", r.Name, name, name)
			return // one says enough
		}
	}
}

// takes reports whether some use of a command is allowed.
func (r *Rule) takes(verb string) bool {
	d := r.denied[verb]
	return (len(r.Allow) == 0 || r.allow[verb]) && (d == nil || !d.whole && !d.direction && !slices.Contains(d.paths, "/"))
}

// warnUnseen is for what a rule says of commands and nobody can see in the sessions that it leaves encrypted.
func (b *builder) warnUnseen(key string, r *Rule) {
	var unseen []string
	for _, k := range []struct {
		name  string
		given bool
	}{
		{"users", len(r.Users.Allow)+len(r.Users.Deny) > 0},
		{"files", len(r.Files.Allow)+len(r.Files.Deny) > 0},
		{"commands", len(r.Allow)+len(r.Deny) > 0},
		{"transfers", r.NoUpload || r.NoDownload},
	} {
		if k.given {
			unseen = append(unseen, k.name)
		}
	}
	if len(unseen) > 0 && b.staysOpaque(r) {
		b.warning(key+"."+unseen[0], "rule %q inspects and has opaque: pinhole, so what it says of %s ends at AUTH, "+
			"and on implicit ports it is nothing: nobody sees commands under TLS; set opaque: deny, or action: terminate", r.Name, strings.Join(unseen, ", "))
	}
}

// staysOpaque reports whether a rule that inspects lets sessions be encrypted: on implicit ports, or by AUTH.
func (b *builder) staysOpaque(r *Rule) bool {
	if r.takes("AUTH") {
		return true
	}
	for i, s := range b.p.Servers {
		if r.servers[i] && (len(s.Implicit) > 0 || slices.ContainsFunc(s.Public, func(p Public) bool { return len(p.Implicit) > 0 })) {
			return true
		}
	}
	return false
}

// warnQueued is for a server whose addresses and ports are more than FTP servers have: SYNs to other services are queued, and
// stand still while ftpalg does.
func (b *builder) warnQueued(key string, server int) {
	s := &b.p.Servers[server]
	i := slices.IndexFunc(s.Addresses, isWide)
	if i < 0 {
		return
	}
	for _, r := range b.p.Rules {
		if r.Action != Inspect || !r.servers[server] {
			continue
		}
		switch ports := int(s.Passive.Last) - int(s.Passive.First) + 1; { // of no range: 1
		case r.OpaqueActive:
			b.warning(key+".addresses", "%s is more than FTP servers, and rule %q has opaque-active: pinhole: every new connection from there "+
				"to its clients is queued; list the servers, or set opaque-active: deny", s.Addresses[i], r.Name)
		case r.OpaquePinhole && ports > widePorts:
			b.warning(key+".passive", "%s at %s is more than FTP servers, and rule %q has opaque: pinhole: every new connection of its clients "+
				"to those %d ports is queued; list the servers, narrow passive, or set opaque: deny", s.Passive, s.Addresses[i], r.Name, ports)
		default:
			continue
		}
		return // one says enough
	}
}

// isWide reports whether a prefix has more hosts than one sets up as FTP servers.
func isWide(p netip.Prefix) bool { return p.Addr().BitLen()-p.Bits() >= wideHostBits }

// warnTerminated is for a server whose connections a rule terminates.
func (b *builder) warnTerminated(key string, s *Server, r *Rule) {
	switch {
	case b.p.CanShow(s):
	case r.RequireTLS:
		b.warning(key, "rule %q demands TLS, and there is no certificate to show, so nobody can log in; list certificates or set authority", r.Name)
	default:
		b.warning(key, "rule %q terminates, and there is no certificate to show, so AUTH is refused; list certificates or set authority", r.Name)
	}
	if s.Upstream.Control == Same && s.Upstream.Port != 0 && len(s.Explicit) > 0 && len(s.Implicit) > 0 {
		b.warning(key+".upstream.port", "%d is for clients of explicit and of implicit ports alike, and the server's can be one of them only; "+
			"set control: explicit or implicit, or port: 0", s.Upstream.Port)
	}
	if s.Upstream.Verify.Kind == VerifyNone {
		b.warning(key+".upstream.verify", "none: whoever stands between ftpalg and server %q can read and change all", s.Name)
	}
	b.warnUnproved(key, s)
}

// warnUnproved is for certificates that are minted for a server of which nobody knows who it is.
func (b *builder) warnUnproved(key string, s *Server) {
	const problem = "%s: authority vouches for server %q, and nothing proves who that is; what it mints has the server's address and upstream.name alone"
	switch {
	case b.p.Authority.IsZero() || len(s.Certificates) > 0:
	case s.Upstream.Control == Plain:
		b.warning(key+".upstream.control", problem, "plain", s.Name)
	case s.Upstream.Verify.Kind == VerifyNone:
		b.warning(key+".upstream.verify", problem, "none", s.Name)
	}
}

// shadows reports whether whatever other matches, r matches as well.
func (r *Rule) shadows(other *Rule) bool {
	for i, matches := range other.servers {
		if matches && !r.servers[i] {
			return false
		}
	}
	return r.clients.covers(other.clients)
}

// ruled reports whether any rule is for the server at a position.
func (b *builder) ruled(server int) bool {
	for _, r := range b.p.Rules {
		if r.servers[server] {
			return true
		}
	}
	return false
}

func (b *builder) warning(key, format string, args ...any) {
	at := b.places[key]
	b.p.Warnings = append(b.p.Warnings, fmt.Sprintf("%s:%d:%d: %s: %s", b.file, at.line, at.column, key, fmt.Sprintf(format, args...)))
}
