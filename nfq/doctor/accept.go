package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ftpalg/nfq/rules"
)

// acceptCommand is the command that has a base chain accept packets of ftpalg's that it drops: each firewall's own, or a rule at
// the front of the chain.
func (f *Facts) acceptCommand(t *table, c *chain, flows []flow, host bool) string {
	need, mark := needs(flows), f.mark(host)
	if who := owner(t); mark != 0 && who != "firewalld" && who != "ufw" { // exactly what ftpalg accepts has it
		if t.tool == "nft" {
			return fmt.Sprintf("nft insert rule %s %s %s meta mark '&' %#x != 0 accept", t.family, t.name, c.name, mark)
		}
		return fmt.Sprintf("%s -w -I %s -m mark ! --mark 0/%#x -j ACCEPT", t.tool, c.name, mark)
	}
	switch who := owner(t); {
	case who == "firewalld":
		return f.firewalld(t, need, host)
	case who == "ufw" && !host:
		return ufwRoute(need)
	case t.tool == "nft":
		return nftAccept(t, c, need)
	case who == "Docker" && !host:
		return iptablesAccept(t, "DOCKER-USER", need)
	}
	return iptablesAccept(t, c.name, need)
}

// need is what has to be accepted for one address of a server.
type need struct {
	address   netip.Prefix
	ports     []uint16 // of new control connections
	following bool     // what belongs to connections that were accepted
}

func needs(flows []flow) []need {
	var list []need
	for _, fl := range flows {
		at := slices.IndexFunc(list, func(n need) bool { return n.address == fl.server.address })
		if at < 0 {
			at = len(list)
			list = append(list, need{address: fl.server.address})
		}
		n := &list[at]
		if fl.state != "new" {
			n.following = true
		} else if !slices.Contains(n.ports, fl.dport[0]) {
			n.ports = append(n.ports, fl.dport[0])
		}
	}
	return list
}

func (n need) v6() bool { return n.address.Addr().Is6() }

// host is the address as firewalls take it: without the length of a single address.
func (n need) host() string {
	if n.address.IsSingleIP() {
		return n.address.Addr().String()
	}
	return n.address.String()
}

func (n need) list(separator string) string {
	var words []string
	for _, p := range n.ports {
		words = append(words, strconv.Itoa(int(p)))
	}
	return strings.Join(words, separator)
}

// firewalld takes a policy from any zone to any (or to this machine itself). A rich rule names a port: the service ftp would
// bring the kernel's helper. What follows is accepted by firewalld itself.
func (f *Facts) firewalld(t *table, list []need, host bool) string {
	name, egress, chain := "ftpalg", "ANY", "filter_FWD_policy_"
	if host {
		name, egress, chain = "ftpalg-host", "HOST", "filter_IN_policy_"
	}
	const permanent = "firewall-cmd --permanent "
	var commands []string
	if !t.has(chain + name) {
		commands = append(commands, permanent+"--new-policy "+name,
			permanent+"--policy "+name+" --add-ingress-zone ANY", permanent+"--policy "+name+" --add-egress-zone "+egress)
	}
	for _, n := range list {
		family := "ipv4"
		if n.v6() {
			family = "ipv6"
		}
		for _, port := range n.ports {
			commands = append(commands, fmt.Sprintf("%s--policy %s --add-rich-rule 'rule family=%s destination address=%s port port=%d protocol=tcp accept'",
				permanent, name, family, n.host(), port))
		}
	}
	commands = append(commands, "firewall-cmd --reload")
	if f.reader() > 0 && f.Backend != rules.BackendNFT {
		commands = append(commands, f.install())
	}
	return strings.Join(commands, " && ")
}

// ufwRoute: what follows is accepted by ufw itself.
func ufwRoute(list []need) string {
	var commands []string
	for _, n := range list {
		if len(n.ports) > 0 {
			commands = append(commands, fmt.Sprintf("ufw route allow proto tcp to %s port %s", n.host(), n.list(",")))
		}
	}
	return strings.Join(commands, " && ")
}

func nftAccept(t *table, c *chain, list []need) string {
	var commands []string
	for _, n := range list {
		insert, family := fmt.Sprintf("nft insert rule %s %s %s ", t.family, t.name, c.name), "ip"
		if n.v6() {
			family = "ip6"
		}
		if len(n.ports) > 0 {
			commands = append(commands, fmt.Sprintf("%s%s daddr %s tcp dport { %s } accept", insert, family, n.host(), n.list(", ")))
		}
		if n.following {
			for _, way := range []string{"daddr", "saddr"} {
				commands = append(commands, fmt.Sprintf("%s%s %s %s ct state established,related accept", insert, family, way, n.host()))
			}
		}
	}
	return strings.Join(commands, " && ")
}

func iptablesAccept(t *table, chain string, list []need) string {
	var commands []string
	for _, n := range list {
		insert := fmt.Sprintf("%s -w -I %s", t.tool, chain)
		if len(n.ports) > 0 {
			commands = append(commands, fmt.Sprintf("%s -p tcp -d %s -m multiport --dports %s -j ACCEPT", insert, n.host(), n.list(",")))
		}
		if n.following {
			for _, way := range []string{"-d", "-s"} {
				commands = append(commands, fmt.Sprintf("%s -p tcp %s %s -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", insert, way, n.host()))
			}
		}
	}
	return strings.Join(commands, " && ")
}
