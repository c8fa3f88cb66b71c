// Command bench compares ways to carry FTP across a gateway: routed without a firewall, the kernel's own helper, a C program
// that accepts every queued packet at once (the floor of what a queue costs), and ftpalg; and for FTPS that is opened on the
// gateway, ftpalg with ProFTPD's mod_proxy, HAProxy and stunnel. scripts/bench builds what it needs. It prints one table; a
// target that is missed is shown and is no failure, something that could not be measured is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := dispatch(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch runs one of the two programs that the benchmark starts itself as, or the benchmark.
func dispatch(args []string) error {
	if len(args) > 1 {
		switch args[1] {
		case "serve":
			return serve(args[2:])
		case "memory":
			return memoryChild(args[2:])
		}
	}
	p := programs{}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	flags.StringVar(&p.ftpalg, "ftpalg", ".build/ftpalg", "the ftpalg to measure")
	flags.StringVar(&p.floor, "floor", ".build/floor", "the floor to compare with")
	flags.StringVar(&p.servers, "servers", ".build/servers", "where the FTP servers were unpacked")
	flags.StringVar(&p.before, "before", "", "another build of ftpalg: it is compared with that in place of everything else")
	quick := flags.Bool("quick", false, "measure little, to see whether the benchmark works")
	only := flags.String("only", "", "only the measurements with this in their name")
	_ = flags.Parse(args[1:]) // it exits
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	size := full
	if *quick {
		size = short
	}
	return run(ctx, os.Stdout, p, size, *only)
}

// extent is how much is measured.
type extent struct {
	controlRounds, commands                   int
	sessionRounds, sequential, parallel       int
	vsftpdRounds, vsftpdSessions, reuses      int
	bulkRounds, mebibytes                     int
	expectations                              int
	memory, costs                             []int // numbers of sessions
	costRounds, costCommands, allocationsRuns int
	floodSYNs                                 int
	queueRounds                               int
	flowtableRounds, flowtableMebibytes       int // few, since mostly an emulated machine does it
	idle                                      int // terminated sessions
	handshakeRounds, handshakes               int // by each of several clients
	terminatedRounds, terminated              int // the same, of sessions
	realRounds, real                          int // the same, against vsftpd
	relayRounds, spliceRounds, relayMebibytes int
	pastRounds                                int // of mebibytes
	buildRounds, buildSessions                int // the latter by each of several clients
	collections                               int // of the garbage collector
}

// full takes some minutes, short well below one.
var (
	full = extent{
		controlRounds: 500, commands: 80,
		sessionRounds: 20, sequential: 100, parallel: 25, vsftpdRounds: 6, vsftpdSessions: 15, reuses: 20,
		bulkRounds: 160, mebibytes: 24, expectations: 5000,
		memory: []int{10_000, 100_000}, costs: []int{1, 100, 10_000, 100_000},
		costRounds: 20, costCommands: 20_000, allocationsRuns: 1000, floodSYNs: 20_000, queueRounds: 200, flowtableRounds: 6, flowtableMebibytes: 8,
		idle: 2000, handshakeRounds: 6, handshakes: 10, terminatedRounds: 6, terminated: 8, realRounds: 3, real: 3,
		relayRounds: 8, spliceRounds: 10, relayMebibytes: 256, pastRounds: 160,
		buildRounds: 40, buildSessions: 8, collections: 8,
	}
	short = extent{
		controlRounds: 6, commands: 50,
		sessionRounds: 2, sequential: 5, parallel: 2, vsftpdRounds: 1, vsftpdSessions: 1, reuses: 3,
		bulkRounds: 2, mebibytes: 32, expectations: 50,
		memory: []int{1000}, costs: []int{1, 1000},
		costRounds: 3, costCommands: 1000, allocationsRuns: 100, floodSYNs: 1000, queueRounds: 4, flowtableRounds: 2, flowtableMebibytes: 2,
		idle: 50, handshakeRounds: 2, handshakes: 2, terminatedRounds: 2, terminated: 1, realRounds: 1, real: 1,
		relayRounds: 2, spliceRounds: 2, relayMebibytes: 16, pastRounds: 2,
		buildRounds: 5, buildSessions: 1, collections: 2,
	}
)

// bench is one run.
type bench struct {
	extent
	programs
	gateways [ways]*gateway // those that are built
	table    table
	cost     []float64 // ns in process for a command, by number of sessions
	load     string    // of the machine, before the benchmark
}

// measurement is one thing that is measured. Those that need no gateway come first.
type measurement struct {
	name    string
	ways    []int // what it compares
	measure func(*bench, context.Context) error
}

var measurements = []measurement{
	{"memory", nil, (*bench).reportMemory},
	{"cost", nil, (*bench).reportCost},
	{"allocations", nil, (*bench).reportAllocations},
	{"control", inspectingWays, (*bench).reportControl},
	{"sessions", inspectingWays, (*bench).reportSessions},
	{"throughput", bulkWays, (*bench).reportThroughput},
	{"expectation", inspectingWays, (*bench).reportExpectations},
	{"flood", inspectingWays, (*bench).reportFlood},
	{"queue", queueWays, (*bench).reportQueues},
	{"flowtable", nil, (*bench).reportFlowtable},
	{"terminated-memory", terminatingWays, (*bench).reportTerminatedMemory},
	{"terminated-handshakes", terminatingWays, (*bench).reportHandshakes},
	{"terminated-sessions", terminatingWays, (*bench).reportTerminatedSessions},
	{"terminated-data", terminatingWays, (*bench).reportTerminatedData},
	{"terminated-past", append([]int{relayed}, pastWays...), (*bench).reportPast},
}

// comparisons are measured in place of the measurements when there is a build to compare with.
var comparisons = []measurement{
	{"before-control", []int{daemon, beforeDaemon, inStep, beforeInStep}, (*bench).compareControl},
	{"before-sessions", []int{daemon, beforeDaemon, inStep, beforeInStep}, (*bench).compareSessions},
	{"before-terminated", []int{relayed, beforeRelayed, chosen, beforeChosen}, (*bench).compareTerminated},
	{"before-allocated", []int{traced, beforeTraced}, (*bench).compareAllocated},
}

// run measures everything with only in its name and prints the table, also if some of it failed.
func run(ctx context.Context, w io.Writer, p programs, size extent, only string) (err error) {
	b := &bench{extent: size, programs: p, load: load()}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	start := time.Now()
	defer func() { err = errors.Join(err, b.close()) }()
	all := measurements
	if p.before != "" {
		if _, err := exec.LookPath(p.before); err != nil {
			return fmt.Errorf("the build to compare with: %w", err)
		}
		all = comparisons
	}
	var errs []error
	for _, m := range all {
		if !strings.Contains(m.name, only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s (%.0f s so far)\n", m.name, time.Since(start).Seconds())
		if err := b.build(ctx, m.ways); err != nil {
			errs = append(errs, err)
			break
		}
		if err := m.measure(b, ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s not measured: %w", m.name, err))
		}
	}
	b.describe(time.Since(start))
	return errors.Join(append(errs, b.table.print(w))...)
}

// build makes the gateways of these ways, unless they are there already.
func (b *bench) build(ctx context.Context, of []int) error {
	for _, way := range of {
		if b.gateways[way] != nil {
			continue
		}
		if way == direct {
			b.gateways[way] = b.gateways[relayed].beside()
			continue
		}
		g, err := newGateway(ctx, way, b.programs)
		if err != nil {
			return err
		}
		b.gateways[way] = g
	}
	return nil
}

// those gives the gateways of some ways.
func (b *bench) those(of ...int) []*gateway {
	var some []*gateway
	for _, way := range of {
		some = append(some, b.gateways[way])
	}
	return some
}

func (b *bench) inspecting() []*gateway { return b.those(inspectingWays...) }

func (b *bench) close() error {
	var errs []error
	for way, g := range b.gateways {
		if g != nil && way != direct {
			errs = append(errs, g.Close())
		}
	}
	return errors.Join(errs...)
}
