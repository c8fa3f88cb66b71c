package replay

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// fragments puts fragmented IP packets together, as conntrack does before ftpalg sees a packet. Fragments that overlap
// without being copies make their packet void, as in the kernel (RFC 5722).
type fragments struct {
	open map[datagram]*pieces
}

// datagram is what the fragments of one packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
type datagram struct {
	src, dst netip.Addr
	id       uint32
	protocol uint8 // IPv4 only
}

// pieces are the fragments of one packet so far.
type pieces struct {
	begun  time.Time
	header []byte // of the first fragment, as the whole packet has it but for the length
	parts  []piece
	total  int // length behind the header; 0 until the last fragment is here
	void   bool
}

type piece struct {
	offset int
	data   []byte
}

func (p piece) end() int { return p.offset + len(p.data) }

const (
	// fragmentLife is how long the kernel waits for the rest (net.ipv4.ipfrag_time).
	fragmentLife = 30 * time.Second
	// maxDatagrams and maxPieces bound what a capture can make us remember; a packet of 64 KiB has 45 full fragments.
	maxDatagrams = 1024
	maxPieces    = 256
	maxIP        = 0xffff

	ipv4Header        = 20
	ipv6Header        = 40
	ipv6FragmentBytes = 8
	ipv6HopByHop      = 0
	ipv6Routing       = 43
	ipv6Fragment      = 44
	ipv6Destination   = 60
)

// whole gives an IP packet that is no fragment as it is, the whole packet for the fragment that completes it, and nil for
// the others.
func (f *fragments) whole(at time.Time, packet []byte) []byte {
	var d datagram
	var header []byte
	var p piece
	var more, ok bool
	switch {
	case len(packet) >= ipv4Header && packet[0]>>4 == 4:
		d, header, p, more, ok = splitIPv4(packet)
	case len(packet) >= ipv6Header && packet[0]>>4 == 6:
		d, header, p, more, ok = splitIPv6(packet)
	}
	if !ok {
		return packet
	}
	set := f.open[d]
	if set == nil || at.Sub(set.begun) > fragmentLife {
		if len(f.open) >= maxDatagrams {
			clear(f.open)
		}
		set = &pieces{begun: at}
		f.open[d] = set
	}
	set.add(header, p, more)
	whole := set.join()
	if whole != nil {
		delete(f.open, d)
	}
	return whole
}

// splitIPv4 takes a fragment apart; ok is false for other packets.
func splitIPv4(b []byte) (d datagram, header []byte, p piece, more, ok bool) {
	word := binary.BigEndian.Uint16(b[6:])
	total, length := int(binary.BigEndian.Uint16(b[2:])), int(b[0]&0xf)*4
	if word&0x3fff == 0 || length < ipv4Header || total < length || total > len(b) {
		return d, nil, p, false, false
	}
	d = datagram{
		src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])),
		id: uint32(binary.BigEndian.Uint16(b[4:])), protocol: b[9],
	}
	header = slices.Clone(b[:length])
	header[6], header[7] = 0, 0
	p = piece{int(word&0x1fff) * 8, slices.Clone(b[length:total])}
	return d, header, p, word&0x2000 != 0, true
}

// splitIPv6 does the same: the headers before the fragment header stay, and it goes.
func splitIPv6(b []byte) (d datagram, header []byte, p piece, more, ok bool) {
	total := ipv6Header + int(binary.BigEndian.Uint16(b[4:]))
	next, at := 6, ipv6Header // where the next header's type is, and where that header begins
	for b[next] != ipv6Fragment {
		if kind := b[next]; kind != ipv6HopByHop && kind != ipv6Routing && kind != ipv6Destination || at+2 > len(b) {
			return d, nil, p, false, false
		}
		next, at = at, at+(int(b[at+1])+1)*8
		if at > len(b) {
			return d, nil, p, false, false
		}
	}
	if at+ipv6FragmentBytes > total || total > len(b) {
		return d, nil, p, false, false
	}
	word := binary.BigEndian.Uint16(b[at+2:])
	d = datagram{
		src: netip.AddrFrom16([16]byte(b[8:])), dst: netip.AddrFrom16([16]byte(b[24:])),
		id: binary.BigEndian.Uint32(b[at+4:]),
	}
	header = slices.Clone(b[:at])
	header[next] = b[at]
	p = piece{int(word &^ 7), slices.Clone(b[at+ipv6FragmentBytes : total])}
	return d, header, p, word&1 != 0, true
}

// add takes one fragment in, or makes the packet void.
func (s *pieces) add(header []byte, p piece, more bool) {
	last := 0
	if n := len(s.parts); n > 0 {
		last = s.parts[n-1].end()
	}
	switch {
	case slices.ContainsFunc(s.parts, func(x piece) bool { return x.offset == p.offset && len(x.data) == len(p.data) }):
		return
	case len(p.data) == 0, more && len(p.data)%8 != 0, p.end() > maxIP, len(s.parts) == maxPieces,
		slices.ContainsFunc(s.parts, func(x piece) bool { return p.offset < x.end() && x.offset < p.end() }),
		!more && (s.total != 0 || p.end() < last), more && s.total != 0 && p.end() >= s.total:
		s.void = true
		return
	}
	if p.offset == 0 {
		s.header = header
	}
	if !more {
		s.total = p.end()
	}
	s.parts = append(s.parts, p)
	slices.SortFunc(s.parts, func(a, b piece) int { return cmp.Compare(a.offset, b.offset) })
}

// join gives the packet if nothing of it is missing.
func (s *pieces) join() []byte {
	if s.void || s.total == 0 || s.header == nil {
		return nil
	}
	packet, have := s.header, 0
	for _, p := range s.parts {
		if p.offset != have {
			return nil
		}
		packet, have = append(packet, p.data...), p.end()
	}
	if have != s.total || len(packet) > maxIP {
		return nil
	}
	if packet[0]>>4 == 4 {
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	} else {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-ipv6Header))
	}
	return packet
}
