package rules

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ftpalg/nfq/internal/lab"
	"ftpalg/policy"
)

var queueStatement = regexp.MustCompile(`queue num [-\d]+( bypass)?`)

// unqueued is the table as a kernel takes it that cannot queue in nft.
func unqueued(table NFTable) string {
	return queueStatement.ReplaceAllString(table.String(), "counter")
}

// TestTableText: whatever kernel this is, it takes all of the table but queueing; and an iptables that is installed takes away
// what nft left.
func TestTableText(t *testing.T) {
	lab.NeedRoot(t)
	for name, cfg := range map[string]Config{"inspecting": config(t), "terminating": terminating(t), "public": public(t)} {
		t.Run(name, func(t *testing.T) {
			withTools(t)
			before := ruleset(t)
			table := NFTables(cfg)
			for range 2 {
				loadNFT(t, unqueued(table))
			}
			missing, err := Present(t.Context(), table)
			missing = slices.DeleteFunc(missing, func(m string) bool { return !strings.HasPrefix(m, "nft") }) // no routing yet
			if err != nil || len(missing) > 0 {
				t.Errorf("missing: %q, %v", missing, err)
			}
			if err := Install(t.Context(), IPTables(cfg)); err != nil {
				t.Fatal(err)
			}
			if there, err := hasTable(t.Context()); there || err != nil {
				t.Errorf("nft's table is still there (%v)", err)
			}
			loadNFT(t, unqueued(table))
			if err := Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := ruleset(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// TestTableInstallNamesTheRule: what the kernel refuses is named, and nothing of it is in force.
func TestTableInstallNamesTheRule(t *testing.T) {
	lab.NeedRoot(t)
	withTools(t)
	cfg := config(t)
	cfg.Helper = "nosuchhelper"
	err := Install(t.Context(), NFTables(cfg))
	if err == nil || !strings.Contains(err.Error(), `(the rule: ct helper helper4 { type "nosuchhelper" protocol tcp; l3proto ip; })`) ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if there, err := hasTable(t.Context()); there || err != nil {
		t.Errorf("a table is left (%v)", err)
	}
	if b, why := Choose(t.Context(), cfg); b != BackendIPTables || !strings.Contains(why, "nosuchhelper") {
		t.Errorf("chosen: %s, because %s", b, why)
	}
}

// TestTableOnlyWhatIsNeeded: an empty policy needs no table, and what terminates nothing has no chain for it.
func TestTableOnlyWhatIsNeeded(t *testing.T) {
	if s := NFTables(Config{Policy: &policy.Policy{}}).String(); strings.Contains(s, "chain") || !strings.Contains(s, "delete table") {
		t.Errorf("no server:\n%s", s)
	}
	cfg := terminating(t)
	cfg.Policy.Rules[2].From = []string{"guest"} // who has IPv4 alone
	cfg.Policy.Clients[1].Addresses = cfg.Policy.Clients[1].Addresses[:1]
	s := NFTables(cfg).String()
	if !strings.Contains(s, "tproxy ip to") || strings.Contains(s, "tproxy ip6 to") || strings.Contains(s, "@terminated6") || strings.Contains(s, "ip -6") {
		t.Errorf("IPv6 has more than it needs:\n%s", s)
	}
	cfg.Policy.Rules[2].Action = policy.Inspect
	if s := NFTables(cfg).String(); strings.Contains(s, "tproxy") || strings.Contains(s, "terminated") || strings.Contains(s, "socket") {
		t.Errorf("there are chains for what nobody terminates:\n%s", s)
	}
}

// TestTableOverlappingClients: clients of several rules may overlap, elements of a set may not.
func TestTableOverlappingClients(t *testing.T) {
	cfg := config(t)
	for i := range cfg.Policy.Rules {
		cfg.Policy.Rules[i].Action, cfg.Policy.Rules[i].OpaqueActive = policy.Inspect, true
	}
	for _, s := range NFTables(cfg).sets {
		if s.name == "active4" && strings.Join(s.elements, ", ") != "198.51.100.2 . 192.0.2.0/24, 203.0.113.0/28 . 0.0.0.0/0" {
			t.Errorf("%v", s.elements)
		}
	}
	if os.Getuid() == 0 {
		loadNFT(t, unqueued(NFTables(cfg)))
		lab.Run(t, "nft delete table inet ftpalg")
	}
}

func TestFiltersForward(t *testing.T) {
	for _, c := range []struct{ saved, want string }{
		{"", ""},
		{"*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n", ""},
		{"*filter\n:FORWARD ACCEPT [0:0]\n:FTPALG-FORWARD - [0:0]\n-A FORWARD -p tcp -j FTPALG-FORWARD\nCOMMIT\n", ""},
		{"*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", "its policy is DROP"},
		{"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n", "-A FORWARD -j DOCKER-USER"},
		{"*mangle\n:FORWARD DROP [0:0]\n-A FORWARD -j MARK\nCOMMIT\n", ""},
	} {
		if got := filtersForward(c.saved); got != c.want {
			t.Errorf("%q: got %q, want %q", c.saved, got, c.want)
		}
	}
}
