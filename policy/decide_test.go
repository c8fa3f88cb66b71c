package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

const decisions = `version: 1
servers:
  - {name: files, addresses: [198.51.100.2, "2001:db8:2::2"], explicit: [21, 2121], implicit: 990}
  - {name: farm, addresses: [203.0.113.0/25, 203.0.113.200], explicit: [], implicit: [990, 991]}
clients:
  - {name: office, addresses: [192.0.2.0/24, "2001:db8:1::/64"]}
  - {name: desk, addresses: [192.0.2.10, 192.0.2.0/28]}
rules:
  - {name: not the desk, from: desk, to: farm, action: deny}
  - {name: office, from: office, to: any, action: inspect}
  - {name: all to files, to: files, action: inspect}
`

func TestDecide(t *testing.T) {
	p := parse(t, decisions)
	for _, c := range []struct {
		client, server string
		action         Action
		rule, name     string // of the rule that decided and the server; "" for none
		implicit       bool
	}{
		{"192.0.2.77", "198.51.100.2:21", Inspect, "office", "files", false},
		{"192.0.2.77", "198.51.100.2:2121", Inspect, "office", "files", false},
		{"192.0.2.77", "198.51.100.2:990", Inspect, "office", "files", true},
		{"2001:db8:1::9", "[2001:db8:2::2]:21", Inspect, "office", "files", false},
		// The first rule that matches decides, not the best one.
		{"192.0.2.10", "203.0.113.5:990", Deny, "not the desk", "farm", true},
		{"192.0.2.15", "203.0.113.5:990", Deny, "not the desk", "farm", true},
		{"192.0.2.16", "203.0.113.5:990", Inspect, "office", "farm", true},
		{"192.0.2.10", "198.51.100.2:21", Inspect, "office", "files", false},
		// Other clients reach files only.
		{"10.0.0.1", "198.51.100.2:21", Inspect, "all to files", "files", false},
		{"10.0.0.1", "203.0.113.5:990", Deny, "", "farm", true},
		// Edges of prefixes: within, first, last, and just outside.
		{"192.0.2.77", "203.0.113.0:991", Inspect, "office", "farm", true},
		{"192.0.2.77", "203.0.113.127:991", Inspect, "office", "farm", true},
		{"192.0.2.77", "203.0.113.128:991", Deny, "", "", false},
		{"192.0.2.77", "203.0.113.199:991", Deny, "", "", false},
		{"192.0.2.77", "203.0.113.200:991", Inspect, "office", "farm", true},
		{"192.0.2.77", "203.0.113.201:991", Deny, "", "", false},
		// A port or an address that is not listed is no server's.
		{"192.0.2.77", "203.0.113.5:21", Deny, "", "", false},
		{"192.0.2.77", "198.51.100.2:22", Deny, "", "", false},
		{"192.0.2.77", "198.51.100.2:0", Deny, "", "", false},
		{"192.0.2.77", "198.51.100.3:21", Deny, "", "", false},
		{"192.0.2.77", "0.0.0.0:21", Deny, "", "", false},
		{"192.0.2.77", "[::]:21", Deny, "", "", false},
		// An IPv4 address in IPv6 form is the IPv4 address.
		{"::ffff:192.0.2.77", "[::ffff:198.51.100.2]:21", Inspect, "office", "files", false},
	} {
		d := p.Decide(netip.MustParseAddr(c.client), netip.MustParseAddrPort(c.server))
		rule, name := "", ""
		if d.Rule != nil {
			rule = d.Rule.Name
		}
		if d.Server != nil {
			name = d.Server.Name
		}
		if d.Action != c.action || rule != c.rule || name != c.name || d.Implicit != c.implicit {
			t.Errorf("%s to %s: %v by rule %q of server %q, implicit %v; want %v, %q, %q, %v",
				c.client, c.server, d.Action, rule, name, d.Implicit, c.action, c.rule, c.name, c.implicit)
		}
	}
	if d := p.Decide(netip.Addr{}, netip.AddrPort{}); d != (Decision{}) {
		t.Errorf("invalid addresses: %+v", d)
	}
	if d := p.Decide(netip.Addr{}, netip.MustParseAddrPort("198.51.100.2:21")); d.Action != Deny {
		t.Errorf("an invalid client matches any: %+v", d)
	}
}

func TestControlPorts(t *testing.T) {
	p := parse(t, decisions)
	for addr, want := range map[string]bool{
		"198.51.100.2:21": true, "198.51.100.2:990": true, "198.51.100.2:991": false, "203.0.113.9:991": true,
		"203.0.113.9:21": false, "192.0.2.1:21": false, "[2001:db8:2::2]:2121": true, "[::ffff:198.51.100.2]:21": true,
	} {
		if got := p.IsControlPort(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	p := parse(t, decisions)
	client, server := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("198.51.100.2:990")
	if n := testing.AllocsPerRun(100, func() {
		if p.Decide(client, server).Action != Inspect || !p.IsControlPort(server) {
			t.Error("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The look-up agrees with the plain reading: some prefix holds the address.
func TestPrefixesAgreeWithTheirList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Addr { // few enough addresses that prefixes meet often
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(rnd.IntN(256))})
	}
	for range 300 {
		var list []netip.Prefix
		for range rnd.IntN(12) {
			a := random()
			p, err := a.Prefix(a.BitLen() - rnd.IntN(9))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		set := newPrefixes(list)
		for range 100 {
			a := random()
			want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			if got := set.find(a) >= 0; got != want {
				t.Fatalf("%v in %v: %v", a, list, got)
			}
		}
		if !set.covers(newPrefixes(list)) || !everything.covers(set) || len(set) > 0 && (prefixes{}).covers(set) {
			t.Fatalf("%v: a set covers itself, everything covers all, nothing covers nothing but itself", list)
		}
	}
}

func TestModesAndWords(t *testing.T) {
	p := parse(t, small("    modes: [PORT, PASV]\n    opaque: deny", ""))
	for mode, want := range map[Mode]bool{PASV: true, EPSV: false, PORT: true, EPRT: false, JIT: false, 200: false} {
		if got := p.Rules[0].Modes.Has(mode); got != want {
			t.Errorf("%v: %v", mode, got)
		}
	}
	for got, want := range map[string]string{
		Action(0).String(): "deny", Inspect.String(): "inspect", Mode(0).String(): "PASV", JIT.String(): "JIT",
		Bounce(0).String(): "deny", Ruling(0).String(): "denied command", Mode(9).String(): "policy.Mode(9)",
		PortRange{}.String(): "none", PortRange{5, 6}.String(): "5-6",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if (PortRange{}).Contains(0) || !(PortRange{5, 6}).Contains(6) || (PortRange{5, 6}).Contains(7) {
		t.Error("port ranges")
	}
}
