package nfq

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"ftpalg/nfq/internal/lab"
)

// sent is what a batch sends, call by call: the packets' numbers.
type sent [][]uint32

func (s *sent) send(messages []byte, count uint64) error {
	var ids []uint32
	for len(messages) > 0 {
		message, rest, err := nextMessage(messages)
		if err != nil {
			return err
		}
		ids = append(ids, binary.BigEndian.Uint32(message[headerLen+genLen+attrLen+4:]))
		messages = rest
	}
	if uint64(len(ids)) != count {
		return fmt.Errorf("%d messages, and %d are said to be", len(ids), count)
	}
	*s = append(*s, ids)
	return nil
}

func TestBatch(t *testing.T) {
	var got sent
	b := batch{send: got.send}
	give := func(id uint32, v Verdict) {
		if err := b.add(7, id, v); err != nil {
			t.Error(err)
		}
	}
	give(1, Verdict{Accept: true}) // outside of a batch none waits
	b.begin()
	give(2, Verdict{Accept: true})
	give(3, Verdict{})
	if len(got) != 1 {
		t.Errorf("sent early: %v", got)
	}
	give(4, Verdict{Accept: true, AtOnce: true})
	give(5, Verdict{Accept: true})
	give(6, Verdict{Accept: true, Payload: make([]byte, maxPayload)})
	give(7, Verdict{Accept: true, SetMark: true, Payload: []byte("odd")})
	give(8, Verdict{Accept: true})
	for range 2 { // the second has nothing to send
		if err := b.end(); err != nil {
			t.Error(err)
		}
	}
	give(9, Verdict{})
	if want := (sent{{1}, {2, 3, 4}, {5, 6}, {7, 8}, {9}}); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("sent %v, want %v", got, want)
	}
}

// TestBatchFails: an error is told, and what could not be sent is not sent with what comes later.
func TestBatchFails(t *testing.T) {
	lost := errors.New("lost")
	var got sent
	b := batch{send: func([]byte, uint64) error { return lost }}
	b.begin()
	if err := b.add(7, 1, Verdict{}); err != nil {
		t.Error(err)
	}
	if err := b.end(); err != lost {
		t.Errorf("end: %v", err)
	}
	if err := b.add(7, 2, Verdict{}); err != lost {
		t.Errorf("add: %v", err)
	}
	b.send = got.send
	if err := b.add(7, 3, Verdict{}); err != nil || len(got) != 1 || !slices.Equal(got[0], []uint32{3}) {
		t.Errorf("sent %v, %v", got, err)
	}
}

// TestQueueBatch: verdicts on packets that are read together wait for the last of them, but for one that must not; the kernel
// takes them in order, and one that is wrong spoils no other.
func TestQueueBatch(t *testing.T) {
	lab.Build(t)
	const packets = 5
	waiting := func() uint32 {
		entry, _, err := lookup(7)
		if err != nil {
			t.Error(err)
		}
		return entry.Waiting
	}
	alone, full := make(chan struct{}), make(chan struct{})
	number := 0
	q := open(t, 7, Options{}, func(q *Queue, p *Packet) {
		v := Verdict{Accept: true}
		switch number++; number {
		case 1: // alone: the others come while it is decided on
			close(alone)
			<-full
		case 2:
			if err := q.Verdict(p.ID+1000, v); err != nil { // the kernel has no such packet
				t.Error(err)
			}
		case 4:
			if n := waiting(); n != 4 {
				t.Errorf("before the verdict that must not wait %d packets are left, want 4", n)
			}
			v.AtOnce = true
		}
		if err := q.Verdict(p.ID, v); err != nil {
			t.Error(err)
		}
		if n := waiting(); number == 4 && n != 1 {
			t.Errorf("behind it %d packets are left, want 1", n)
		}
	})
	var server net.PacketConn
	var err error
	lab.Inside(t, "server", func() { server, err = net.ListenPacket("udp4", ":9") })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	send := datagrams(t)
	send(1, 1)
	<-alone
	for size := 2; size <= packets; size++ {
		send(1, size)
	}
	until(t, "all packets in the queue", func() bool { return waiting() == packets })
	close(full)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	for size := range packets {
		if n, _, err := server.ReadFrom(make([]byte, 9)); n != size+1 || err != nil {
			t.Errorf("datagram %d has %d bytes, %v", size+1, n, err)
		}
	}
	until(t, "all verdicts counted", func() bool { return q.Stats().Received == packets && q.Stats().Verdicts == packets+1 })
}

func TestQueueBatchBounds(t *testing.T) {
	for _, n := range []int{-1, MaxBatch + 1} {
		if _, err := Open(t.Context(), 7, Options{Batch: n}, func(*Packet) {}); err == nil {
			t.Errorf("a queue with %d packets at a time", n)
		}
	}
}
