package doctor

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// TestMachine mends what belongs to the whole machine and not to a network namespace, on Debian's kernel in an emulated one:
// the sizes of conntrack's tables, and modules that nothing loads by itself.
func TestMachine(t *testing.T) {
	if !ownKernel {
		t.Log("this needs a machine of its own: scripts/test runs it through scripts/kernel")
		return
	}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(inspecting), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &stage{T: t, path: t.TempDir(), subject: Subject{Config: rules.Config{Queues: [2]uint16{21, 21}}, Backend: "iptables", PolicyFile: file}}
	s.reload()
	s.sh("mkdir -p /etc/modules-load.d && ip link set lo up && modprobe nf_conntrack && modprobe nf_tables")

	// Without automatic loading each module has to be asked for.
	loader, err := os.ReadFile("/proc/sys/kernel/modprobe")
	if err != nil {
		t.Fatal(err)
	}
	s.sh("echo /bin/false >/proc/sys/kernel/modprobe && modprobe -a nft_compat nfnetlink_queue")
	all := s.examine()
	for _, c := range []struct {
		level       Level
		check, text string
	}{{Wrong, "extensions", "xt_NFQUEUE, xt_bpf, xt_CT"}, {Note, "features", "nft_queue is not loaded"}} {
		f, found := pick(all, c.level, c.check, c.text)
		if !found {
			t.Fatalf("no %s of %s says %q: %q", c.level, c.check, c.text, all)
		}
		t.Logf("%s\n%s", f.Found, f.Fix)
		s.sh(f.Fix)
	}
	all = s.examine()
	for _, want := range []Finding{{OK, "extensions", "what the rules need of iptables (9 modules)", ""}, {OK, "features", "kernel: queue statement in nft", ""}} {
		if !slices.Contains(all, want) {
			t.Errorf("%q is not among %q", want, all)
		}
	}
	list, err := os.ReadFile("/etc/modules-load.d/ftpalg.conf")
	if err != nil || !strings.Contains(string(list), "xt_bpf\n") || !strings.Contains(string(list), "nft_queue\n") {
		t.Errorf("for the next start: %q, %v", list, err)
	}

	s.sh("echo " + strings.TrimSpace(string(loader)) + " >/proc/sys/kernel/modprobe")
	all = s.examine()
	for _, want := range []Finding{
		{OK, "features", "kernel: conntrack data in queue messages (NFQA_CT)", ""}, {OK, "features", "kernel: tproxy and socket in nft", ""},
		{OK, "features", "kernel: flowtables", ""},
		{OK, "features", "kernel: packets that wait together are read and decided on together, up to 16 (ftpalg run --queue-batch)", ""},
		{OK, "helper", "conntrack helper of our own (ftpalg): the kernel does nothing of its own accord for it", ""},
	} {
		if !slices.Contains(all, want) {
			t.Errorf("%q is not among %q", want, all)
		}
	}

	s.sh("sysctl -w net.netfilter.nf_conntrack_expect_max=100 net.netfilter.nf_conntrack_max=1000")
	s.mended(Note, "conntrack-tables", "nf_conntrack_expect_max is 100")
	s.mended(Note, "conntrack-tables", "nf_conntrack_max is 1000")

	// No flowtable takes a connection that carries a helper, but it is told.
	s.sh("nft 'table inet fast { flowtable f { hook ingress priority 0; devices = { lo }; }; chain c { type filter hook forward priority 0; ct state established flow add @f; }; }'")
	s.want(OK, "offload", "flowtable f")
	s.sh("nft delete table inet fast")
	// Two of nft's queues: one of its own, and ours.
	s.sh("nft 'table inet ids { chain c { type filter hook forward priority 0; tcp dport 21 queue num 4-7 bypass; }; }'")
	s.mended(Note, "other-queues", "queue 4:7")
	s.sh("nft 'table ip ids { chain c { type filter hook forward priority 0; queue num 21; }; }'")
	s.mended(Wrong, "other-queues", "ftpalg's queue")
}

// facts are those of a machine on which all is well, for tests that change one.
func facts(t *testing.T) *Facts {
	t.Helper()
	p, err := policy.Parse("policy.yaml", []byte(inspecting))
	if err != nil {
		t.Fatal(err)
	}
	return &Facts{
		Subject:      Subject{Config: rules.Config{Queues: [2]uint16{21, 22}, Policy: p}, Backend: "iptables", PolicyFile: "policy.yaml"},
		capabilities: map[string]bool{"CAP_NET_ADMIN": true, "CAP_NET_RAW": true},
		programs:     map[string]bool{"iptables-restore": true, "ip6tables-restore": true, "iptables-save": true, "ip6tables-save": true, "nft": true},
		sysctl: map[string]int{
			"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1, "net/ipv4/conf/all/rp_filter": 1,
			conntrackDir + "count": 10, conntrackDir + "max": 262144, conntrackDir + "expect_max": 10000,
			conntrackDir + "tcp_timeout_established": 432000, conntrackDir + "events": 2,
		},
		helper: conntrack.Helper{Name: "ftpalg", Own: true},
		tables: []*table{closed("ip"), closed("ip6")},
		queues: []queue{{nfq.Entry{Number: 21}, 42, "ftpalg"}, {nfq.Entry{Number: 22}, 42, "ftpalg"}},
	}
}

func closed(family string) *table {
	return &table{tool: map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family], family: family, name: "filter",
		chains: []*chain{{name: "FORWARD", hook: "forward", policy: drop}}}
}

// TestFacts changes one fact of a machine on which all is well, and wants what is told of it.
func TestFacts(t *testing.T) {
	if bad := complaints(Examine(facts(t))); len(bad) > 0 {
		t.Errorf("on a machine where all is well: %q", bad)
	}
	gone := errors.New("no such thing")
	for _, c := range []struct {
		change           func(*Facts)
		level            Level
		check, text, fix string
	}{
		{func(f *Facts) { f.capabilities["CAP_NET_RAW"] = false }, Wrong, "capabilities", "CAP_NET_RAW", "sudo ftpalg doctor"},
		{func(f *Facts) { f.programs["ip6tables-save"] = false }, Wrong, "commands", "ip6tables-save", "apt-get install iptables"},
		{func(f *Facts) { f.programs["nft"] = false }, Note, "commands", "nft is not there", "apt-get install nftables"},
		{func(f *Facts) { f.extensions = map[string]error{"xt_bpf": gone} }, Wrong, "extensions", "does not have xt_bpf", "apt-get install linux-image-amd64"},
		{func(f *Facts) {
			f.extensions, f.modules = map[string]error{"xt_bpf": gone}, map[string]bool{"xt_bpf": true}
		},
			Wrong, "extensions", "not loaded", `modprobe -a xt_bpf && printf '%s\n' xt_bpf >>/etc/modules-load.d/ftpalg.conf`},
		{func(f *Facts) { delete(f.sysctl, "net/ipv6/conf/all/forwarding") }, Wrong, "forwarding", "no ipv6", "modprobe ipv6"},
		{func(f *Facts) { f.sysctl[conntrackDir+"count"] = 260000 }, Wrong, "conntrack-tables", "nearly full", "sysctl -w net.netfilter.nf_conntrack_max=524288"},
		{func(f *Facts) { f.sysctl[conntrackDir+"max"] = 65536 }, Note, "conntrack-tables", "allow 210000", "sysctl -w net.netfilter.nf_conntrack_max=210000"},
		{func(f *Facts) { f.sysctl[conntrackDir+"expect_max"] = 1024 }, Note, "conntrack-tables", "is 1024", "sysctl -w net.netfilter.nf_conntrack_expect_max=10000"},
		{func(f *Facts) { f.sysctl[conntrackDir+"helper"] = 1 }, Wrong, "automatic-helper", "by port", "sysctl -w net.netfilter.nf_conntrack_helper=0"},
		{func(f *Facts) { f.queuesErr = os.ErrNotExist }, Wrong, "queues", "no packet queues", "modprobe -a nfnetlink_queue"},
		{func(f *Facts) { f.queues[1].name = "suricata" }, Wrong, "queues", "queue 22 is read by process 42 (suricata)", "kill 42"},
		{func(f *Facts) { f.queues = nil }, Wrong, "rules", "nobody reads queue 21:22", "ftpalg run --policy policy.yaml"},
		{func(f *Facts) { f.missing = []string{"a", "b", "c", "d", "e"} }, Wrong, "rules", "a; b; c; and 2 more", "kill -HUP 42"},
		{func(f *Facts) { f.helperErr = conntrack.ErrPermission }, Wrong, "helper", "not permitted", "sudo"},
		{func(f *Facts) { f.helperErr = gone }, Wrong, "helper", "no conntrack helper", "modprobe -a nfnetlink_cthelper"},
		{func(f *Facts) { f.terminateErr = gone }, Note, "terminate", "cannot be terminated", "xt_TPROXY"},
		{func(f *Facts) { f.vacantErr = gone }, Wrong, "routing", "no such thing", "ip rule"},
		{func(f *Facts) { f.tablesErr = gone }, Wrong, "forward", "cannot be read", "sudo"},
		{func(f *Facts) { f.features = map[string]error{"nft_queue": gone} }, OK, "features", "no queue statement", ""},
		{func(f *Facts) { f.features = map[string]error{queueConntrack: errNoConntrack} }, OK, "features", "decided on together", ""},
		{func(f *Facts) { f.helper = conntrack.Helper{Name: "sane"} }, OK, "features", "nfnetlink_cthelper", ""},
		{func(f *Facts) { f.own = []netip.Addr{netip.MustParseAddr("198.51.100.2")} }, Note, "own-ftp",
			`FTP of the gateway itself is not inspected, and 198.51.100.2 of server "files"`, "editor policy.yaml"},
		{func(f *Facts) { f.Backend = "nft" }, Wrong, "forward", "drops control connections, data connections, new", "iptables -w -I FORWARD"},
	} {
		f := facts(t)
		c.change(f)
		all := Examine(f)
		got, found := pick(all, c.level, c.check, c.text)
		if !found || !strings.Contains(got.Fix, c.fix) || (c.fix == "") != (got.Fix == "") {
			t.Errorf("%s of %s, %q, %q: got %q of %q", c.level, c.check, c.text, c.fix, got, complaints(all))
		}
	}
}

func complaints(all []Finding) (bad []Finding) {
	for _, f := range all {
		if f.Level != OK {
			bad = append(bad, f)
		}
	}
	return bad
}
