// Command demo runs every scenario of the lab and prints them as a table. scripts/demo builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"ftpalg/scripts/lab"

	"golang.org/x/sync/errgroup"
)

func main() {
	var config lab.Config
	flag.StringVar(&config.Binary, "ftpalg", ".build/ftpalg", "the ftpalg to show")
	flag.StringVar(&config.ServersDir, "servers", ".build/servers", "where the FTP servers were unpacked")
	flag.StringVar((*string)(&config.Backend), "backend", "auto", "iptables, nft or auto: where ftpalg puts its rules")
	match := flag.String("match", "", "only the scenarios whose name (server/client/protection/mode/family) has this in it")
	pairs := flag.Bool("pairs", false, "only so many scenarios, or cells of ftpalg's, that any two properties that can meet do meet in one, and no bridges")
	without := flag.String("without", "", "leaves out the scenarios of a client: one that this machine does not have")
	cold := flag.Bool("cold", false, "in place of the scenarios, those in which ftpalg terminates, each as the first session after a start and after a handover")
	nat := flag.Bool("nat", false, "the NAT matrix and its exposure in place of the scenarios; a cell is nat/guard/server/client/protection/mode/family")
	churn := flag.Int("churn", 0, "in place of the scenarios, so many ends of ftpalg under live sessions, mostly by kill -9")
	seed := flag.Uint64("seed", 1, "of the random points of -churn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	show := func() (failed int, err error) {
		return demo(ctx, os.Stdout, config, choice{*match, *without, *pairs, *cold})
	}
	switch {
	case *churn > 0:
		show = func() (failed int, err error) { return 0, showChurn(ctx, os.Stdout, config, *churn, *seed) }
	case *nat:
		show = func() (failed int, err error) { return showNAT(ctx, os.Stdout, config, *match, *pairs) }
	}
	failed, err := show()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

// showChurn ends ftpalg again and again under live sessions.
func showChurn(ctx context.Context, w io.Writer, config lab.Config, rounds int, seed uint64) error {
	start := time.Now()
	if err := lab.Churn(ctx, config, rounds, seed); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d rounds of seed %d: no session was lost, and what others have is as it was; %s\n", rounds, seed,
		time.Since(start).Round(time.Second))
	return err
}

// row is a scenario on its way through the demo.
type row struct {
	scenario lab.Scenario
	result   chan lab.Result // one value, when it has run
}

// bridge is a bridge on its way through the demo.
type bridge struct {
	lab.Bridge
	result chan lab.BridgeResult
}

// choice is which scenarios and bridges are shown.
type choice struct {
	match   string // only those with this in their name
	without string // none of this client
	pairs   bool   // so many scenarios that any two properties meet, and no bridges
	cold    bool   // each as the first session after a start, and no bridges: those always are
}

// demo runs the scenarios, those of each server and data path in a lab of their own and some labs side by side, and prints
// the rows in order; and then the same with the bridges.
func demo(ctx context.Context, w io.Writer, config lab.Config, c choice) (failed int, err error) {
	config.Successors = c.cold
	rows, lanes := c.scenarios()
	bridges := c.bridges()
	if len(rows)+len(bridges) == 0 {
		return 0, fmt.Errorf("no scenario and no bridge has %q in its name", c.match)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return run(ctx, config, lanes, bridges) })
	group.Go(func() error {
		if failed, err = report(ctx, w, rows); err != nil || len(bridges) == 0 {
			return err
		}
		broken, err := reportBridges(ctx, w, bridges)
		failed += broken
		return err
	})
	return failed, group.Wait()
}

// scenarios returns the chosen rows, and those that share a lab.
func (c choice) scenarios() (rows []row, lanes [][]row) {
	all := lab.Scenarios()
	if c.cold {
		all = lab.ColdScenarios()
	}
	all = slices.DeleteFunc(all, func(s lab.Scenario) bool { return s.Client.Name == c.without })
	if c.pairs {
		all = lab.Pairwise(all)
	}
	var last string
	for _, s := range all {
		if !strings.Contains(s.String(), c.match) {
			continue
		}
		r := row{s, make(chan lab.Result, 1)}
		rows = append(rows, r)
		if kind := s.Server.Name + string(s.Data); kind != last {
			lanes, last = append(lanes, nil), kind
		}
		lanes[len(lanes)-1] = append(lanes[len(lanes)-1], r)
	}
	return rows, lanes
}

// bridges returns the chosen bridges.
func (c choice) bridges() (all []bridge) {
	if c.pairs || c.cold {
		return nil
	}
	for _, b := range lab.Bridges() {
		if strings.Contains("bridge: "+b.Name, c.match) && b.Scenario.Client.Name != c.without {
			all = append(all, bridge{b, make(chan lab.BridgeResult, 1)})
		}
	}
	return all
}

// atOnce is how many labs stand at the same time. Most of their time they wait for silence.
const atOnce = 4

func run(ctx context.Context, config lab.Config, lanes [][]row, bridges []bridge) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, lane := range lanes {
		group.Go(func() error { return runLane(ctx, config, lane) })
	}
	for _, b := range bridges {
		group.Go(func() error {
			b.result <- b.Run(ctx, config)
			return ctx.Err()
		})
	}
	return group.Wait()
}

// runLane runs scenarios of one server, one after the other.
func runLane(ctx context.Context, config lab.Config, lane []row) (err error) {
	stage, err := lab.NewStage(ctx, lane[0].scenario.Server, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stage.Close()) }()
	for _, r := range lane {
		result := stage.Run(ctx, r.scenario)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.result <- result
	}
	return nil
}

const heading = `Each row is one session: a download and an upload of 100 KiB, compared by checksum, through a gateway that drops.
FileZilla lists the directory first, runs on a display of its own, and must not warn of anything.
Without a word under "data" ftpalg has no key, and TLS stays closed to it; elsewhere it terminates, with data connections
in clear text (C) or TLS (P) that the kernel forwards (direct) or ftpalg carries (relay); by auto it has chosen itself.
Pinholes are as ftpalg reported them. "2nd host" are SYNs of a host beside the one that was promised the port: at that
very port and at others; "unpromised" are SYNs of the promised host at other ports, and at all when the session is
over. answered/sent: an answer, be it SYN-ACK or RST, is a failure. With the firewall open all are answered (checked).
The server's log has the client's own address, and the clients saw the server's. When a terminated session is over the
kernel expects nothing more.
The client "held" arranges a data connection and holds still while the pinhole is probed; where the control connection
is opaque it then scans 51 ports at once, of which its one credit may open one.
With -cold each session is the first after a start of ftpalg's or after a handover (SIGUSR2), and downloads or uploads first.

`

// logLines is how much of ftpalg's log is shown of a session that failed.
const logLines = 10

const layout = "%-9s %-9s %-12s %-*s %-4s %-2s  %-8s %-22s %-8s %-10s %-5s %s\n"

func report(ctx context.Context, w io.Writer, rows []row) (failed int, err error) {
	start, passed, notApplicable := time.Now(), 0, 0
	var skipped skips
	fmt.Fprint(w, heading)
	width := dataWidth(rows)
	fmt.Fprintf(w, layout, "server", "client", "control", width, "data", "mode", "IP", "transfer", "pinholes", "2nd host", "unpromised", "took", "result")
	for i, r := range rows {
		var result lab.Result
		select {
		case result = <-r.result:
		case <-ctx.Done():
			return failed, ctx.Err()
		}
		switch {
		case result.Err != nil:
			failed++
		case result.NotApplicable != "":
			notApplicable++
			last := i == len(rows)-1 || group(rows[i+1].scenario) != group(r.scenario)
			skipped.add(w, r.scenario, result.NotApplicable, last)
			continue
		default:
			passed++
		}
		skipped.flush(w)
		printRow(w, width, r.scenario, result)
	}
	fmt.Fprintf(w, "\n%d combinations, %d of them n/a, in %s\n", len(rows), notApplicable, time.Since(start).Round(time.Second))
	_, err = fmt.Fprintf(w, "%d passed, %d failed\n", passed, failed)
	return failed, err
}

// group is what rows have in common that differ in mode and address family only.
func group(s lab.Scenario) string {
	return fmt.Sprintf("%-9s %-9s %-12s %-8s", s.Server.Name, s.Client.Name, s.Protection, data(s))
}

// skips collects rows of one group that are n/a for one reason, so that they take one line.
type skips struct {
	group, why string
	modes      []string
}

func (k *skips) add(w io.Writer, s lab.Scenario, why string, last bool) {
	if group(s) != k.group || why != k.why {
		k.flush(w)
		k.group, k.why = group(s), why
	}
	k.modes = append(k.modes, fmt.Sprintf("%s/%s", s.Mode, s.Family))
	if last {
		k.flush(w)
	}
}

func (k *skips) flush(w io.Writer) {
	if len(k.modes) > 0 {
		fmt.Fprintf(w, "%s %s n/a: %s\n", k.group, strings.Join(k.modes, " "), k.why)
	}
	*k = skips{}
}

func printRow(w io.Writer, width int, s lab.Scenario, r lab.Result) {
	transfer, verdict := "ok", "pass"
	if r.Promised.Sent > 0 {
		transfer = "got " + r.Promised.String()
	}
	if r.Err != nil {
		transfer, verdict = "-", "FAIL"
	}
	fmt.Fprintf(w, layout, s.Server.Name, s.Client.Name, control(s), width, data(s), s.Mode, s.Family, transfer,
		pinholes(s, r.Pinholes), probes(r.Stranger), probes(r.Beyond), r.Took.Round(100*time.Millisecond), verdict)
	printTrouble(w, r)
}

// printTrouble shows why a row failed, if it did.
func printTrouble(w io.Writer, r lab.Result) {
	if r.Err == nil {
		return
	}
	fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(r.Err.Error(), "\n", "\n    "))
	for _, e := range r.Log[:min(len(r.Log), logLines)] {
		fmt.Fprintf(w, "    ftpalg: %s\n", e.Line)
	}
}

// data names the protection of data connections and their path, where ftpalg terminates, and what came before the session.
func data(s lab.Scenario) string {
	switch {
	case s.Data == lab.Closed:
		return ""
	case s.Start == lab.Running:
		return s.Level() + " " + string(s.Data)
	}
	return fmt.Sprintf("%s %s %s %s", s.Level(), s.Data, s.Start, s.Order())
}

// dataWidth is how wide the column of data is.
func dataWidth(rows []row) int {
	width := 8
	for _, r := range rows {
		width = max(width, len(data(r.scenario)))
	}
	return width
}

// control names the protection of the control connection, with the newest TLS version that the client may use.
func control(s lab.Scenario) string {
	switch {
	case s.Protection == lab.Plain:
		return string(lab.Plain)
	case s.TLS12():
		return string(s.Protection) + " 1.2"
	}
	return string(s.Protection) + " 1.3"
}

// pinholes shows the mode that ftpalg reported, the direction, and the ports.
func pinholes(s lab.Scenario, events []lab.Event) string {
	if len(events) == 0 {
		return "none"
	}
	way := "c→s"
	if s.Mode.Active() {
		way = "s→c"
	}
	text := events[0].Mode + " " + way
	for _, e := range events {
		text += fmt.Sprintf(" %d", e.To.Port())
	}
	return text
}

// probes adds up the probes of a session.
func probes(results []lab.ProbeResult) string {
	var sum lab.ProbeResult
	for _, r := range results {
		sum.Sent += r.Sent
		sum.Answered = append(sum.Answered, r.Answered...)
	}
	return sum.String()
}

const bridgeHeading = `
Clients and servers that cannot meet: each is tried without a gateway, which has to fail, and then through ftpalg.

`

const bridgeLayout = "%-43s %-9s %-9s %-12s %-4s  %-9s %-8s %-22s %-5s %s\n"

func reportBridges(ctx context.Context, w io.Writer, bridges []bridge) (failed int, err error) {
	fmt.Fprint(w, bridgeHeading)
	fmt.Fprintf(w, bridgeLayout, "bridge", "server", "client", "control", "mode", "without", "with", "pinholes", "took", "result")
	for _, b := range bridges {
		var r lab.BridgeResult
		select {
		case r = <-b.result:
		case <-ctx.Done():
			return failed, ctx.Err()
		}
		without, with, verdict := "fails", "ok", "pass"
		if r.Without == nil {
			without = "-"
		}
		if r.Err != nil {
			with, verdict = "-", "FAIL"
			failed++
		}
		s := b.Scenario
		fmt.Fprintf(w, bridgeLayout, b.Name, b.Server.Name, s.Client.Name, s.Protection, s.Mode, without, with,
			pinholes(s, r.Pinholes), r.Took.Round(100*time.Millisecond), verdict)
		printTrouble(w, r.Result)
	}
	_, err = fmt.Fprintf(w, "%d bridges passed, %d failed\n", len(bridges)-failed, failed)
	return failed, err
}
