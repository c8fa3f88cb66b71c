package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ftpalg/policy"
)

// nftTable is the table of ours, for IPv4 and IPv6 alike.
const nftTable = "inet ftpalg"

// Base chains of the table: where they hang, and what they can therefore do.
const (
	// rawHook comes before conntrack looks for expectations.
	rawHook = "type filter hook prerouting priority raw; policy accept;"
	// mangleHook comes after conntrack and before DNAT: a helper that is set here is there when NAT makes its extension for
	// what the kernel rewrites, and every packet shows one of its conntrack entry's two tuples.
	mangleHook = "type filter hook prerouting priority mangle; policy accept;"
	// natHook comes before others' DNAT: the first chain that gives a connection an address decides.
	natHook = "type nat hook prerouting priority dstnat - 10; policy accept;"
	// outputHook comes after conntrack.
	outputHook = "type filter hook output priority mangle; policy accept;"
	// forwardHook comes before the chains of others, which mostly have the priority filter or a later one: they see the mark
	// of what was accepted, and who is refused hears of it though they drop.
	forwardHook = "type filter hook forward priority filter - 10; policy accept;"
)

// Chains that others lead to.
const (
	terminatedChain = "terminated"
	socketsChain    = "sockets"
	toSocketChain   = "to_socket"
	toListenerChain = "to_listener"
	payloadChain    = "payload"
	pickupChain     = "pickup"
	dataChain       = "data"
	acceptedChain   = "accepted"

	flowtable = "data_connections"
)

const (
	otherTraffic = "Other than TCP is none of ours."
	notTCP       = "meta l4proto != tcp accept"

	nftReset = "reject with tcp reset"
	nftSyn   = "tcp flags & (fin|syn|rst|ack) == syn"
	// nftSynAck matches what answers a SYN.
	nftSynAck = "tcp flags & (fin|syn|rst|ack) == (syn|ack)"
)

// NFTable is the rules of one configuration as a table of nft's.
type NFTable struct {
	families []Family // with their routing, and without tables
	accept   string   // matches what was accepted; empty if nothing is
	helpers  []string
	devices  []string // of the flowtable
	sets     []set
	chains   []Chain
}

// set is a named set, or a map that leads to chains.
type set struct {
	kind, name, types string
	elements          []string
}

// flags is what the set needs beside its type: a set without prefixes and ranges is a hash, which is the fastest.
func (s set) flags() string {
	if slices.ContainsFunc(s.elements, func(e string) bool { return strings.ContainsAny(e, "/-") }) {
		return "\t\tflags interval\n"
	}
	return ""
}

// NFTables makes the rules for a policy. They do what those of IPTables do, with one difference that is nft's: what a chain
// accepts goes on to the chains of other tables at the same hook, which may drop it. So it gets a mark, for them to see.
func NFTables(cfg Config) NFTable {
	n := nft{cfg: cfg.withDefaults()}
	for _, v6 := range []bool{false, true} {
		if b := newBuilder(n.cfg, v6); len(b.servers) > 0 {
			n.builders = append(n.builders, b)
			n.table.families = append(n.table.families, Family{V6: v6, Routing: b.routing()})
		}
	}
	if len(n.builders) == 0 {
		return NFTable{}
	}
	if !n.cfg.NoAccept {
		n.table.accept = fmt.Sprintf("meta mark & %#x != 0", n.cfg.Terminate.Own|n.cfg.Terminate.Divert)
	}
	if !n.cfg.NoAccept {
		n.table.devices = n.cfg.Flowtable
	}
	n.allSets()
	n.raw()
	n.mangle()
	n.carrierGuard()
	n.translation()
	n.filter()
	return n.table
}

// nft makes the table from what the builders of both families know.
type nft struct {
	cfg      Config
	builders []*builder
	table    NFTable
}

// ip is nft's word for the family's header, and digit ends the names of its sets.
func (b *builder) ip() string {
	if b.v6 {
		return "ip6"
	}
	return "ip"
}

func (b *builder) digit() string {
	if b.v6 {
		return "6"
	}
	return "4"
}

// add adds a chain, if it has any rules.
func (n *nft) add(chains ...Chain) {
	for _, c := range chains {
		if len(c.Rules) > 0 {
			n.table.chains = append(n.table.chains, c)
		}
	}
}

// has reports whether there is a set of that name.
func (n *nft) has(name string) bool {
	return slices.ContainsFunc(n.table.sets, func(s set) bool { return s.name == name })
}

// nftBypass lets packets of a queue go on that nobody reads.
const nftBypass = " bypass"

// queue is the statement that queues a packet. As with iptables, the kernel's hash keeps a pair of hosts in one queue.
func (n *nft) queue() string {
	q := fmt.Sprintf("queue num %d", n.cfg.Queues[0])
	if n.cfg.Queues[1] > n.cfg.Queues[0] {
		q += fmt.Sprintf("-%d", n.cfg.Queues[1])
	}
	if n.cfg.FailOpen {
		q += nftBypass
	}
	return q
}

// ports are all control ports as an anonymous set, which costs a packet far less than one of addresses and ports.
func (n *nft) ports() string {
	var all []uint16
	for _, b := range n.builders {
		all = append(all, b.controlPorts()...)
	}
	slices.Sort(all)
	return "{ " + strings.Trim(strings.ReplaceAll(fmt.Sprint(slices.Compact(all)), " ", ", "), "[]") + " }"
}

// allSets makes the sets of end points that the rules look packets up in.
func (n *nft) allSets() {
	for _, b := range n.builders {
		address := "ipv4_addr"
		if b.v6 {
			address = "ipv6_addr"
		}
		n.table.helpers = append(n.table.helpers, fmt.Sprintf("ct helper helper%s { type \"%s\" protocol tcp; l3proto %s; }", b.digit(), n.cfg.Helper, b.ip()))
		add := func(kind, name, types string, elements []string) {
			if len(elements) > 0 {
				n.table.sets = append(n.table.sets, set{kind, name + b.digit(), address + types, elements})
			}
		}
		if !n.cfg.NoAccept {
			add("set", "servers", "", b.each(func(s server) []string { return texts(addresses(s.own)) }))
		}
		add("set", "control", " . inet_service", b.each(func(s server) []string { return endPoints(s.faces) }))
		add("map", "decide", " . inet_service : verdict", b.each(func(s server) []string {
			return suffixed(endPoints(s.own), " : goto "+n.chain("server", s.Server))
		}))
		add("set", "passive", " . "+address+" . inet_service", b.each(func(s server) []string { return b.passive(s, s.own) }))
		add("set", "public", " . "+address+" . inet_service", b.each(func(s server) []string { return b.passive(s, s.faces[len(s.own):]) }))
		add("set", "active", " . "+address, b.each(b.active))
		add("set", "terminated", "", b.terminated(func(s server) []string { return texts(addresses(s.faces)) }))
		add("map", "terminate", " . inet_service : verdict", b.terminated(func(s server) []string {
			if b.lastTerminate(s) < 0 {
				return nil
			}
			return suffixed(endPoints(s.faces), " : jump "+n.chain("terminate", s.Server))
		}))
	}
}

// each puts together what f gives for every server.
func (b *builder) each(f func(server) []string) (all []string) {
	for _, s := range b.servers {
		all = append(all, f(s)...)
	}
	return all
}

// terminated does the same for the servers with connections that are terminated.
func (b *builder) terminated(f func(server) []string) []string {
	return b.each(func(s server) []string {
		if !b.terminates(s) {
			return nil
		}
		return f(s)
	})
}

// chain names the chain of a server; the number is its position in the policy.
func (n *nft) chain(kind string, s *policy.Server) string {
	return fmt.Sprint(kind, slices.IndexFunc(n.cfg.Policy.Servers, func(p policy.Server) bool { return p.Name == s.Name }))
}

// serves reports whether a server has addresses and ports in this family.
func (b *builder) serves(s *policy.Server) bool {
	return slices.ContainsFunc(b.servers, func(have server) bool { return have.Server == s })
}

// endPoints lists addresses with each of their control ports, as "ADDRESS . PORT".
func endPoints(faces []face) (list []string) {
	for _, f := range faces {
		for _, port := range f.all {
			list = append(list, fmt.Sprintf("%s . %d", text(f.address), port))
		}
	}
	return list
}

func addresses(faces []face) (list []netip.Prefix) {
	for _, f := range faces {
		list = append(list, f.address)
	}
	return list
}

// passive lists whose just-in-time pinholes may lead where, as "CLIENT . ADDRESS . FIRST-LAST".
func (b *builder) passive(s server, faces []face) (list []string) {
	if s.Passive.IsZero() {
		return nil
	}
	var clients []netip.Prefix
	for _, r := range b.inspecting(s) {
		if r.OpaquePinhole {
			clients = append(clients, b.clients(r)...)
		}
	}
	for _, a := range addresses(faces) {
		for _, c := range disjoint(clients) {
			list = append(list, fmt.Sprintf("%s . %s . %d-%d", text(c), text(a), s.Passive.First, s.Passive.Last))
		}
	}
	return list
}

// active lists between whom those of active mode may be, as "SERVER . CLIENT".
func (b *builder) active(s server) (list []string) {
	var clients []netip.Prefix
	for _, r := range b.inspecting(s) {
		if r.OpaqueActive {
			clients = append(clients, b.clients(r)...)
		}
	}
	for _, a := range addresses(s.own) {
		for _, c := range disjoint(clients) {
			list = append(list, text(a)+" . "+text(c))
		}
	}
	return list
}

// inspecting lists the rules that inspect connections to a server.
func (b *builder) inspecting(s server) (list []*policy.Rule) {
	for i := range b.cfg.Policy.Rules {
		if r := &b.cfg.Policy.Rules[i]; r.Action == policy.Inspect && named(r.To, s.Name) {
			list = append(list, r)
		}
	}
	return list
}

// disjoint leaves out prefixes that lie within others: elements of a set may not overlap.
func disjoint(list []netip.Prefix) (kept []netip.Prefix) {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	for _, p := range list {
		// A prefix sorts before all that it contains, and only the last one kept can contain this one.
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// text is a prefix as nft prints it: an address alone without its length.
func text(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func texts(prefixes []netip.Prefix) (list []string) {
	for _, p := range prefixes {
		list = append(list, text(p))
	}
	return list
}

func suffixed(list []string, suffix string) []string {
	for i := range list {
		list[i] += suffix
	}
	return list
}

// from matches clients, or is nothing where everybody is meant.
func (b *builder) from(clients []netip.Prefix) string {
	clients = disjoint(clients)
	switch {
	case clients[0].Bits() == 0:
		return ""
	case len(clients) == 1:
		return b.ip() + " saddr " + text(clients[0]) + " "
	}
	return b.ip() + " saddr { " + strings.Join(texts(clients), ", ") + " } "
}

// raw: what must happen before conntrack sees a packet.
func (n *nft) raw() {
	c := Chain{Name: "raw_prerouting", Hook: rawHook}
	c.add(otherTraffic, notTCP)
	c.add("Data on its way, which most packets are: no look-up for what is no SYN and comes from no control port.",
		"%s tcp sport != %s accept", strings.Replace(nftSyn, "==", "!=", 1), n.ports())
	for _, b := range n.builders {
		c.add("What a server says must come from where the server is: a client could forge the reply that opens a port.",
			"%s saddr . tcp sport @control%s fib saddr . iif oif missing drop", b.ip(), b.digit())
	}
	for _, b := range n.builders {
		n.justInTime(&c, b)
	}
	n.add(c)
}

// justInTime queues the SYNs that may get a pinhole just in time. Where nobody reads the queue they go on, as without ftpalg a SYN
// opens nothing; and so does what goes to the gateway itself, but at the public address of a server.
func (n *nft) justInTime(c *Chain, b *builder) {
	queue := strings.TrimSuffix(n.queue(), nftBypass) + nftBypass
	for _, kind := range []struct{ set, elsewhere string }{{"passive", notLocal}, {"public", ""}} {
		if n.has(kind.set + b.digit()) {
			c.add("A data connection under TLS announces itself by its SYN to the passive range. Who is not owed one goes on unhelped.",
				"%s saddr . %s daddr . tcp dport @%s%s %s %s%s", b.ip(), b.ip(), kind.set, b.digit(), nftSyn, kind.elsewhere, queue)
		}
	}
	if n.has("active" + b.digit()) {
		c.add("The same in active mode: from the server to its clients.",
			"%s saddr . %s daddr @active%s tcp dport 1024-65535 %s %s%s", b.ip(), b.ip(), b.digit(), nftSyn, notLocal, queue)
	}
}

// notLocal matches what does not go to the gateway itself.
const notLocal = "fib daddr type != local "

// mangle assigns the helper, hands terminated connections to ftpalg's sockets, and queues the payload of the other control
// connections. Ports decide what is queued and not conntrack's state: what conntrack calls INVALID would slip past otherwise.
func (n *nft) mangle() {
	c := Chain{Name: "mangle_prerouting", Hook: mangleHook}
	c.add(otherTraffic, notTCP)
	n.pickup(&c)
	for _, b := range n.builders {
		c.add("A control connection gets its helper with its first packet: without one it can have no expectation. (The first counts.)",
			"tcp dport %s %s daddr . tcp dport @control%s ct helper set \"helper%s\"", n.ports(), b.ip(), b.digit(), b.digit())
	}
	for _, b := range n.builders {
		if n.has("terminated" + b.digit()) {
			c.add("Servers with connections that ftpalg terminates.",
				"%s saddr @terminated%s meta l4proto tcp jump %s", b.ip(), b.digit(), terminatedChain)
			c.add("", "%s daddr @terminated%s meta l4proto tcp jump %s", b.ip(), b.digit(), terminatedChain)
		}
	}
	c.add("Data on its way.", "tcp dport != %s tcp sport != %s accept", n.ports(), n.ports())
	for _, b := range n.builders {
		c.add("Control connections.", "%s daddr . tcp dport @control%s goto %s", b.ip(), b.digit(), payloadChain)
		c.add("", "%s saddr . tcp sport @control%s goto %s", b.ip(), b.digit(), payloadChain)
	}
	n.add(c)
	n.terminate()
	p := Chain{Name: payloadChain}
	p.add("Only segments with payload are read: those that have a first byte behind the TCP header.", "@ih,0,8 >= 0 %s", n.queue())
	p.add("And those with URG: without payload they can announce that a later byte is urgent.", "tcp flags & urg == urg %s", n.queue())
	p.add("The server's SYN/ACK tells where a session begins: a new one takes nothing over from an old one between the same ports.",
		"%s %s", nftSynAck, n.queue())
	n.add(p)
}

// terminate makes the chains that hand connections to ftpalg's sockets. Accept means here that the rest of the table's own
// chain is skipped: what ftpalg's sockets get it need not read on the way.
func (n *nft) terminate() {
	t := n.cfg.Terminate
	c, sockets, toSocket := Chain{Name: terminatedChain}, Chain{Name: socketsChain}, Chain{Name: toSocketChain}
	listener := Chain{Name: toListenerChain}
	c.add("Data connections of terminated sessions that go direct. A relayed one between the same ports, a moment ago, may "+
		"have left a socket that waits (TIME-WAIT): their packets are not for it.",
		"ct status expected ct mark & %#x == %#x accept", t.Control|t.Relay, t.Control)
	c.add("Packets of connections that ftpalg's transparent sockets hold, on either side. (A SYN may find the socket of a "+
		"connection that is over: it is for the listener.)",
		"tcp flags & (fin|syn|rst|ack) != syn jump %s", socketsChain)
	sockets.add("Somebody's listener for any address is not meant.", "socket wildcard 1 return")
	sockets.add("", "socket transparent 1 goto %s", toSocketChain)
	toSocket.add("Policy routing sends what has this mark to this machine itself.", "meta mark set meta mark | %#x accept", t.Divert)
	listener.add("To ftpalg's listener, with the addresses as they are; where nobody listens, nowhere.", "ct mark set ct mark | %#x", t.Control)
	for _, b := range n.builders {
		if !n.has("terminated" + b.digit()) {
			continue
		}
		c.add("Terminated control connections without a socket (yet, with SYN cookies; or any more): never forwarded.",
			"%s daddr . tcp dport @control%s ct mark & %#x == %#x goto %s", b.ip(), b.digit(), t.Control, t.Control, toListenerChain)
		if n.has("terminate" + b.digit()) {
			c.add("New control connections: the policy's rules in their order say which are terminated.",
				"ct state new %s daddr . tcp dport vmap @terminate%s", b.ip(), b.digit())
		}
		address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if b.v6 {
			address = netip.IPv6Loopback()
		}
		listener.add("", "meta l4proto tcp tproxy %s to %s meta mark set meta mark | %#x accept",
			b.ip(), netip.AddrPortFrom(address, t.Port), t.Divert)
	}
	if len(listener.Rules) == 1 {
		return // nothing is terminated
	}
	c.add("Data connections that ftpalg relays: they inherit the connmark of their control connection.",
		"ct mark & %#x == %#x goto %s", t.Relay, t.Relay, toListenerChain)
	listener.add("", "drop")
	n.add(c, sockets, toSocket, listener)
	for i := range n.cfg.Policy.Servers {
		n.add(n.steer(&n.cfg.Policy.Servers[i]))
	}
}

// translation keeps what goes to ftpalg's sockets out of DNAT, as with iptables: it is led to where it was going.
func (n *nft) translation() {
	c := Chain{Name: "nat_prerouting", Hook: natHook}
	for _, b := range n.builders {
		if b.terminatesPublic() {
			c.add("What is for ftpalg's own sockets is not for DNAT.",
				"meta mark & %#x != 0 dnat %s to %s daddr", n.cfg.Terminate.Divert, b.ip(), b.ip())
		}
	}
	n.add(c)
}

// steer is the chain with the policy's rules for one server, up to the last that terminates: first match wins, as in decide.
// What returns from it is not terminated.
func (n *nft) steer(s *policy.Server) Chain {
	c, last := Chain{Name: n.chain("terminate", s)}, -1
	for _, b := range n.builders {
		if b.serves(s) {
			last = max(last, b.lastTerminate(server{Server: s}))
		}
	}
	n.rules(&c, s, n.cfg.Policy.Rules[:last+1], func(r *policy.Rule) string {
		if r.Action == policy.Terminate {
			return "goto " + toListenerChain
		}
		return "return"
	})
	return c
}

// rules adds rules of the policy to the chain of a server, for the families in which it has addresses.
func (n *nft) rules(c *Chain, s *policy.Server, rules []policy.Rule, target func(*policy.Rule) string) {
	for i := range rules {
		r := &rules[i]
		for _, b := range n.builders {
			clients := b.clients(r)
			if named(r.To, s.Name) && b.serves(s) && len(clients) > 0 {
				c.addOnce(fmt.Sprintf("Rule %q of the policy, for server %q.", r.Name, s.Name), "%s%s", b.from(clients), target(r))
			}
		}
	}
}

// filter decides what is forwarded.
func (n *nft) filter() {
	main, data, accepted := Chain{Name: "filter_forward", Hook: forwardHook}, Chain{Name: dataChain}, Chain{Name: acceptedChain}
	if !n.cfg.NoAccept {
		main.add("Data connections: conntrack knows them as the children of a control connection with our helper.",
			"meta l4proto tcp ct state established,related ct helper \"%s\" goto %s", n.cfg.Helper, dataChain)
		if len(n.table.devices) > 0 {
			data.add("Data connections that stand go from interface to interface past all rules (and what they no longer pass cannot count or log them).",
				"ct state established flow add @%s", flowtable)
		}
		accepted.add("Chains of other tables can accept what has this mark.", "meta mark set meta mark | %#x accept", n.cfg.Terminate.Own)
	}
	main.add("A session that ftpalg ends: the packet left the queue with this mark.",
		"meta mark & %#x == %#x meta l4proto tcp %s", n.cfg.Mark, n.cfg.Mark, nftReset)
	for _, b := range n.builders {
		if !n.cfg.NoAccept {
			main.add("Both directions of a connection that was opened to a control port, and of no other with that source port.",
				"meta l4proto tcp ct state established ct original %s daddr . ct original proto-dst @control%s goto %s", b.ip(), b.digit(), acceptedChain)
			data.add("The helper may carry other connections of yours: only those from and to a server of the policy are let through.",
				"%s daddr @servers%s goto %s", b.ip(), b.digit(), acceptedChain)
			data.add("", "%s saddr @servers%s goto %s", b.ip(), b.digit(), acceptedChain)
		}
		main.add("New control connections: the policy's rules in their order.",
			"ct state new %s daddr . tcp dport vmap @decide%s", b.ip(), b.digit())
	}
	n.add(main)
	for i := range n.cfg.Policy.Servers {
		n.add(n.decide(&n.cfg.Policy.Servers[i]))
	}
	n.add(data, accepted)
}

// decide is the chain with the policy's rules for one server: first match wins, and nothing that matches is refused. Of
// connections that are to be terminated none gets here; that is refused as well.
func (n *nft) decide(s *policy.Server) Chain {
	c := Chain{Name: n.chain("server", s)}
	if !slices.ContainsFunc(n.builders, func(b *builder) bool { return b.serves(s) }) {
		return c
	}
	n.rules(&c, s, n.cfg.Policy.Rules, func(r *policy.Rule) string {
		switch {
		case r.Action == policy.Inspect && n.cfg.NoAccept:
			return "accept"
		case r.Action == policy.Inspect:
			return "goto " + acceptedChain
		}
		return nftReset
	})
	c.add(fmt.Sprintf("No rule of the policy lets anybody else to server %q.", s.Name), nftReset)
	return c
}
