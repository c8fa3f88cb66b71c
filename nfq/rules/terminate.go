package rules

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ftpalg/policy"
)

// Terminate says how connections that the policy terminates get to ftpalg's own sockets, and out of them. The marks are one
// bit each, all different; other bits of a packet's or connection's mark are left alone.
type Terminate struct {
	Port    uint16 // ftpalg's transparent listeners: on 127.0.0.1 and on ::1
	Table   uint32 // routing table of its own that leads to this machine itself
	Divert  uint32 // fwmark bit of packets to ftpalg's transparent sockets: policy routing goes by it
	Own     uint32 // fwmark bit of packets from ftpalg's sockets, which set it with SO_MARK
	Control uint32 // connmark bit of terminated control connections: these rules set it
	Relay   uint32 // connmark bit of control connections whose data connections ftpalg relays: ftpalg sets it (conntrack.SetMark)
}

// DefaultTerminate has numbers that begin with FTP's port, and high bits, which others seldom use.
var DefaultTerminate = Terminate{Port: 21021, Table: 21021}.WithMarks(DefaultMark)

// WithMarks takes the four bits below the refused bit, which must have as many below it.
func (t Terminate) WithMarks(refused uint32) Terminate {
	t.Divert, t.Own, t.Control, t.Relay = refused>>1, refused>>2, refused>>3, refused>>4
	return t
}

// Chains of the mangle table that hand packets to ftpalg's sockets.
const (
	divertChain = prefix + "DIVERT"
	tproxyChain = prefix + "TPROXY"
)

// terminates reports whether a rule of the policy terminates connections from clients of this family to a server, or some are
// left that one did.
func (b *builder) terminates(s server) bool { return b.lastTerminate(s) >= 0 || b.drains(s) }

// drains reports whether terminated sessions go on with a server.
func (b *builder) drains(s server) bool {
	return slices.ContainsFunc(b.cfg.Draining, func(a netip.Addr) bool {
		return slices.ContainsFunc(s.faces, func(f face) bool { return f.address.Contains(a) })
	})
}

// lastTerminate is the position of the last such rule, or -1.
func (b *builder) lastTerminate(s server) int {
	last := -1
	for i := range b.cfg.Policy.Rules {
		r := &b.cfg.Policy.Rules[i]
		if r.Action == policy.Terminate && named(r.To, s.Name) && len(b.clients(r)) > 0 {
			last = i
		}
	}
	return last
}

// terminatesAny reports whether the policy terminates anything in this family.
func (b *builder) terminatesAny() bool {
	for _, s := range b.servers {
		if b.terminates(s) {
			return true
		}
	}
	return false
}

// routing is what delivers packets with foreign addresses to ftpalg's sockets.
func (b *builder) routing() Routing {
	if !b.terminatesAny() {
		return Routing{}
	}
	return Routing{Mark: b.cfg.Terminate.Divert, Table: b.cfg.Terminate.Table}
}

// terminate adds the rules that hand terminated connections to ftpalg to the chain of the mangle table, and gives the chains
// that they lead to. They come before the queue: what ftpalg's sockets get it need not read on the way.
func (b *builder) terminate(main *Chain) (more []Chain) {
	for i, s := range b.servers {
		if !b.terminates(s) {
			continue
		}
		steer := b.steer(s, fmt.Sprint(prefix, "TERMINATE", i))
		for _, f := range s.faces {
			b.transparent(main, f, steer.Name)
		}
		more = append(more, steer)
	}
	if len(more) > 0 {
		more = append(more, b.divert(), b.tproxy())
	}
	return more
}

// transparent adds the rules for one address at which clients reach a server.
func (b *builder) transparent(c *Chain, f face, steer string) {
	t, address, ends := b.cfg.Terminate, f.address, []string{"-s", "-d"}
	if f.public {
		ends = ends[1:] // nothing comes from there
	}
	for _, option := range ends {
		c.add("Data connections of terminated sessions that go direct. A relayed one between the same ports, a moment ago, may "+
			"have left a socket that waits (TIME-WAIT): their packets are not for it.",
			"%s %s -p tcp -m conntrack --ctstatus EXPECTED -m connmark --mark %#x/%#x -j RETURN",
			option, address, t.Control, t.Control|t.Relay)
	}
	for _, option := range ends {
		c.add("Packets of connections that ftpalg's transparent sockets hold, on either side. (A SYN may find the socket of a "+
			"connection that is over: it is for the listener.)",
			"%s %s -p tcp ! --syn -m socket --transparent -j %s", option, address, divertChain)
	}
	for _, ports := range f.ports {
		c.add("Terminated control connections without a socket (yet, with SYN cookies; or any more): never forwarded.",
			"-d %s -p tcp -m multiport --dports %s -m connmark --mark %#x/%#x -j %s",
			address, ports, t.Control, t.Control, tproxyChain)
		c.add("New control connections: the policy's rules in their order say which are terminated.",
			"-d %s -p tcp -m multiport --dports %s -m conntrack --ctstate NEW -j %s", address, ports, steer)
	}
	for _, option := range ends {
		c.add("Data connections that ftpalg relays: they inherit the connmark of their control connection.",
			"%s %s -p tcp -m connmark --mark %#x/%#x -j %s",
			option, address, t.Relay, t.Relay, tproxyChain)
	}
}

// steer is the chain with the policy's rules for one server: first match wins, as in decide. What returns from it is not
// terminated.
func (b *builder) steer(s server, name string) Chain {
	c := Chain{Name: name}
	for i := range b.lastTerminate(s) + 1 {
		r := &b.cfg.Policy.Rules[i]
		if !named(r.To, s.Name) {
			continue
		}
		target := "-j RETURN"
		if r.Action == policy.Terminate {
			target = "-g " + tproxyChain
		}
		for _, client := range b.clients(r) {
			c.add(fmt.Sprintf("Rule %q of the policy, for server %q.", r.Name, s.Name),
				"%s", strings.TrimSpace(match("-s", client)+" -p tcp "+target))
		}
	}
	return c
}

// terminatesPublic reports whether the policy terminates connections to public addresses, from which DNAT leads to a server.
func (b *builder) terminatesPublic() bool {
	return slices.ContainsFunc(b.servers, func(s server) bool {
		return b.terminates(s) && slices.ContainsFunc(s.faces, func(f face) bool { return f.public })
	})
}

// translation keeps what goes to ftpalg's sockets out of DNAT: the sockets have the address that the client sees. It has to be
// the first there is; what passes it keeps its addresses.
func (b *builder) translation() []Table {
	if !b.terminatesPublic() {
		return nil
	}
	c := Chain{Name: prefix + "NAT", Hook: "PREROUTING"}
	c.add("What is for ftpalg's own sockets is not for DNAT.",
		"-p tcp -m mark --mark %#x/%#x -j ACCEPT", b.cfg.Terminate.Divert, b.cfg.Terminate.Divert)
	return []Table{{Name: natTable, Chains: []Chain{c}}}
}

// divert sends packets to the sockets that they belong to.
func (b *builder) divert() Chain {
	c := Chain{Name: divertChain}
	c.add("Policy routing sends what has this mark to this machine itself.",
		"-p tcp -j MARK --set-xmark %#x/%#x", b.cfg.Terminate.Divert, b.cfg.Terminate.Divert)
	c.add("", "-p tcp -j ACCEPT")
	return c
}

// tproxy sends packets to the listener. Where nobody listens TPROXY drops them.
func (b *builder) tproxy() Chain {
	t, listener := b.cfg.Terminate, "127.0.0.1"
	if b.v6 {
		listener = "::1"
	}
	c := Chain{Name: tproxyChain}
	c.add("To ftpalg's listener, with the addresses as they are.",
		"-p tcp -j CONNMARK --set-xmark %#x/%#x", t.Control, t.Control)
	c.add("", "-p tcp -j TPROXY --on-ip %s --on-port %d --tproxy-mark %#x/%#x", listener, t.Port, t.Divert, t.Divert)
	return c
}

// local accepts what ftpalg's own sockets receive and send, for machines that accept little for themselves.
func (b *builder) local() []Chain {
	if !b.terminatesAny() {
		return nil
	}
	in, out := Chain{Name: prefix + "INPUT", Hook: "INPUT"}, Chain{Name: prefix + "OUTPUT", Hook: "OUTPUT"}
	in.add("To ftpalg's transparent sockets: the mangle table found them.",
		"-p tcp -m mark --mark %#x/%#x -j ACCEPT", b.cfg.Terminate.Divert, b.cfg.Terminate.Divert)
	out.add("From ftpalg's sockets.",
		"-p tcp -m mark --mark %#x/%#x -j ACCEPT", b.cfg.Terminate.Own, b.cfg.Terminate.Own)
	return []Chain{in, out}
}

// everything is a policy that needs all that any policy can need.
var everything = &policy.Policy{
	Servers: []policy.Server{{Addresses: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}, Explicit: []uint16{21}}},
	Rules:   []policy.Rule{{Action: policy.Terminate}},
}

// TryTerminate tries out whether this machine's kernel and tools can do what terminated connections need. It installs the
// rules of a back end in a network namespace of its own, which takes CAP_SYS_ADMIN.
func TryTerminate(ctx context.Context, b Backend) error {
	trial := b.trial()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with both
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
		} else if _, err = command(ctx, "", "ip", "link", "set", "lo", "up"); err == nil {
			err = trial.install(ctx)
		}
		done <- err
	}()
	return <-done
}

// trial is rules with all that termination needs, and of iptables' tables the one that needs more than inspection does.
func (b Backend) trial() Rules {
	cfg := Config{Helper: "ftp", Policy: everything, NoLabels: true}
	if b == BackendNFT {
		return NFTables(cfg)
	}
	var set Ruleset
	for _, f := range IPTables(cfg).Families {
		if !f.V6 || hasIPv6() {
			f.Tables = f.Tables[1:2] // mangle
			set.Families = append(set.Families, f)
		}
	}
	return set
}
