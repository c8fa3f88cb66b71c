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
	match := flag.String("match", "", "only the scenarios whose name (server/client/protection/mode/family) has this in it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := demo(ctx, os.Stdout, config, *match)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

// row is a scenario on its way through the demo.
type row struct {
	scenario lab.Scenario
	result   chan lab.Result // one value, when it has run
}

// demo runs the scenarios, each server's in a lab of its own and the labs side by side, and prints the rows in order.
func demo(ctx context.Context, w io.Writer, config lab.Config, match string) (failed int, err error) {
	var rows []row
	lanes := make(map[string][]row)
	for _, s := range lab.Scenarios() {
		if strings.Contains(s.String(), match) {
			r := row{s, make(chan lab.Result, 1)}
			rows = append(rows, r)
			lanes[s.Server.Name] = append(lanes[s.Server.Name], r)
		}
	}
	if len(rows) == 0 {
		return 0, fmt.Errorf("no scenario has %q in its name", match)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, lane := range lanes {
		group.Go(func() error { return runLane(ctx, config, lane) })
	}
	group.Go(func() error {
		failed, err = report(ctx, w, rows)
		return err
	})
	return failed, group.Wait()
}

// runLane runs the scenarios of one server, one after the other.
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
Pinholes are as ftpalg reported them. "2nd host" are SYNs of a host beside the one that was promised the port: at that
very port and at others; "unpromised" are SYNs of the promised host at other ports, and at all when the session is
over. answered/sent: an answer, be it SYN-ACK or RST, is a failure. With the firewall open all are answered (checked).
The client "held" arranges a data connection and holds still while the pinhole is probed; where the control connection
is opaque it then scans 51 ports at once, of which its one credit may open one.

`

// logLines is how much of ftpalg's log is shown of a session that failed.
const logLines = 10

const layout = "%-9s %-6s %-12s %-4s %-2s  %-8s %-22s %-8s %-10s %-5s %s\n"

func report(ctx context.Context, w io.Writer, rows []row) (failed int, err error) {
	start, passed, notApplicable := time.Now(), 0, 0
	fmt.Fprint(w, heading)
	fmt.Fprintf(w, layout, "server", "client", "control", "mode", "IP", "transfer", "pinholes", "2nd host", "unpromised", "took", "result")
	for _, r := range rows {
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
		default:
			passed++
		}
		printRow(w, r.scenario, result)
	}
	fmt.Fprintf(w, "\n%d combinations, %d of them n/a, in %s\n", len(rows), notApplicable, time.Since(start).Round(time.Second))
	_, err = fmt.Fprintf(w, "%d passed, %d failed\n", passed, failed)
	return failed, err
}

func printRow(w io.Writer, s lab.Scenario, r lab.Result) {
	left := fmt.Sprintf("%-9s %-6s %-12s %-4s %-2s  ", s.Server.Name, s.Client.Name, control(s), s.Mode, s.Family)
	if r.Err == nil && r.NotApplicable != "" {
		fmt.Fprintf(w, "%sn/a: %s\n", left, r.NotApplicable)
		return
	}
	transfer, verdict := "ok", "pass"
	if r.Promised.Sent > 0 {
		transfer = "got " + r.Promised.String()
	}
	if r.Err != nil {
		transfer, verdict = "-", "FAIL"
	}
	fmt.Fprintf(w, layout, s.Server.Name, s.Client.Name, control(s), s.Mode, s.Family, transfer,
		pinholes(s, r.Pinholes), probes(r.Stranger), probes(r.Beyond), r.Took.Round(100*time.Millisecond), verdict)
	if r.Err != nil {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(r.Err.Error(), "\n", "\n    "))
		for _, e := range r.Log[:min(len(r.Log), logLines)] {
			fmt.Fprintf(w, "    ftpalg: %s\n", e.Line)
		}
	}
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
