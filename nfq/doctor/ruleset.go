package doctor

import (
	"net/netip"
	"slices"
	"strings"
)

// table is one table of somebody's packet filter rules, with what the doctor has to understand of it.
type table struct {
	tool   string // iptables, ip6tables, iptables-legacy, ip6tables-legacy, or nft
	family string // ip, ip6, inet, arp, bridge, netdev
	name   string
	chains []*chain
}

type chain struct {
	name     string
	hook     string // forward, input, …; empty where only other chains lead here
	priority int
	policy   effect // what becomes of what no rule decides; accept or drop
	rules    []rule
}

type rule struct {
	matches []match
	does    effect
	to      string // the chain, where does is call or tail
	text    string // as people know it
	remove  string // the command that deletes it

	notrack bool
	helper  string     // conntrack helper that it assigns
	queues  *[2]uint16 // first and last queue that it sends packets to
	nat     string     // masquerade, snat, dnat, redirect
	offload string     // flowtable
}

// effect is what a rule does with a packet that it matches.
type effect uint8

const (
	goOn   effect = iota // the next rule
	accept               // this base chain is done with it
	drop                 // dropped or refused
	back                 // the calling chain
	call                 // another chain, and then the next rule
	tail                 // another chain, and then the calling chain
)

// answer says whether a packet is matched. Much of what rules can ask is not known of a packet that is only imagined.
type answer uint8

const (
	no answer = iota
	perhaps
	yes
)

// match is one condition of a rule.
type match func(packet) answer

func (m match) not() match {
	return func(p packet) answer { return yes - m(p) }
}

// unknown is a condition that the doctor does not understand.
func unknown(packet) answer { return perhaps }

func never(packet) answer { return no }

// packet is a packet that might come, as far as it is known.
type packet struct {
	v6           bool
	from, to     netip.Prefix // invalid: any address
	sport, dport ports
	in, out      string // interfaces; empty: not known
	state        string // conntrack's: new, established, related
	marks        uint32 // bits of its mark that are known to be on
	dnat         bool   // there are rules that may have changed its destination
}

// ports is a range of ports, first and last.
type ports [2]uint16

var (
	anyPort  = ports{0, 65535}
	highPort = ports{1024, 65535}
)

func onePort(n uint16) ports { return ports{n, n} }

// span is a range of addresses, first and last.
type span [2]netip.Addr

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(last)
	return span{p.Addr(), a}
}

// addressIn is the condition that one of a packet's addresses is in one of the spans.
func addressIn(which func(packet) netip.Prefix, spans []span) match {
	return func(p packet) answer {
		result := no
		for _, s := range spans {
			if s[0].Is6() != p.v6 {
				continue
			}
			prefix := which(p)
			if !prefix.IsValid() {
				prefix = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
				if p.v6 {
					prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
				}
			}
			have := spanOf(prefix)
			result = max(result, overlap(s[0].Compare(have[0]) <= 0 && have[1].Compare(s[1]) <= 0,
				have[0].Compare(s[1]) <= 0 && s[0].Compare(have[1]) <= 0))
		}
		return result
	}
}

func source(p packet) netip.Prefix { return p.from }

func destination(p packet) netip.Prefix { return p.to }

// portIn is the condition that one of a packet's ports is in one of the ranges.
func portIn(which func(packet) ports, ranges []ports) match {
	return func(p packet) answer {
		have, result := which(p), no
		for _, r := range ranges {
			result = max(result, overlap(r[0] <= have[0] && have[1] <= r[1], have[0] <= r[1] && r[0] <= have[1]))
		}
		return result
	}
}

func sourcePort(p packet) ports { return p.sport }

func destinationPort(p packet) ports { return p.dport }

func overlap(all, some bool) answer {
	switch {
	case all:
		return yes
	case some:
		return perhaps
	}
	return no
}

// stateIn is the condition that conntrack's state of the packet is one of the words.
func stateIn(words []string) match {
	return func(p packet) answer {
		if slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, p.state) }) {
			return yes
		}
		return no
	}
}

// isFamily is the condition that a packet is of IPv4, or of IPv6.
func isFamily(v6 bool) match {
	return func(p packet) answer {
		if p.v6 == v6 {
			return yes
		}
		return no
	}
}

// isTCP is the condition on a packet's protocol: all packets that the doctor asks about are TCP.
func isTCP(protocols []string) match {
	if slices.ContainsFunc(protocols, func(w string) bool { return slices.Contains([]string{"tcp", "6", "all", "0"}, w) }) {
		return nil
	}
	return never
}

// flagsAre is the condition that of the flags in mask exactly those in set are on. A new connection begins with a SYN; of
// other packets only that they have ACK on and SYN off is known, unless they are the second of a connection.
func flagsAre(mask, set []string) match {
	return func(p packet) answer {
		if p.state != "new" && p.state != "related" {
			return perhaps
		}
		for _, flag := range mask {
			if strings.EqualFold(flag, "syn") != slices.ContainsFunc(set, func(s string) bool { return strings.EqualFold(s, flag) }) {
				return no
			}
		}
		return yes
	}
}

// interfaceIn is the condition that an interface has one of the names, which may end in a wild card. What the doctor asks about
// is never on the loopback.
func interfaceIn(which func(packet) string, names []string) match {
	return func(p packet) answer {
		result := no
		for _, name := range names {
			start, wild := strings.CutSuffix(strings.Replace(name, "+", "*", 1), "*")
			switch have := which(p); {
			case have == "" && name != "lo":
				result = max(result, perhaps)
			case have != "" && (have == name || wild && strings.HasPrefix(have, start)):
				result = yes
			}
		}
		return result
	}
}

func inInterface(p packet) string { return p.in }

func outInterface(p packet) string { return p.out }

// markIs is the condition that the bits of the mark that are in mask are those of value.
func markIs(value, mask uint32) match {
	return func(p packet) answer {
		if p.marks&mask&^value != 0 {
			return no
		}
		return perhaps
	}
}

// isDNAT is the condition that conntrack has changed the destination.
func isDNAT(p packet) answer {
	if p.dnat {
		return perhaps
	}
	return no
}

// fits reports whether a rule matches a packet.
func (r *rule) fits(p packet) answer {
	result := yes
	for _, m := range r.matches {
		result = min(result, m(p))
	}
	return result
}

// outcome is what may become of a packet.
type outcome struct {
	accept, drop bool
	on           bool   // it comes out at the chain's end
	dropper      string // the first rule or policy that may drop it
	dropChain    string
}

func (o *outcome) add(other outcome) {
	if o.dropper == "" {
		o.dropper, o.dropChain = other.dropper, other.dropChain
	}
	o.accept, o.drop = o.accept || other.accept, o.drop || other.drop
}

// walk follows one packet through a table.
type walk struct {
	table   *table
	packet  packet
	visit   func(*chain, *rule) // called for each rule that may match; may be nil
	visited map[string]outcome
}

// through says what may become of a packet in a base chain.
func (t *table) through(c *chain, p packet, visit func(*chain, *rule)) outcome {
	w := walk{table: t, packet: p, visit: visit, visited: map[string]outcome{}}
	o := w.chain(c)
	if o.on && c.policy == drop {
		o.add(outcome{drop: true, dropper: "policy drop", dropChain: c.name})
	}
	o.accept = o.accept || o.on && c.policy != drop
	o.on = false
	return o
}

// chain follows the packet through one chain. A chain is walked once, however many rules lead to it. The kernel allows no
// loops; one in a damaged listing ends where it began.
func (w *walk) chain(c *chain) outcome {
	if o, ok := w.visited[c.name]; ok {
		return o
	}
	w.visited[c.name] = outcome{on: true}
	o := w.rules(c)
	w.visited[c.name] = o
	return o
}

func (w *walk) rules(c *chain) (o outcome) {
	for i := range c.rules {
		r := &c.rules[i]
		fits := r.fits(w.packet)
		if fits == no {
			continue
		}
		if w.visit != nil {
			w.visit(c, r)
		}
		end := r.does
		var sub outcome
		if next := w.table.chain(r.to); (end == call || end == tail) && next != nil {
			sub = w.chain(next)
		} else if end == call || end == tail {
			end = goOn
		}
		switch end {
		case accept:
			o.accept = true
		case drop:
			o.add(outcome{drop: true, dropper: r.text, dropChain: c.name})
		case back:
			o.on = true
		case call:
			o.add(sub)
		case tail:
			o.add(sub)
			o.on = o.on || sub.on
		}
		if fits == yes && end != goOn && (end != call || !sub.on) {
			return o
		}
	}
	o.on = true
	return o
}

func (t *table) chain(name string) *chain {
	for _, c := range t.chains {
		if c.name == name {
			return c
		}
	}
	return nil
}

// has reports whether a table has a chain whose name begins like that.
func (t *table) has(prefix string) bool {
	return slices.ContainsFunc(t.chains, func(c *chain) bool { return strings.HasPrefix(c.name, prefix) })
}

// covers reports whether packets of a family pass through the table.
func (t *table) covers(v6 bool) bool {
	return t.family == "inet" || t.family == "ip" && !v6 || t.family == "ip6" && v6
}
