// Package model tests the inspector against a world that is held to the truth: a client that tries everything, a server that
// executes what reaches it and answers as real servers do or as badly as they might, and a conntrack that forgets. After each step
// the server's own state says whether the policy was kept.
package model

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"net/netip"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/inspect"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// refusedMark is the mark bit of packets that the rules answer with a reset.
const refusedMark = 1 << 29

var (
	client = netip.MustParseAddrPort("192.0.2.2:40000")
	server = netip.MustParseAddrPort("198.51.100.2:21")
	key    = inspect.Key{Client: client, Server: server}
	tuple  = conntrack.Tuple{Src: client, Dst: server}
)

// Setup is what a dialogue is held in.
type Setup struct {
	Habits    *Habits
	Policy    *policy.Policy
	Denied    []string // verbs that the policy denies
	Secret    []string // verbs that it denies below /secret
	DropNew   bool     // the rules drop what is new and no SYN
	LastWins  bool     // of segments out of order the receivers take the last content
	Handshake bool     // the rules queue segments without payload as well
}

// World is one dialogue under way.
type World struct {
	Setup
	now       time.Time
	in        *inspect.Inspector
	kernel    *Kernel
	server    *Server
	ends      [2]end          // by side
	decoders  [2]*nfq.Decoder // of what goes in, and of what comes out
	packets   map[uint32][]byte
	nextID    uint32
	delivered []delivery
	active    map[uint16]bool // ports that the client announced
	heard     []byte          // what the client has read
	before    []uint32        // ids of entries whose end nobody has told yet
	faults    []string
	seen      Seen
	jit       int  // just-in-time pinholes so far
	met       bool // the inspector met the connection in the middle, and there may have been no label
	killed    bool // since then pinholes may stand that nobody knows of, until the kernel drops them
	generation
}

// Seen counts what came to pass, so that a test can tell whether much did.
type Seen struct {
	Commands  int // that the server executed in clear text after a login
	Transfers int // that began
	TLS       int // handshakes
	Pinholes  int
	Ended     int // sessions that the gateway ended
}

// Add adds what was seen elsewhere.
func (s *Seen) Add(o Seen) {
	s.Commands, s.Transfers, s.TLS = s.Commands+o.Commands, s.Transfers+o.Transfers, s.TLS+o.TLS
	s.Pinholes, s.Ended = s.Pinholes+o.Pinholes, s.Ended+o.Ended
}

// generation tells the verdicts of an inspector that is gone from those of the one at work.
type generation struct{ number int }

// NewWorld has a connection at its beginning.
func NewWorld(s Setup) *World {
	w := &World{
		Setup: s, now: time.Unix(1_800_000_000, 0), decoders: [2]*nfq.Decoder{nfq.NewDecoder(), nfq.NewDecoder()}, packets: map[uint32][]byte{}, active: map[uint16]bool{},
	}
	w.kernel = &Kernel{world: w}
	w.in = w.inspector()
	w.connect(1000)
	return w
}

func (w *World) inspector() *inspect.Inspector {
	w.number++
	return inspect.New(inspect.Options{Policy: w.Policy, Conntrack: w.kernel, Refused: refusedMark, Report: func(e audit.Event) {
		if e.Reason == alg.InternalError {
			w.fault("internal error: %v", e.Err)
		}
	}})
}

func (w *World) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// connect makes a new connection, whose client begins with a sequence number.
func (w *World) connect(isn uint32) {
	if w.kernel.there {
		w.before = append(w.before, w.kernel.entry.ID)
	}
	w.kernel.forget()
	w.server = newServer(w.Habits, w)
	w.jit = 0
	const serverISN = 77
	w.ends = [2]end{{next: isn, received: serverISN + 1}, {next: serverISN, received: isn + 1}}
	w.packet(alg.Client, isn, nil, nfq.SYN, false)
	if !w.kernel.there {
		w.kernel.begin(tuple, "sane") // the SYN was dropped, and came again
	}
	w.ends[alg.Client].next++
	w.packet(alg.Server, serverISN, nil, nfq.SYN|nfq.ACK, false)
	w.ends[alg.Server].next++
	w.kernel.established()
	w.packet(alg.Client, isn+1, nil, nfq.ACK, false)
}

// verdicts takes the verdicts of one inspector.
type verdicts struct {
	w      *World
	number int
}

// Verdict lets a packet go on. It only notes it, as the inspector must not be called from here.
func (v verdicts) Verdict(id uint32, d nfq.Verdict) error {
	w := v.w
	packet, known := w.packets[id]
	if !known || v.number != w.number {
		return nil // dropped with an inspector's queue
	}
	delete(w.packets, id)
	if !d.Accept || d.SetMark && d.Mark&refusedMark != 0 {
		return nil
	}
	if d.Payload != nil {
		packet = bytes.Clone(d.Payload)
	}
	var seg nfq.Segment
	if err := w.decoders[1].Decode(packet, &seg); err != nil {
		w.fault("a packet goes on broken: %v", err)
		return nil
	}
	from := alg.Client
	if seg.Src == server {
		from = alg.Server
	}
	if seg.Flags&nfq.SYN != 0 {
		if from == alg.Client && seg.Dst == server && !w.kernel.there {
			w.kernel.begin(tuple, "sane")
		}
		w.kernel.Use(seg.Src, seg.Dst)
		return nil
	}
	w.delivered = append(w.delivered, delivery{from: from, seq: seg.Seq, payload: seg.Payload, rst: seg.Flags&nfq.RST != 0})
	return nil
}

// packet sends one segment through the gateway and delivers what that lets go on.
func (w *World) packet(from alg.Side, seq uint32, payload []byte, flags nfq.Flags, urgent bool) {
	src, dst := client, server
	if from == alg.Server {
		src, dst = dst, src
	}
	if !w.kernel.there && flags&nfq.SYN == 0 {
		if w.DropNew {
			return
		}
		w.kernel.pickUp(tuple)
		w.met = true
	}
	if len(payload) == 0 && !w.Handshake && flags != nfq.SYN|nfq.ACK {
		return // the rules queue payload and the server's SYN/ACK
	}
	w.queue(build(src, dst, seq, w.ends[from].received, payload, flags, urgent))
}

// queue hands one packet to the inspector.
func (w *World) queue(packet []byte) {
	w.nextID++
	w.packets[w.nextID] = bytes.Clone(packet)
	var seg nfq.Segment
	if err := w.decoders[0].Decode(packet, &seg); err != nil {
		w.fault("our own packet: %v", err)
		return
	}
	w.in.Packet(w.now, inspect.Packet{ID: w.nextID, Queue: verdicts{w, w.number}}, &seg)
	w.deliver()
}

// deliver gives the receivers what went on.
func (w *World) deliver() {
	for len(w.delivered) > 0 {
		d := w.delivered[0]
		w.delivered = w.delivered[1:]
		to := &w.ends[d.from.Other()]
		if d.rst {
			if d.seq == to.received {
				w.end()
			}
			continue
		}
		fresh := to.take(d, w.LastWins)
		if d.from == alg.Client {
			w.server.read(fresh)
		} else {
			w.heard = append(w.heard, fresh...)
		}
	}
}

// end closes the connection at both sides.
func (w *World) end() {
	w.seen.Ended++
	w.server.phase = closed
	w.server.outbox, w.server.deferred = nil, nil
	w.ends[0].reset, w.ends[1].reset = true, true
}

// tick lets time pass.
func (w *World) tick(d time.Duration) {
	for left := d; left > 0; left -= time.Second {
		w.now = w.now.Add(min(left, time.Second))
		w.in.Expire(w.now)
		w.in.Sweep(w.now, w.now.Add(-time.Minute))
		w.deliver()
	}
}

// restart puts another inspector in the place of the one at work, as a kill and a start do, or a handover.
func (w *World) restart(handover bool) {
	old := w.in
	w.in = w.inspector()
	w.packets = map[uint32][]byte{}
	w.killed, w.met = w.killed || !handover, w.met || !handover
	var m inspect.Memory
	if handover {
		for remembered := range old.Remember() {
			var b bytes.Buffer
			if err := gob.NewEncoder(&b).Encode(remembered); err != nil {
				w.fault("memory: %v", err)
			}
			m = inspect.Memory{}
			if err := gob.NewDecoder(&b).Decode(&m); err != nil {
				w.fault("memory: %v", err)
			}
		}
	}
	if entry, err := w.kernel.Lookup(tuple); err == nil && entry.Opened && entry.Helper != "" {
		w.in.Resume(w.now, entry, m)
	}
	w.deliver()
}
