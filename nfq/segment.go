package nfq

import "net/netip"

// Flags are the TCP control bits that matter here (RFC 9293 section 3.1).
type Flags uint8

const (
	FIN Flags = 1 << iota
	SYN
	RST
	ACK
	URG
)

// Segment is one decoded TCP segment. Every field is valid after a successful Decode, and the slices alias the
// packet that was decoded: they are good until that packet's buffer is used again.
type Segment struct {
	Src, Dst netip.AddrPort // IPv4 addresses in 4-byte form, never IPv4-mapped
	Seq, Ack uint32
	Flags    Flags
	Packet   []byte // the whole IP packet, link padding cut off
	Payload  []byte // TCP payload, a sub-slice of Packet
}
