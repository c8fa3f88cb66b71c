package policy

import "fmt"

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
	if r.Action != Inspect {
		return
	}
	if r.RequireTLS && !r.OpaquePinhole {
		b.warning(key, "rule %q demands TLS and gives encrypted sessions no pinhole, so nothing can be transferred", r.Name)
	}
	if len(r.Allow) > 0 && !r.allow["USER"] {
		b.warning(key+".commands.allow", "rule %q does not allow USER, so nobody can log in in clear text", r.Name)
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
