package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/inspect"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
	"ftpalg/scripts/lab"
)

// nothing stands in for the kernel: it takes verdicts and expectations and does nothing.
type nothing struct{}

func (nothing) Verdict(uint32, nfq.Verdict) error                                { return nil }
func (nothing) AdjustSequence(conntrack.Tuple, bool, conntrack.Adjustment) error { return nil }
func (nothing) Expect(conntrack.Expectation) error                               { return nil }
func (nothing) Withdraw(conntrack.Expectation) error                             { return nil }
func (nothing) SetLabel(conntrack.Tuple, conntrack.Label, conntrack.Label) error { return nil }
func (nothing) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	e := conntrack.Untranslated(t)
	e.Opened, e.Live = true, true
	return e, nil
}

const (
	headers   = 20 + 20 // IPv4 and TCP without options (RFC 791 section 3.1, RFC 9293 section 3.1)
	flagsByte = 33      // of the TCP header, seen from the IP header
	clients   = 250     // client addresses, which share the sessions
	firstPort = 1024
)

// fleet is many control connections through one inspector. Packets are made in place, so that nothing but ftpalg's own
// work and memory is measured.
type fleet struct {
	in      *inspect.Inspector
	decoder *nfq.Decoder
	seg     nfq.Segment
	packet  []byte
	seq     [][2]uint32 // next sequence number of each session's client and server
	events  int
}

func newFleet(n int) (*fleet, error) {
	p, err := policy.Parse("bench", []byte(policyText))
	if err != nil {
		return nil, err
	}
	f := &fleet{decoder: nfq.NewDecoder(), packet: make([]byte, headers, 2048), seq: make([][2]uint32, n)}
	f.in = inspect.New(inspect.Options{Policy: p, Conntrack: nothing{}, Report: func(audit.Event) { f.events++ }})
	f.packet[0], f.packet[9], f.packet[32] = 0x45, 6, 5<<4 // header lengths, and that it is TCP
	return f, nil
}

// ends gives the two ends of session i.
func ends(i int) (client, server netip.AddrPort) {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%clients)}), uint16(firstPort+i/clients)),
		netip.AddrPortFrom(lab.Addr(lab.Server, lab.IPv4), benchPort)
}

// say sends session i's next segment.
func (f *fleet) say(i int, from alg.Side, payload string) {
	src, dst := ends(i)
	if from == alg.Server {
		src, dst = dst, src
	}
	seq := &f.seq[i]
	f.segment(src, dst, 0x10, seq[from], seq[from.Other()], payload)
	seq[from] += uint32(len(payload))
}

// segment takes one segment the way of a queued packet.
func (f *fleet) segment(src, dst netip.AddrPort, flags byte, seq, ack uint32, payload string) {
	p := append(f.packet[:headers], payload...)
	source, destination := src.Addr().As4(), dst.Addr().As4()
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], source[:])
	copy(p[16:], destination[:])
	binary.BigEndian.PutUint16(p[20:], src.Port())
	binary.BigEndian.PutUint16(p[22:], dst.Port())
	binary.BigEndian.PutUint32(p[24:], seq)
	binary.BigEndian.PutUint32(p[28:], ack)
	p[flagsByte] = flags
	if err := f.decoder.Decode(p, &f.seg); err != nil {
		panic("bench: a packet of our own: " + err.Error())
	}
	f.in.Packet(time.Now(), inspect.Packet{Queue: nothing{}}, &f.seg)
}

func (f *fleet) exchange(i int, command, reply string) {
	f.say(i, alg.Client, command)
	f.say(i, alg.Server, reply)
}

// open logs session i in and lets it do one transfer, as a session that is idle now has done.
func (f *fleet) open(i int) {
	client, server := ends(i)
	f.segment(server, client, 0x12, f.seq[i][alg.Server]-1, f.seq[i][alg.Client], "") // SYN/ACK
	f.say(i, alg.Server, "220 Ready.\r\n")
	f.exchange(i, "USER lab\r\n", "331 Password required.\r\n")
	f.exchange(i, "PASS secret\r\n", "230 Logged in.\r\n")
	f.exchange(i, "TYPE I\r\n", "200 Type set.\r\n")
	f.exchange(i, "PWD\r\n", "257 \"/\" is the current directory.\r\n")
	f.passive(i)
	f.retrieve(i)
}

const pasvReply = "227 Entering Passive Mode (198,51,100,2,195,80).\r\n"

// passive opens a pinhole, and retrieve uses it: the SYN of the data connection passes through the queue too.
func (f *fleet) passive(i int) { f.exchange(i, "PASV\r\n", pasvReply) }

func (f *fleet) retrieve(i int) {
	f.say(i, alg.Client, "RETR file\r\n")
	f.synchronise(i)
	f.say(i, alg.Server, "150 Here it comes.\r\n")
	f.say(i, alg.Server, "226 Done.\r\n")
}

// synchronise is the SYN of a data connection.
func (f *fleet) synchronise(i int) {
	client, server := ends(i)
	f.segment(netip.AddrPortFrom(client.Addr(), 40000), netip.AddrPortFrom(server.Addr(), 50000), 0x02, 1, 0, "")
}

// footprint is what a child process measured of its idle sessions, in bytes a session.
type footprint struct{ Heap, Resident float64 }

// memoryChild is the program `bench memory plain|tls N`: a process of its own, so that nothing else is in its memory.
func memoryChild(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: bench memory plain|tls SESSIONS")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	f, err := newFleet(n)
	if err != nil {
		return err
	}
	open := f.open
	if args[0] == "tls" {
		dialogue, err := recordTLS()
		if err != nil {
			return err
		}
		open = func(i int) { f.replay(i, dialogue) }
	}
	before, err := memory()
	if err != nil {
		return err
	}
	for i := range n {
		open(i)
	}
	after, err := memory()
	if err != nil {
		return err
	}
	if got := len(f.in.Sessions()); got != n {
		return fmt.Errorf("%d sessions stand, not %d", got, n)
	}
	return json.NewEncoder(os.Stdout).Encode(footprint{
		(after.Heap - before.Heap) / float64(n), (after.Resident - before.Resident) / float64(n),
	})
}

// memory gives what the process has in use, its garbage collected and given back.
func memory() (footprint, error) {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return footprint{}, err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	return footprint{float64(m.HeapAlloc), pages * float64(os.Getpagesize())}, err
}

func (b *bench) reportMemory(ctx context.Context) error {
	for _, n := range b.extent.memory {
		for _, kind := range []string{"plain", "tls"} {
			out, err := exec.CommandContext(ctx, b.self, "memory", kind, strconv.Itoa(n)).Output()
			var f footprint
			if err == nil {
				err = json.Unmarshal(out, &f)
			}
			if err != nil {
				return fmt.Errorf("%d sessions, %s: %w", n, kind, err)
			}
			b.table.add(row{
				measure: fmt.Sprintf("bytes a session, %d idle, %s: heap / resident", n, kind),
				cells:   [ways]string{daemon: fmt.Sprintf("%.0f / %.0f", f.Heap, f.Resident)},
				target:  fmt.Sprintf("<= %d", memoryTarget), met: verdict(max(f.Heap, f.Resident) <= memoryTarget),
			})
		}
	}
	b.table.note("memory, in process: each session logged in, TYPE I, PWD and one PASV transfer; tls: the same inside a recorded TLS 1.3 session; garbage collected before counting")
	return nil
}

// reportCost measures what a command and its reply cost among more and more sessions, of which one is picked at random.
func (b *bench) reportCost(context.Context) error {
	fleets := make([]*fleet, len(b.costs))
	for i, n := range b.costs {
		f, err := newFleet(n)
		if err != nil {
			return err
		}
		for s := range n {
			f.open(s)
		}
		fleets[i] = f
	}
	runtime.GC()
	took := make([][]float64, len(fleets)) // ns a command, by fleet and round
	for round := range b.costRounds {
		for i := range fleets {
			k := (round + i) % len(fleets)
			took[k] = append(took[k], fleets[k].commands(b.costCommands))
		}
	}
	for i := range fleets {
		b.cost = append(b.cost, median(took[i]))
	}
	ratios := make([]float64, b.costRounds)
	for r := range ratios {
		ratios[r] = took[len(took)-1][r] / took[0][r]
	}
	for i, n := range b.costs {
		entry := row{measure: fmt.Sprintf("ns a command, %d sessions, in process", n), cells: [ways]string{daemon: fmt.Sprintf("%.0f", b.cost[i])}}
		if i == len(b.costs)-1 {
			entry.ratio, entry.target = withSpread(ratios), fmt.Sprintf("over 1 session's <= %.1f", flatTarget)
			entry.met = verdict(median(ratios) <= flatTarget)
		}
		b.table.add(entry)
	}
	return nil
}

// commands sends NOOP in sessions picked at random, and gives the time of a command and its reply in ns.
func (f *fleet) commands(n int) float64 {
	start := time.Now()
	for range n {
		f.exchange(rand.IntN(len(f.seq)), "NOOP\r\n", "200 NOOP ok.\r\n")
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n)
}

// reportAllocations counts allocations in a session that has done all of it before.
func (b *bench) reportAllocations(context.Context) error {
	f, err := newFleet(1)
	if err != nil {
		return err
	}
	f.open(0)
	f.passive(0)
	f.retrieve(0)
	measured := []struct {
		what string
		f    func()
	}{
		{"NOOP, 200", func() { f.exchange(0, "NOOP\r\n", "200 NOOP ok.\r\n") }},
		{"PASV, 227, RETR, SYN, 150, 226", func() { f.passive(0); f.retrieve(0) }},
	}
	for _, m := range measured {
		n := testing.AllocsPerRun(b.allocationsRuns, m.f)
		b.table.add(row{
			measure: "allocations for " + m.what, cells: [ways]string{daemon: fmt.Sprintf("%.0f", n)}, target: "0", met: verdict(n == 0),
		})
	}
	return nil
}
