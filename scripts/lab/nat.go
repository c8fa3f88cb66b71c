package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Insider is a client in the servers' own network. Only a lab with hairpin NAT has one.
const Insider Host = "insider"

// The addresses that only the gateway's NAT knows.
var (
	publicFirst  = netip.MustParseAddr("203.0.113.2")
	publicSecond = netip.MustParseAddr("203.0.113.3")
	sourcePool   = netip.MustParsePrefix("203.0.113.32/30")
	insider      = edge(Insider, "198.51.100.10", "2001:db8:2::10", "198.51.100.1", "2001:db8:2::1")
)

// NAT is what the administrator of a gateway has it do to IPv4 addresses. The zero value does nothing.
type NAT struct {
	Name    string
	masks   bool         // clients get an address of the gateway's
	pool    bool         // one of sourcePool
	public  []netip.Addr // where clients reach the server, for which DNAT stands there; the lab's use the last
	shifted bool         // on other control ports
	hairpin bool         // the client sits in the servers' network, and goes the way over the public address
}

// NATs are the kinds of NAT that the lab knows.
var NATs = []NAT{
	{Name: "none"},
	{Name: "snat", masks: true},
	{Name: "pool", masks: true, pool: true},
	{Name: "dnat", public: []netip.Addr{publicFirst}},
	{Name: "both", masks: true, public: []netip.Addr{publicFirst}},
	{Name: "shift", public: []netip.Addr{publicFirst}, shifted: true},
	{Name: "several", public: []netip.Addr{publicFirst, publicSecond}},
	{Name: "hairpin", masks: true, public: []netip.Addr{publicFirst}, hairpin: true},
}

// of is what the NAT does to a family's addresses: nothing to IPv6, which goes beside it.
func (n NAT) of(family Family) NAT {
	if family == IPv6 {
		return NAT{Name: n.Name}
	}
	return n
}

// client is the host that the client runs on.
func (n NAT) client() Host {
	if n.hairpin {
		return Insider
	}
	return Client
}

// clientAddr is the client's own address.
func (n NAT) clientAddr(family Family) netip.Addr {
	if n.hairpin {
		return insider.v4
	}
	return Addr(Client, family)
}

// port is the control port that clients connect to.
func (n NAT) port(p Protection) uint16 {
	switch {
	case !n.shifted:
		return p.Port()
	case p == Implicit:
		return 9990
	}
	return 2121
}

// reach is where clients connect to for a scenario.
func (n NAT) reach(s Scenario) netip.AddrPort {
	n = n.of(s.Family)
	at := Addr(Server, s.Family)
	if len(n.public) > 0 {
		at = n.public[len(n.public)-1]
	}
	return netip.AddrPortFrom(at, n.port(s.Protection))
}

// seen is what the server sees of clients.
func (n NAT) seen(family Family) netip.Prefix {
	from := Addr(Client, family)
	switch n = n.of(family); {
	case n.pool:
		return sourcePool
	case n.masks:
		from = insider.gw4
	}
	return netip.PrefixFrom(from, from.BitLen())
}

// publish adds to a policy what it has to know of the NAT.
func (n NAT) publish(policy string) string {
	if len(n.public) > 0 {
		entry := fmt.Sprintf("    public: [{addresses: %s, explicit: [%d], implicit: [%d]}]\n",
			strings.ReplaceAll(fmt.Sprint(n.public), " ", ", "), n.port(Explicit), n.port(Implicit))
		policy = strings.Replace(policy, "    passive:", entry+"    passive:", 1)
	}
	if n.hairpin {
		policy = strings.Replace(policy, "[192.0.2.0/24,", "[192.0.2.0/24, 198.51.100.0/24,", 1)
	}
	return policy
}

// translate sets a lab's gateway up for the NAT, with rules that belong to its administrator, as far as control connections
// need it. Addresses behind NAT have no route from the other side.
func (l *Lab) translate(ctx context.Context, n NAT) error {
	if n.hairpin {
		if err := l.addInsider(ctx); err != nil {
			return err
		}
		// Where a bridge calls iptables itself, what TPROXY finds is lost on the way to the routing: ftpalg doctor says so.
		if _, err := l.Run(ctx, Gateway, "sysctl", "-e", "-q", "-w", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"); err != nil {
			return err
		}
	}
	server := Addr(Server, IPv4).String()
	steps := []string{"iptables -w -P INPUT DROP"}
	for _, public := range n.public {
		steps = append(steps, fmt.Sprintf("ip addr add %s/32 dev lo", public))
		for _, p := range []Protection{Explicit, Implicit} {
			steps = append(steps, fmt.Sprintf("iptables -w -t nat -A PREROUTING -d %s -p tcp --dport %d -j DNAT --to-destination %s:%d",
				public, n.port(p), server, p.Port()))
		}
	}
	switch {
	case n.hairpin:
		steps = append(steps, "iptables -w -t nat -A POSTROUTING -s 198.51.100.0/24 -o inside -j MASQUERADE")
	case n.pool:
		steps = append(steps, "iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -o server -j SNAT --to-source 203.0.113.32-203.0.113.35")
	case n.masks:
		steps = append(steps, "iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -o server -j MASQUERADE")
	}
	if len(n.public) > 0 {
		// What the server itself begins has its first public address, as usual.
		steps = append(steps, fmt.Sprintf("iptables -w -t nat -A POSTROUTING -s %s -o client+ -j SNAT --to-source %s", server, n.public[0]))
	}
	if err := l.each(ctx, Gateway, steps...); err != nil {
		return err
	}
	return l.separate(ctx, n)
}

// separate takes the routes away that NAT makes unnecessary.
func (l *Lab) separate(ctx context.Context, n NAT) (err error) {
	if n.masks && !n.hairpin {
		for _, h := range []Host{Server, Server2} {
			err = errors.Join(err, l.each(ctx, h, "ip route add unreachable 192.0.2.0/24"))
		}
	}
	if len(n.public) > 0 {
		for _, h := range []Host{Client, Client2} {
			err = errors.Join(err, l.each(ctx, h, "ip route add unreachable 198.51.100.0/24"))
		}
	}
	return err
}

// each runs commands on a host, one after the other.
func (l *Lab) each(ctx context.Context, h Host, commands ...string) error {
	for _, command := range commands {
		argv := strings.Fields(command)
		if _, err := l.Run(ctx, h, argv[0], argv[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// addInsider turns the servers' side into one network, where hosts reach one another without the gateway, and puts a client
// there.
func (l *Lab) addInsider(ctx context.Context) error {
	if err := l.addHost(ctx, Insider); err != nil {
		return err
	}
	if err := l.connect(ctx, insider); err != nil {
		return err
	}
	if _, err := l.Run(ctx, Insider, "sysctl", "-q", "-w", portRange()); err != nil {
		return err
	}
	steps := []string{
		"ip link add inside type bridge", "ip link set inside up",
		fmt.Sprintf("ip addr add %s/24 dev inside", insider.gw4), fmt.Sprintf("ip addr add %s/64 dev inside nodad", insider.gw6),
	}
	for _, h := range []Host{Server, Server2, Insider} {
		// Its addresses and routes go from a port of the bridge to the bridge.
		steps = append(steps, fmt.Sprintf("ip addr flush dev %s", h), fmt.Sprintf("ip route flush dev %s", h),
			fmt.Sprintf("ip link set %s master inside", h))
		if err := l.each(ctx, h, "ip route add 198.51.100.0/24 dev eth0"); err != nil {
			return err
		}
	}
	return l.each(ctx, Gateway, steps...)
}
