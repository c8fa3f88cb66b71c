package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Bounds of the lists, so that the index of a policy stays in proportion to its file.
const (
	maxEntries   = 1024 // servers, clients, rules or tests
	maxAddresses = 1024 // of one server or client
)

// helpers are the conntrack helpers that carry expectations; ftpalg is our own, where the kernel lets user space define helpers.
// Those from unsafeHelpers on were among them: they read what clients write, and open ports of their own accord.
var helpers = []string{"auto", "ftpalg", "sane", "ftp", "irc", "pptp", "sip"}

const unsafeHelpers = 3

// builder makes a Policy of the raw structs and records what does not hold. It goes on after a fault, so that one run
// names as many as it can.
type builder struct {
	*document
	p       *Policy
	servers map[string]int // positions by name
	clients map[string]int
}

func build(d *document, raw *rawPolicy) *Policy {
	b := &builder{document: d, p: &Policy{}, servers: map[string]int{}, clients: map[string]int{}}
	if raw.Version != 1 {
		b.fault("version", "%d is not a version that this ftpalg knows; write 1", raw.Version)
	}
	b.settings(raw)
	b.limits(&raw.Limits)
	b.allServers(raw.Servers)
	b.allClients(raw.Clients)
	b.allRules(raw.Rules)
	b.certificatesToShow()
	b.reusedSessions()
	b.allTests(raw.Tests)
	if len(b.faults) == 0 {
		b.warn()
	}
	return b.p
}

func (b *builder) settings(raw *rawPolicy) {
	b.p.Bounce = Bounce(b.choose("bounce", raw.Bounce, bounceWords...))
	b.p.PrivilegedPorts = b.choose("privileged-ports", raw.PrivilegedPorts, "deny", "allow") == 1
	b.p.FailOpen = b.choose("fail", raw.Fail, "closed", "open") == 1
	b.helper(raw.Helper)
	b.p.PinholeTimeout = raw.PinholeTimeout
	b.p.CreditLifetime = raw.CreditLifetime
	b.p.Authority = b.keyPair("authority", raw.Authority)
	b.duration("pinhole-timeout", raw.PinholeTimeout, 5*time.Minute) // beyond that it is a standing hole
	if raw.PinholeTimeout%time.Second != 0 {
		b.fault("pinhole-timeout", "%v is not whole seconds, which is what conntrack counts in; round it", raw.PinholeTimeout)
	}
	b.duration("credit-lifetime", raw.CreditLifetime, time.Minute)
}

// helper takes a policy that names a helper which is not used any more, and says so.
func (b *builder) helper(word string) {
	chosen := b.choose("helper", word, helpers...)
	if b.p.Helper = helpers[chosen]; chosen >= unsafeHelpers {
		b.p.Helper = helpers[0]
		b.warning("helper", "%q opens ports for what it reads in FTP connections, so it is not used any more, and under NAT ftpalg rewrites PORT and 227 by itself: "+
			"auto is taken; write auto", word)
	}
}

// duration holds a time to at least a second and at most most.
func (b *builder) duration(key string, t, most time.Duration) {
	if t < time.Second || t > most {
		b.fault(key, "%v is out of bounds; write 1s to %v", t, most)
	}
}

// given is the first of keys that the file has: where to point for values that do not go together, when some of them may
// be defaults.
func (b *builder) given(keys ...string) string {
	i := slices.IndexFunc(keys, func(key string) bool { _, there := b.places[key]; return there })
	return keys[max(i, 0)]
}

// choose gives the position of value among words, or 0 after a fault.
func (b *builder) choose(key, value string, words ...string) int {
	i := slices.Index(words, value)
	if i < 0 {
		b.fault(key, "%q is not known here; write one of: %s", value, strings.Join(words, ", "))
		return 0
	}
	return i
}

func (b *builder) limits(raw *rawLimits) {
	b.p.Limits = Limits(*raw)
	for _, l := range []struct {
		key               string
		value, least, top int
	}{
		{"line", raw.Line, 512, 1 << 16}, // less would cut ordinary greetings and paths
		{"sessions", raw.Sessions, 1, 10_000_000},
		{"sessions-per-client", raw.SessionsPerClient, 1, 10_000_000},
		{"pinholes", raw.Pinholes, 1, 1_000_000},
		{"pinholes-per-client", raw.PinholesPerClient, 1, 1_000_000},
		{"gap", raw.Gap, 1460, 16 << 20}, // one full segment at least, or no loss could be mended
		{"outstanding", raw.Outstanding, 1, 4096},
		{"audit-rate", raw.AuditRate, 1, 100_000},
		{"handshakes", raw.Handshakes, 1, 10_000}, // each costs a processor about a millisecond
		{"handshakes-per-client", raw.HandshakesPerClient, 1, 10_000},
		{"login-failures", raw.LoginFailures, 1, 1000},
	} {
		if l.value < l.least || l.value > l.top {
			b.fault("limits."+l.key, "%d is out of bounds; write %d to %d", l.value, l.least, l.top)
		}
	}
	b.duration("limits.handshake-timeout", raw.HandshakeTimeout, time.Minute)
	b.duration("limits.idle-timeout", raw.IdleTimeout, 24*time.Hour)
}

// name checks that the name of an entry can be used and is new, and notes it in names. It gives the entry's key.
func (b *builder) name(list string, i int, name string, names map[string]int) string {
	key := index(list, i)
	first, taken := names[name]
	switch {
	case name == "" || strings.TrimSpace(name) != name || !printable(name):
		b.fault(key+".name", "%q is no name; write printable characters without spaces around them", name)
	case name == anyName:
		b.fault(key+".name", "%q is kept for rules, where it means all of them; choose another name", name)
	case taken:
		b.fault(key+".name", "%q is the name of %s already; choose another", name, index(list, first))
	default:
		names[name] = i
	}
	return key
}

func (b *builder) count(key string, n int) bool {
	if n > maxEntries {
		b.fault(key, "%d entries; %d is the most, merge some (one entry may have many addresses)", n, maxEntries)
	}
	return n <= maxEntries
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func (b *builder) allServers(raw []rawServer) {
	if len(raw) == 0 {
		b.fault("servers", "empty; list at least one server")
	}
	if !b.count("servers", len(raw)) {
		return
	}
	var all []located
	for i, r := range raw {
		key := b.name("servers", i, r.Name, b.servers)
		addresses := b.addresses(key+".addresses", r.Addresses)
		for _, a := range addresses {
			a.face = face{i, -1}
			all = append(all, a)
		}
		b.p.Servers = append(b.p.Servers, Server{
			Name:      r.Name,
			Addresses: sorted(addresses),
			Explicit:  b.ports(key+".explicit", r.Explicit),
			Implicit:  b.ports(key+".implicit", r.Implicit),
			Passive:   b.passive(key+".passive", r.Passive),

			Certificates: b.certificates(key+".certificates", r.Certificates),
			Upstream:     b.upstream(key+".upstream", &r.Upstream),
		})
		b.controlPorts(key, &b.p.Servers[i])
		for j, public := range r.Public {
			for _, a := range b.public(index(key+".public", j), public, &b.p.Servers[i]) {
				a.face = face{i, j}
				all = append(all, a)
			}
		}
	}
	b.indexServers(all)
}

// public adds one of the server's public faces, and gives its addresses.
func (b *builder) public(key string, raw rawPublic, s *Server) []located {
	addresses := b.addresses(key+".addresses", raw.Addresses)
	p := Public{Addresses: sorted(addresses), Explicit: s.Explicit, Implicit: s.Implicit}
	if raw.Explicit != nil {
		p.Explicit = b.ports(key+".explicit", raw.Explicit)
	}
	if raw.Implicit != nil {
		p.Implicit = b.ports(key+".implicit", raw.Implicit)
	}
	s.Public = append(s.Public, p)
	b.distinct(key, p.Explicit, p.Implicit)
	for _, a := range addresses {
		switch {
		case !a.prefix.IsSingleIP():
			b.fault(a.key, "%v is more than one address; list each", a.prefix)
		case !s.host(a.prefix.Addr().Is6()).IsValid():
			b.fault(a.key, "server %q does not have exactly one address of this family, so where DNAT leads is not clear; make a server of each", s.Name)
		}
	}
	return addresses
}

// controlPorts checks a server's ports against one another.
func (b *builder) controlPorts(key string, s *Server) {
	b.distinct(key, s.Explicit, s.Implicit)
	for _, port := range slices.Concat(s.Explicit, s.Implicit) {
		if s.Passive.Contains(port) {
			b.fault(key+".passive", "%v holds control port %d; keep control and data ports apart", s.Passive, port)
		}
	}
}

// distinct checks the control ports of one face of a server.
func (b *builder) distinct(key string, explicit, implicit []uint16) {
	if len(explicit)+len(implicit) == 0 {
		b.fault(key, "no control port; list one under explicit or implicit")
	}
	for _, port := range implicit {
		if slices.Contains(explicit, port) {
			b.fault(key+".implicit", "port %d is under explicit too; TLS either comes first or it does not, remove one", port)
		}
	}
}

// located is an address of the file, where it came from, and whose it is.
type located struct {
	prefix netip.Prefix
	key    string
	face   face
}

func sorted(all []located) []netip.Prefix {
	list := make([]netip.Prefix, len(all))
	for i, a := range all {
		list[i] = a.prefix
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

// indexServers orders the addresses of all servers for look-up. An address belongs to one server at most, or which
// rule decides would be a matter of luck.
func (b *builder) indexServers(all []located) {
	slices.SortStableFunc(all, func(x, y located) int { return comparePrefix(x.prefix, y.prefix) })
	for i, a := range all {
		// A prefix sorts before all that it contains, so the last one kept is the only one that can.
		if n := len(b.p.index); n > 0 && b.p.index[n-1].Overlaps(a.prefix) {
			owner := b.p.Servers[b.p.faces[n-1].server].Name
			b.fault(a.key, "%v is an address of server %q already, in %v; an address has one server", show(a.prefix), owner, show(b.p.index[n-1]))
			continue
		}
		b.p.index = append(b.p.index, all[i].prefix)
		b.p.faces = append(b.p.faces, a.face)
	}
}

func (b *builder) addresses(key string, raw []string) []located {
	if len(raw) == 0 {
		b.fault(key, "empty; list at least one address or prefix")
	}
	if len(raw) > maxAddresses {
		b.fault(key, "%d addresses; %d is the most, write prefixes", len(raw), maxAddresses)
		return nil
	}
	var list []located
	for i, text := range raw {
		at := index(key, i)
		prefix, problem := parsePrefix(text)
		if problem != "" {
			b.fault(at, "%q %s", text, problem)
			continue
		}
		if slices.ContainsFunc(list, func(l located) bool { return l.prefix == prefix }) {
			b.fault(at, "%q is listed twice; remove one", text)
			continue
		}
		list = append(list, located{prefix: prefix, key: at})
	}
	return list
}

// parsePrefix reads an address or a prefix, and says what is wrong with one that cannot be used.
func parsePrefix(text string) (p netip.Prefix, problem string) {
	p, err := netip.ParsePrefix(text)
	addr, errAddr := netip.ParseAddr(text)
	if errAddr == nil {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil || addr.Zone() != "":
		return p, "is neither an address nor a prefix; write one such as 192.0.2.10, 192.0.2.0/24 or 2001:db8::/64"
	case p.Addr().Is4In6():
		return p, "is an IPv4 address in IPv6 form, which never goes over the wire; write " + p.Addr().Unmap().String()
	case p.Masked() != p:
		return p, "has host bits set; write " + p.Masked().String() + ", or the address without a length"
	case p.IsSingleIP() && p.Addr().IsUnspecified():
		return p, "is no host's address; for every address write " + netip.PrefixFrom(p.Addr(), 0).String()
	}
	return p, ""
}

// show prints a prefix as the policy file has it: a single address without its length.
func show(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func isPort(n int) bool { return 1 <= n && n <= 65535 }

func (b *builder) ports(key string, raw []int) []uint16 {
	ports := []uint16{}
	for i, port := range raw {
		at := index(key, i)
		switch {
		case !isPort(port):
			b.fault(at, "%d is not a TCP port; write 1 to 65535", port)
		case slices.Contains(ports, uint16(port)):
			b.fault(at, "port %d is listed twice; remove one", port)
		default:
			ports = append(ports, uint16(port))
		}
	}
	slices.Sort(ports)
	return ports
}

// passive reads FIRST-LAST. Ports below 1024 belong to services, so a data connection to one needs the operator's word.
func (b *builder) passive(key, text string) PortRange {
	if text == "none" {
		return PortRange{}
	}
	first, last, ok := parseRange(text)
	switch {
	case !ok:
		b.fault(key, "%q is no port range; write it as 50000-50100, or none", text)
	case first > last:
		b.fault(key, "%q runs backwards; write %d-%d", text, last, first)
	case first < 1024 && !b.p.PrivilegedPorts:
		b.fault(key, "%q reaches below 1024; begin at 1024, or set privileged-ports: allow", text)
	default:
		return PortRange{first, last}
	}
	return PortRange{}
}

func (b *builder) allClients(raw []rawClient) {
	if !b.count("clients", len(raw)) {
		return
	}
	for i, r := range raw {
		key := b.name("clients", i, r.Name, b.clients)
		addresses := b.addresses(key+".addresses", r.Addresses)
		b.p.Clients = append(b.p.Clients, Client{r.Name, sorted(addresses)})
	}
}

func (b *builder) allTests(raw []rawTest) {
	if !b.count("tests", len(raw)) {
		return
	}
	names := map[string]int{}
	for i, r := range raw {
		key := b.name("tests", i, r.Name, names)
		b.p.Tests = append(b.p.Tests, b.test(key, &r))
	}
}

func (b *builder) test(key string, r *rawTest) Test {
	t := Test{
		Name: r.Name, From: b.host(key+".from", r.From), To: b.host(key+".to", r.To),
		Command: r.Command, Expect: r.Expect, Line: b.places[key].line,
	}
	t.Dialogue = b.dialogue(key+".dialogue", r.Dialogue)
	if t.Port = uint16(r.Port); !isPort(r.Port) {
		b.fault(key+".port", "%d is not a TCP port; write 1 to 65535", r.Port)
	}
	if len(t.Dialogue) > 0 && t.Command != "" {
		b.fault(key+".command", "a test has a dialogue or a command, not both; make two tests of it")
	}
	if !printable(t.Command) {
		b.fault(key+".command", "%q has characters that cannot be printed; write the command alone, without a line end", t.Command)
	}
	if len(t.Dialogue) == 0 && t.Command == "" {
		b.choose(key+".expect", t.Expect, "allow", "deny")
	} else {
		b.choose(key+".expect", t.Expect, "allow", "deny", "pinhole")
	}
	return t
}

func (b *builder) host(key, text string) netip.Addr {
	p, problem := parsePrefix(text)
	if problem != "" || !p.IsSingleIP() || strings.Contains(text, "/") {
		b.fault(key, "%q is not one host's address; write one such as 192.0.2.10 or 2001:db8::10", text)
		return netip.Addr{}
	}
	return p.Addr()
}

// dialogue reads lines "C: text" and "S: text". The text is the engine's business.
func (b *builder) dialogue(key, text string) []Line {
	var lines []Line
	start, isBlock := b.texts[key]
	for i, s := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n") {
		if strings.TrimSpace(s) == "" {
			continue
		}
		at := b.places[key]
		if isBlock {
			at = place{start.line + i, start.column}
		}
		side, rest, found := strings.Cut(s, ":")
		if !found || side != "C" && side != "S" || !printable(rest) {
			b.faultAt(at, key, "%q is no line of a dialogue; begin it with C: or S: and keep to printable characters", s)
			continue
		}
		lines = append(lines, Line{side == "C", strings.TrimPrefix(rest, " "), at.line})
	}
	return lines
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
