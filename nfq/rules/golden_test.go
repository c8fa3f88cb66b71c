package rules

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"ftpalg/policy"
)

var update = flag.Bool("update", false, "write the golden files")

const policyText = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    passive: 50000-50100
  - name: mirror
    addresses: [203.0.113.0/28]
    explicit: [21, 2121]
    implicit: []
clients:
  - name: office
    addresses: [192.0.2.0/24, "2001:db8:1::/64"]
  - name: guest
    addresses: [192.0.2.66]
rules:
  - name: no guests
    from: [guest]
    action: deny
  - name: office to files
    from: [office]
    to: [files]
    action: inspect
    opaque-active: pinhole
  - name: anyone to mirror
    to: [mirror]
    action: inspect
    opaque: deny
`

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func config(t testing.TB) Config {
	return Config{Queues: [2]uint16{21, 24}, Helper: "sane", Policy: parse(t, policyText)}
}

const terminateText = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    passive: 50000-50100
  - name: mirror
    addresses: [203.0.113.0/28]
clients:
  - name: office
    addresses: [192.0.2.0/24, "2001:db8:1::/64"]
  - name: guest
    addresses: [192.0.2.66, "2001:db8:1::66"]
  - name: trusted
    addresses: [192.0.2.77, "2001:db8:1::77"]
rules:
  - name: no guests
    from: [guest]
    action: deny
  - name: trusted to files
    from: [trusted]
    to: [files]
    action: inspect
    opaque: deny
  - name: office to files
    from: [office]
    to: [files]
    action: inspect # the test makes it terminate
  - name: office to mirror
    from: [office]
    to: [mirror]
    action: inspect
`

// terminating is a configuration with a rule that terminates.
func terminating(t testing.TB) Config {
	p := parse(t, terminateText)
	p.Rules[2].Action = policy.Terminate
	return Config{Queues: [2]uint16{21, 21}, Helper: "sane", Policy: p}
}

// public is a configuration with servers behind DNAT, to one of which connections are terminated.
func public(t testing.TB) Config {
	p := parse(t, `version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    passive: 50000-50100
    public: [{addresses: [203.0.113.1, 203.0.113.2], explicit: [21, 2121]}]
  - name: vault
    addresses: [198.51.100.3]
    public: [{addresses: [203.0.113.3], explicit: [], implicit: [9990]}]
rules:
  - {name: vault, to: vault, action: inspect} # the test makes it terminate
  - {name: files, to: files, action: inspect, opaque-active: pinhole}
`)
	p.Rules[0].Action = policy.Terminate
	return Config{Queues: [2]uint16{21, 21}, Helper: "sane", Policy: p}
}

func TestGolden(t *testing.T) {
	open, terminateOpen := config(t), terminating(t)
	open.FailOpen, open.Queues, open.Variant, open.NoAccept = true, [2]uint16{5, 5}, Legacy, true
	terminateOpen.NoAccept = true
	terminateOpen.Terminate = Terminate{Port: 2190, Table: 90}.WithMarks(0x100)
	draining := terminating(t)
	draining.Policy.Rules[2].Action = policy.Inspect
	draining.Draining = []netip.Addr{netip.MustParseAddr("198.51.100.2")}
	for name, cfg := range map[string]Config{
		"default": config(t), "open-noaccept-legacy": open, "terminate": terminating(t), "terminate-noaccept": terminateOpen,
		"public": public(t), "draining": draining,
	} {
		golden(t, "testdata/"+name+".sh", IPTables(cfg).String())
		golden(t, "testdata/"+name+".nft", NFTables(cfg).String())
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", file, got)
	}
}

// TestRuleCount: the count grows with the sum of servers' and clients' prefixes, except in the chains that only the
// first packet of a connection sees.
func TestRuleCount(t *testing.T) {
	count := func(servers, clients int) (perPacket int) {
		var text strings.Builder
		text.WriteString("version: 1\nservers:\n")
		for i := range servers {
			fmt.Fprintf(&text, "  - {name: s%d, addresses: [198.51.100.%d]}\n", i, i)
		}
		text.WriteString("clients:\n  - name: all\n    addresses: [")
		for i := range clients {
			fmt.Fprintf(&text, "192.0.2.%d, ", i)
		}
		text.WriteString("]\nrules:\n  - {name: r, from: [all], action: inspect}\n")
		for _, table := range IPTables(Config{Helper: "ftp", Policy: parse(t, text.String())}).Families[0].Tables {
			perPacket += len(table.Chains[0].Rules)
		}
		return perPacket
	}
	if one, many := count(10, 1), count(10, 200); one != many {
		t.Errorf("%d rules for one client prefix, %d for 200", one, many)
	}
	if n := count(100, 200); n > 850 { // seven a server, and what all share
		t.Errorf("%d rules for 100 servers", n)
	}
}

// TestOnlyWhatTerminates: a policy that terminates nobody of a family has nothing of it there, and a server that nobody is
// inspected for queues no SYNs.
func TestOnlyWhatTerminates(t *testing.T) {
	cfg := terminating(t)
	cfg.Policy.Rules[2].From = []string{"guest"} // who has IPv4 alone
	cfg.Policy.Clients[1].Addresses = cfg.Policy.Clients[1].Addresses[:1]
	set := IPTables(cfg)
	if len(set.Families) != 2 || set.Families[0].Routing.isZero() || !set.Families[1].Routing.isZero() {
		t.Errorf("%+v", set.Families)
	}
	all := set.String()
	if _, v6, _ := strings.Cut(all, "ip6tables-restore"); strings.Contains(v6, "TPROXY") || strings.Contains(v6, "INPUT") {
		t.Errorf("IPv6 has more than it needs:\n%s", v6)
	}
	cfg = terminating(t)
	for i := range cfg.Policy.Rules {
		cfg.Policy.Rules[i].OpaqueActive, cfg.Policy.Rules[i].OpaquePinhole = true, true
		cfg.Policy.Rules[i].Action = policy.Terminate
	}
	for _, f := range IPTables(cfg).Families {
		for _, r := range f.Tables[0].Chains[0].Rules {
			if strings.Contains(r.Spec, "NFQUEUE") {
				t.Errorf("%s", r.Spec)
			}
		}
	}
}

// TestPayloadProgram runs the program in the Go VM; TestPayloadReachesQueue has the kernel run it.
func TestPayloadProgram(t *testing.T) {
	for _, c := range []struct {
		name             string
		v6               bool
		ihl, doff, bytes int
		next             byte
		want             bool
	}{
		{"v4 no payload", false, 20, 20, 0, 6, false},
		{"v4 one byte", false, 20, 20, 1, 6, true},
		{"v4 options, no payload", false, 24, 32, 0, 6, false},
		{"v4 longest options, no payload", false, 60, 60, 0, 6, false},
		{"v4 longest options, one byte", false, 60, 60, 1, 6, true},
		{"v6 no payload", true, 40, 32, 0, 6, false},
		{"v6 one byte", true, 40, 32, 1, 6, true},
		{"v6 longest options, no payload", true, 40, 60, 0, 6, false},
		{"v6 hop-by-hop, no payload", true, 48, 20, 0, 0, true},
	} {
		packet := make([]byte, c.ihl+c.doff+c.bytes)
		packet[0] = 0x40 | byte(c.ihl/4)
		if c.v6 {
			packet[0], packet[6] = 0x60, c.next
		}
		packet[c.ihl+12] = byte(c.doff/4)<<4 | 0xf // the low bits are reserved and may be set
		vm, err := bpf.NewVM(payloadProgram(c.v6))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := vm.Run(packet); err != nil || (n > 0) != c.want {
			t.Errorf("%s: got %d, %v; want a match: %v", c.name, n, err, c.want)
		}
	}
}

// TestSaneRequest runs the other program in the same way; TestCarrierGuard has the kernel run it.
func TestSaneRequest(t *testing.T) {
	for _, c := range []struct {
		name      string
		v6        bool
		ihl, doff int
		next      byte
		text      string
		want      bool
	}{
		{name: "request", ihl: 20, doff: 20, text: "\x00\x00\x00\x07abcd", want: true},
		{name: "longest options", ihl: 60, doff: 60, text: "\x00\x00\x00\x07\x00\x00\x00\x07", want: true},
		{name: "other text", ihl: 20, doff: 20, text: "\x00\x00\x00\x08abcd"},
		{name: "shorter", ihl: 20, doff: 20, text: "\x00\x00\x00\x07abc"},
		{name: "longer", ihl: 20, doff: 20, text: "x\x00\x00\x00\x07abcd"},
		{name: "longer, as options would be", ihl: 20, doff: 20, text: "\x00\x00\x00\x07\x00\x00\x00\x07abcd"},
		{name: "nothing", ihl: 20, doff: 20},
		{name: "request", v6: true, ihl: 40, doff: 32, next: 6, text: "\x00\x00\x00\x07abcd", want: true},
		{name: "longer", v6: true, ihl: 40, doff: 32, next: 6, text: "x\x00\x00\x00\x07abcd"},
		{name: "extension header", v6: true, ihl: 48, doff: 20, text: "\x00\x00\x00\x07abcd", want: true},
		{name: "extension header, other text", v6: true, ihl: 48, doff: 20, text: "\x00\x00\x00\x06abcd"},
	} {
		packet := append(make([]byte, c.ihl+c.doff), c.text...)
		packet[0] = 0x40 | byte(c.ihl/4)
		if c.v6 {
			packet[0], packet[6] = 0x60, c.next
		}
		packet[c.ihl+12] = byte(c.doff/4) << 4
		vm, err := bpf.NewVM(saneRequest(c.v6))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := vm.Run(packet); err != nil || (n > 0) != c.want {
			t.Errorf("%s, IPv6 %v: got %d, %v; want a match: %v", c.name, c.v6, n, err, c.want)
		}
	}
}

func TestParseSave(t *testing.T) {
	found := parseSave("*filter\n:FORWARD DROP [0:0]\n:FTPALG-FORWARD - [0:0]\n:FTPALG-SERVER9 - [1:2]\n" +
		"-A FORWARD -p tcp -j FTPALG-FORWARD\n-A FORWARD -j ACCEPT\n-A FTPALG-FORWARD -p tcp -g FTPALG-SERVER9\nCOMMIT\n")
	if len(found.jumps) != 1 || found.jumps[0] != "FORWARD -p tcp -j FTPALG-FORWARD" ||
		len(found.chains) != 2 || found.chains["FTPALG-FORWARD"] != 1 || found.chains["FTPALG-SERVER9"] != 0 {
		t.Errorf("%+v", found)
	}
}
