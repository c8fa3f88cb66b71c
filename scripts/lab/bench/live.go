package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/conntrack"
	"ftpalg/scripts/lab"

	"golang.org/x/sys/unix"
)

// interleave runs f once on each gateway in every round, beginning with another one each time, so that whatever else the
// machine does falls on all of them alike.
func interleave(ctx context.Context, gateways []*gateway, rounds int, f func(g *gateway) error) error {
	for round := range rounds {
		for i := range gateways {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			g := gateways[(round+i)%len(gateways)]
			if err := f(g); err != nil {
				return fmt.Errorf("%s: %w", wayNames[g.way], err)
			}
		}
	}
	return nil
}

// warmUp is how many commands of a batch come before the clock: the caches are another gateway's at first.
const warmUp = 20

// roundTrips is what batches of NOOP showed.
type roundTrips struct {
	by  exchange
	p50 series // µs
	all [ways][]time.Duration
	cpu series // µs of the gateway's process for a command
}

// exchange has a client send so many commands, and says how long each took.
type exchange func(c *ftpClient, commands int) ([]time.Duration, error)

// control measures the round trip of NOOP over one control connection that is logged in.
func control(ctx context.Context, gateways []*gateway, rounds, commands int) (*roundTrips, error) {
	return controlBy(ctx, gateways, rounds, commands, (*ftpClient).noops)
}

// controlBy is control with the commands sent in another way.
func controlBy(ctx context.Context, gateways []*gateway, rounds, commands int, by exchange) (*roundTrips, error) {
	var clients [ways]*ftpClient
	for _, g := range gateways {
		err := g.InNS(lab.Client, func() (err error) {
			clients[g.way], err = g.login(plain)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: log in: %w", wayNames[g.way], err)
		}
		defer clients[g.way].conn.Close()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	result := &roundTrips{by: by}
	err := interleave(ctx, gateways, rounds, func(g *gateway) error {
		return result.batch(g, clients[g.way], commands)
	})
	return result, err
}

// batch measures one round on one gateway.
func (r *roundTrips) batch(g *gateway, c *ftpClient, commands int) error {
	if _, err := r.by(c, warmUp); err != nil {
		return err
	}
	before, err := g.cpu()
	if err != nil {
		return err
	}
	took, err := r.by(c, commands)
	if err != nil {
		return err
	}
	after, err := g.cpu()
	if err != nil {
		return err
	}
	r.all[g.way] = append(r.all[g.way], took...)
	r.p50.add(g.way, micros(quantile(took, 0.5)))
	r.cpu.add(g.way, micros(after-before)/float64(commands))
	return nil
}

// noops sends NOOP so many times and says how long each round trip took.
func (c *ftpClient) noops(n int) ([]time.Duration, error) {
	took := make([]time.Duration, n)
	command := []byte("NOOP\r\n")
	for i := range took {
		start := time.Now()
		if _, err := c.rw.Write(command); err != nil {
			return nil, err
		}
		if _, err := c.reply("200"); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
	}
	return took, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// small is the file of a session that is about sessions and not about data.
const small = 1 << 10

// reused is the source port of the sessions that come one behind the other from the same port.
const reused = 1999

// reuseTimeout bounds all of these sessions.
const reuseTimeout = time.Minute

// reuse counts the sessions that stall when a client uses its source port again at once, as a masqueraded office may.
// Server and conntrack then still have the connection before.
func (b *bench) reuse(ctx context.Context, sessions int) (stalls [ways]int, err error) {
	ctx, cancel := context.WithTimeout(ctx, reuseTimeout)
	defer cancel()
	err = interleave(ctx, b.inspecting(), sessions, func(g *gateway) error {
		next := g.nextPort.Load()
		defer g.nextPort.Store(next)
		return lab.Wait(ctx, "the client to be done with its port", func() (free bool, err error) {
			g.nextPort.Store(reused - 1)
			start := time.Now()
			err = g.many(1, func() error { return g.wholeSession(plain) })
			if errors.Is(err, unix.EADDRNOTAVAIL) {
				return false, nil // the server has not acknowledged the end of the connection before yet
			}
			if time.Since(start) > stalled {
				stalls[g.way]++
			}
			return true, err
		})
	})
	return stalls, err
}

// stalled is a session that waited for a retransmission: the first comes after 200 ms at the earliest (RFC 6298 section
// 2.4 has a second; Linux has TCP_RTO_MIN).
const stalled = 150 * time.Millisecond

// sessionRates is what rounds of whole sessions showed.
type sessionRates struct {
	series           // sessions per second
	cpu    series    // µs of the gateway's process for a session
	stalls [ways]int // sessions that stalled
}

// sessions measures whole sessions per second, run by so many clients at a time.
func sessions(ctx context.Context, gateways []*gateway, d dialect, clients, rounds, each int) (*sessionRates, error) {
	var rates sessionRates
	err := interleave(ctx, gateways, rounds, func(g *gateway) error {
		var stalls atomic.Int64
		before, err := g.cpu()
		if err != nil {
			return err
		}
		start := time.Now()
		if err := g.many(clients, func() error {
			for range each {
				began := time.Now()
				if err := g.wholeSession(d); err != nil {
					return err
				}
				if time.Since(began) > stalled {
					stalls.Add(1)
				}
			}
			return nil
		}); err != nil {
			return err
		}
		took := time.Since(start)
		after, err := g.cpu()
		if err != nil {
			return err
		}
		rates.add(g.way, float64(clients*each)/took.Seconds())
		rates.cpu.add(g.way, micros(after-before)/float64(clients*each))
		rates.stalls[g.way] += int(stalls.Load())
		return nil
	})
	return &rates, err
}

// many runs f several times at once, on threads in the namespace of the gateway's client.
func (g *gateway) many(n int, f func() error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = g.InNS(g.host, f) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// expectations measures how long it takes until an expectation stands, under a control connection of ftpalg's gateway.
func (b *bench) expectations(n int) (p50, p99 float64, err error) {
	g := b.gateways[kernelHelper] // under a connection of its own ftpalg would remove them, as nobody asked it for them
	var control *ftpClient
	var ct *conntrack.Conn
	err = errors.Join(
		g.InNS(lab.Client, func() (err error) { control, err = g.login(plain); return err }),
		g.InNS(lab.Gateway, func() (err error) { ct, err = conntrack.Dial(); return err }))
	if err != nil {
		return 0, 0, err
	}
	defer ct.Close()
	defer control.conn.Close()
	client, err := control.conn.local()
	if err != nil {
		return 0, 0, err
	}
	server := lab.Addr(lab.Server, lab.IPv4)
	x := conntrack.Expectation{
		Master: conntrack.Tuple{Src: client, Dst: netip.AddrPortFrom(server, benchPort)},
		From:   netip.AddrPortFrom(client.Addr(), 0), To: netip.AddrPortFrom(server, lab.ServerPassive.First),
		Timeout: 30 * time.Second,
	}
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		if err := ct.Expect(x); err != nil {
			return 0, 0, err
		}
		took[i] = time.Since(start)
		if err := ct.Withdraw(x); err != nil {
			return 0, 0, err
		}
	}
	return micros(quantile(took, 0.5)), micros(quantile(took, 0.99)), nil
}
