package rules

import "strings"

// Conntrack picks up a connection of which it has no entry from any of its packets (net.netfilter.nf_conntrack_tcp_loose). A
// client can bring that about in the middle of a session: a RST that does not reach the server has its entry forgotten. The new
// one would be without its helper, its marks and its label, and what was said before would be unknown. So a control connection
// is new by its SYN alone. A packet that is dropped here leaves no entry: conntrack keeps those whose first packet got through.

const (
	pickupWhy = "Conntrack picks connections up in the middle. A control connection begins with its SYN."
	ourWhy    = "The same for what ftpalg's own sockets send to clients."
)

// pickup is the chain for packets that are no SYN and that conntrack takes for the first of a connection.
func (b *builder) pickup() Chain {
	c := Chain{Name: prefix + "PICKUP"}
	for _, s := range b.servers {
		for _, f := range s.faces {
			for _, ports := range f.ports {
				c.add("", "-d %s -p tcp -m multiport --dports %s -j DROP", f.address, ports)
				c.add("", "-s %s -p tcp -m multiport --sports %s -j DROP", f.address, ports)
			}
		}
	}
	return c
}

// pickupOfOurs is the same for the packets of terminated sessions that leave this machine.
func (b *builder) pickupOfOurs() []Chain {
	c := Chain{Name: prefix + "OUTPUT", Hook: "OUTPUT"}
	for _, s := range b.servers {
		if !b.terminates(s) {
			continue
		}
		for _, f := range s.faces {
			for _, ports := range f.ports {
				c.add(ourWhy, "-s %s -p tcp ! --syn -m multiport --sports %s -m conntrack --ctstate NEW -j DROP", f.address, ports)
			}
		}
	}
	if len(c.Rules) == 0 {
		return nil
	}
	return []Chain{c}
}

// labelsWhy is about a rule that no packet meets.
const labelsWhy = "While a rule uses labels, conntrack makes room for one in each entry: ftpalg keeps there whether a session is in TLS."

// labels is a chain that nothing leads to.
func (b *builder) labels() []Chain {
	if b.cfg.NoLabels {
		return nil
	}
	c := Chain{Name: prefix + "LABELS"}
	c.add(labelsWhy, "-m connlabel --label 0")
	return []Chain{c}
}

// pickup makes the chains of nft that do the same.
func (n *nft) pickup(main *Chain) {
	midway := "ct state new " + strings.Replace(nftSyn, "==", "!=", 1) + " "
	main.add(pickupWhy, midway+"jump %s", pickupChain)
	c, ours := Chain{Name: pickupChain}, Chain{Name: "mangle_output", Hook: outputHook}
	for _, b := range n.builders {
		c.add("", "%s daddr . tcp dport @control%s drop", b.ip(), b.digit())
		c.add("", "%s saddr . tcp sport @control%s drop", b.ip(), b.digit())
		if n.has("terminated" + b.digit()) {
			ours.add(ourWhy, midway+"%s saddr @terminated%s %s saddr . tcp sport @control%s drop", b.ip(), b.digit(), b.ip(), b.digit())
		}
	}
	n.add(c, ours)
	if !n.cfg.NoLabels {
		labels := Chain{Name: "labels"}
		labels.add(labelsWhy, "ct label set 0") // a match would make no room (Linux 6.1)
		n.add(labels)
	}
}
