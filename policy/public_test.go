package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// behindDNAT has a server that clients reach at three public addresses, on other ports at one of them.
const behindDNAT = `
version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    public:
      - {addresses: [203.0.113.1, 203.0.113.2]}
      - {addresses: [203.0.113.3], explicit: [2121, 21], implicit: [9990]}
rules:
  - {name: all, action: inspect}
`

func TestPublicAddresses(t *testing.T) {
	p := parse(t, behindDNAT)
	for _, c := range []struct {
		seen, real string
		implicit   bool
	}{
		{"198.51.100.2:21", "198.51.100.2:21", false},
		{"[2001:db8:2::2]:990", "[2001:db8:2::2]:990", true},
		{"203.0.113.1:21", "198.51.100.2:21", false},
		{"203.0.113.2:990", "198.51.100.2:990", true},
		{"203.0.113.3:2121", "198.51.100.2:21", false},
		{"203.0.113.3:21", "198.51.100.2:21", false},
		{"203.0.113.3:9990", "198.51.100.2:990", true},
	} {
		seen := netip.MustParseAddrPort(c.seen)
		d := p.Decide(netip.MustParseAddr("192.0.2.10"), seen)
		if d.Action != Inspect || d.Real.String() != c.real || d.Implicit != c.implicit || !p.IsControlPort(seen) {
			t.Errorf("%s: action %v, real %v, implicit %v, control port %v", c.seen, d.Action, d.Real, d.Implicit, p.IsControlPort(seen))
		}
	}
	for _, seen := range []string{"203.0.113.3:990", "203.0.113.1:2121", "203.0.113.4:21", "198.51.100.2:2121"} {
		addr := netip.MustParseAddrPort(seen)
		if d := p.Decide(netip.MustParseAddr("192.0.2.10"), addr); d.Server != nil || p.IsControlPort(addr) {
			t.Errorf("%s: is %v", seen, d)
		}
	}
	if again := parse(t, string(p.Canonical())); string(again.Canonical()) != string(p.Canonical()) {
		t.Errorf("the canonical form does not hold:\n%s", p.Canonical())
	}
}

func TestPublicFaults(t *testing.T) {
	for _, c := range []struct{ public, want string }{
		{"{addresses: [203.0.113.0/24]}", "3.0.113.0/24 is more than one address"},
		{"{addresses: [198.51.100.2]}", "is an address of server"},
		{"{addresses: [203.0.113.1], explicit: [], implicit: []}", "no control port"},
		{"{addresses: [203.0.113.1], explicit: [990]}", "port 990 is under explicit too"},
		{"{explicit: [21]}", "public[0].addresses: missing"},
		{`{addresses: ["2001:db8::1"]}`, "does not have exactly one address of this family"},
	} {
		_, err := Parse("p.yaml", []byte(strings.NewReplacer(
			`, "2001:db8:2::2"]`, "]",
			"- {addresses: [203.0.113.1, 203.0.113.2]}\n", "- "+c.public+"\n").Replace(behindDNAT)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.public, err, c.want)
		}
	}
}
