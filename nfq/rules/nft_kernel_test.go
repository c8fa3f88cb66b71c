package rules

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ftpalg/conntrack"
	"ftpalg/nfq/internal/lab"
)

// theirTable stands for the operator's own firewall: it drops everything but what has our mark.
const theirTable = "inet theirs"

// needNFT has a test use nft's rules, where the kernel can queue in nft; on a kernel of the test's own it must.
func needNFT(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	withTools(t)
	if err := NFTables(config(t)).load(t.Context(), "-c"); err != nil {
		if os.Getenv("FTPALG_OWN_KERNEL") == "1" {
			t.Fatal(err)
		}
		t.Skipf("NOT TESTED: this kernel cannot queue in nft (%v); run the test through scripts/kernel", err)
	}
	underTest = BackendNFT
	t.Cleanup(func() { underTest = BackendIPTables })
}

// withTools makes the names of iptables' further programs, where there is none but iptables: they are all one binary.
func withTools(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"iptables", "ip6tables"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		for _, verb := range []string{"save", "restore"} {
			if _, err := exec.LookPath(tool + "-" + verb); err == nil {
				continue
			}
			if err := os.Symlink(path, filepath.Join(dir, tool+"-"+verb)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// loadNFT loads an nft file.
func loadNFT(t testing.TB, text string) {
	t.Helper()
	if _, err := command(t.Context(), text, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// theirFirewall is one that drops at some hooks, and has the line for ours that the printed file asks for.
func theirFirewall(t testing.TB, hooks ...string) {
	t.Helper()
	accept := NFTables(config(t)).accept + " accept"
	text := "table " + theirTable + " {\nchain output_more { }\n"
	for _, hook := range hooks {
		text += fmt.Sprintf("chain %s {\ntype filter hook %s priority filter; policy drop;\n%s\n", hook, hook, accept)
		if hook != "forward" {
			text += "meta l4proto 58 accept\n" // ICMPv6: IPv6 needs its neighbours
		}
		if hook == "output" {
			text += "jump output_more\n"
		}
		text += "}\n"
	}
	loadNFT(t, text+"}\n")
	t.Cleanup(func() { lab.Run(t, "nft delete table "+theirTable) })
}

// theyAccept has the operator help and accept control connections to a server of their own.
func theyAccept(t testing.TB, server string) {
	t.Helper()
	loadNFT(t, strings.ReplaceAll(`table inet theirs {
	ct helper theirftp { type "ftp" protocol tcp; l3proto ip; }
	chain help { type filter hook prerouting priority mangle; ip daddr SERVER tcp dport 21 ct helper set "theirftp"; }
	chain forward {
		ip daddr SERVER tcp dport 21 accept
		ip saddr SERVER tcp sport 21 accept
	}
}
`, "SERVER", server))
}

func TestNFTPayloadReachesQueue(t *testing.T) { needNFT(t); TestPayloadReachesQueue(t) }
func TestNFTDataConnections(t *testing.T)     { needNFT(t); TestDataConnections(t) }
func TestNFTJustInTime(t *testing.T)          { needNFT(t); TestJustInTime(t) }
func TestNFTControlConnections(t *testing.T)  { needNFT(t); TestControlConnections(t) }
func TestNFTInstallUnderTraffic(t *testing.T) { needNFT(t); TestInstallUnderTraffic(t) }
func TestNFTPublicAddress(t *testing.T)       { needNFT(t); TestPublicAddress(t) }
func TestNFTCarrierGuard(t *testing.T)        { needNFT(t); TestCarrierGuard(t) }
func TestNFTForgedServer(t *testing.T)        { needNFT(t); TestForgedServer(t) }
func TestNFTFailAndRefuse(t *testing.T)       { needNFT(t); TestFailAndRefuse(t) }
func TestNFTTerminate(t *testing.T)           { needNFT(t); TestTerminate(t) }
func TestNFTPickup(t *testing.T)              { needNFT(t); TestPickup(t) }
func TestNFTSynAckReachesQueue(t *testing.T)  { needNFT(t); TestSynAckReachesQueue(t) }
func TestNFTLabelRoom(t *testing.T)           { needNFT(t); TestLabelRoom(t) }
func TestNFTDataSYNs(t *testing.T)            { needNFT(t); TestDataSYNs(t) }

// TestNFTFlowtable: data connections go past the rules once they stand.
func TestNFTFlowtable(t *testing.T) {
	needNFT(t)
	devices = []string{"client", "server"}
	t.Cleanup(func() { devices = nil })
	TestDataConnections(t)
}

// offloaded wants the kernel to have a connection in a flowtable.
func offloaded(t *testing.T, c net.Conn) {
	t.Helper()
	const ipsOffload = 1 << 14 // IPS_OFFLOAD
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	src, dst := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	if e, err := ct.Lookup(conntrack.Tuple{Src: src, Dst: dst}); err != nil || e.Status&ipsOffload == 0 {
		t.Errorf("%v to %v is not offloaded: %+v, %v", src, dst, e, err)
	}
}

func TestNFTTryTerminate(t *testing.T) {
	needNFT(t)
	before := ruleset(t)
	if err := TryTerminate(t.Context(), BackendNFT); err != nil {
		t.Error(err)
	}
	if after := ruleset(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// neighbours makes tables like those of firewalld, ufw and Docker, and takes them away with the test.
func neighbours(t *testing.T) {
	t.Helper()
	loadNFT(t, `table inet firewalld {
	ct helper helper-ftp-tcp { type "ftp" protocol tcp; l3proto inet; }
	chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; }
	chain filter_PREROUTING { type filter hook prerouting priority filter + 10; policy accept; }
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state { invalid } drop
		reject with icmpx type admin-prohibited
	}
}
`)
	t.Cleanup(func() { lab.Run(t, "nft delete table inet firewalld") })
	for _, rule := range []string{ // ufw, then Docker
		"-N ufw-before-input", "-A INPUT -j ufw-before-input", "-N ufw-before-output", "-A OUTPUT -j ufw-before-output",
		"-N ufw-before-forward", "-N ufw-user-forward", "-A FORWARD -j ufw-before-forward", "-A ufw-before-forward -j ufw-user-forward",
		"-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"-N DOCKER", "-N DOCKER-USER", "-I FORWARD -o docker0 -j DOCKER", "-I FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN",
		"-P FORWARD DROP", "-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"-t nat -A POSTROUTING -s 203.0.113.64/26 ! -o docker0 -j MASQUERADE",
	} {
		lab.Run(t, "iptables -w "+rule)
	}
	t.Cleanup(func() {
		for _, table := range []string{"filter", "nat"} {
			lab.Run(t, "iptables -w -t "+table+" -F")
			lab.Run(t, "iptables -w -t "+table+" -X")
		}
		lab.Run(t, "iptables -w -P FORWARD ACCEPT")
	})
}

var (
	ourTable = regexp.MustCompile(`(?ms)^table inet ftpalg \{.*?^\}\n`)
	counters = regexp.MustCompile(`packets \d+ bytes \d+`)
)

// empty is what iptables leaves where there were rules once: its tables and own chains, without rules.
var empty = regexp.MustCompile(`(?m)^table ip6? \w+ \{\n(\tchain [A-Z]+ \{\n\t\ttype .*policy accept;\n\t\}\n\n?)*\}\n`)

// ruleset is all that nft lists, ours left out, and with it all that iptables has where it is nft underneath.
func ruleset(t testing.TB) string {
	t.Helper()
	out, err := command(t.Context(), "", "nft", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	for _, noise := range []*regexp.Regexp{ourTable, empty, counters} {
		out = noise.ReplaceAllString(out, "")
	}
	return out
}

// TestNFTInstallAndRemove: the table comes and goes in full beside those of others, which do not change by it; and what
// the other back end left goes.
func TestNFTInstallAndRemove(t *testing.T) {
	needNFT(t)
	neighbours(t)
	ctx := t.Context()
	before := ruleset(t)
	both := saved(t, Default)
	inspecting, table := NFTables(config(t)), NFTables(terminating(t))
	for _, sets := range [][]Rules{{inspecting, inspecting}, {IPTables(terminating(t)), table}} {
		for _, set := range sets {
			if err := Install(ctx, set); err != nil {
				t.Fatal(err)
			}
			if missing, err := Present(ctx, set); err != nil || len(missing) > 0 {
				t.Errorf("after Install: %v, %v", missing, err)
			}
			nft, _ := set.(NFTable)
			if there, err := hasTable(ctx); err != nil || there != (len(nft.chains) > 0) {
				t.Errorf("a table of ours: %v, %v", there, err)
			}
			if len(nft.chains) == 0 {
				continue
			}
			if after := ruleset(t); after != before {
				t.Errorf("before Install:\n%s\nafter:\n%s", before, after)
			}
			if b, ok := Installed(ctx); b != BackendNFT || !ok {
				t.Errorf("installed: %v", b)
			}
		}
		// Somebody flushes a chain, and adds a rule to another.
		lab.Run(t, "nft flush chain inet ftpalg data")
		lab.Run(t, "nft add rule inet ftpalg accepted counter")
		if missing, err := Present(ctx, sets[len(sets)-1]); err != nil || len(missing) != 2 {
			t.Errorf("changed: %q, %v", missing, err)
		}
		for range 2 { // the second time nothing is there
			if err := Remove(ctx); err != nil {
				t.Fatal(err)
			}
			if after := ruleset(t); after != before {
				t.Errorf("before Install:\n%s\nafter Remove:\n%s", before, after)
			}
			if after := saved(t, Default); after != both {
				t.Errorf("before Install:\n%s\nafter Remove:\n%s", both, after)
			}
		}
	}
}

// TestNFTChoose: which back end is for which machine.
func TestNFTChoose(t *testing.T) {
	needNFT(t)
	check := func(want Backend, reason string) {
		t.Helper()
		if got, why := Choose(t.Context(), config(t)); got != want || !strings.Contains(why, reason) {
			t.Errorf("%s, because %s; want %s, because of %q", got, why, want, reason)
		}
	}
	check(BackendNFT, "nothing else")
	install(t, nil) // neither their own table nor ours is iptables
	check(BackendNFT, "table inet theirs")
	if b, why := Choose(t.Context(), Config{Helper: "sane"}); b != BackendNFT {
		t.Errorf("without a policy: %s, because %s", b, why)
	}
	lab.Run(t, "nft flush chain inet theirs forward")
	lab.Run(t, "ip6tables -w -P FORWARD DROP")
	check(BackendIPTables, "its policy is DROP (table inet theirs")
	lab.Run(t, "ip6tables -w -F FORWARD")
	lab.Run(t, "ip6tables -w -P FORWARD ACCEPT")
	if err := Install(t.Context(), IPTables(config(t))); err != nil {
		t.Fatal(err)
	}
	check(BackendNFT, "table inet theirs") // our own chains are no firewall
	neighbours(t)
	check(BackendIPTables, "table inet firewalld")
}
