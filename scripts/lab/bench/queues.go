package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"ftpalg/nfq"
	"ftpalg/scripts/lab"
)

// reportQueues measures what a queue's settings cost: the payload filter, several queues, and conntrack's entries in its
// messages.
func (b *bench) reportQueues(ctx context.Context) error {
	gateways := b.those(queueWays...)
	told, err := os.ReadFile(b.gateways[toldQueue].Path("ftpalg.log"))
	if err != nil {
		return err
	}
	if !strings.Contains(string(told), `"queue_conntrack":true`) {
		gateways = gateways[:len(gateways)-1]
		b.table.note("queue: this kernel sends no conntrack entries with queued packets (NFQA_CT), so that they are looked up; scripts/kernel measures it on Debian's")
	}
	r, err := control(ctx, gateways, b.queueRounds, b.commands)
	if err != nil {
		return err
	}
	filter := r.cpu.ratios(func(x [ways]float64) float64 { return x[unfiltered] / x[daemon] })
	b.table.add(row{
		measure: "queue: NOOP round trip p50, µs", cells: r.p50.medians("%.1f"),
		ratio: withSpread(r.p50.ratios(overBest(daemon, oneByOne))) + " ftpalg over one by one",
	})
	cpu := row{measure: "queue: ftpalg CPU per command, µs", cells: r.cpu.medians("%.1f"), ratio: withSpread(filter) + " without the filter"}
	cpu.cells[routed] = ""
	b.table.add(cpu)
	if err := b.reportQueued(ctx, gateways[1:]); err != nil {
		return err
	}
	for _, clients := range []int{1, atOnce, crowd} {
		rates, err := sessions(ctx, gateways, plain, clients, b.queueRounds/10+1, max(1, atOnce*b.parallel/max(clients, atOnce)))
		if err != nil {
			return fmt.Errorf("%d at a time: %w", clients, err)
		}
		b.reportQueueSessions(clients, rates)
	}
	b.table.note("queue: ftpalg reads up to %d packets that wait, and gives their verdicts, by one call each (--queue-batch); one by one is what that is compared with", nfq.DefaultBatch)
	return nil
}

// reportQueueSessions says what batches and conntrack's entries do to sessions, and batches to their cost.
func (b *bench) reportQueueSessions(clients int, rates *sessionRates) {
	batch := overBest(daemon, oneByOne)
	entry := row{measure: fmt.Sprintf("queue: sessions/s, %d at a time", clients), cells: rates.medians("%.0f")}
	entry.ratio = withSpread(rates.ratios(batch)) + " ftpalg over one by one"
	if len(rates.series[toldQueue]) > 0 {
		entry.ratio += ", " + withSpread(rates.ratios(overBest(toldQueue, daemon))) + " NFQA_CT over look-ups"
	}
	b.table.add(entry)
	cpu := row{measure: fmt.Sprintf("queue: ftpalg CPU per session, %d at a time, µs", clients), cells: rates.cpu.medians("%.0f")}
	cpu.cells[routed] = ""
	cpu.ratio = withSpread(rates.cpu.ratios(batch)) + " ftpalg over one by one"
	b.table.add(cpu)
}

// reportQueued counts the packets of one session that are queued.
func (b *bench) reportQueued(ctx context.Context, gateways []*gateway) error {
	entry := row{measure: "queue: packets queued a session"}
	for _, g := range gateways {
		before, err := g.queued(ctx)
		if err != nil {
			return err
		}
		if err := g.InNS(lab.Client, func() error { return g.wholeSession(plain) }); err != nil {
			return err
		}
		after, err := g.queued(ctx)
		if err != nil {
			return err
		}
		entry.cells[g.way] = fmt.Sprint(after - before)
	}
	b.table.add(entry)
	return nil
}

// queued is how many packets the gateway's queues have had so far.
func (g *gateway) queued(ctx context.Context) (total int, err error) {
	text, err := g.Run(ctx, lab.Gateway, "cat", "/proc/net/netfilter/nfnetlink_queue")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		var skip [7]int // number, port, waiting, mode, range and two counts of losses
		var sequence int
		if _, err := fmt.Sscan(line, &skip[0], &skip[1], &skip[2], &skip[3], &skip[4], &skip[5], &skip[6], &sequence); err != nil {
			return 0, fmt.Errorf("/proc/net/netfilter/nfnetlink_queue: %q: %w", line, err)
		}
		total += sequence
	}
	return total, nil
}
