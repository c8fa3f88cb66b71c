package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ftpalg/nfq/rules"
)

const (
	// fileSize is the size of a transferred file: many segments, and still quick.
	fileSize = 100 << 10
	// transfers is how many files a job transfers.
	transfers = 2
)

var (
	// sessionTimeout bounds one client's session.
	sessionTimeout = patient(20 * time.Second)
	// doubtTimeout bounds the session of a client of which we expect that it hangs.
	doubtTimeout = patient(8 * time.Second)
	// reportGrace is how long ftpalg's log may lag behind what it does: the machine may be busy with other things.
	reportGrace = patient(3 * time.Second)
	// closeGrace is how long a control connection may take to close, as the gateway's connection tracking has it: a reset
	// whose sequence number it does not like leaves the entry as it was, for some seconds.
	closeGrace = patient(15 * time.Second)
)

// Config is where a stage finds what it needs.
type Config struct {
	ServersDir string // where scripts/setup unpacked the FTP servers
	Binary     string // ftpalg
	Backend    rules.Backend
	Successors bool // ftpalg is to hand over to further processes
}

// Stage is a lab with one FTP server and ftpalg in it, in which scenarios run one after the other.
type Stage struct {
	Lab    *Lab
	Server *FTPServer
	Daemon *Daemon
	config Config
	data   DataPath // that ftpalg runs for
	nat    NAT      // what the gateway does to addresses; the zero value does nothing
	// doubts remembers which kinds of session were found not to work without a firewall either.
	doubts map[string]string
}

// NewStage builds a lab, proves that its probes see an open firewall, and starts a server and ftpalg in it.
func NewStage(ctx context.Context, kind ServerKind, config Config) (*Stage, error) {
	return newStage(ctx, kind, config, (*Stage).guard)
}

// newStage builds a lab, prepares its gateway and starts a server in it.
func newStage(ctx context.Context, kind ServerKind, config Config, gateway func(*Stage, context.Context) error) (*Stage, error) {
	l, err := New(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stage{Lab: l, config: config, doubts: make(map[string]string)}
	if err = gateway(s, ctx); err == nil {
		s.Server, err = l.StartServer(ctx, kind, config.ServersDir)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// guard puts ftpalg on the gateway.
func (s *Stage) guard(ctx context.Context) error {
	err := s.calibrate(ctx)
	if err == nil {
		err = s.acceptMarked(ctx)
	}
	if err == nil {
		s.Daemon, err = s.startDaemon(ctx, Policy())
	}
	return err
}

// withSuccessors runs a program and whatever it hands over to, and ends when the last of them has closed its output.
const withSuccessors = `#!/bin/sh
trap : TERM
%q "$@" 2>&1 | (trap "" TERM; exec cat)
`

// startDaemon runs ftpalg on the gateway, with the stage's back end.
func (s *Stage) startDaemon(ctx context.Context, policy string) (*Daemon, error) {
	binary := s.config.Binary
	if s.config.Successors {
		binary = s.Lab.Path("ftpalg.sh")
		if err := os.WriteFile(binary, fmt.Appendf(nil, withSuccessors, s.config.Binary), 0o755); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
	}
	return s.Lab.StartDaemon(ctx, binary, policy, "--backend", string(cmp.Or(s.config.Backend, rules.BackendAuto)))
}

// acceptMarked has the gateway's own firewall, which drops, let by what ftpalg's table accepts: no table of nft's can accept for
// another one. With iptables ftpalg is in the firewall's own chain.
func (s *Stage) acceptMarked(ctx context.Context) error {
	if s.config.Backend != rules.BackendNFT {
		return nil
	}
	mark := fmt.Sprintf("0/%#x", rules.DefaultTerminate.Own|rules.DefaultTerminate.Divert)
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, chain := range []string{"FORWARD", "INPUT", "OUTPUT"} {
			if _, err := s.Lab.Run(ctx, Gateway, tool, "-w", "-A", chain, "-m", "mark", "!", "--mark", mark, "-j", "ACCEPT"); err != nil {
				return err
			}
		}
	}
	return nil
}

// openUp lets the gateway forward everything.
func (s *Stage) openUp(ctx context.Context) error { return s.Lab.SetForward(ctx, Accept) }

// Close removes the stage.
func (s *Stage) Close() error { return s.Lab.Close() }

// calibrate is the control experiment of every refusal that a scenario proves: with the firewall open, each of the
// probes is answered; with it closed, none is.
func (s *Stage) calibrate(ctx context.Context) error {
	var probes []probe
	for _, family := range []Family{IPv4, IPv6} {
		for from, to := range map[Host]Host{Client: Server, Client2: Server, Server: Client, Server2: Client} {
			probes = append(probes, probe{from, Targets(Addr(to, family), NeverPassive), new([]ProbeResult)})
		}
	}
	if err := s.Lab.SetForward(ctx, Accept); err != nil {
		return err
	}
	for _, p := range probes {
		if err := s.reaches(p.from, p.targets, len(p.targets), new(ProbeResult)); err != nil {
			return fmt.Errorf("lab: with the firewall open: %w", err)
		}
	}
	if err := s.Lab.SetForward(ctx, Drop); err != nil {
		return err
	}
	if err := s.refused(probes...); err != nil {
		return fmt.Errorf("lab: with the firewall closed: %w", err)
	}
	return nil
}

// Result is what came of a scenario.
type Result struct {
	NotApplicable string // why it was not run
	Err           error  // what failed: all of it
	Pinholes      []Event
	Stranger      []ProbeResult // a second host, at the promised port and at others: during the session, and after it
	Beyond        []ProbeResult // the promised host itself, at ports that it was not promised
	Promised      ProbeResult   // what the client named held was allowed
	Log           []Event       // what ftpalg logged during a session that failed, before the last probes
	Took          time.Duration
}

// Run runs a scenario.
func (s *Stage) Run(ctx context.Context, scenario Scenario) Result {
	start := time.Now()
	result := Result{NotApplicable: scenario.NotApplicable()}
	if result.NotApplicable == "" && scenario.Doubted() {
		result.NotApplicable, result.Err = s.doubt(ctx, scenario)
	}
	if result.NotApplicable == "" && result.Err == nil {
		result.Err = s.carry(ctx, scenario.Data, scenario.Start)
	}
	if result.NotApplicable == "" && result.Err == nil {
		s.run(ctx, scenario, &result)
	}
	result.Took = time.Since(start)
	return result
}

func (s *Stage) run(ctx context.Context, scenario Scenario, result *Result) {
	mark := s.Daemon.Mark()
	if scenario.Client.command == nil {
		result.Err = s.hold(ctx, scenario, mark, result)
		s.conclude(scenario, mark, 1, result)
		return
	}
	before, err := s.connections(scenario)
	if err != nil {
		result.Err = err
		return
	}
	probing, cancel := context.WithCancel(ctx)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- s.probeDuring(probing, scenario, mark, result) }()
	result.Err = s.transfer(ctx, scenario, sessionTimeout)
	time.AfterFunc(reportGrace, cancel)
	result.Err = errors.Join(result.Err, <-first)
	s.conclude(scenario, mark, scenario.Client.pinholes(), result)
	result.Err = errors.Join(result.Err, s.checkPath(scenario, before, result.Pinholes))
}

// conclude checks what ftpalg reported of a session, which needed so many pinholes, and that nothing is left of it. For most
// terminated sessions the kernel's own list has to do, which is shorter and exact; the client named held probes for all.
func (s *Stage) conclude(scenario Scenario, mark, pinholes int, result *Result) {
	result.Pinholes = s.waitPinholes(mark, pinholes)
	// Without the strangers' probes, which would bury what happened to the session itself.
	stranger := Addr(scenario.direction().stranger, scenario.Family).String()
	log := slices.DeleteFunc(s.Daemon.Since(mark), func(e Event) bool { return strings.Contains(e.Line, stranger) })
	err := s.waitClosed(scenario, mark)
	if scenario.Data == Closed || scenario.Client.command == nil {
		err = errors.Join(err, s.probeAfter(scenario, result))
	}
	result.Pinholes = s.waitPinholes(mark, pinholes) // with those that should not be, if any
	result.Err = errors.Join(result.Err, err, checkPinholes(scenario, pinholes, result.Pinholes))
	if result.Err != nil {
		result.Log = log
	}
}

// waitClosed waits until the gateway has seen that the client's control connection closes: the client's last packet may
// be on its way when the client is gone already, and until then its session is alive and may have a credit.
func (s *Stage) waitClosed(scenario Scenario, mark int) error {
	if scenario.Data != Closed {
		return s.waitEnded(mark)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	var open string
	err := Wait(ctx, "the control connection to close", func() (done bool, err error) {
		list, err := s.Lab.Run(ctx, Gateway, "conntrack", "-L", "-f", "ip"+scenario.Family.String(), "-p", "tcp",
			"--state", "ESTABLISHED", "--orig-port-dst", fmt.Sprint(scenario.Protection.Port()), "-o", "extended")
		if err == nil {
			open = list
		}
		return !established(list), err
	})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(open))
	}
	return err
}

// established tells whether a list of connections, as conntrack prints it, has one that is open. Behind a reset whose sequence
// number conntrack does not trust an entry keeps its state, and has ten seconds left: it is over for ftpalg too.
func established(list string) bool {
	const timeout, state = 4, 5
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) <= state || f[state] != "ESTABLISHED" {
			continue
		}
		if left, err := strconv.Atoi(f[timeout]); err != nil || left > 10 {
			return true
		}
	}
	return false
}

// waitPinholes returns the pinholes that were reported since a mark, once there are as many as wanted or no more come.
func (s *Stage) waitPinholes(mark, want int) []Event {
	ctx, cancel := context.WithTimeout(context.Background(), reportGrace)
	defer cancel()
	var pinholes []Event
	_ = Wait(ctx, "pinholes", func() (bool, error) { // how many came in time is for the caller to judge
		pinholes = slices.DeleteFunc(s.Daemon.Since(mark), func(e Event) bool { return e.Msg != msgPinhole })
		return len(pinholes) >= want, nil
	})
	return pinholes
}

// transfer runs the client and compares what was transferred.
func (s *Stage) transfer(ctx context.Context, scenario Scenario, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, scenario.Client.start+timeout)
	defer cancel()
	into, put := s.Lab.Path("into.bin"), s.Lab.Path("put.bin")
	down, up := make([]byte, fileSize), make([]byte, fileSize)
	_, _ = rand.Read(down) // documented never to fail
	_, _ = rand.Read(up)
	err := errors.Join(os.RemoveAll(into), os.RemoveAll(s.Server.File("up.bin")),
		os.WriteFile(s.Server.File("down.bin"), down, 0o644), os.WriteFile(put, up, 0o644))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	seen := s.Server.transfers(s.nat.seen(scenario.Family))
	reach := s.nat.reach(scenario)
	proc, err := s.Lab.StartClient(ctx, s.nat.client(), scenario.Client, Job{
		Host: reach.Addr(), Port: reach.Port(), Mode: scenario.Mode, Protection: scenario.Protection,
		Clear: scenario.Clear, CA: s.Server.CA, TLS12: scenario.TLS12(), TLS13: scenario.TLS13, Home: s.Lab.Dir,
		Get: "down.bin", Into: into, Put: put, As: "up.bin", Dir: s.Server.home, PutFirst: scenario.PutFirst,
	})
	if err != nil {
		return err
	}
	<-proc.Exited()
	if proc.err != nil {
		err = fmt.Errorf("%s: %w: %s", scenario.Client.Name, proc.err, lastLines(proc.Output()))
	} else {
		err = s.checkSeen(scenario, seen+transfers)
	}
	if verbs := scenario.Client.dataVerbs(proc.Output()); !slices.Equal(verbs, []Mode{scenario.Mode}) {
		err = errors.Join(err, fmt.Errorf("the client sent %v, not %s", verbs, scenario.Mode))
	}
	return errors.Join(err, scenario.Client.checkTLS(scenario, proc.Output()), scenario.Client.checkProtection(scenario, proc.Output()),
		sameSum("download", into, down), sameSum("upload", s.Server.File("up.bin"), up))
}

// checkSeen fails unless the server's log has so many transfers of the client's own address.
func (s *Stage) checkSeen(scenario Scenario, want int) error {
	ctx, cancel := context.WithTimeout(context.Background(), reportGrace)
	defer cancel()
	client := s.nat.seen(scenario.Family)
	n := 0
	err := Wait(ctx, "the server's log", func() (bool, error) {
		n = s.Server.transfers(client)
		return n >= want, nil
	})
	if err != nil || n != want {
		return fmt.Errorf("the server's log has %d transfers of %s, want %d", n, client, want)
	}
	return nil
}

// lastLines returns the end of a program's output, in one line: enough to see what it stopped at.
func lastLines(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

func sameSum(what, path string, want []byte) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if sha256.Sum256(got) != sha256.Sum256(want) {
		return fmt.Errorf("%s: %d bytes arrived with another checksum than the %d that were sent", what, len(got), len(want))
	}
	return nil
}

// doubt tries a session without a firewall, and returns why the scenario does not apply if the client fails even then.
// The answer is kept for the other scenarios of the same kind.
func (s *Stage) doubt(ctx context.Context, scenario Scenario) (reason string, err error) {
	kind := scenario.Client.Name // what it cannot do is the same however the control connection is protected
	if reason, known := s.doubts[kind]; known {
		return reason, nil
	}
	open, err := newStage(ctx, s.Server.Kind, s.config, (*Stage).openUp)
	if err != nil {
		return "", err
	}
	if open.transfer(ctx, scenario, doubtTimeout) != nil {
		reason = scenario.Client.Name + " fails without a gateway too"
	}
	s.doubts[kind] = reason
	return reason, open.Close()
}

// checkPinholes compares ftpalg's report with what the scenario needs: so many pinholes and no more, in the
// scenario's mode, between its two hosts.
func checkPinholes(scenario Scenario, want int, pinholes []Event) error {
	var errs []error
	if len(pinholes) != want {
		errs = append(errs, fmt.Errorf("%d pinholes for %d data connections", len(pinholes), want))
	}
	mode := string(scenario.Mode)
	if scenario.opaque() {
		mode = "JIT" // the gateway cannot read the command
	}
	way := scenario.direction()
	for _, p := range pinholes {
		if p.Mode != mode {
			errs = append(errs, fmt.Errorf("a pinhole of mode %s, not %s", p.Mode, mode))
		}
		if p.From != Addr(way.initiator, scenario.Family) || p.To.Addr() != Addr(way.target, scenario.Family) ||
			!way.promised.Contains(p.To.Port()) && !(scenario.scans() && way.never.Contains(p.To.Port())) {
			errs = append(errs, fmt.Errorf("a pinhole from %s to %s: not between %s and %s", p.From, p.To, way.initiator, way.target))
		}
	}
	return errors.Join(errs...)
}

// probeDuring waits for the first pinhole and then, while the session lives, lets the stranger try the promised port
// and many others. The promised host itself tries ports that nobody promises, if the control connection is in clear
// text; where it is opaque, a SYN to any port may be the data connection to come: see holdOpaque.
func (s *Stage) probeDuring(ctx context.Context, scenario Scenario, mark int, result *Result) error {
	first, err := s.Daemon.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == msgPinhole })
	if err != nil {
		return errors.New("no pinhole was reported during the session")
	}
	way := scenario.direction()
	target := Addr(way.target, scenario.Family)
	elsewhere := Targets(target, way.never)
	probes := []probe{{way.stranger, append(slices.Clone(elsewhere), first.To), &result.Stranger}}
	if !scenario.opaque() {
		probes = append(probes, probe{way.initiator, elsewhere, &result.Beyond})
	}
	return s.refused(probes...)
}

// probeAfter tries the same once more when the session has ended, and now at the ports that were promised too.
func (s *Stage) probeAfter(scenario Scenario, result *Result) error {
	way := scenario.direction()
	targets := Targets(Addr(way.target, scenario.Family), way.never)
	for _, p := range result.Pinholes {
		targets = append(targets, p.To)
	}
	return s.refused(probe{way.stranger, targets, &result.Stranger}, probe{way.initiator, targets, &result.Beyond})
}

// probe is SYNs that have to be refused, and where their result is noted.
type probe struct {
	from    Host
	targets []netip.AddrPort
	results *[]ProbeResult
}

// refused sends probes at the same time, notes their results and fails if anything was answered.
func (s *Stage) refused(probes ...probe) error {
	errs := make([]error, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() {
			result, err := s.Lab.Probe(p.from, p.targets)
			*p.results = append(*p.results, result)
			if len(result.Answered) > 0 {
				err = errors.Join(err, fmt.Errorf("%s reached %v, which it was not promised", p.from, result.Answered))
			}
			errs[i] = err
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
