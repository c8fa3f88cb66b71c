package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"ftpalg/scripts/lab"

	"golang.org/x/sys/unix"
)

// floodTime is how long a flood lasts.
const floodTime = 2 * time.Second

// tick is how often a burst of the flood is sent.
const tick = 5 * time.Millisecond

// flood sends SYNs from the calling thread's namespace to the server's passive range, each with a four-tuple of its own,
// evenly over a time.
func flood(ctx context.Context, from netip.Addr, count int, over time.Duration) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	to := address(netip.AddrPortFrom(lab.Addr(lab.Server, lab.IPv4), 0))
	start := time.Now()
	bursts := time.NewTicker(tick)
	defer bursts.Stop()
	for sent := 0; time.Since(start) < over; {
		due := min(count, int(float64(count)*float64(time.Since(start)+2*tick)/float64(over)))
		for ; sent < due; sent++ {
			if err := unix.Sendto(fd, syn(from, sent), 0, to); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		select {
		case <-bursts.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// syn makes the number-th SYN of a flood.
func syn(from netip.Addr, number int) []byte {
	ports := int(lab.PolicyPassive.Last - lab.PolicyPassive.First + 1)
	p := make([]byte, headers)
	source, destination := from.As4(), lab.Addr(lab.Server, lab.IPv4).As4()
	p[0], p[8], p[9], p[32], p[flagsByte] = 0x45, 64, unix.IPPROTO_TCP, 5<<4, 0x02
	binary.BigEndian.PutUint16(p[2:], headers)
	copy(p[12:], source[:])
	copy(p[16:], destination[:])
	binary.BigEndian.PutUint16(p[20:], uint16(50000+number/ports%10000))
	binary.BigEndian.PutUint16(p[22:], lab.PolicyPassive.First+uint16(number%ports))
	binary.BigEndian.PutUint32(p[24:], uint32(number))
	binary.BigEndian.PutUint16(p[34:], 65535)
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(p[36:], checksum(append(pseudo, p[20:]...)))
	return p // the kernel fills in the IP header's checksum (raw(7))
}

// checksum is the one of RFC 1071, for an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// queuedSYNs tells how many SYNs to the passive range were queued so far, and how many packets the queue has lost.
func (g *gateway) queuedSYNs(ctx context.Context) (syns, lost int, err error) {
	rules, err := g.Run(ctx, lab.Gateway, "iptables", "-w", "-t", "raw", "-nvxL", "FTPALG-RAW")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(rules) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.Contains(line, "NFQUEUE") {
			n, err := strconv.Atoi(fields[0])
			if err != nil {
				return 0, 0, fmt.Errorf("iptables -nvxL: line %q: %w", line, err)
			}
			syns += n
		}
	}
	table, err := g.Run(ctx, lab.Gateway, "cat", "/proc/net/netfilter/nfnetlink_queue")
	var num, port, waiting, mode, size, full, overrun int
	if err == nil {
		_, err = fmt.Sscan(table, &num, &port, &waiting, &mode, &size, &full, &overrun)
	}
	return syns, full + overrun, err
}

// floodResult is what a flood did.
type floodResult struct {
	syns, lost int           // that reached the queue, and that it could not take
	cpu        time.Duration // of ftpalg, in all
	commands   []time.Duration
	sessions   []time.Duration
}

// underFlood floods from a host while a client does work over and over, if there is any, and counts. With a count of 0 it
// gives the same of a quiet network.
func (b *bench) underFlood(ctx context.Context, from lab.Host, count int, work func(*floodResult) error) (*floodResult, error) {
	g, r := b.gateways[daemon], &floodResult{}
	syns, lost, err := g.queuedSYNs(ctx)
	if err != nil {
		return nil, err
	}
	before, err := g.cpu()
	if err != nil {
		return nil, err
	}
	flooding := make(chan error, 1)
	go func() {
		flooding <- g.InNS(from, func() error { return flood(ctx, lab.Addr(from, lab.IPv4), count, floodTime) })
	}()
	for work != nil && err == nil && len(flooding) == 0 {
		err = work(r)
	}
	if err := errors.Join(err, <-flooding); err != nil {
		return nil, err
	}
	after, err := g.cpu()
	if err != nil {
		return nil, err
	}
	synsNow, lostNow, err := g.queuedSYNs(ctx)
	r.cpu, r.syns, r.lost = after-before, synsNow-syns, lostNow-lost
	return r, err
}

// toil is what a client does while there is a flood, over and over: some commands, and a whole session.
func (b *bench) toil(client *ftpClient, d dialect) func(*floodResult) error {
	g := b.gateways[daemon]
	return func(r *floodResult) error {
		took, err := client.noops(warmUp)
		if err != nil {
			return err
		}
		r.commands = append(r.commands, took...)
		start := time.Now()
		err = g.InNS(lab.Client, func() error { return g.wholeSession(d) })
		r.sessions = append(r.sessions, time.Since(start))
		return err
	}
}

// reportFlood measures what SYNs at the passive range cost, and what they do to others. The flooding host has a control
// connection inside TLS, so that a SYN goes all the way to the question whether a credit is left.
func (b *bench) reportFlood(ctx context.Context) error {
	g := b.gateways[daemon]
	var client, flooder *ftpClient
	err := g.InNS(lab.Client, func() (err error) {
		client, err = g.login(plain)
		return err
	})
	if err == nil {
		defer client.conn.Close()
		err = g.InNS(lab.Client2, func() (err error) {
			flooder, err = g.login(opaque)
			return err
		})
	}
	if err != nil {
		return err
	}
	defer flooder.conn.Close()
	alone, err := b.underFlood(ctx, lab.Client2, b.floodSYNs, nil)
	if err != nil {
		return fmt.Errorf("the flood alone: %w", err)
	}
	b.table.add(row{
		measure: "SYN flood: ftpalg CPU per SYN, µs",
		cells:   [ways]string{daemon: fmt.Sprintf("%.1f", micros(alone.cpu)/float64(alone.syns))},
	})
	for _, d := range []dialect{plain, opaque} {
		quiet, err := b.underFlood(ctx, lab.Client2, 0, b.toil(client, d))
		if err != nil {
			return fmt.Errorf("without a flood: %w", err)
		}
		flooded, err := b.underFlood(ctx, lab.Client2, b.floodSYNs, b.toil(client, d))
		if err != nil {
			return fmt.Errorf("during the flood: %w", err)
		}
		b.compareFlood(quiet, flooded, d.auth)
	}
	return nil
}

func (b *bench) compareFlood(quiet, flooded *floodResult, secure bool) {
	kind := "plain PASV session"
	if secure {
		kind = "FTPS session, JIT pinhole"
	}
	pair := func(format string, without, with, unit time.Duration) [ways]string {
		return [ways]string{daemon: fmt.Sprintf(format, float64(without)/float64(unit), float64(with)/float64(unit))}
	}
	b.table.add(row{
		measure: kind + " ms, p50 without / during a SYN flood",
		cells:   pair("%.2f / %.2f", quantile(quiet.sessions, 0.5), quantile(flooded.sessions, 0.5), time.Millisecond),
		target:  "every session completes", met: verdict(len(flooded.sessions) > 0),
	})
	b.table.add(row{
		measure: kind + " ms, longest without / during it",
		cells:   pair("%.1f / %.1f", quantile(quiet.sessions, 1), quantile(flooded.sessions, 1), time.Millisecond),
	})
	if secure {
		return
	}
	b.table.add(row{
		measure: "NOOP p50 µs, without / during a SYN flood",
		cells:   pair("%.1f / %.1f", quantile(quiet.commands, 0.5), quantile(flooded.commands, 0.5), time.Microsecond),
	})
	commands, others := float64(len(flooded.commands)), float64(len(flooded.sessions))
	b.table.add(row{
		measure: "ftpalg CPU in the flood, % of one core",
		cells:   [ways]string{daemon: fmt.Sprintf("%.1f", 100*float64(flooded.cpu)/float64(floodTime))},
	})
	b.table.note("flood: %d SYNs in %v, each a four-tuple of its own, to the passive range, from a host with a control connection inside TLS; %d reached the queue (%.0f/s, with the sessions' own), %d packets were lost to a full queue; meanwhile %.0f commands and %.0f sessions of another host, all complete",
		b.floodSYNs, floodTime, flooded.syns, float64(flooded.syns)/floodTime.Seconds(), flooded.lost, commands, others)
}
