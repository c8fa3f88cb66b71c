package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// transferred is what rounds of data connections showed.
type transferred struct {
	rate series // MiB/s
	cpu  series // ms of client and server for a MiB: most of a gateway's forwarding is done in their time
}

// transfers measures data connections, one at a time, of sessions that stay. A round fetches from all gateways there and back
// again, so that each is as early as it is late and a machine that gets busier meanwhile disturbs no ratio; who comes first
// changes from round to round. Rounds are many and short: others' work spoils some of them and not their median.
func transfers(ctx context.Context, gateways []*gateway, d dialect, rounds, mebibytes int) (*transferred, error) {
	var clients [ways]*ftpClient
	for _, g := range gateways {
		err := g.InNS(g.host, func() (err error) { clients[g.way], err = g.login(d); return err })
		if err != nil {
			return nil, fmt.Errorf("%s: log in: %w", wayNames[g.way], err)
		}
		defer clients[g.way].conn.Close()
	}
	buf := make([]byte, 256<<10)
	var result transferred
	for round := range rounds {
		first := round % len(gateways)
		there := slices.Concat(gateways[first:], gateways[:first])
		back := slices.Clone(there)
		slices.Reverse(back)
		var took, used [ways]float64
		for _, g := range slices.Concat(there, back) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			rate, cpu, err := g.transfer(clients[g.way], mebibytes, buf)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", wayNames[g.way], err)
			}
			took[g.way] += 1 / rate
			used[g.way] += cpu.Seconds() * 1e3
		}
		for _, g := range gateways {
			result.rate.add(g.way, 2/took[g.way])
			result.cpu.add(g.way, used[g.way]/float64(2*(mebibytes-lead>>20)))
		}
	}
	return &result, nil
}

// lead is the part of a file that comes before the clock. It is more than what a socket's buffer has taken (tcp_rmem) while the
// reply to RETR was waited for, and the last work on that is done meanwhile.
const lead = 8 << 20

// transfer fetches one file, and says how fast the rest of its data came and what client and server used of the processors
// meanwhile.
func (g *gateway) transfer(c *ftpClient, mebibytes int, buf []byte) (rate float64, cpu time.Duration, err error) {
	size := mebibytes << 20
	err = g.InNS(g.host, func() error { // which keeps the thread
		return c.retrieve(strconv.Itoa(size), size, func(data io.Reader) (int, error) {
			first, err := drain(io.LimitReader(data, lead), buf)
			if err != nil {
				return 0, err
			}
			before, err := g.ends()
			if err != nil {
				return 0, err
			}
			began := time.Now()
			rest, err := drain(data, buf)
			rate = float64(rest) / (1 << 20) / time.Since(began).Seconds()
			after, endsErr := g.ends()
			cpu = after - before
			return first + rest, errors.Join(err, endsErr)
		})
	})
	return rate, cpu, err
}

// ends is the processor time of the calling thread, which is the client, and of the server.
func (g *gateway) ends() (time.Duration, error) {
	var client, server unix.Timespec
	err := errors.Join(
		os.NewSyscallError("clock_gettime", unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &client)),
		os.NewSyscallError("clock_gettime", unix.ClockGettime(processorClock(g.server.PID()), &server)))
	return time.Duration(client.Nano() + server.Nano()), err
}

// processorClock is the clock of a process's processor time, as clock_getcpuclockid(3) makes it.
func processorClock(pid int) int32 { return int32(^pid)<<3 | 2 }

// overRouted gives a way's part of each round over that of routed.
func (s *series) overRouted(way int) []float64 {
	return s.ratios(func(round [ways]float64) float64 { return round[way] / round[routed] })
}

// withInterval formats the median of ratios, and between what it lies with 95 % confidence however they are distributed: as many
// of them are above the true one as a fair coin gives heads.
func withInterval(ratios []float64) string {
	sorted := slices.Sorted(slices.Values(ratios))
	half := float64(len(sorted)) / 2
	away := 1.96 * math.Sqrt(half/2)
	low, high := max(int(half-away), 0), min(int(math.Ceil(half+away)), len(sorted)-1)
	return fmt.Sprintf("%.3f [%.3f-%.3f]", median(sorted), sorted[low], sorted[high])
}
