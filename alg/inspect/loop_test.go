package inspect

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// silent takes verdicts and expectations and does nothing.
type silent struct{}

func (silent) AdjustSequence(conntrack.Tuple, bool, conntrack.Adjustment) error { return nil }
func (silent) Verdict(uint32, nfq.Verdict) error                                { return nil }
func (silent) Expect(conntrack.Expectation) error                               { return nil }
func (silent) Withdraw(conntrack.Expectation) error                             { return nil }
func (silent) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	e := conntrack.Untranslated(t)
	e.Opened, e.Live = true, true
	return e, nil
}
func (silent) SetLabel(conntrack.Tuple, conntrack.Label, conntrack.Label) error { return nil }

// loop drives many sessions with packets made once, of which only sequence numbers and payload are changed: so that what
// is measured is ours.
type loop struct {
	in      *Inspector
	decoder *nfq.Decoder
	seg     nfq.Segment
	packet  [2][]byte // templates, by the sending side
	buf     []byte
	seq     [][2]uint32 // of each session
}

func newLoop(t testing.TB, n int) *loop {
	p := policy.AllowAll()
	p.Limits.Sessions, p.Limits.SessionsPerClient = n+1, n+1
	l := &loop{in: New(Options{Policy: p, Conntrack: silent{}}), decoder: nfq.NewDecoder(), seq: make([][2]uint32, n)}
	for side, ends := range [2][2]netip.AddrPort{{clientAddr, serverAddr}, {serverAddr, clientAddr}} {
		tcp := &layers.TCP{SrcPort: layers.TCPPort(ends[0].Port()), DstPort: layers.TCPPort(ends[1].Port()), ACK: true}
		l.packet[side] = build(t, ends[0].Addr(), ends[1].Addr(), tcp, nil)
	}
	for i := range n {
		l.synAck(i)
		l.send(i, alg.Server, "220 ready\r\n")
		l.exchange(i, "USER a\r\n", "331 password\r\n")
		l.exchange(i, "PASS b\r\n", "230 in\r\n")
	}
	return l
}

func (l *loop) exchange(i int, command, reply string) {
	l.send(i, alg.Client, command)
	l.send(i, alg.Server, reply)
}

// synAck makes session i's SYN/ACK: its number is that before the first byte's.
func (l *loop) synAck(i int) {
	l.packet[alg.Server][33] |= 2 // SYN
	l.seq[i][alg.Server]--
	l.send(i, alg.Server, "")
	l.seq[i][alg.Server]++
	l.packet[alg.Server][33] &^= 2
}

// send makes session i's next packet: its number is in the client's address and port.
func (l *loop) send(i int, from alg.Side, payload string) {
	l.buf = append(append(l.buf[:0], l.packet[from]...), payload...)
	binary.BigEndian.PutUint16(l.buf[2:], uint16(len(l.buf)))
	l.buf[12+4*int(from)+3] = byte(i)
	binary.BigEndian.PutUint16(l.buf[20+2*int(from):], uint16(1024+i>>8))
	binary.BigEndian.PutUint32(l.buf[24:], l.seq[i][from])
	binary.BigEndian.PutUint32(l.buf[28:], l.seq[i][from.Other()])
	l.seq[i][from] += uint32(len(payload))
	if err := l.decoder.Decode(l.buf, &l.seg); err != nil {
		panic(err)
	}
	l.in.Packet(time.Now(), Packet{Queue: silent{}}, &l.seg)
}

// BenchmarkCommand: the cost of a command and its reply must not depend on how many sessions there are.
func BenchmarkCommand(b *testing.B) {
	for _, n := range []int{1, 100, 10_000, 100_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			l := newLoop(b, n)
			b.ReportAllocs()
			for b.Loop() {
				l.exchange(rand.IntN(n), "NOOP\r\n", "200 ok\r\n")
			}
		})
	}
}
