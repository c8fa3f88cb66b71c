package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The targets.
const (
	addedTarget       = 1.25 // what ftpalg adds to a round trip, over what the floor adds
	sessionsTarget    = 0.8  // sessions per second, over the kernel helper's
	throughputTarget  = 0.98 // over routed
	expectationTarget = 50   // µs, at the median
	memoryTarget      = 2048 // bytes a session
	flatTarget        = 1.2  // cost of a command among the most sessions, over that of one
)

// added is how many times the floor's addition to the routed round trip ftpalg's addition is. A round in which the
// floor seemed to add nothing was disturbed and says nothing.
func added(round [ways]float64) float64 {
	base := round[floor] - round[routed]
	if base <= 0 {
		return math.NaN()
	}
	return (round[daemon] - round[routed]) / base
}

func (b *bench) reportControl(ctx context.Context) error {
	r, err := control(ctx, b.inspecting(), b.controlRounds, b.commands)
	if err != nil {
		return err
	}
	ratios := r.p50.ratios(added)
	if len(ratios) == 0 {
		return fmt.Errorf("in none of %d rounds was the floor slower than routed: the machine is too busy", b.controlRounds)
	}
	b.table.add(row{
		measure: "NOOP round trip p50, µs", cells: r.p50.medians("%.1f"), ratio: withSpread(ratios),
		target: fmt.Sprintf("added by ftpalg / added by floor <= %.2f", addedTarget), met: verdict(median(ratios) <= addedTarget),
	})
	p99 := row{measure: "NOOP round trip p99, µs"}
	for _, way := range inspectingWays {
		p99.cells[way] = fmt.Sprintf("%.1f", micros(quantile(r.all[way], 0.99)))
	}
	b.table.add(p99)
	cpu := row{measure: "gateway process CPU per command, µs", cells: r.cpu.medians("%.1f")}
	cpu.cells[routed], cpu.cells[kernelHelper] = "", ""
	cpu.ratio = withSpread(r.cpu.ratios(func(x [ways]float64) float64 { return x[daemon] / x[floor] }))
	b.table.add(cpu)
	b.reportWhole(median(r.cpu[daemon]))
	b.table.note("control: %d rounds of %d NOOPs on each gateway; p50s are medians of the rounds, the p99 is of all; ratios are of the same round, median (quartiles); %d rounds left out because the floor was no slower than routed in them",
		b.controlRounds, b.commands, b.controlRounds-len(ratios))
	b.table.note("control: the same ratio made of the medians in the table is %.2f", added(r.p50.middle()))
	return nil
}

// reportWhole says what many sessions do to a command's whole cost on the gateway: to the processor time of the live
// daemon with few sessions, system calls and all, comes what a command took longer in process among many.
func (b *bench) reportWhole(live float64) {
	if len(b.cost) == 0 {
		return // left out by -only
	}
	last := len(b.cost) - 1
	ratio := (live + (b.cost[last]-b.cost[0])/1e3) / live
	b.table.add(row{
		measure: fmt.Sprintf("CPU per command, %d sessions over 1, system calls included", b.costs[last]),
		cells:   [ways]string{daemon: fmt.Sprintf("%.1f", live*ratio)}, ratio: fmt.Sprintf("%.2f", ratio),
		target: fmt.Sprintf("<= %.1f", flatTarget), met: verdict(ratio <= flatTarget),
	})
}

func (b *bench) reportSessions(ctx context.Context) error {
	for _, kind := range []struct {
		server                string
		port                  uint16
		clients, rounds, each int
	}{
		{"Go server", benchPort, 1, b.sessionRounds, b.sequential},
		{"Go server", benchPort, 8, b.sessionRounds, b.parallel},
		{"vsftpd", 21, 1, b.vsftpdRounds, b.vsftpdSessions},
	} {
		if kind.port == 21 {
			if err := b.startVsftpd(ctx, b.inspecting()); err != nil {
				return err
			}
		}
		rates, err := sessions(ctx, b.inspecting(), dialect{port: kind.port}, kind.clients, kind.rounds, kind.each)
		if err != nil {
			return fmt.Errorf("%s, %d at a time: %w", kind.server, kind.clients, err)
		}
		ratios := rates.ratios(func(x [ways]float64) float64 { return x[daemon] / x[kernelHelper] })
		b.table.add(row{
			measure: fmt.Sprintf("sessions/s, %s, %d at a time", kind.server, kind.clients),
			cells:   rates.medians("%.0f"), ratio: withSpread(ratios),
			target: fmt.Sprintf("ftpalg / kernel helper >= %.1f", sessionsTarget), met: verdict(median(ratios) >= sessionsTarget),
		})
		b.table.note("sessions/s, %s, %d at a time: the floor over the kernel helper %s; sessions that stalled for a lost packet: %s",
			kind.server, kind.clients, withSpread(rates.ratios(func(x [ways]float64) float64 { return x[floor] / x[kernelHelper] })), perWay(rates.stalls))
	}
	stalls, err := b.reuse(ctx, b.reuses)
	if err != nil {
		return fmt.Errorf("source port used again: %w", err)
	}
	again := row{
		measure: fmt.Sprintf("stalled of %d sessions from one source port", b.reuses), target: "none", met: verdict(stalls[daemon] == 0),
	}
	for _, way := range inspectingWays {
		again.cells[way] = fmt.Sprint(stalls[way])
	}
	b.table.add(again)
	b.table.note("sessions: connect, log in, TYPE I, PASV, fetch 1 KiB, quit; through ftpalg the data connection's SYN is queued as well, because its policy has opaque pinholes, and its log goes to a file")
	return nil
}

func (b *bench) reportThroughput(ctx context.Context) error {
	r, err := transfers(ctx, b.those(bulkWays...), plain, b.bulkRounds, b.mebibytes)
	if err != nil {
		return err
	}
	b.reportTransfers(r, fmt.Sprintf("data connection of %d MiB", b.mebibytes), daemon, throughputTarget, kernelHelper, twin)
	return nil
}

// reportTransfers compares a way's data connections with those of routed, and tells the same of others: what any firewall costs,
// and what is the method's own error.
func (b *bench) reportTransfers(r *transferred, measure string, way int, target float64, others ...int) {
	ratios := r.rate.overRouted(way)
	rate := row{
		measure: measure + ", MiB/s", cells: r.rate.medians("%.0f"), ratio: withInterval(ratios),
		target: fmt.Sprintf("%s / routed >= %.2f", wayNames[way], target), met: verdict(median(ratios) >= target),
	}
	cpu := row{measure: measure + ", CPU of client and server, ms/MiB", cells: r.cpu.medians("%.3f"), ratio: withInterval(r.cpu.overRouted(way))}
	for _, none := range []int{twin, stateful} { // they have no columns
		rate.cells[none], cpu.cells[none] = "", ""
	}
	b.table.add(rate)
	b.table.add(cpu)
	b.table.note("%s: %d rounds there and back; ratios are of the same round, median [95 %% confidence interval]", measure, len(ratios))
	for _, other := range others {
		b.table.note("%s: %s over routed: rate %s, CPU %s", measure, wayNames[other], withInterval(r.rate.overRouted(other)), withInterval(r.cpu.overRouted(other)))
	}
}

func (b *bench) reportExpectations(context.Context) error {
	p50, p99, err := b.expectations(b.extent.expectations)
	if err != nil {
		return err
	}
	b.table.add(row{
		measure: "expectation installed, p50, µs", cells: [ways]string{daemon: fmt.Sprintf("%.1f", p50)},
		target: fmt.Sprintf("<= %d µs", expectationTarget), met: verdict(p50 <= expectationTarget),
	})
	b.table.add(row{measure: "expectation installed, p99, µs", cells: [ways]string{daemon: fmt.Sprintf("%.1f", p99)}})
	return nil
}

// describe notes what was run, and where.
func (b *bench) describe(took time.Duration) {
	var name unix.Utsname
	_ = unix.Uname(&name) // it fails only for a bad pointer
	b.table.note("Linux %s, %d × %s, load %s at the beginning and %s at the end, %s, %.0f s in all",
		unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), cpuModel(), b.load, load(), runtime.Version(), took.Seconds())
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	now, _, _ := strings.Cut(string(text), " ")
	return now
}

// perWay writes a count for each way that does not open TLS.
func perWay(counts [ways]int) string {
	var parts []string
	for _, way := range inspectingWays {
		parts = append(parts, fmt.Sprintf("%s %d", wayNames[way], counts[way]))
	}
	return strings.Join(parts, ", ")
}
