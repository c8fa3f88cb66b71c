package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

func newDoctor() *cobra.Command {
	var s steering
	var policyFile string
	cmd := &cobra.Command{
		Use:   "doctor [--policy FILE]",
		Short: "Check what ftpalg needs of this machine, and say what mends it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := doctor{ctx: cmd.Context(), out: cmd.OutOrStdout(), steering: s, policyFile: policyFile}
			return d.examine()
		},
	}
	s.flags(cmd.Flags())
	cmd.Flags().StringVar(&policyFile, "policy", "", "check the rules of this policy `file` as well")
	return cmd
}

// doctor prints one line a finding.
type doctor struct {
	steering
	ctx        context.Context
	out        io.Writer
	policyFile string
	helper     string
	chosen     rules.Backend
	queueTaken bool // by the running ftpalg, presumably
	bad        int
}

func (d *doctor) examine() error {
	for _, check := range []func(){
		d.capabilities, d.forwarding, d.queueSupport, d.queueOwner, d.helperChoice, d.backendChoice, d.commands, d.conntrackTables,
		d.automaticHelpers, d.events, d.sourceChecks, d.termination, d.sourceMarks, d.rulesInPlace,
	} {
		check()
	}
	if d.bad > 0 {
		fmt.Fprintf(d.out, "%d to mend\n", d.bad)
		return errSaid
	}
	return nil
}

func (d *doctor) ok(format string, args ...any) {
	fmt.Fprintf(d.out, "ok    %s\n", fmt.Sprintf(format, args...))
}

// wrong prints what is wrong and the command that mends it.
func (d *doctor) wrong(mend, format string, args ...any) {
	d.bad++
	fmt.Fprintf(d.out, "WRONG %s\n      mend: %s\n", fmt.Sprintf(format, args...), mend)
}

// note prints what may be meant so.
func (d *doctor) note(mend, format string, args ...any) {
	fmt.Fprintf(d.out, "note  %s\n      if that is not meant: %s\n", fmt.Sprintf(format, args...), mend)
}

func (d *doctor) capabilities() {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		d.wrong("run as root", "capabilities cannot be read: %v", err)
		return
	}
	for _, c := range []struct {
		name, what string
		bit        uint
	}{
		{"CAP_NET_ADMIN", "queues, conntrack, rules, transparent sockets and their marks", unix.CAP_NET_ADMIN},
		{"CAP_NET_RAW", "iptables", unix.CAP_NET_RAW},
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			d.wrong("sudo ftpalg …", "%s is missing (%s)", c.name, c.what)
			continue
		}
		d.ok("%s (%s)", c.name, c.what)
	}
}

// backendChoice finds in which language the rules stand, or would be installed.
func (d *doctor) backendChoice() {
	if installed, ok := rules.Installed(d.ctx); ok && d.backend == backendName(rules.BackendAuto) {
		d.chosen = installed
		d.ok("rules of ftpalg's stand in %s", installed)
		return
	}
	config := rules.Config{Helper: cmp.Or(d.helper, "ftp")}
	if p := d.loadedPolicy(); p != nil {
		config = d.steering.config(p, config.Helper)
	}
	var why string
	d.chosen, why, _ = d.choose(d.ctx, config) // an error is about --flowtable, which run needs
	d.ok("rules are for %s: %s", d.chosen, why)
}

func (d *doctor) commands() {
	names, install := []string{"iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"}, "apt-get install iptables"
	if d.chosen == rules.BackendNFT {
		names, install = []string{"nft"}, "apt-get install nftables"
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			d.wrong(install, "%s is not there", name)
			return
		}
	}
	version, _ := exec.CommandContext(d.ctx, string(d.chosen), "--version").Output()
	d.ok("%s", strings.TrimSpace(string(version)))
}

func (d *doctor) forwarding() {
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		v, err := sysctl(key)
		switch {
		case err != nil:
			d.note("modprobe ipv6", "%s cannot be read: %v", key, err)
		case v != 1:
			d.wrong("sysctl -w "+key+"=1", "%s is %d: this machine forwards nothing", key, v)
		default:
			d.ok("%s is 1", key)
		}
	}
}

func (d *doctor) queueSupport() {
	if _, err := nfq.Queues(); err != nil {
		d.wrong("modprobe nfnetlink_queue", "the kernel has no packet queues: %v", err)
		return
	}
	d.ok("packet queues (nfnetlink_queue)")
}

func (d *doctor) queueOwner() {
	queues, err := nfq.Queues()
	if err != nil {
		return
	}
	taken := false
	for _, q := range queues {
		if q.Number < d.queues.first || q.Number > d.queues.last {
			continue
		}
		taken, d.queueTaken = true, true
		d.note("stop that process, or choose another number with --queue-balance",
			"%s", q.Owner())
	}
	if !taken {
		d.ok("queue %s is free", d.queues.String())
	}
}

func (d *doctor) helperChoice() {
	want := "auto"
	if p := d.loadedPolicy(); p != nil {
		want = p.Helper
	}
	h, err := conntrack.DetectHelper(want, rules.SourceNAT(d.ctx))
	switch {
	case errors.Is(err, conntrack.ErrPermission):
		d.wrong("sudo ftpalg doctor", "%v", err)
		return
	case err != nil:
		d.wrong("modprobe nfnetlink_cthelper || modprobe nf_conntrack_sane", "no conntrack helper can carry pinholes: %v", err)
		return
	case h.Own:
		d.ok("conntrack helper of our own (%s)", h.Name)
	default:
		d.ok("conntrack helper %q carries pinholes (conntrack -L shows that name)", h.Name)
	}
	d.helper = h.Name
}

// conntrackTables looks at how full the kernel's tables are.
func (d *doctor) conntrackTables() {
	count, err1 := sysctl("net.netfilter.nf_conntrack_count")
	limit, err2 := sysctl("net.netfilter.nf_conntrack_max")
	switch {
	case err1 != nil || err2 != nil:
		d.wrong("modprobe nf_conntrack", "the kernel tracks no connections")
		return
	case limit > 0 && count*10 > limit*9:
		d.wrong(fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*limit),
			"conntrack is nearly full: %d of %d", count, limit)
	default:
		d.ok("conntrack holds %d of %d connections", count, limit)
	}
	const enough = 1024
	if n, err := sysctl("net.netfilter.nf_conntrack_expect_max"); err == nil && n < enough {
		d.note(fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_expect_max=%d", enough),
			"nf_conntrack_expect_max is %d: no more pinholes than that can be open at once", n)
	}
}

// automaticHelpers: kernels before 6.0 may assign the ftp helper by port, which then opens ports behind us.
func (d *doctor) automaticHelpers() {
	const key = "net.netfilter.nf_conntrack_helper"
	if v, err := sysctl(key); err == nil && v != 0 {
		d.wrong("sysctl -w "+key+"=0", "the kernel assigns its own helpers by port")
		return
	}
	d.ok("no automatic conntrack helpers")
}

// events: without destroy events sessions are only found to be over by the sweep.
func (d *doctor) events() {
	const key = "net.netfilter.nf_conntrack_events"
	if v, err := sysctl(key); err == nil && v == 0 {
		d.wrong("sysctl -w "+key+"=1", "conntrack reports no events: ends of sessions are noticed late")
		return
	}
	d.ok("conntrack events")
}

// sourceChecks: ftpalg's own rules check where a server's packets come from. A client's address can only be forged where
// nothing checks it, and then somebody else may spend the credits of its encrypted sessions.
func (d *doctor) sourceChecks() {
	const key = "net.ipv4.conf.all.rp_filter"
	if v, err := sysctl(key); err == nil && v != 1 {
		d.note("sysctl -w "+key+"=1 (where no route is asymmetric)", "%s is %d: clients' addresses can be forged from elsewhere", key, v)
		return
	}
	d.ok("%s is 1", key)
}

// termination tries out what 'action: terminate' needs. Without a policy, or with one that has no use for it, that it is
// missing is a note.
func (d *doctor) termination() {
	const module = "modprobe -a xt_TPROXY xt_socket xt_connmark nf_tproxy_ipv4 nf_tproxy_ipv6"
	err := rules.TryTerminate(d.ctx, d.chosen)
	mend, complain := module, d.note
	if d.terminates() {
		complain = d.wrong
	}
	switch {
	case err == nil:
		d.ok("connections can be terminated (TPROXY, socket match, policy routing)")
		return
	case errors.Is(err, unix.EPERM):
		mend = "sudo ftpalg doctor"
	case errors.Is(err, exec.ErrNotFound):
		mend = "apt-get install iptables nftables iproute2"
	}
	complain(mend, "connections cannot be terminated: %v", err)
}

// sourceMarks: where the kernel checks a packet's source address with regard to its mark, our routing for the mark makes
// every source address look like this machine's own, and the packet is dropped.
func (d *doctor) sourceMarks() {
	const key = "net.ipv4.conf.all.src_valid_mark"
	if v, err := sysctl(key); err == nil && v != 0 && d.terminates() {
		d.wrong("sysctl -w "+key+"=0", "%s is %d: the packets of terminated connections are dropped (wg-quick sets it)", key, v)
	}
}

// terminates reports whether there is a policy with a rule that terminates.
func (d *doctor) terminates() bool {
	p := d.loadedPolicy()
	return p != nil && slices.ContainsFunc(p.Rules, func(r policy.Rule) bool { return r.Action == policy.Terminate })
}

func (d *doctor) rulesInPlace() {
	p := d.loadedPolicy()
	if p == nil {
		return
	}
	set := d.chosen.Rules(d.steering.config(p, d.helper))
	missing, err := rules.Present(d.ctx, set)
	switch {
	case err != nil:
		d.wrong("run as root", "the rules cannot be read: %v", err)
	case len(missing) > 0:
		mend := "ftpalg run --policy " + d.policyFile
		if d.queueTaken {
			mend = "kill -HUP the process that reads the queue (above): ftpalg installs its rules again"
		}
		for _, m := range missing {
			d.wrong(mend, "not in place: %s", m)
		}
	case !d.queueTaken && !p.FailOpen:
		d.wrong("ftpalg run --policy "+d.policyFile+" (or take the rules out: ftpalg rules --remove)",
			"ftpalg's rules are in place, but nobody reads queue %s: control connections get nowhere", d.queues.String())
	default:
		d.ok("ftpalg's rules are in place")
	}
	if table, ok := set.(rules.NFTable); ok {
		for _, o := range table.Obstacles(d.ctx) {
			d.note(o.Mend, "%s does not know the mark of what ftpalg's table accepts, and what it drops stays dropped", o.Name)
		}
	}
}

// loadedPolicy is the policy to check against, or nil. What is wrong with the file is said once.
func (d *doctor) loadedPolicy() *policy.Policy {
	if d.policyFile == "" {
		return nil
	}
	p, err := loadPolicy(d.policyFile)
	if err != nil {
		d.wrong("ftpalg check "+d.policyFile, "%v", err)
		d.policyFile = ""
		return nil
	}
	return p
}

// sysctl reads a number.
func sysctl(key string) (int, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
