package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ftpalg/policy"
)

// prefix starts the name of every chain that is ours.
const prefix = "FTPALG-"

// multiportMax is how many ports xt_multiport takes in one rule.
const multiportMax = 15

// bypass lets packets of a queue go on that nobody reads.
const bypass = " --queue-bypass"

// reset refuses at once instead of letting the client wait for a timeout.
const reset = "-j REJECT --reject-with tcp-reset"

// IPTables makes the rules for a policy. A family in which the policy names no server gets none.
func IPTables(cfg Config) Ruleset {
	cfg = cfg.withDefaults()
	set := Ruleset{Variant: cfg.Variant}
	for _, v6 := range []bool{false, true} {
		b := newBuilder(cfg, v6)
		if len(b.servers) > 0 {
			set.Families = append(set.Families, Family{
				V6: v6, Routing: b.routing(), Tables: slices.Concat(b.translation(), []Table{b.raw(), b.mangle(), b.filter()}),
			})
		}
	}
	return set
}

// builder makes the rules of one family.
type builder struct {
	cfg     Config
	v6      bool
	servers []server
	nfqueue string // the target
}

// server is what the rules need of a server.
type server struct {
	*policy.Server
	own   []face // its own addresses, of this family
	faces []face // where clients reach it: there, and where DNAT leads to it
}

// face is one address at which clients reach a server.
type face struct {
	address netip.Prefix
	ports   []string // the control ports there, in multiport's lists
	all     []uint16 // the same, one by one
	public  bool     // DNAT leads from there to the server
}

func newBuilder(cfg Config, v6 bool) *builder {
	b := &builder{cfg: cfg, v6: v6, nfqueue: "-j NFQUEUE --queue-num " + strconv.Itoa(int(cfg.Queues[0]))}
	if cfg.Queues[1] > cfg.Queues[0] {
		// The kernel's hash takes both addresses in the same way in both directions, so that one pair of hosts,
		// control connections and data SYNs alike, stays in one queue and in order.
		b.nfqueue = fmt.Sprintf("-j NFQUEUE --queue-balance %d:%d", cfg.Queues[0], cfg.Queues[1])
	}
	if cfg.FailOpen {
		b.nfqueue += bypass
	}
	for i := range cfg.Policy.Servers {
		s := server{Server: &cfg.Policy.Servers[i]}
		s.own = b.faces(b.family(s.Addresses), slices.Concat(s.Explicit, s.Implicit), false)
		s.faces = slices.Clone(s.own)
		for _, p := range s.Public {
			s.faces = append(s.faces, b.faces(b.family(p.Addresses), slices.Concat(p.Explicit, p.Implicit), true)...)
		}
		if len(s.own) > 0 && len(s.own[0].all) > 0 {
			b.servers = append(b.servers, s)
		}
	}
	return b
}

// faces are some addresses with the same control ports.
func (b *builder) faces(addresses []netip.Prefix, ports []uint16, public bool) (all []face) {
	slices.Sort(ports)
	for _, a := range addresses {
		all = append(all, face{address: a, ports: multiport(ports), all: ports, public: public})
	}
	return all
}

// multiport gives ports as xt_multiport takes them.
func multiport(ports []uint16) (lists []string) {
	slices.Sort(ports)
	for some := range slices.Chunk(ports, multiportMax) {
		lists = append(lists, strings.Trim(strings.ReplaceAll(fmt.Sprint(some), " ", ","), "[]"))
	}
	return lists
}

// family picks the prefixes of this builder's family.
func (b *builder) family(prefixes []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is6() != b.v6 })
}

// any is the prefix of the whole family.
func (b *builder) any() netip.Prefix {
	if b.v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// clients lists the prefixes that a rule is for.
func (b *builder) clients(r *policy.Rule) []netip.Prefix {
	if named(r.From, "any") {
		return []netip.Prefix{b.any()}
	}
	var list []netip.Prefix
	for _, c := range b.cfg.Policy.Clients {
		if slices.Contains(r.From, c.Name) {
			list = append(list, b.family(c.Addresses)...)
		}
	}
	return list
}

// named reports whether a list of the policy includes a name, or everything.
func named(list []string, name string) bool {
	return len(list) == 0 || slices.Contains(list, "any") || slices.Contains(list, name)
}

// raw: what must happen before conntrack sees a packet.
func (b *builder) raw() Table {
	c := Chain{Name: prefix + "RAW", Hook: "PREROUTING"}
	b.dataGoesOn(&c, "! --syn ")
	for _, s := range b.servers {
		for _, f := range s.own {
			for _, ports := range f.ports {
				c.add("What a server says must come from where the server is: a client could forge the reply that opens a port.",
					"-s %s -p tcp -m multiport --sports %s -m rpfilter --invert -j DROP", f.address, ports)
			}
		}
		for _, f := range s.faces {
			for _, ports := range f.ports {
				c.add("A control connection gets its helper when conntrack creates it: without one it can have no expectation. (The first counts.)",
					"-d %s -p tcp -m multiport --dports %s -j CT --helper %s", f.address, ports, b.cfg.Helper)
			}
		}
	}
	for _, s := range b.servers {
		for i := range b.cfg.Policy.Rules {
			r := &b.cfg.Policy.Rules[i]
			if r.Action == policy.Inspect && named(r.To, s.Name) {
				b.justInTime(&c, s, r)
			}
		}
	}
	return Table{Name: "raw", Chains: []Chain{c}}
}

// dataGoesOn spares what has no control port, and is what else match says, the rest of a chain: most packets are such.
func (b *builder) dataGoesOn(c *Chain, match string) {
	if lists := multiport(b.controlPorts()); len(lists) == 1 {
		c.add("Data on its way, which most packets are.", "-p tcp %s-m multiport ! --ports %s -j RETURN", match, lists[0])
	}
}

// controlPorts are those of all servers, each once.
func (b *builder) controlPorts() (all []uint16) {
	for _, s := range b.servers {
		for _, f := range s.faces {
			all = append(all, f.all...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// source matches where a packet comes from, with a space behind it.
func source(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-s " + p.String() + " "
}

// notToGateway matches what does not go to the gateway itself.
const notToGateway = "-m addrtype ! --dst-type LOCAL "

// justInTime queues the SYNs that may get a pinhole just in time: this is the last moment before conntrack looks for
// an expectation. Where nobody reads the queue they go on, as without ftpalg a SYN opens nothing.
func (b *builder) justInTime(c *Chain, s server, r *policy.Rule) {
	queue := strings.TrimSuffix(b.nfqueue, bypass) + bypass
	for _, client := range b.clients(r) {
		for _, f := range s.faces {
			if r.OpaquePinhole && !s.Passive.IsZero() {
				elsewhere := notToGateway
				if f.public { // which is the gateway's, and DNAT leads from there to the server
					elsewhere = ""
				}
				c.addOnce("A data connection under TLS announces itself by its SYN to the passive range. Who is not owed one goes on unhelped.",
					"%s-d %s -p tcp --dport %d:%d --syn %s%s", source(client), f.address, s.Passive.First, s.Passive.Last, elsewhere, queue)
			}
		}
		for _, f := range s.own {
			if r.OpaqueActive {
				c.addOnce("The same in active mode: from the server to its clients.",
					"-s %s%s -p tcp --dport 1024:65535 --syn %s%s", f.address, match("-d", client), notToGateway, queue)
			}
		}
	}
}

// addOnce leaves out a rule that the chain has.
func (c *Chain) addOnce(why, format string, args ...any) {
	spec := fmt.Sprintf(format, args...)
	if !slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.Spec == spec }) {
		c.Rules = append(c.Rules, Rule{Spec: spec, Why: why})
	}
}

// match is an address match, or nothing for the prefix that everything matches.
func match(option string, p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return " " + option + " " + p.String()
}

// mangle hands terminated connections to ftpalg's sockets, and queues the payload of the other control connections, after
// conntrack and before DNAT. Ports decide what is queued and not conntrack's state: what conntrack calls INVALID would slip
// past otherwise.
func (b *builder) mangle() Table {
	c, pickup := Chain{Name: prefix + "MANGLE", Hook: "PREROUTING"}, b.pickup()
	c.add(pickupWhy, "-p tcp ! --syn -m conntrack --ctstate NEW -j %s", pickup.Name)
	more := append(b.terminate(&c), pickup)
	more = append(more, b.pickupOfOurs()...)
	more = append(more, b.labels()...)
	b.dataGoesOn(&c, "")
	payload := fmt.Sprintf(`-m bpf --bytecode "%s" %s`, PayloadBytecode(b.v6), b.nfqueue)
	for _, s := range b.servers {
		for _, f := range s.faces {
			for _, ports := range f.ports {
				c.add("Only segments with payload, of one byte or more, are read; the program is 'IP length > IP header + TCP header'.",
					"-d %s -p tcp -m multiport --dports %s %s", f.address, ports, payload)
				if !f.public {
					c.add("", "-s %s -p tcp -m multiport --sports %s %s", f.address, ports, payload)
					c.add("The server's SYN/ACK tells where a session begins: a new one takes nothing over from an old one between the same ports.",
						"-s %s -p tcp -m multiport --sports %s --tcp-flags FIN,SYN,RST,ACK SYN,ACK %s", f.address, ports, b.nfqueue)
				}
			}
		}
	}
	return Table{Name: "mangle", Chains: slices.Concat([]Chain{c}, more, b.carrierGuard())}
}

// filter decides what is forwarded, and lets ftpalg's own sockets through.
func (b *builder) filter() Table {
	main, data := Chain{Name: prefix + "FORWARD", Hook: "FORWARD"}, Chain{Name: prefix + "DATA"}
	main.add("A session that ftpalg ends: the packet left the queue with this mark.",
		"-p tcp -m mark --mark %#x/%#x %s", b.cfg.Mark, b.cfg.Mark, reset)
	if !b.cfg.NoAccept {
		main.add("Data connections: conntrack knows them as the children of a control connection with our helper.",
			"-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -m helper --helper %s -j %s", b.cfg.Helper, data.Name)
	}
	chains := []Chain{main}
	for i, s := range b.servers {
		decide := b.decide(s, prefix+"SERVER"+strconv.Itoa(i))
		for _, f := range s.faces {
			b.established(&chains[0], f)
		}
		for _, f := range s.own {
			b.control(&chains[0], f, decide.Name)
			data.add("The helper may carry other connections of yours: only those from and to a server of the policy are let through.",
				"-d %s -j ACCEPT", f.address)
			data.add("", "-s %s -j ACCEPT", f.address)
		}
		chains = append(chains, decide)
	}
	if !b.cfg.NoAccept {
		chains = append(append(chains, data), b.local()...)
	}
	return Table{Name: "filter", Chains: chains}
}

// established lets the control connections go on that were opened to one face of a server.
func (b *builder) established(c *Chain, f face) {
	if b.cfg.NoAccept {
		return
	}
	for _, port := range f.all {
		c.add("Both directions of a connection that was opened to a control port, and of no other with that source port.",
			"-p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst %s --ctorigdstport %d -j ACCEPT", f.address, port)
	}
}

// control handles new control connections to one of a server's own addresses; DNAT has led them there.
func (b *builder) control(c *Chain, f face, decide string) {
	for _, ports := range f.ports {
		c.add("New control connections: the policy's rules in their order. (Goto: what that chain leaves goes on behind this one.)",
			"-d %s -p tcp -m multiport --dports %s -m conntrack --ctstate NEW -g %s", f.address, ports, decide)
	}
}

// decide is the chain with the policy's rules for one server: first match wins, and nothing that matches is refused. Of
// connections that are to be terminated none gets here; that is refused as well.
func (b *builder) decide(s server, name string) Chain {
	c := Chain{Name: name}
	for i := range b.cfg.Policy.Rules {
		r := &b.cfg.Policy.Rules[i]
		if !named(r.To, s.Name) {
			continue
		}
		target := reset
		switch {
		case r.Action == policy.Inspect && b.cfg.NoAccept:
			target = "-j RETURN"
		case r.Action == policy.Inspect:
			target = "-j ACCEPT"
		}
		for _, client := range b.clients(r) {
			c.add(fmt.Sprintf("Rule %q of the policy, for server %q.", r.Name, s.Name),
				"%s", strings.TrimSpace(match("-s", client)+" -p tcp "+target))
		}
	}
	c.add(fmt.Sprintf("No rule of the policy lets anybody else to server %q.", s.Name), "-p tcp %s", reset)
	return c
}
