package model

import (
	"net/netip"
	"slices"

	"ftpalg/alg"
	"ftpalg/nfq"
)

// maxReceived bounds what a receiver keeps of segments that are out of order.
const maxReceived = 1 << 15

// end is one side's TCP.
type end struct {
	next     uint32 // of the next byte that it sends
	sent     []byte // the last bytes that it has sent, for retransmissions
	received uint32 // of the next byte that it takes
	waiting  []delivery
	reset    bool
}

// delivery is a segment that the gateway let go on.
type delivery struct {
	from    alg.Side
	seq     uint32
	payload []byte
	rst     bool
}

// take puts a direction in order and returns what is new.
func (e *end) take(d delivery, lastWins bool) (fresh []byte) {
	if e.reset || len(d.payload) == 0 {
		return nil
	}
	if lastWins {
		e.waiting = slices.Insert(e.waiting, 0, d)
	} else {
		e.waiting = append(e.waiting, d)
	}
	for progress := true; progress; {
		progress = false
		for i, x := range e.waiting {
			skip := int32(e.received - x.seq)
			if skip < 0 {
				continue
			}
			if int(skip) < len(x.payload) {
				fresh = append(fresh, x.payload[skip:]...)
				e.received += uint32(len(x.payload)) - uint32(skip)
			}
			e.waiting = slices.Delete(e.waiting, i, i+1)
			progress = true
			break
		}
	}
	if len(e.waiting) > maxReceived/64 {
		e.waiting = e.waiting[1:]
	}
	return fresh
}

// build makes an IPv4 packet with right checksums.
func build(src, dst netip.AddrPort, seq, ack uint32, payload []byte, flags nfq.Flags, urgent bool) []byte {
	const headers = 40
	b := make([]byte, headers+len(payload))
	put16 := func(at int, v uint16) { b[at], b[at+1] = byte(v>>8), byte(v) }
	put32 := func(at int, v uint32) { put16(at, uint16(v>>16)); put16(at+2, uint16(v)) }
	b[0], b[8], b[9] = 0x45, 64, 6
	put16(2, uint16(len(b)))
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	put16(20, src.Port())
	put16(22, dst.Port())
	put32(24, seq)
	b[32] = 5 << 4
	put16(34, 65535)
	b[33] = tcpFlags(flags)
	if flags != nfq.SYN {
		put32(28, ack)
	}
	if urgent {
		b[33] |= 0x20
		put16(38, uint16(len(payload)))
	}
	copy(b[headers:], payload)
	if err := nfq.FixChecksums(b); err != nil {
		panic(err)
	}
	return b
}

// tcpFlags are the bits of the header (RFC 9293 section 3.1).
func tcpFlags(f nfq.Flags) (bits byte) {
	for flag, bit := range map[nfq.Flags]byte{nfq.FIN: 1, nfq.SYN: 2, nfq.RST: 4, nfq.ACK: 16} {
		if f&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
