package doctor

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/rules"
)

const again = "sudo ftpalg doctor"

func capabilities(f *Facts, r *report) {
	if f.capabilitiesErr != nil {
		r.wrong(again, "capabilities cannot be read: %v", f.capabilitiesErr)
		return
	}
	for _, c := range []struct{ name, what string }{
		{"CAP_NET_ADMIN", "queues, conntrack, rules, transparent sockets and their marks"},
		{"CAP_NET_RAW", "iptables"},
	} {
		if !f.capabilities[c.name] {
			r.wrong(again, "%s is missing (%s)", c.name, c.what)
			continue
		}
		r.ok("%s (%s)", c.name, c.what)
	}
}

func commands(f *Facts, r *report) {
	r.ok("rules are for %s: %s", f.Backend, f.Why)
	names, fix := []string{"iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"}, "apt-get install iptables"
	if f.Backend == rules.BackendNFT {
		names, fix = []string{"nft"}, "apt-get install nftables"
	}
	for _, name := range names {
		if !f.programs[name] {
			r.wrong(fix, "%s is not there", name)
			return
		}
	}
	r.ok("%s", f.version)
	if !f.programs["nft"] {
		r.note("apt-get install nftables", "nft is not there: what others' nft tables do with FTP cannot be seen")
	}
}

// load is the command that loads a module now and at every start.
func load(modules ...string) string {
	all := strings.Join(modules, " ")
	return fmt.Sprintf(`modprobe -a %s && printf '%%s\n' %s >>/etc/modules-load.d/ftpalg.conf`, all, all)
}

// extensions: what the rules need of the kernel's modules. iptables loads them by itself, unless that is blocked.
func extensions(f *Facts, r *report) {
	if f.Backend == rules.BackendNFT {
		return
	}
	var unloaded, absent []string
	for _, p := range iptablesProbes {
		err := f.extensions[p.module]
		switch {
		case err == nil:
		case errors.Is(err, unix.EPERM) || errors.Is(err, exec.ErrNotFound): // said by other checks
			return
		case f.modules[p.module]:
			unloaded = append(unloaded, p.module)
		default:
			absent = append(absent, p.module)
		}
	}
	if len(unloaded) > 0 {
		r.wrong(load(unloaded...), "modules are not loaded: %s (%v)", strings.Join(unloaded, ", "), f.extensions[unloaded[0]])
	}
	if len(absent) > 0 {
		r.wrong("apt-get install linux-image-amd64 # and boot it", "this kernel does not have %s (%v)", strings.Join(absent, ", "), f.extensions[absent[0]])
	}
	if len(unloaded)+len(absent) == 0 {
		r.ok("what the rules need of iptables (%d modules)", len(iptablesProbes))
	}
}

// set is the command that changes a setting, given by its path below /proc/sys. A dot in an interface's name takes slashes
// between the parts (sysctl(8)).
func set(path string, value int) string { return fmt.Sprintf("sysctl -w %s=%d", key(path), value) }

func key(path string) string {
	if strings.Contains(path, ".") {
		return path
	}
	return strings.ReplaceAll(path, "/", ".")
}

func forwarding(f *Facts, r *report) {
	for _, c := range []struct {
		path, family string
		v6           bool
	}{{"net/ipv4/ip_forward", "ipv4", false}, {"net/ipv6/conf/all/forwarding", "ipv6", true}} {
		v, there := f.sysctl[c.path]
		complain := r.wrong
		if !f.serves(c.v6) {
			complain = r.note
		}
		switch {
		case !there && !f.serves(c.v6):
		case !there:
			complain("modprobe "+c.family, "%s cannot be read: the kernel has no %s", key(c.path), c.family)
		case v != 1:
			fix := set(c.path, 1)
			if c.v6 {
				fix += " # an interface that learns its routes from advertisements needs accept_ra=2 then"
			}
			complain(fix, "%s is %d: this machine forwards nothing", key(c.path), v)
		default:
			r.ok("%s is 1", key(c.path))
			for name, path := range f.interfaces(c.family, "forwarding") {
				if f.sysctl[path] == 0 {
					r.note(set(path, 1), "%s is 0: what comes in at %s is not forwarded", key(path), name)
				}
			}
		}
	}
}

// interfaces gives the path of a setting for each interface but the loopback, by name.
func (f *Facts) interfaces(family, setting string) func(yield func(string, string) bool) {
	return func(yield func(string, string) bool) {
		prefix, suffix := "net/"+family+"/conf/", "/"+setting
		for _, path := range slices.Sorted(maps.Keys(f.sysctl)) {
			name, ok := strings.CutPrefix(path, prefix)
			if name, ok2 := strings.CutSuffix(name, suffix); ok && ok2 && name != "all" && name != "default" && name != "lo" {
				if !yield(name, path) {
					return
				}
			}
		}
	}
}

// sourceChecks: ftpalg's own rules check where a server's packets come from. A client's address can only be forged where
// nothing checks it, and then somebody else may spend the credits of its encrypted sessions.
func sourceChecks(f *Facts, r *report) {
	const all = "net/ipv4/conf/all/rp_filter"
	var loose []string
	for name, path := range f.interfaces("ipv4", "rp_filter") { // the greater of the two values counts (ip-sysctl)
		if f.sysctl[path] > 1 {
			loose = append(loose, name)
		}
	}
	if f.sysctl[all] != 1 || len(loose) > 0 {
		fix, where := set(all, 1), ""
		for _, name := range loose {
			fix += " && " + set("net/ipv4/conf/"+name+"/rp_filter", 1)
			where += fmt.Sprintf(", and %d at %s", f.sysctl["net/ipv4/conf/"+name+"/rp_filter"], name)
		}
		r.note(fix+" # where no route is asymmetric", "%s is %d%s: clients' addresses can be forged from elsewhere", key(all), f.sysctl[all], where)
		return
	}
	r.ok("rp_filter is 1")
}

// sourceMarks: where the kernel checks a packet's source address with regard to its mark, our routing for the mark makes
// every source address look like this machine's own, and the packet is dropped.
func sourceMarks(f *Facts, r *report) {
	if !f.terminates() {
		return
	}
	paths := []string{"net/ipv4/conf/all/src_valid_mark"}
	for _, path := range f.interfaces("ipv4", "src_valid_mark") {
		paths = append(paths, path)
	}
	for _, path := range paths {
		if f.sysctl[path] != 0 {
			r.wrong(set(path, 0), "%s is %d: the packets of terminated connections are dropped (wg-quick sets it)", key(path), f.sysctl[path])
		}
	}
}

// bridges: where a bridge has its packets pass iptables as well, the socket that TPROXY finds there is lost on the way to the
// routing, and the connection is refused.
func bridges(f *Facts, r *report) {
	if !f.terminates() || len(f.bridges) == 0 {
		return
	}
	for _, path := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if f.sysctl[path] != 0 {
			r.note(set(path, 0), "%s is %d: connections that come in over a bridge (%s) cannot be terminated", key(path), f.sysctl[path], strings.Join(f.bridges, ", "))
		}
	}
}

// localnet: connections reach ftpalg's listener on 127.0.0.1 through TPROXY, which needs no route_localnet; with it, so
// could packets that are addressed to 127.0.0.1 on a wire.
func localnet(f *Facts, r *report) {
	paths := []string{"net/ipv4/conf/all/route_localnet"}
	for _, path := range f.interfaces("ipv4", "route_localnet") {
		paths = append(paths, path)
	}
	for _, path := range paths {
		if f.sysctl[path] != 0 {
			r.note(set(path, 0), "%s is 1: neighbours reach what listens on 127.0.0.1; ftpalg does not need it", key(path))
		}
	}
}

// ownFTP is about a server that is this machine: what it says comes by no hook that ftpalg reads.
func ownFTP(f *Facts, r *report) {
	for _, s := range f.servers() {
		if !s.public && s.address.IsSingleIP() && slices.Contains(f.own, s.address.Addr()) {
			r.note("editor "+f.PolicyFile, "FTP of the gateway itself is not inspected, and %s of server %q is the gateway's address: of what is said there "+
				"ftpalg reads one half; take the address out", s.address.Addr(), s.name)
		}
	}
}

// termination is about what 'action: terminate' needs. Without a policy, or with one that has no use for it, that it is
// missing is a note.
func termination(f *Facts, r *report) {
	fix, complain := load("xt_TPROXY", "xt_socket", "xt_connmark", "nf_tproxy_ipv4", "nf_tproxy_ipv6"), r.note
	if f.terminates() {
		complain = r.wrong
	}
	switch err := f.terminateErr; {
	case err == nil:
		r.ok("connections can be terminated (TPROXY, socket match, policy routing)")
		return
	case errors.Is(err, unix.EPERM):
		fix = again
	case errors.Is(err, exec.ErrNotFound):
		fix = "apt-get install iptables nftables iproute2"
	}
	why, _, _ := strings.Cut(f.terminateErr.Error(), "\n")
	complain(fix, "connections cannot be terminated: %s", why)
}

// routing: somebody else's ip rules with our mark or routing table.
func routing(f *Facts, r *report) {
	if f.vacantErr != nil {
		r.wrong("ip rule show; ip -6 rule show # and 'ip rule del' what is not needed; or choose others with --route-table and --mark", "%v", f.vacantErr)
	}
}

func helper(f *Facts, r *report) {
	switch h, err := f.helper, f.helperErr; {
	case errors.Is(err, conntrack.ErrPermission):
		r.wrong(again, "%v", err)
	case err != nil:
		r.wrong(load("nfnetlink_cthelper")+" || "+load("nf_conntrack_sane"), "no conntrack helper can carry pinholes: %v", err)
	case h.Own && f.nat:
		r.note(load("nf_conntrack_sane"), "conntrack helper of our own (%s), with NAT: PORT and 227 are refused where their length would change", h.Name)
	case h.Own:
		r.ok("conntrack helper of our own (%s): the kernel does nothing of its own accord for it", h.Name)
	default:
		r.ok("conntrack helper %q carries pinholes (conntrack -L shows that name); the kernel would open a port for requests of its own protocol, "+
			"so ftpalg's rules drop what is one, and what is expected all the same is removed and ends its session", h.Name)
	}
}

// features are what ftpalg uses where it is there, and does without where it is not.
func features(f *Facts, r *report) {
	for _, c := range []struct{ module, what, without string }{
		{queueConntrack, "conntrack data in queue messages (NFQA_CT)", "ftpalg looks connections up instead"},
		{"nft_queue", "queue statement in nft", "the rules have to be iptables'"},
		{"nft_tproxy", "tproxy and socket in nft", "the rules have to be iptables'"},
		{"nft_flow_offload", "flowtables", "data connections are routed packet by packet"},
	} {
		err, tried := f.features[c.module]
		switch {
		case !tried || errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.EPERM): // said by other checks
		case err == nil:
			r.ok("kernel: %s", c.what)
		case f.modules[c.module] && !errors.Is(err, errNoConntrack):
			r.note(load(c.module), "the module %s is not loaded: no %s; %s", c.module, c.what, c.without)
		default:
			r.ok("kernel: no %s, so %s", c.what, c.without)
		}
	}
	if err, tried := f.features[queueConntrack]; tried && (err == nil || errors.Is(err, errNoConntrack)) { // a queue was opened and asked
		r.ok("kernel: packets that wait together are read and decided on together, up to %d (ftpalg run --queue-batch)", nfq.DefaultBatch)
	}
	if f.helperErr == nil && !f.helper.Own && !f.nat {
		const module = "nfnetlink_cthelper"
		if f.modules[module] {
			r.note(load(module), "the module %s is not loaded: no conntrack helper of our own", module)
		} else {
			r.ok("kernel: no conntrack helpers of user space (%s), so one of its own carries pinholes", module)
		}
	}
}
