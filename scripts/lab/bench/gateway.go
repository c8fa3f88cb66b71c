package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"ftpalg/nfq/rules"
	"ftpalg/scripts/lab"
)

// policyText is what ftpalg runs with: opaque FTPS may have pinholes, so the SYN of every data connection passes through
// the queue too. The limits are out of the way, because sessions count until conntrack forgets them.
const policyText = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2]
    explicit: [21, 2121]
    passive: 50000-50100
clients:
  - name: office
    addresses: [192.0.2.0/24]
rules:
  - name: office to files
    from: [office]
    to: [files]
    action: inspect
    opaque: pinhole
limits:
  sessions: 200000
  sessions-per-client: 200000
`

// The ways to carry FTP, and their positions in all results.
const (
	routed       = iota
	kernelHelper // the first four do not open TLS
	floor
	daemon
	relayed // the others do: ftpalg, whose policy has it relay data connections
	direct  // the same ftpalg, with data connections that the kernel forwards
	modProxy
	haProxy
	stunnel
	unfiltered // ftpalg again: with every segment queued, also those without payload
	twoQueues  // with several queues
	fourQueues
	oneByOne  // with each packet read, and decided on, on its own
	toldQueue // with conntrack's entries in the queue's messages
	fast      // routed without a firewall, with everything in a flowtable
	nftRules  // ftpalg again: with nft's rules
	offloaded // and with data connections in a flowtable
	twin      // routed once more, to see what differs where nothing does
	stateful  // the least firewall that knows connections
	inStep    // ftpalg again: with a policy that rests on a session's state
	chosen    // opening TLS, with data connections as it chooses itself
	traced    // relaying them, with Go's garbage collector telling what it does
	// The same of the build before.
	beforeDaemon
	beforeInStep
	beforeRelayed
	beforeChosen
	beforeTraced
	ways
)

var wayNames = [ways]string{
	"routed", "kernel helper", "floor", "ftpalg", "ftpalg relay", "ftpalg direct", "mod_proxy", "HAProxy", "stunnel",
	"no payload filter", "2 queues", "4 queues", "one by one", "NFQA_CT",
	"routed, flowtable", "ftpalg, nft", "ftpalg, flowtable", "routed's twin", "conntrack alone",
	"in step", "ftpalg's choice", "traced",
	"before", "before, in step", "before, relay", "before, its choice", "before, traced",
}

// The ways that are compared with one another: each part of the table has one column for each.
var (
	inspectingWays  = []int{routed, kernelHelper, floor, daemon}
	terminatingWays = []int{routed, relayed, direct, modProxy, haProxy, stunnel}
	queueWays       = []int{routed, daemon, unfiltered, twoQueues, fourQueues, oneByOne, toldQueue}
	flowtableWays   = []int{routed, fast, kernelHelper, nftRules, offloaded}
	bulkWays        = []int{routed, kernelHelper, floor, daemon, twin}
	pastWays        = []int{routed, direct, twin, stateful}
	buildWays       = []int{daemon, beforeDaemon} // the columns; the rows are of other pairs as well
)

// queue is the number of the queue, in the floor's rules and in ftpalg's.
const queue = "21"

// gateway is a lab of its own whose gateway carries FTP in one of the ways. All stand side by side, so that rounds can be
// interleaved without changing anything between them.
type gateway struct {
	*lab.Lab
	way      int
	host     lab.Host      // where the clients are
	to       netip.Addr    // whom they connect to: the server, or the gateway in its place
	proc     *lab.Proc     // what the packets or the connections go through, if anything
	server   *lab.Proc     // the benchmark's own
	vsftpd   bool          // whether it runs beside the benchmark's own server
	nextPort atomic.Uint32 // the source port of the control connection before
}

// programs are what a gateway needs from the build.
type programs struct {
	ftpalg, floor, servers, self string
	before                       string // another build of ftpalg, if it is to be compared with
}

// startTimeout bounds the start of every program.
const startTimeout = 20 * time.Second

// newGateway builds a lab, puts one way of carrying FTP on its gateway, and starts the benchmark's server in it.
func newGateway(ctx context.Context, way int, p programs) (*gateway, error) {
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	g := &gateway{Lab: l, way: way, host: lab.Client, to: lab.Addr(lab.Server, lab.IPv4)}
	setUp := [ways]func(context.Context, programs) error{
		g.open, g.helped, g.floored, g.guarded, g.terminated, nil, g.modProxied, g.haProxied, g.stunnelled,
		g.unfiltered, g.queues("21:22"), g.queues("21:24"), g.oneByOne, g.told,
		g.fast, g.nftRules(), g.nftRules(flowtableFlags...), g.open, g.tracked,
		g.inStep, g.chosen, g.traced,
		earlier(g.guarded), earlier(g.inStep), earlier(g.terminated), earlier(g.chosen), earlier(g.traced),
	}[way]
	if err = errors.Join(g.writeCertificate(), g.widen(ctx)); err == nil {
		err = setUp(ctx, p)
	}
	if err == nil {
		g.server, err = g.launch(ctx, lab.Server, serverReady, p.self, "serve", g.Path(certificateFile), g.Path(keyFile))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", wayNames[way], err), l.Close())
	}
	return g, nil
}

// firstSource is where the source ports of control connections begin. Each is used once in the whole run: conntrack and
// the server remember a connection after its end, and a port that is used again would measure that.
const firstSource = 2000

// widen lets the client's other connections have more ports than the lab gives them.
func (g *gateway) widen(ctx context.Context) error {
	g.nextPort.Store(firstSource)
	var errs []error
	for _, client := range []lab.Host{lab.Client, lab.Client2} {
		_, err := g.Run(ctx, client, "sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 65000")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// open is the gateway without a firewall.
func (g *gateway) open(ctx context.Context, _ programs) error { return g.SetForward(ctx, lab.Accept) }

// tracked is a firewall of one rule, for which conntrack has to follow all connections.
func (g *gateway) tracked(ctx context.Context, _ programs) error {
	return g.rules(ctx, "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-P FORWARD ACCEPT")
}

// helped is the kernel's own helper behind a default-drop firewall.
func (g *gateway) helped(ctx context.Context, _ programs) error {
	return g.rules(ctx,
		"-t raw -A PREROUTING -p tcp -m multiport --dports 21,2121 -j CT --helper ftp",
		"-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
		"-A FORWARD -p tcp -m multiport --dports 21,2121 -m conntrack --ctstate NEW -j ACCEPT")
}

// floored is the floor: the kernel's helper, and what ftpalg would see goes through a queue whose reader accepts it.
func (g *gateway) floored(ctx context.Context, p programs) (err error) {
	if g.proc, err = g.launch(ctx, lab.Gateway, "ready", p.floor, queue); err != nil {
		return err
	}
	if err := g.helped(ctx, p); err != nil {
		return err
	}
	for _, way := range []string{"-d 198.51.100.2 -p tcp -m multiport --dports", "-s 198.51.100.2 -p tcp -m multiport --sports"} {
		args := append(strings.Fields("-w -t mangle -A PREROUTING "+way+" 21,2121 -m bpf --bytecode"), rules.PayloadBytecode(false),
			"-j", "NFQUEUE", "--queue-num", queue)
		if _, err := g.Run(ctx, lab.Gateway, "iptables", args...); err != nil {
			return err
		}
	}
	return nil
}

// guarded is ftpalg with its own rules, as `ftpalg run` installs them.
func (g *gateway) guarded(ctx context.Context, p programs) error { return g.daemon(ctx, p, policyText) }

// queues is ftpalg with several queues.
func (g *gateway) queues(balance string) func(context.Context, programs) error {
	return func(ctx context.Context, p programs) error {
		return g.daemon(ctx, p, policyText, "--queue-balance", balance)
	}
}

// oneByOne is ftpalg that gives no two verdicts at once.
func (g *gateway) oneByOne(ctx context.Context, p programs) error {
	return g.daemon(ctx, p, policyText, "--queue-batch", "1")
}

// told is ftpalg that reads conntrack's entries from the queue, where the kernel sends them.
func (g *gateway) told(ctx context.Context, p programs) error {
	return g.daemon(ctx, p, policyText, "--queue-conntrack")
}

// payloadFilter is the match that ftpalg's rules leave to the queue what has payload with.
var payloadFilter = regexp.MustCompile(`-m bpf --bytecode "[^"]*" (-j NFQUEUE)`)

// unfiltered is ftpalg with its own rules, but for the payload filter.
func (g *gateway) unfiltered(ctx context.Context, p programs) error {
	if err := g.daemon(ctx, p, policyText, "--no-rules", "--mark", "0x20000000"); err != nil {
		return err
	}
	script, err := g.Run(ctx, lab.Gateway, p.ftpalg, "rules", "--backend", "iptables", "--policy", g.Path("policy.yaml"))
	if err != nil {
		return err
	}
	_, err = g.Run(ctx, lab.Gateway, "sh", "-c", payloadFilter.ReplaceAllString(script, "$1"))
	return err
}

// daemon runs ftpalg with a policy.
func (g *gateway) daemon(ctx context.Context, p programs, policy string, flags ...string) error {
	return g.daemonBy(ctx, []string{p.ftpalg}, policy, flags...)
}

// daemonBy is daemon by a command line that begins in another way.
func (g *gateway) daemonBy(ctx context.Context, command []string, policy string, flags ...string) (err error) {
	file := g.Path("policy.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		return err
	}
	args := slices.Concat(command[1:], []string{"run", "--policy", file, "--log-format", "json", "--socket", g.Path("ftpalg.sock")}, flags)
	g.proc, err = g.launch(ctx, lab.Gateway, `"msg":"ready"`, command[0], args...)
	return err
}

func (g *gateway) rules(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if _, err := g.Run(ctx, lab.Gateway, "iptables", append([]string{"-w"}, strings.Fields(line)...)...); err != nil {
			return err
		}
	}
	return nil
}

// launch starts a program and waits until it says that it is ready. What it prints goes to a file, as a service's log
// does, and not through this process, whose time is measured.
func (g *gateway) launch(ctx context.Context, h lab.Host, ready, program string, args ...string) (*lab.Proc, error) {
	return g.start(ctx, h, func(printed string) (bool, error) { return strings.Contains(printed, ready), nil }, program, args...)
}

// start is launch with any sign that the program is ready.
func (g *gateway) start(ctx context.Context, h lab.Host, ready func(printed string) (bool, error), program string, args ...string) (*lab.Proc, error) {
	log := g.Path(filepath.Base(program) + ".log")
	shell := append([]string{"-c", `exec "$@" >"$0" 2>&1`, log, program}, args...)
	proc, err := g.Start(ctx, h, "sh", shell...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var printed []byte
	err = lab.Wait(ctx, program+" to get ready", func() (bool, error) {
		select {
		case <-proc.Exited():
			return false, errors.New("it has ended")
		default:
		}
		printed, err = os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		return ready(string(printed))
	})
	if err != nil {
		return nil, fmt.Errorf("%w: it printed %q", err, printed)
	}
	return proc, nil
}

// cpu is the processor time that the gateway's process has had so far, by the scheduler's account, which is exact to the
// nanosecond. The kernel's own work on packets is charged to it only as far as it is done in its system calls.
func (g *gateway) cpu() (time.Duration, error) {
	if g.proc == nil {
		return 0, nil
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", g.proc.PID()))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("%s: no /proc/%d/task/*/schedstat: %w", wayNames[g.way], g.proc.PID(), errors.Join(err, os.ErrNotExist))
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has just ended
		}
		var ran time.Duration
		if err == nil {
			_, err = fmt.Sscan(string(text), (*int64)(&ran))
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += ran
	}
	return sum, nil
}

// startVsftpd puts vsftpd beside the benchmark's own server in the labs of these gateways.
func (b *bench) startVsftpd(ctx context.Context, gateways []*gateway) error {
	for _, g := range gateways {
		if g.vsftpd {
			continue
		}
		server, err := g.StartServer(ctx, lab.Servers[0], b.servers)
		if err == nil {
			err = os.WriteFile(server.File(strconv.Itoa(small)), make([]byte, small), 0o644)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", wayNames[g.way], err)
		}
		g.vsftpd = true
	}
	return nil
}
