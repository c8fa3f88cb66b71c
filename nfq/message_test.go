package nfq

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// queued encodes a message as the kernel sends it, with the netlink library: an encoder that shares no code with ours.
func queued(t testing.TB, family uint8, id, mark uint32, packet []byte) []byte {
	t.Helper()
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Bytes(attrPacketHdr, append(binary.BigEndian.AppendUint32(nil, id), 8, 0, 2))
	if mark != 0 {
		e.Uint32(attrMark, mark)
	}
	e.Uint32(5, 3)        // NFQA_IFINDEX_INDEV
	e.Bytes(9, []byte{0}) // an attribute whose length is no multiple of four
	e.Bytes(attrPayload, packet)
	attrs, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m := netlink.Message{Data: append([]byte{family, 0, 0, 7}, attrs...)}
	m.Header.Type, m.Header.Length = typePacket, uint32(headerLen+len(m.Data))
	m.Header.Length = uint32(align(int(m.Header.Length)))
	for len(m.Data) < int(m.Header.Length)-headerLen {
		m.Data = append(m.Data, 0)
	}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParsePacket(t *testing.T) {
	var p Packet
	family, err := parsePacket(queued(t, unix.AF_INET, 0x01020304, 0x20000000, []byte("packet")), &p)
	if err != nil || family != unix.AF_INET || p.ID != 0x01020304 || p.Hook != 2 || p.Mark != 0x20000000 || string(p.Data) != "packet" {
		t.Errorf("family %d, %+v, %v", family, p, err)
	}
	// The mark of one packet does not stay for the next.
	if _, err = parsePacket(queued(t, unix.AF_INET6, 5, 0, nil), &p); err != nil || p.Mark != 0 || len(p.Data) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestAppendVerdict decodes our messages with the netlink library.
func TestAppendVerdict(t *testing.T) {
	for _, v := range []Verdict{{}, {Accept: true}, {Accept: true, SetMark: true, Mark: 9}, {Accept: true, Payload: []byte("12345")}} {
		var m netlink.Message
		if err := m.UnmarshalBinary(appendVerdict(nil, 7, 42, v)); err != nil {
			t.Fatal(err)
		}
		if m.Header.Type != typeVerdict || m.Header.Flags != netlink.Request || !bytes.Equal(m.Data[:4], []byte{0, 0, 0, 7}) {
			t.Errorf("%+v: header %+v, %x", v, m.Header, m.Data[:4])
		}
		d, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			t.Fatal(err)
		}
		d.ByteOrder = binary.BigEndian
		var got Verdict
		for d.Next() {
			switch d.Type() {
			case attrVerdictHdr:
				got.Accept = binary.BigEndian.Uint32(d.Bytes()) == nfAccept
				if id := binary.BigEndian.Uint32(d.Bytes()[4:]); id != 42 {
					t.Errorf("id %d", id)
				}
			case attrMark:
				got.SetMark, got.Mark = true, d.Uint32()
			case attrPayload:
				got.Payload = d.Bytes()
			}
		}
		if d.Err() != nil || got.Accept != v.Accept || got.SetMark != v.SetMark || got.Mark != v.Mark || !bytes.Equal(got.Payload, v.Payload) {
			t.Errorf("sent %+v, decoded %+v, %v", v, got, d.Err())
		}
	}
}

// pipeQueue is a Queue whose verdicts go into a pipe.
func pipeQueue(t testing.TB, h func(q *Queue, p *Packet)) (q *Queue, verdicts *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	q = &Queue{num: 7}
	q.handler = func(p *Packet) { h(q, p) }
	q.conn = &conn{queue: q, socket: &socket{fd: int(w.Fd())}}
	q.conn.batch.send = q.conn.send
	return q, r
}

// TestOtherFamilies: a packet that is neither IPv4 nor IPv6 is dropped without the handler.
func TestOtherFamilies(t *testing.T) {
	q, verdicts := pipeQueue(t, func(*Queue, *Packet) { t.Error("the handler saw it") })
	q.conn.dispatch(queued(t, unix.AF_BRIDGE, 42, 0, []byte("arp")))
	got := make([]byte, 256)
	n, err := verdicts.Read(got)
	if want := appendVerdict(nil, 7, 42, Verdict{}); err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("verdict %x, want %x: %v", got[:n], want, err)
	}
}

// packetPath is what happens to one packet in this package: parse, decode, verdict.
func packetPath(t testing.TB) func() {
	decoder, seg := NewDecoder(), new(Segment)
	q, verdicts := pipeQueue(t, func(q *Queue, p *Packet) {
		if err := decoder.Decode(p.Data, seg); err != nil {
			t.Fatal(err)
		}
		if err := q.Verdict(p.ID, Verdict{Accept: true, SetMark: true, Mark: 1, Payload: seg.Packet}); err != nil {
			t.Fatal(err)
		}
	})
	message := queued(t, unix.AF_INET6, 1, 2, build(t, client6, server6, "NOOP\r\n", nil))
	drain := make([]byte, 4096)
	return func() {
		q.conn.dispatch(message)
		_, _ = verdicts.Read(drain)
	}
}

func TestPacketPathDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(1000, packetPath(t)); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func BenchmarkPacketPath(b *testing.B) {
	path := packetPath(b)
	b.ReportAllocs()
	for b.Loop() {
		path()
	}
}

// FuzzMessages: whatever one read returns, the walk over its messages and attributes ends, in bounds, and a packet that
// is found aliases its message.
func FuzzMessages(f *testing.F) {
	one := queued(f, unix.AF_INET, 1, 2, []byte("packet"))
	f.Add(one)
	f.Add(append(bytes.Clone(one), queued(f, unix.AF_INET6, 3, 0, []byte("another"))...))
	f.Add(appendHeader(nil, unix.NLMSG_NOOP, 0))
	f.Add(one[:len(one)-5])
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			message, rest, err := nextMessage(data)
			if err != nil {
				return
			}
			if len(message) < headerLen || len(message)+len(rest) > len(data) {
				t.Fatalf("%d + %d of %d bytes", len(message), len(rest), len(data))
			}
			_ = messageErrno(message)
			var p Packet
			if _, err := parsePacket(message, &p); err == nil && !bytes.Contains(message, p.Data) {
				t.Fatal("the packet is not in the message")
			}
			data = rest
		}
	})
}

func FuzzQueues(f *testing.F) {
	f.Add([]byte("    7  18879     0 2 65531     0     0        0  1\n"))
	f.Add([]byte("    7  18879     0 2\n"))
	f.Add([]byte("65536 4294967295 4294967295 2 65531 4294967295 4294967295 0 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseQueues(text)
		if err == nil && len(entries) > 1+bytes.Count(text, []byte("\n")) {
			t.Fatalf("%d queues in %q", len(entries), text)
		}
	})
}
