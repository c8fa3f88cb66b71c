package inspect

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// clock is the time of every packet in these tests.
var clock = time.Unix(1_700_000_000, 0)

// wire is a control connection through an Inspector: it makes real packets, and puts what is let through together as a
// receiver would.
type wire struct {
	t         testing.TB
	in        *Inspector
	ct        *conntrack.Fake
	key       Key
	view      Key         // what the server sees, under NAT
	adjusts   *translator // moves sequence numbers, under NAT
	passed    []string    // their payloads
	events    []string
	isn       [2]uint32
	sent      [2]uint32 // bytes that each side has sent so far
	packets   map[uint32][]byte
	verdicts  map[uint32]nfq.Verdict
	nextID    uint32
	receivers [2]receiver  // by the sending side
	shaken    map[Key]bool // the handshakes that were seen
	loses     bool         // the kernel drops what waits in the queue
	cuts      bool         // segments may go on shorter than they came
	resets    [2]uint32    // sequence number of the reset that a side was sent, by the side whose packet became it
}

// receiver puts one direction together: the first content of every byte counts.
type receiver struct {
	isn   uint32
	bytes map[uint32]byte
}

func (r *receiver) take(seq uint32, payload []byte) {
	for i, c := range payload {
		if _, there := r.bytes[seq+uint32(i)]; !there {
			r.bytes[seq+uint32(i)] = c
		}
	}
}

// stream is what the receiver's application has read.
func (r *receiver) stream() []byte {
	var b []byte
	for seq := r.isn; ; seq++ {
		c, there := r.bytes[seq]
		if !there {
			return b
		}
		b = append(b, c)
	}
}

func newWire(t testing.TB, p *policy.Policy, client, server netip.AddrPort) *wire {
	w := &wire{
		t: t, ct: &conntrack.Fake{}, key: Key{client, server}, isn: [2]uint32{0xfffffff0, 77},
		packets: map[uint32][]byte{}, verdicts: map[uint32]nfq.Verdict{}, shaken: map[Key]bool{},
	}
	for i := range w.receivers {
		w.receivers[i] = receiver{isn: w.isn[i], bytes: map[uint32]byte{}}
	}
	w.in = New(Options{Policy: p, Conntrack: w.ct, Refused: 1 << 29, Report: func(e audit.Event) {
		if e.Reason == alg.InternalError {
			t.Errorf("internal error: %v", e.Err)
		}
		switch e.Kind {
		case audit.EventPinhole, audit.EventClosed:
			w.events = append(w.events, fmt.Sprint(e.Kind, e.Reason, e.Mode, e.From, e.To))
		case audit.EventDeny, audit.EventEnd:
			w.events = append(w.events, fmt.Sprint(e.Kind, e.Reason))
		}
	}})
	return w
}

// Verdict is the queue's side: what is accepted without the refused mark reaches the receiver.
func (w *wire) Verdict(id uint32, v nfq.Verdict) error {
	if _, twice := w.verdicts[id]; twice {
		w.t.Errorf("packet %d got two verdicts", id)
	}
	v.Payload = bytes.Clone(v.Payload)
	w.verdicts[id] = v
	if w.loses {
		return nil
	}
	packet, known := w.packets[id]
	if !known {
		w.t.Errorf("verdict on unknown packet %d", id)
	}
	if !v.Accept || v.SetMark && v.Mark&(1<<29) != 0 {
		return nil
	}
	if v.Payload != nil {
		packet = v.Payload
	}
	var seg nfq.Segment
	if err := nfq.NewDecoder().Decode(packet, &seg); err != nil {
		w.t.Errorf("packet %d goes on broken: %v", id, err)
	}
	from := alg.Client
	if seg.Src == w.key.Server || seg.Src == w.view.Server {
		from = alg.Server
	}
	if isSYN(&seg) {
		w.ct.Use(seg.Src, seg.Dst)
	}
	if seg.Flags&nfq.RST != 0 {
		w.resets[from] = seg.Seq
		return nil
	}
	w.passed = append(w.passed, string(seg.Payload))
	cut := w.cuts || bytes.Contains(w.packets[id], saneRequest)
	if len(packet) != len(w.packets[id]) && w.adjusts == nil && !cut {
		w.t.Errorf("packet %d changed its length from %d to %d", id, len(w.packets[id]), len(packet))
	}
	if w.adjusts != nil {
		seg.Seq += w.adjusts.moved(from == alg.Server, seg.Seq)
	}
	w.receivers[from].take(seg.Seq, seg.Payload)
	return nil
}

// ends are the addresses of a packet.
func (w *wire) ends(from alg.Side) (src, dst netip.AddrPort) {
	switch {
	case from == alg.Client:
		return w.key.Client, w.key.Server
	case w.view != Key{}:
		return w.view.Server, w.view.Client
	}
	return w.key.Server, w.key.Client
}

// handshake sends the server's SYN/ACK: the next bytes are the connection's first.
func (w *wire) handshake() {
	w.shaken[w.key] = true
	src, dst := w.ends(alg.Server)
	seg := nfq.Segment{Src: src, Dst: dst, Flags: nfq.SYN | nfq.ACK,
		Seq: w.isn[alg.Server] + w.sent[alg.Server] - 1, Ack: w.isn[alg.Client] + w.sent[alg.Client]}
	w.in.Packet(clock, Packet{Queue: silent{}}, &seg)
}

// send puts payload on the wire, offset bytes after what its side has sent before. What is not resumed has begun.
func (w *wire) send(from alg.Side, offset int, payload []byte, edit func(*layers.TCP)) (id uint32) {
	if !w.shaken[w.key] && w.in.sessionAt(w.key) == nil {
		w.handshake()
	}
	src, dst := w.ends(from)
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), ACK: true, Window: 65535,
		Seq: w.isn[from] + w.sent[from] + uint32(offset), Ack: w.isn[from.Other()] + w.sent[from.Other()],
	}
	if edit != nil {
		edit(tcp)
	}
	packet := build(w.t, src.Addr(), dst.Addr(), tcp, payload)
	w.nextID++
	w.packets[w.nextID] = bytes.Clone(packet)
	var seg nfq.Segment
	if err := nfq.NewDecoder().Decode(packet, &seg); err != nil {
		w.t.Fatalf("our own packet: %v", err)
	}
	w.in.Packet(clock, Packet{ID: w.nextID, Queue: w}, &seg)
	clear(packet) // the queue's buffer is used again
	return w.nextID
}

// build makes an IP packet.
func build(t testing.TB, src, dst netip.Addr, tcp *layers.TCP, payload []byte) []byte {
	var ip gopacket.SerializableLayer
	if src.Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// say sends payload as one segment, as a well-behaved sender would.
func (w *wire) say(from alg.Side, payload []byte) {
	w.send(from, 0, payload, nil)
	w.sent[from] += uint32(len(payload))
}

// greet brings both ends through a login. What they hear counts from there on.
func (w *wire) greet() {
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.say(alg.Client, []byte("USER a\r\n"))
	w.say(alg.Server, []byte("230 in\r\n"))
	w.passed = nil
	for i := range w.receivers {
		w.receivers[i] = receiver{isn: w.isn[i] + w.sent[i], bytes: map[uint32]byte{}}
	}
}

// settled checks that every packet has its verdict.
func (w *wire) settled() {
	for id := range w.packets {
		if _, ok := w.verdicts[id]; !ok {
			w.t.Errorf("packet %d has no verdict", id)
		}
	}
	if n := w.in.books.Held.Used(); n != 0 {
		w.t.Errorf("%d packets are counted as held", n)
	}
}
