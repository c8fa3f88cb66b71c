package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

var (
	there   = packet{to: netip.MustParsePrefix("198.51.100.2/32"), sport: highPort, dport: onePort(21), out: "eth1", state: "new"}
	six     = packet{v6: true, to: netip.MustParsePrefix("2001:db8:2::2/128"), sport: highPort, dport: onePort(21), out: "eth1", state: "new"}
	answers = packet{from: netip.MustParsePrefix("198.51.100.2/32"), sport: onePort(21), dport: highPort, in: "eth1", state: "established"}
	data    = packet{to: netip.MustParsePrefix("198.51.100.2/32"), sport: highPort, dport: ports{50000, 50100}, out: "eth1", state: "related"}
)

// words says what may become of a packet.
func (o outcome) words() string {
	switch {
	case o.accept && o.drop:
		return "either"
	case o.drop:
		return "drop"
	case o.accept:
		return "accept"
	}
	return "nothing"
}

// TestIPTables walks packets through a FORWARD chain of one or a few rules, with policy DROP.
func TestIPTables(t *testing.T) {
	for _, c := range []struct {
		rules string // separated by semicolons
		p     packet
		want  string
	}{
		{"", there, "drop"},
		{"-p tcp -m tcp --dport 21 -j ACCEPT", there, "accept"},
		{"-p tcp -m tcp --dport 21 -j ACCEPT", answers, "drop"},
		{"-p udp -j ACCEPT; -p icmp -j ACCEPT", there, "drop"},
		{"! -p udp -j ACCEPT", there, "accept"},
		{"-s 192.0.2.0/24 -j ACCEPT", there, "either"}, // where the client is is not asked
		{"-d 198.51.100.0/24 -j ACCEPT", there, "accept"},
		{"-d 198.51.100.0/24 -j ACCEPT", six, "drop"},
		{"! -d 198.51.100.0/24 -j ACCEPT", there, "drop"},
		{"-d 10.0.0.1/255.0.0.255 -j ACCEPT", there, "either"}, // a mask with holes
		{"-p tcp -m multiport --dports 20:22,990 -j ACCEPT", there, "accept"},
		{"-p tcp -m multiport ! --dports 20:22,990 -j ACCEPT", there, "drop"},
		{"-p tcp -m tcp --dport 50000:50050 -j ACCEPT", data, "either"}, // part of the passive range
		{"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", data, "accept"},
		{"-m state --state ESTABLISHED -j ACCEPT", data, "drop"},
		{"-m conntrack --ctstate INVALID -j ACCEPT", there, "drop"},
		{"-m conntrack --ctstate DNAT -j ACCEPT", there, "drop"},
		{"-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP; -j ACCEPT", there, "accept"},
		{"-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", there, "accept"},
		{"-p tcp -m tcp --tcp-flags SYN NONE -j ACCEPT", answers, "either"},
		{"-i lo -j ACCEPT", there, "drop"},
		{"! -i lo -j ACCEPT", there, "accept"},
		{"-i eth0 -j ACCEPT", there, "either"},
		{"-o eth1 -j ACCEPT", there, "accept"},
		{"-o eth+ -j ACCEPT", there, "accept"},
		{"! -o eth1 -j ACCEPT", there, "drop"},
		{"-i eth1 -j ACCEPT", answers, "accept"},
		{"-m limit --limit 5/sec --limit-burst 3 -j ACCEPT", there, "either"},
		{`-p tcp -m comment --comment "-j DROP \"quoted\"" -j ACCEPT`, there, "accept"},
		{"-j LOG --log-prefix x; -j MARK --set-xmark 0x1/0xffffffff; -j ACCEPT", there, "accept"},
		{"-j REJECT --reject-with icmp-port-unreachable", there, "drop"},
		{"-j NFQUEUE --queue-num 3", there, "accept"},
		{"-j A; -j ACCEPT", there, "accept"},                         // A is empty
		{"-j A; -A A -p tcp -j RETURN; -A A -j DROP", there, "drop"}, // it returns, and the policy drops
		{"-g A; -j ACCEPT; -A A -p udp -j DROP", there, "drop"},      // goto does not come back
		{"-j A; -j ACCEPT; -A A -m mark --mark 0x1 -j DROP", there, "either"},
		{"-j A; -A A -j B; -A B -j A; -A B -j ACCEPT", there, "accept"}, // a loop, which no kernel has
	} {
		text := "*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n"
		for rule := range strings.SplitSeq(c.rules, "; ") {
			switch {
			case rule == "":
			case strings.HasPrefix(rule, "-A "):
				text += rule + "\n"
			default:
				text += "-A FORWARD " + rule + "\n"
			}
		}
		tool := "iptables"
		if c.p.v6 {
			tool = "ip6tables"
			text = strings.ReplaceAll(text, "198.51.100.0/24", "2001:db8:1::/64")
		}
		tables, err := parseSave(tool, text+"COMMIT\n")
		if err != nil || len(tables) != 1 {
			t.Fatalf("%s: %v", c.rules, err)
		}
		if got := tables[0].through(tables[0].chains[0], c.p, nil).words(); got != c.want {
			t.Errorf("%s\n%s, want %s", text, got, c.want)
		}
	}
}

// TestNFT does the same with the expressions that nft prints.
func TestNFT(t *testing.T) {
	const (
		accepted = `, {"accept": null}`
		tcpDport = `{"payload": {"protocol": "tcp", "field": "dport"}}`
	)
	dport := func(op, right string) string {
		return fmt.Sprintf(`{"match": {"op": %q, "left": %s, "right": %s}}`, op, tcpDport, right)
	}
	left := func(left, op, right string) string {
		return fmt.Sprintf(`{"match": {"op": %q, "left": %s, "right": %s}}`, op, left, right)
	}
	const state, flags = `{"ct": {"key": "state"}}`, `{"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn", "rst", "ack"]]}`
	for _, c := range []struct {
		expr string
		p    packet
		want string
	}{
		{dport("==", "21") + accepted, there, "accept"},
		{dport("!=", "21") + accepted, there, "drop"},
		{dport("==", `{"set": [20, {"range": [21, 25]}]}`) + accepted, there, "accept"},
		{dport("==", `"@ports"`) + accepted, there, "either"},
		{dport(">=", "1024") + accepted, there, "either"},
		{left(`{"payload": {"protocol": "th", "field": "sport"}}`, "==", "21") + accepted, answers, "accept"},
		{left(`{"payload": {"protocol": "udp", "field": "dport"}}`, "==", "21") + accepted, there, "drop"},
		{left(`{"payload": {"protocol": "ip", "field": "daddr"}}`, "==", `{"prefix": {"addr": "198.51.100.0", "len": 24}}`) + accepted, there, "accept"},
		{left(`{"payload": {"protocol": "ip", "field": "daddr"}}`, "==", `{"prefix": {"addr": "198.51.100.0", "len": 24}}`) + accepted, six, "drop"},
		{left(`{"payload": {"protocol": "ip", "field": "daddr"}}`, "==", `{"set": ["192.0.2.1", {"range": ["198.51.100.1", "198.51.100.9"]}]}`) + accepted, there, "accept"},
		{left(`{"payload": {"protocol": "ip6", "field": "daddr"}}`, "==", `"2001:db8:2::2"`) + accepted, six, "accept"},
		{left(`{"payload": {"protocol": "ip", "field": "saddr"}}`, "==", `"@allowed"`) + accepted, six, "drop"},
		{left(`{"payload": {"protocol": "ip", "field": "saddr"}}`, "==", `"@allowed"`) + accepted, there, "either"},
		{left(`{"payload": {"protocol": "ip", "field": "protocol"}}`, "==", `"tcp"`) + accepted, there, "accept"},
		{left(`{"meta": {"key": "l4proto"}}`, "==", `{"set": ["icmp", "ipv6-icmp"]}`) + accepted, there, "drop"},
		{left(`{"meta": {"key": "nfproto"}}`, "==", `"ipv6"`) + accepted, there, "drop"},
		{left(`{"meta": {"key": "iifname"}}`, "!=", `"lo"`) + accepted, there, "accept"},
		{left(`{"meta": {"key": "oifname"}}`, "==", `{"set": ["eth0", "eth1"]}`) + accepted, there, "accept"},
		{left(`{"meta": {"key": "oifname"}}`, "==", `"wlan*"`) + accepted, there, "drop"},
		{left(`{"meta": {"key": "mark"}}`, "==", "1") + accepted, there, "either"},
		{left(state, "in", `["established", "related"]`) + accepted, data, "accept"},
		{left(state, "in", `["established", "related"]`) + accepted, there, "drop"},
		{left(state, "==", `{"set": ["established", "related"]}`) + accepted, data, "accept"},
		{left(state, "in", `"new"`) + accepted, there, "accept"},
		{left(`{"ct": {"key": "status"}}`, "in", `"dnat"`) + accepted, there, "drop"},
		{left(flags, "!=", `"syn"`) + ", " + left(state, "in", `"new"`) + `, {"drop": null}`, there, "drop"}, // by the policy
		{left(flags, "==", `"syn"`) + accepted, there, "accept"},
		{left(`{"exthdr": {"name": "rt", "field": "type"}}`, "==", "0") + accepted, six, "drop"},
		{`{"vmap": {"key": ` + state + `, "data": {"set": [["invalid", {"drop": null}], ["new", {"jump": {"target": "other"}}], ["related", {"accept": null}]]}}}`, data, "accept"},
		{`{"vmap": {"key": ` + state + `, "data": {"set": [["invalid", {"drop": null}], ["new", {"jump": {"target": "other"}}], ["related", {"accept": null}]]}}}`, there, "accept"},
		{`{"vmap": {"key": ` + tcpDport + `, "data": "@m"}}`, there, "either"},
		{`{"jump": {"target": "other"}}`, there, "accept"},
		{`{"goto": {"target": "other"}}`, answers, "drop"},
		{`{"counter": {"packets": 0, "bytes": 0}}, {"log": {"prefix": "x"}}, {"reject": {"type": "tcp reset"}}`, there, "drop"},
		{`{"xt": {"type": "match", "name": "bpf"}}, {"accept": null}`, there, "either"},
		{`{"queue": {"num": {"range": [4, 7]}}}`, there, "accept"},
	} {
		text := `{"nftables": [{"metainfo": {"version": "1.0.6"}},
			{"chain": {"family": "inet", "table": "t", "name": "other", "handle": 1}},
			{"chain": {"family": "inet", "table": "t", "name": "c", "handle": 2, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
			{"rule": {"family": "inet", "table": "t", "chain": "other", "handle": 3, "expr": [` + dport("==", "21") + accepted + `]}},
			{"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 4, "expr": [` + c.expr + `]}}]}`
		tables, err := parseNFT([]byte(text))
		if err != nil || len(tables) != 1 {
			t.Fatalf("%s: %v", c.expr, err)
		}
		if got := tables[0].through(tables[0].chain("c"), c.p, nil).words(); got != c.want {
			t.Errorf("%s\n%s, want %s", c.expr, got, c.want)
		}
	}
}

// TestSavedRulesets asks what real firewalls had made. firewalld 1.3.3, zone public, with a policy that accepts port 21 of one
// server; ufw 0.36.2, with a route to the same.
func TestSavedRulesets(t *testing.T) {
	text := read(t, "firewalld-1.3.3.json")
	tables, err := parseNFT(text)
	if err != nil || len(tables) != 1 || owner(tables[0]) != "firewalld" {
		t.Fatalf("firewalld: %d tables, %v", len(tables), err)
	}
	save, err := parseSave("iptables", string(read(t, "ufw-0.36.2.save")))
	if err != nil || len(save) != 1 || owner(save[0]) != "ufw" {
		t.Fatalf("ufw: %d tables, %v", len(save), err)
	}
	implicit, other := there, there
	implicit.dport, other.to = onePort(990), netip.MustParsePrefix("198.51.100.3/32")
	for _, c := range []struct {
		name string
		p    packet
		want string
	}{
		{"control", there, "accept"}, {"implicit", implicit, "drop"}, {"another server", other, "drop"},
		{"answers", answers, "accept"}, {"data", data, "accept"},
	} {
		for _, f := range []struct {
			t     *table
			chain string
		}{{tables[0], "filter_FORWARD"}, {save[0], "FORWARD"}} {
			if got := f.t.through(f.t.chain(f.chain), c.p, nil).words(); got != c.want {
				t.Errorf("%s: %s: %s, want %s", owner(f.t), c.name, got, c.want)
			}
		}
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// walkAll asks every base chain about every packet; it has to end.
func walkAll(tables []*table) {
	for _, t := range tables {
		for _, c := range t.chains {
			for _, p := range []packet{there, six, answers, data} {
				if t.covers(p.v6) && c.hook != "" {
					t.through(c, p, func(*chain, *rule) {})
				}
			}
		}
	}
}

func FuzzSave(f *testing.F) {
	f.Add(string(read(f, "ufw-0.36.2.save")))
	f.Add("*filter\n:FORWARD DROP [0:0]\n[1:2] -A FORWARD ! -s 192.0.2.0/24 -p tcp -m multiport --dports 21,50000:50100 -j NFQUEUE --queue-balance 1:2\n")
	f.Add("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m comment --comment \"a \\\" b\" -j CT --helper ftp\n")
	f.Fuzz(func(t *testing.T, text string) {
		tables, err := parseSave("iptables", text)
		if err == nil {
			walkAll(tables)
		}
	})
}

func FuzzNFT(f *testing.F) {
	f.Add([]byte(`{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c", "hook": "input"}}, {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"len": 8}}}}]}}]}`))
	f.Add([]byte(`{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c", "hook": "forward", "prio": 0, "policy": "drop"}}, {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 1, "expr": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", {"drop": null}]]}}}, {"queue": null}]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		tables, err := parseNFT(text)
		if err == nil {
			walkAll(tables)
		}
	})
}
