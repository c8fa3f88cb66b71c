package main

import (
	"context"
	"fmt"
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

// comparison is one measurement of terminated FTPS: what a client does on some gateways, one of which is ftpalg's.
type comparison struct {
	name   string
	d      dialect
	ways   []int
	rivals []int // among the ways: the best of them is what ftpalg is compared with
	rounds int
	target float64 // 0: none is set
	of     string  // what the target is the ratio of
}

// reportHandshakes measures how fast control connections come to be inside TLS, on both sides.
func (b *bench) reportHandshakes(ctx context.Context) error {
	for _, c := range []comparison{
		{name: "implicit", d: implicitTLS, ways: []int{routed, relayed, haProxy, stunnel}, rivals: []int{haProxy, stunnel}},
		{name: "AUTH TLS", d: explicitTLS, ways: []int{routed, relayed, modProxy}, rivals: []int{modProxy}},
	} {
		r, err := pace(ctx, b.those(c.ways...), b.handshakeRounds, float64(atOnce*b.handshakes), func(g *gateway) error {
			return g.repeat(atOnce, b.handshakes, func() error {
				client, err := g.connect(c.d)
				if err != nil {
					return err
				}
				return client.conn.Close()
			})
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		b.compare(r, c, relayed, fmt.Sprintf("TLS handshakes/s, %s, %d at a time", c.name, atOnce), "%.0f")
		b.table.add(row{measure: fmt.Sprintf("CPU per handshake, %s, ms", c.name), cells: r.cost("%.2f", time.Millisecond)})
	}
	b.table.note("handshakes: on the control connection, full ones with the client, on both sides of the gateway; HAProxy and mod_proxy resume their own sessions with the server; CPU is that of the process in the middle and its children, by /proc/PID/stat")
	return nil
}

// compare adds a row with the rates of a way over those of the best of its rivals.
func (b *bench) compare(r *rates, c comparison, way int, measure, format string) {
	ratios := r.ratios(overBest(way, c.rivals...))
	entry := row{measure: measure, cells: r.medians(format), ratio: withSpread(ratios)}
	if c.target > 0 {
		entry.target, entry.met = fmt.Sprintf("%s >= %.2f", c.of, c.target), verdict(median(ratios) >= c.target)
	}
	b.table.add(entry)
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
	explicit := []int{routed, relayed, direct, modProxy}
	for _, c := range []struct {
		comparison
		clients, each int
	}{
		{comparison{"Go server, explicit", explicitTLS, explicit, []int{modProxy}, b.terminatedRounds, terminatedTarget, "ftpalg relay / mod_proxy"}, atOnce, b.terminated},
		{comparison{"Go server, explicit", explicitTLS, explicit, []int{modProxy}, b.terminatedRounds, terminatedTarget, "ftpalg relay / mod_proxy"}, crowd, b.terminated / 4},
		{comparison{"Go server, implicit", implicitTLS, []int{routed, relayed, direct, haProxy, stunnel}, []int{haProxy, stunnel}, b.terminatedRounds, 0, ""}, atOnce, b.terminated},
		{comparison{"vsftpd, explicit", realTLS, []int{routed, relayed, modProxy}, []int{modProxy}, b.realRounds, 0, ""}, atOnce, b.real},
	} {
		gateways, each := b.those(c.ways...), max(c.each, 1)
		if c.d.port == realTLS.port {
			if err := b.startVsftpd(ctx, gateways); err != nil {
				return err
			}
		}
		r, err := pace(ctx, gateways, c.rounds, float64(c.clients*each), func(g *gateway) error {
			return g.repeat(c.clients, each, func() error { return g.wholeSession(c.d) })
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		b.compare(r, c.comparison, relayed, fmt.Sprintf("FTPS sessions/s, %s, %d at a time", c.name, c.clients), "%.0f")
		b.table.add(row{
			measure: fmt.Sprintf("CPU per FTPS session, %s, %d at a time, ms", c.name, c.clients), cells: r.cost("%.2f", time.Millisecond),
		})
	}
	b.table.note("FTPS sessions: connect, TLS, log in, TYPE I, PBSZ 0, PROT P (but in implicit mode), PASV, fetch 1 KiB inside TLS, quit; data connections resume the control connection's session; ProFTPD's first process sleeps for 200 ms when the end of a session interrupts its wait for the next (seen with strace), so that it takes many at a time to keep mod_proxy busy; stunnel has two services in a row for TLS on both sides, and no session is resumed on data connections")
	return nil
}

func (b *bench) reportTerminatedData(ctx context.Context) error {
	buf := make([]byte, 256<<10)
	for _, c := range []struct {
		comparison
		mebibytes int
		link      string // its rate, if it has a limit
	}{
		{comparison{"TLS on both sides", implicitTLS, []int{routed, relayed, modProxy, haProxy, stunnel}, []int{haProxy, stunnel},
			b.relayRounds, relayTarget, "ftpalg relay / better of HAProxy, stunnel"}, b.relayMebibytes, ""},
		{comparison{"PROT C, spliced", opaque, []int{routed, relayed}, []int{routed}, b.spliceRounds, spliceTarget, "ftpalg relay / routed"},
			2 * b.relayMebibytes, ""},
		{comparison{"PROT C, spliced, 10 Gbit/s link", opaque, []int{routed, relayed}, []int{routed}, b.spliceRounds, spliceTarget, "ftpalg relay / routed"},
			2 * b.relayMebibytes, "10gbit"},
	} {
		gateways := b.those(c.ways...)
		var r *rates
		err := limited(ctx, gateways, c.link, func() (err error) {
			r, err = pace(ctx, gateways, c.rounds, float64(c.mebibytes)/1024, func(g *gateway) error {
				d := c.d
				if g.way == modProxy {
					d = explicitTLS
				}
				return g.bulk(d, c.mebibytes, buf)
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		b.compare(r, c.comparison, relayed, fmt.Sprintf("data, %s, %d MiB, GiB/s", c.name, c.mebibytes), "%.2f")
		b.table.add(row{measure: fmt.Sprintf("CPU per GiB, %s, s", c.name), cells: r.cost("%.2f", time.Second)})
	}
	b.table.note("data: one connection at a time, in records of 16 KiB; client, server and what is between them share this machine's processors, so that a GiB takes as long as what it costs all of them")
	b.table.note("TLS: 1.3, TLS_AES_128_GCM_SHA256, the same P-256 certificate on both sides; vsftpd has RSA")
	return nil
}

// reportPast measures data connections that the kernel forwards past ftpalg, which opens the TLS of the control connection alone.
func (b *bench) reportPast(ctx context.Context) error {
	g := b.gateways[direct]
	before, err := g.processorTime()
	if err != nil {
		return err
	}
	r, err := transfers(ctx, b.those(pastWays...), opaque, b.pastRounds, b.mebibytes)
	if err != nil {
		return err
	}
	after, err := g.processorTime()
	if err != nil {
		return err
	}
	b.reportTransfers(r, fmt.Sprintf("data, PROT C, past ftpalg, %d MiB", b.mebibytes), direct, directTarget, stateful, twin)
	cost := (after - before).Seconds() / (float64(2*b.pastRounds*b.mebibytes) / 1024)
	b.table.add(row{measure: "CPU per GiB, PROT C, past ftpalg, s", cells: [ways]string{direct: fmt.Sprintf("%.2f", cost)}})
	return nil
}
