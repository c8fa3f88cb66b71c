package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The targets of a build, over the build before.
const (
	sameTime = 1.05 // a command's round trip, where the policy rests on no state
	sameRate = 0.95 // sessions per second, the same
	relayCPU = 0.9  // processor time of a terminated session, relayed
)

// commandsSent is how many commands a client that pipelines sends before it reads the first reply.
const commandsSent = 16

// earlier is a way to carry FTP with the build before.
func earlier(setUp func(context.Context, programs) error) func(context.Context, programs) error {
	return func(ctx context.Context, p programs) error {
		p.ftpalg = p.before
		return setUp(ctx, p)
	}
}

// inStep is ftpalg with a policy that rests on a session's state: a path means nothing without the working directory.
func (g *gateway) inStep(ctx context.Context, p programs) error {
	return g.daemon(ctx, p, strings.Replace(policyText, "    opaque: pinhole\n", "    opaque: pinhole\n    commands: {deny: [RETR /secret]}\n", 1))
}

// chosen is ftpalg that opens TLS, and chooses the way of data connections.
func (g *gateway) chosen(ctx context.Context, p programs) error {
	return g.daemon(ctx, p, strings.Replace(g.terminatingPolicy(), ", data: relay", "", 1))
}

// traced is ftpalg that relays, and whose garbage collector writes a line for each collection. They are few, so that what is
// rounded in the lines weighs little.
func (g *gateway) traced(ctx context.Context, p programs) error {
	return g.daemonBy(ctx, []string{"env", "GODEBUG=gctrace=1", "GOGC=800", p.ftpalg}, g.terminatingPolicy())
}

// traceFile has what the program printed that traced starts.
const traceFile = "env.log"

// builds are ftpalg and the build before, at work in the same way.
type builds struct {
	now, before int
	work        string
}

// parts is into how many parts of consecutive rounds a run is divided: how far they agree says what the whole's ratio is worth.
const parts = 5

// over formats the ratio of the medians of two ways, and the least and the greatest of the ratios of the parts' medians.
func (s *series) over(of builds) (ratio float64, text string) {
	now, before := s[of.now], s[of.before]
	ratio = median(now) / median(before)
	low, high := ratio, ratio
	for i := range parts {
		from, to := i*len(now)/parts, (i+1)*len(now)/parts
		if from == to {
			continue
		}
		part := median(now[from:to]) / median(before[from:to])
		low, high = min(low, part), max(high, part)
	}
	return ratio, fmt.Sprintf("%.3f (%.3f-%.3f)", ratio, low, high)
}

// besideBefore adds a row that has ftpalg beside the build before. A limit of 0 is none; whether it bounds the ratio from above or from
// below is what least says.
func (b *bench) besideBefore(s *series, of builds, measure, format string, limit float64, least bool) {
	ratio, text := s.over(of)
	entry := row{measure: measure, ratio: text, cells: [ways]string{
		daemon: fmt.Sprintf(format, median(s[of.now])), beforeDaemon: fmt.Sprintf(format, median(s[of.before])),
	}}
	switch {
	case limit == 0:
	case least:
		entry.target, entry.met = fmt.Sprintf(">= %.2f", limit), verdict(ratio >= limit)
	default:
		entry.target, entry.met = fmt.Sprintf("<= %.2f", limit), verdict(ratio <= limit)
	}
	b.table.add(entry)
}

// compareControl measures the round trip of a command, with a policy that rests on no state and with one that does; and there what
// a client that pipelines pays for each.
func (b *bench) compareControl(ctx context.Context) error {
	for _, c := range []struct {
		builds
		how   string
		by    exchange
		limit float64
	}{
		{builds{daemon, beforeDaemon, "no state"}, "one at a time", (*ftpClient).noops, sameTime},
		{builds{daemon, beforeDaemon, "no state"}, "pipelined", (*ftpClient).pipelined, sameTime},
		{builds{inStep, beforeInStep, "rests on paths"}, "one at a time", (*ftpClient).noops, 0},
		{builds{inStep, beforeInStep, "rests on paths"}, "pipelined", (*ftpClient).pipelined, 0},
	} {
		r, err := controlBy(ctx, b.those(c.now, c.before), b.buildRounds, b.commands, c.by)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", c.work, c.how, err)
		}
		b.besideBefore(&r.p50, c.builds, fmt.Sprintf("command, %s, %s, p50, µs", c.work, c.how), "%.1f", c.limit, false)
		b.besideBefore(&r.cpu, c.builds, fmt.Sprintf("CPU per command, %s, %s, µs", c.work, c.how), "%.1f", 0, false)
	}
	b.table.note("command: %d rounds of %d NOOPs with each build by turns; a client that pipelines sends %d, each in a segment of its own, and then reads the replies: the time is a command's part",
		b.buildRounds, b.commands, commandsSent)
	b.table.note("ratios are those of the medians of all rounds; in parentheses the least and the greatest of those of %d parts of the run", parts)
	return nil
}

// pipelined sends NOOPs by several at once, and says how long each took in its batch.
func (c *ftpClient) pipelined(n int) (took []time.Duration, err error) {
	command := []byte("NOOP\r\n")
	for sent := 0; sent < n; sent += commandsSent {
		batch := min(commandsSent, n-sent)
		start := time.Now()
		for range batch {
			if _, err := c.rw.Write(command); err != nil {
				return nil, err
			}
		}
		for range batch {
			if _, err := c.reply("200"); err != nil {
				return nil, err
			}
		}
		took = append(took, time.Since(start)/time.Duration(batch))
	}
	return took, nil
}

// compareSessions measures whole sessions in clear text.
func (b *bench) compareSessions(ctx context.Context) error {
	for _, c := range []struct {
		builds
		d             dialect
		clients, each int
		limit         float64
	}{
		{builds{daemon, beforeDaemon, "no state"}, plain, 1, b.sequential / 2, sameRate},
		{builds{daemon, beforeDaemon, "no state"}, plain, atOnce, b.parallel / 2, sameRate},
		{builds{inStep, beforeInStep, "rests on paths"}, located, 1, b.sequential / 2, 0},
		{builds{inStep, beforeInStep, "rests on paths"}, located, atOnce, b.parallel / 2, 0},
	} {
		r, err := sessions(ctx, b.those(c.now, c.before), c.d, c.clients, b.buildRounds, c.each)
		if err != nil {
			return fmt.Errorf("%s, %d at a time: %w", c.work, c.clients, err)
		}
		b.besideBefore(&r.series, c.builds, fmt.Sprintf("sessions/s, %s, %d at a time", c.work, c.clients), "%.0f", c.limit, true)
		b.besideBefore(&r.cpu, c.builds, fmt.Sprintf("CPU per session, %s, %d at a time, µs", c.work, c.clients), "%.0f", 0, false)
	}
	return nil
}

// compareTerminated measures FTPS sessions that ftpalg opens.
func (b *bench) compareTerminated(ctx context.Context) error {
	for _, c := range []struct {
		builds
		limit float64
	}{
		{builds{relayed, beforeRelayed, "relay"}, relayCPU},
		{builds{chosen, beforeChosen, "defaults"}, 0},
	} {
		var rate, cpu series
		amount := float64(atOnce * b.buildSessions)
		err := interleave(ctx, b.those(c.now, c.before), b.buildRounds, func(g *gateway) error {
			before, err := g.clock()
			if err != nil {
				return err
			}
			start := time.Now()
			if err := g.repeat(atOnce, b.buildSessions, func() error { return g.wholeSession(explicitTLS) }); err != nil {
				return err
			}
			rate.add(g.way, amount/time.Since(start).Seconds())
			after, err := g.clock()
			cpu.add(g.way, (after-before).Seconds()*1e3/amount)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.work, err)
		}
		b.besideBefore(&rate, c.builds, fmt.Sprintf("FTPS sessions/s, %s, %d at a time", c.work, atOnce), "%.0f", 0, true)
		b.besideBefore(&cpu, c.builds, fmt.Sprintf("CPU per FTPS session, %s, %d at a time, ms", c.work, atOnce), "%.3f", c.limit, false)
	}
	b.table.note("FTPS sessions: connect, AUTH TLS, log in, TYPE I, PBSZ 0, PROT P, PASV, fetch 1 KiB inside TLS, quit; CPU is all of ftpalg's, threads that have ended included")
	return nil
}

// clock is the processor time that the gateway's process has had so far.
func (g *gateway) clock() (time.Duration, error) {
	var used unix.Timespec
	err := unix.ClockGettime(processorClock(g.proc.PID()), &used)
	return time.Duration(used.Nano()), os.NewSyscallError("clock_gettime", err)
}

// compareAllocated measures what Go's allocator hands out for a relayed session.
func (b *bench) compareAllocated(ctx context.Context) error {
	of := builds{traced, beforeTraced, "relay"}
	var allocated series
	for _, g := range b.those(of.now, of.before) {
		all, err := g.allocated(ctx, b.collections)
		if err != nil {
			return fmt.Errorf("%s: %w", wayNames[g.way], err)
		}
		allocated[g.way] = all
	}
	b.besideBefore(&allocated, of, "KiB allocated per FTPS session, relay", "%.1f", 0, false)
	b.table.note("allocated: by the garbage collector's trace (GODEBUG=gctrace=1, in MiB), of %d collections, one session at a time", b.collections)
	return nil
}

// collected finds a collection in the trace: the heap when it began, and what was live at its end, in MiB.
var collected = regexp.MustCompile(`(?m)^gc \d+ @.* (\d+)->\d+->(\d+) MB, `)

// allocated runs sessions until there were so many collections after the first, and returns the KiB that each session cost from
// one to the next.
func (g *gateway) allocated(ctx context.Context, collections int) (each []float64, err error) {
	seen, sessions := 0, 0
	for len(each) < collections {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := g.many(1, func() error { return g.wholeSession(explicitTLS) }); err != nil {
			return nil, err
		}
		sessions++
		trace, err := os.ReadFile(g.Path(traceFile))
		if err != nil {
			return nil, err
		}
		all := collected.FindAllSubmatch(trace, -1)
		if len(all) == seen {
			continue
		}
		if seen > 0 && len(all) == seen+1 {
			began, _ := strconv.Atoi(string(all[seen][1]))
			live, _ := strconv.Atoi(string(all[seen-1][2]))
			each = append(each, float64(began-live)*1024/float64(sessions))
		}
		seen, sessions = len(all), 0
	}
	return each, nil
}
