package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/rules"
)

// Facts are what was found on a machine.
type Facts struct {
	Subject
	capabilities    map[string]bool
	capabilitiesErr error
	programs        map[string]bool
	version         string         // what the back end's program says of its version
	sysctl          map[string]int // by path below /proc/sys; what is not there cannot be read
	queues          []queue
	queuesErr       error
	helper          conntrack.Helper
	helperErr       error
	nat             bool                    // control connections may be under NAT
	bridges         []string                // interfaces
	own             []netip.Addr            // this machine's addresses
	terminateErr    error                   // what rules.TryTerminate says
	vacantErr       error                   // what rules.Vacant says
	extensions      map[string]error        // why a module of iptables cannot be used; nil where it can
	features        map[string]error        // the same of what ftpalg can do without
	modules         map[string]bool         // modules that this kernel could load
	devices         map[netip.Prefix]string // where the route to a server's address leads out, if that is another machine's
	tables          []*table                // everybody's rules but ftpalg's
	tablesErr       error
	missing         []string // of ftpalg's rules
	missingErr      error
	ufw             map[string]string // /etc/default/ufw; nil where ufw is not installed, or off
	ufwSysctl       map[string]string
}

// queue is a bound queue and the process that reads it, as far as /proc tells.
type queue struct {
	nfq.Entry
	pid  int
	name string
}

// Read collects the facts. What needs a right that the process does not have, or a program that is not there, is a fact as
// well. It changes nothing but, in a network namespace of its own, what it tries out; trying may load the kernel's modules.
func Read(ctx context.Context, s Subject) *Facts {
	f := &Facts{Subject: s, programs: readPrograms(), modules: map[string]bool{}}
	f.capabilities, f.capabilitiesErr = readCapabilities()
	version, _ := output(ctx, "", string(s.Backend), "--version")
	f.version = strings.TrimSpace(version)
	want := "auto"
	if s.Config.Policy != nil {
		want = s.Config.Policy.Helper
	}
	f.nat, _ = rules.NAT(ctx, s.Config.Policy) // what cannot be read is said of the tables
	f.helper, f.helperErr = conntrack.DetectHelper(want, f.nat)
	f.sysctl = readSysctl() // after the helper: it brings conntrack's settings
	f.queues, f.queuesErr = readQueues()
	bridges, _ := output(ctx, "", "ip", "-br", "link", "show", "type", "bridge")
	for line := range strings.Lines(bridges) {
		f.bridges = append(f.bridges, strings.Fields(line)[0])
	}
	f.own = readOwn()
	f.terminateErr = rules.TryTerminate(ctx, s.Backend)
	f.tryOut(ctx)
	f.tables, f.tablesErr = readTables(ctx, f.programs)
	f.ufw, f.ufwSysctl = readUFW()
	f.devices = readDevices(ctx, f.servers())
	if s.Config.Policy != nil {
		f.Config.Helper = f.helper.Name
		f.vacantErr = rules.Vacant(ctx, rules.IPTables(f.Config))
		f.missing, f.missingErr = rules.Present(ctx, s.Backend.Rules(f.Config))
	}
	return f
}

// readPrograms looks for those that are asked, and that rules are made with.
func readPrograms() map[string]bool {
	there := map[string]bool{}
	for _, name := range []string{"iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save", "nft", "ip"} {
		_, err := exec.LookPath(name)
		there[name] = err == nil
	}
	return there
}

func readCapabilities() (map[string]bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for name, bit := range map[string]uint{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW} {
		has[name] = data[bit/32].Effective&(1<<(bit%32)) != 0
	}
	return has, nil
}

// readOwn lists this machine's addresses, as far as they are told.
func readOwn() (own []netip.Addr) {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr())
		}
	}
	return own
}

// readSysctl reads the settings that any check asks for, of every interface.
func readSysctl() map[string]int {
	values := map[string]int{}
	for _, pattern := range []string{
		"net/ipv4/ip_forward", "net/ipv4/conf/*/forwarding", "net/ipv6/conf/*/forwarding", "net/ipv4/conf/*/rp_filter",
		"net/ipv4/conf/*/src_valid_mark", "net/bridge/bridge-nf-call-ip*tables", "net/ipv4/conf/*/route_localnet", "net/netfilter/nf_conntrack_*",
	} {
		paths, _ := filepath.Glob("/proc/sys/" + pattern)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if n, e := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && e == nil {
				values[strings.TrimPrefix(path, "/proc/sys/")] = n
			}
		}
	}
	return values
}

func readQueues() ([]queue, error) {
	entries, err := nfq.Queues()
	var list []queue
	for _, e := range entries {
		pid, name := e.Process()
		list = append(list, queue{e, pid, name})
	}
	return list, err
}

// iptablesProbes are input for iptables-restore that uses one module each.
var iptablesProbes = []struct{ module, rule string }{
	{"xt_NFQUEUE", "*mangle\n-A PREROUTING -p tcp -j NFQUEUE --queue-num 0\nCOMMIT\n"},
	{"xt_bpf", "*mangle\n-A PREROUTING -p tcp -m bpf --bytecode \"" + rules.PayloadBytecode(false) + "\" -j RETURN\nCOMMIT\n"},
	{"xt_CT", "*raw\n-A PREROUTING -p tcp -j CT --zone 0\nCOMMIT\n"},
	{"xt_multiport", "*raw\n-A PREROUTING -p tcp -m multiport --dports 21,990 -j RETURN\nCOMMIT\n"},
	{"ipt_rpfilter", "*raw\n-A PREROUTING -p tcp -m rpfilter --invert -j DROP\nCOMMIT\n"},
	{"xt_conntrack", "*filter\n-A FORWARD -p tcp -m conntrack --ctstate RELATED -j RETURN\nCOMMIT\n"},
	{"xt_helper", "*filter\n-A FORWARD -p tcp -m helper --helper ftp -j RETURN\nCOMMIT\n"},
	{"xt_mark", "*filter\n-A FORWARD -p tcp -m mark --mark 1/1 -j RETURN\nCOMMIT\n"},
	{"ipt_REJECT", "*filter\n-A FORWARD -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n"},
}

// nftProbes are files for nft, each with one feature in it, and a table of its own.
var nftProbes = map[string]string{
	"nft_queue": `table inet nft_queue {
		chain c { type filter hook prerouting priority mangle
			queue num 0
		}
	}`,
	"nft_tproxy": `table inet nft_tproxy {
		chain c { type filter hook prerouting priority mangle
			meta l4proto tcp socket transparent 1 accept
			meta l4proto tcp tproxy ip to 127.0.0.1:1
		}
	}`,
	"nft_flow_offload": `table inet nft_flow_offload {
		flowtable f { hook ingress priority 0; devices = { lo }; }
		chain c { type filter hook forward priority 0
			meta l4proto tcp flow add @f
		}
	}`,
}

// queueConntrack is the feature of queue messages with conntrack's entry in them.
const queueConntrack = "nf_conntrack_netlink"

// tryOut tries the kernel's features in a network namespace that is gone afterwards.
func (f *Facts) tryOut(ctx context.Context) {
	f.extensions, f.features = map[string]error{}, map[string]error{}
	err := inScratch(func() {
		for _, p := range iptablesProbes {
			_, f.extensions[p.module] = output(ctx, p.rule, "iptables-restore", "-w", "5", "--noflush")
		}
		for module, text := range nftProbes {
			_, f.features[module] = output(ctx, text, "nft", "-f", "-")
		}
		f.features[queueConntrack] = tryQueueConntrack(ctx)
	})
	if err != nil {
		for _, p := range iptablesProbes {
			f.extensions[p.module] = err
		}
		f.features = nil
	}
	for module := range f.extensions {
		f.modules[module] = loadable(ctx, module)
	}
	for module := range f.features {
		f.modules[module] = loadable(ctx, module)
	}
}

var errNoConntrack = errors.New("the kernel does not send it (CONFIG_NETFILTER_NETLINK_GLUE_CT)")

func tryQueueConntrack(ctx context.Context) error {
	q, err := nfq.Open(ctx, 0, nfq.Options{Conntrack: true}, func(*nfq.Packet) {})
	if err != nil {
		return err
	}
	defer q.Close()
	if !q.Conntrack() {
		return errNoConntrack
	}
	return nil
}

// inScratch runs do in a network namespace of its own, which takes CAP_SYS_ADMIN.
func inScratch(do func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with both
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		do()
		done <- nil
	}()
	return <-done
}

// loadable reports whether a module's file is there for this kernel.
func loadable(ctx context.Context, module string) bool {
	_, err := output(ctx, "", "modinfo", "-F", "filename", module)
	return err == nil
}

// readTables reads everybody's rules. iptables' legacy back end is only asked where it has tables: asking would make them.
func readTables(ctx context.Context, programs map[string]bool) ([]*table, error) {
	var tables []*table
	var errs []error
	save := func(tool, command string) {
		text, err := output(ctx, "", command)
		more, parseErr := parseSave(tool, text)
		tables, errs = append(tables, more...), append(errs, err, parseErr)
	}
	if programs["iptables-save"] {
		save("iptables", "iptables-save")
	}
	if programs["ip6tables-save"] {
		save("ip6tables", "ip6tables-save")
	}
	for tool, names := range map[string]string{"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"} {
		version, _ := output(ctx, "", strings.TrimSuffix(tool, "-legacy"), "--version")
		text, _ := os.ReadFile("/proc/net/" + names)
		if len(bytes.TrimSpace(text)) > 0 && !strings.Contains(version, "legacy") {
			save(tool, tool+"-save")
		}
	}
	if programs["nft"] {
		text, err := output(ctx, "", "nft", "-j", "-t", "list", "ruleset")
		if err == nil {
			var more []*table
			more, err = parseNFT([]byte(text))
			tables = append(tables, withoutIPTables(more, tables)...)
		}
		errs = append(errs, err)
	}
	return withoutOurs(tables), errors.Join(errs...)
}

// withoutIPTables leaves out the tables that iptables has made and shown: nft cannot say all that is in them.
func withoutIPTables(all, shown []*table) []*table {
	var rest []*table
	for _, t := range all {
		known := false
		for _, s := range shown {
			known = known || s.family == t.family && s.name == t.name
		}
		if !known {
			rest = append(rest, t)
		}
	}
	return rest
}

// withoutOurs leaves out ftpalg's own table and chains. Rules that lead there stay, and lead nowhere.
func withoutOurs(tables []*table) []*table {
	var others []*table
	for _, t := range tables {
		if t.tool == "nft" && t.family == "inet" && t.name == "ftpalg" {
			continue
		}
		var chains []*chain
		for _, c := range t.chains {
			if !strings.HasPrefix(c.name, ourPrefix) {
				chains = append(chains, c)
			}
		}
		t.chains = chains
		others = append(others, t)
	}
	return others
}

// ourPrefix starts the name of every chain of ftpalg's.
const ourPrefix = "FTPALG-"

// readDevices asks for the route to each server that is a single host. One that has none has no device.
func readDevices(ctx context.Context, servers []server) map[netip.Prefix]string {
	var ask strings.Builder
	for _, s := range servers {
		if s.address.IsSingleIP() {
			fmt.Fprintf(&ask, "route get %s\n", s.address.Addr())
		}
	}
	cmd := exec.CommandContext(ctx, "ip", "-json", "-force", "-batch", "-")
	cmd.Stdin = strings.NewReader(ask.String())
	text, _ := cmd.Output() // it fails if one of them has no route
	devices := map[netip.Prefix]string{}
	for answers := json.NewDecoder(bytes.NewReader(text)); ; {
		var routes []struct {
			Dst       netip.Addr
			Dev, Type string
		}
		if answers.Decode(&routes) != nil {
			return devices
		}
		for _, r := range routes {
			if r.Type == "" { // local and broadcast addresses have one
				devices[netip.PrefixFrom(r.Dst, r.Dst.BitLen())] = r.Dev
			}
		}
	}
}

// readUFW reads ufw's settings where ufw is on.
func readUFW() (settings, sysctl map[string]string) {
	if !strings.EqualFold(readSettings("/etc/ufw/ufw.conf")["ENABLED"], "yes") {
		return nil, nil
	}
	settings = readSettings("/etc/default/ufw")
	return settings, readSettings(settings["IPT_SYSCTL"])
}

// readSettings reads lines of KEY=value; a file that is not there has none.
func readSettings(path string) map[string]string {
	text, _ := os.ReadFile(path)
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if found && !strings.HasPrefix(key, "#") {
			values[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return values
}

// output runs a program, and puts what it says of its failure into the error.
func output(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("%s: %w: %s", name, err, first)
	}
	return stdout.String(), nil
}
