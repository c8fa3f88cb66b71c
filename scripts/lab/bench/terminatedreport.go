package main

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// The targets of terminated FTPS.
const (
	terminatedTarget = 5.0  // sessions per second, over mod_proxy's
	relayTarget      = 1.0  // relayed data inside TLS, over the better of HAProxy and stunnel
	directTarget     = 0.98 // data past ftpalg, over routed
	spliceTarget     = 0.9  // data through ftpalg without TLS, over routed
	idleTarget       = 64   // KiB a session
)

func (b *bench) reportTerminatedMemory(context.Context) error {
	bytes, err := b.gateways[relayed].idleMemory(b.idle)
	if err != nil {
		return err
	}
	b.table.add(row{
		measure: fmt.Sprintf("KiB a terminated session, %d idle, resident", b.idle),
		cells:   [ways]string{relayed: fmt.Sprintf("%.1f", bytes/1024)},
		target:  fmt.Sprintf("<= %d", idleTarget), met: verdict(bytes <= idleTarget<<10),
	})
	return nil
}

// reportHandshakes measures how fast control connections come to be inside TLS: full handshakes on both sides, where the
// rival does not keep its own with the server.
func (b *bench) reportHandshakes(ctx context.Context) error {
	for _, kind := range []struct {
		name string
		d    dialect
		ways []int
	}{
		{"implicit", implicitTLS, []int{routed, relayed, haProxy, stunnel}},
		{"AUTH TLS", explicitTLS, []int{routed, relayed, modProxy}},
	} {
		r, err := pace(ctx, b.those(kind.ways...), b.handshakeRounds, float64(atOnce*b.handshakes), func(g *gateway) error {
			return g.repeat(atOnce, b.handshakes, func() error {
				c, err := g.connect(kind.d)
				if err != nil {
					return err
				}
				return c.conn.Close()
			})
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		rivals := kind.ways[2:]
		b.table.add(row{
			measure: fmt.Sprintf("TLS handshakes/s, %s, %d at a time", kind.name, atOnce), cells: r.medians("%.0f"),
			ratio: withSpread(r.ratios(overBest(relayed, rivals...))),
		})
		b.table.add(row{measure: fmt.Sprintf("CPU per handshake, %s, ms", kind.name), cells: r.cost("%.2f", time.Millisecond)})
	}
	return nil
}

// overBest compares a way with the best of others.
func overBest(way int, others ...int) func(round [ways]float64) float64 {
	return func(round [ways]float64) float64 {
		best := 0.0
		for _, other := range others {
			best = max(best, round[other])
		}
		return round[way] / best
	}
}

func (b *bench) reportTerminatedSessions(ctx context.Context) error {
	for _, kind := range []struct {
		name         string
		d            dialect
		ways         []int
		rounds, each int
		target       float64
	}{
		{"Go server, explicit", explicitTLS, []int{routed, relayed, direct, modProxy}, b.terminatedRounds, b.terminated, terminatedTarget},
		{"Go server, implicit", implicitTLS, []int{routed, relayed, direct, haProxy, stunnel}, b.terminatedRounds, b.terminated, 0},
		{"vsftpd", realTLS, []int{routed, relayed, modProxy}, b.realRounds, b.real, 0},
	} {
		gateways := b.those(kind.ways...)
		if kind.d.port == realTLS.port {
			if err := b.startVsftpd(ctx, gateways); err != nil {
				return err
			}
		}
		r, err := pace(ctx, gateways, kind.rounds, float64(atOnce*kind.each), func(g *gateway) error {
			return g.repeat(atOnce, kind.each, func() error { return g.wholeSession(kind.d) })
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		entry := row{measure: fmt.Sprintf("FTPS sessions/s, %s, %d at a time", kind.name, atOnce), cells: r.medians("%.0f")}
		rivals := kind.ways[len(kind.ways)-1:]
		if kind.d.implicit {
			rivals = []int{haProxy, stunnel}
		}
		ratios := r.ratios(overBest(relayed, rivals...))
		entry.ratio = withSpread(ratios)
		if kind.target > 0 {
			entry.target = fmt.Sprintf("ftpalg relay / mod_proxy >= %.0f", kind.target)
			entry.met = verdict(median(ratios) >= kind.target)
		}
		b.table.add(entry)
		b.table.add(row{measure: fmt.Sprintf("CPU per FTPS session, %s, ms", kind.name), cells: r.cost("%.2f", time.Millisecond)})
	}
	return nil
}

func (b *bench) reportTerminatedData(ctx context.Context) error {
	for _, kind := range []struct {
		name   string
		d      dialect
		ways   []int
		ratio  func([ways]float64) float64
		target float64
		of     string
	}{
		{"TLS on both sides", implicitTLS, []int{routed, relayed, modProxy, haProxy, stunnel},
			overBest(relayed, haProxy, stunnel), relayTarget, "ftpalg relay / better of HAProxy, stunnel"},
		{"PROT C, spliced", explicitRaw, []int{routed, relayed}, overBest(relayed, routed), spliceTarget, "ftpalg relay / routed"},
		{"PROT C, past ftpalg", explicitRaw, []int{routed, direct}, overBest(direct, routed), directTarget, "ftpalg direct / routed"},
	} {
		size, rounds := b.relayMebibytes, b.relayRounds
		if !kind.d.private {
			size *= 2 // it is that much faster
		}
		buf := make([]byte, 256<<10)
		r, err := pace(ctx, b.those(kind.ways...), rounds, float64(size)/1024, func(g *gateway) error {
			d := kind.d
			if g.way == modProxy {
				d.port, d.implicit, d.auth = benchPort, false, true
			}
			return g.bulk(d, size, buf)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		ratios := r.ratios(kind.ratio)
		b.table.add(row{
			measure: "data, " + kind.name + ", " + strconv.Itoa(size) + " MiB, GiB/s", cells: r.medians("%.2f"), ratio: withSpread(ratios),
			target: fmt.Sprintf("%s >= %.2f", kind.of, kind.target), met: verdict(median(ratios) >= kind.target),
		})
		b.table.add(row{measure: "CPU per GiB, " + kind.name + ", s", cells: r.cost("%.2f", time.Second)})
	}
	return nil
}
