package nfq

import (
	"encoding/binary"
	"fmt"
)

// Protocol numbers (IANA "Assigned Internet Protocol Numbers") that stand between an IPv6 header and its TCP header.
const (
	protoHopByHop    = 0
	protoTCP         = 6
	protoRouting     = 43
	protoDestination = 60
)

const (
	tcpFixed       = 20 // RFC 9293 section 3.1: the header without options
	tcpChecksumOff = 16 // where the checksum stands in it
)

// FixChecksums computes the TCP checksum of an IP packet anew, after payload bytes were overwritten in place. The IP
// header is not touched: IPv4's own checksum does not cover the payload, and IPv6 has none. The packet must be one that
// Decode accepted, without padding (Segment.Packet).
func FixChecksums(packet []byte) error {
	offset, addresses, err := transport(packet)
	if err != nil {
		return fmt.Errorf("cannot recompute the TCP checksum: %w", err)
	}
	segment := packet[offset:]
	if len(segment) < tcpFixed {
		return fmt.Errorf("cannot recompute the TCP checksum: %w: %d bytes of TCP", ErrTruncated, len(segment))
	}
	binary.BigEndian.PutUint16(segment[tcpChecksumOff:], 0)
	// The pseudo header: RFC 9293 section 3.1 for IPv4, RFC 8200 section 8.1 for IPv6. Their sums have the same terms.
	sum := uint64(protoTCP) + uint64(len(segment))
	sum = onesAdd(onesAdd(sum, addresses), segment)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(segment[tcpChecksumOff:], ^uint16(sum))
	return nil
}

// onesAdd adds the 16-bit words of data to a running ones' complement sum (RFC 1071). Thirty-two bits at a time: a
// packet has at most 2^14 such words, so a 64-bit sum cannot overflow, and folding it gives the same result.
func onesAdd(sum uint64, data []byte) uint64 {
	for ; len(data) >= 4; data = data[4:] {
		sum += uint64(binary.BigEndian.Uint32(data))
	}
	if len(data) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		sum += uint64(data[0]) << 8 // RFC 9293 section 3.1: an odd byte is padded with zeros on the right
	}
	return sum
}

// transport finds the TCP header, and the bytes of the source and destination addresses.
func transport(packet []byte) (offset int, addresses []byte, err error) {
	switch {
	case len(packet) >= ipv4Fixed && packet[0]>>4 == 4:
		offset = int(packet[0]&0xf) * 4
		if packet[9] != protoTCP {
			return 0, nil, ErrNotTCP
		}
		if offset < ipv4Fixed || offset > len(packet) {
			return 0, nil, fmt.Errorf("%w: IPv4 header length %d", ErrHeader, offset)
		}
		return offset, packet[12:20], nil
	case len(packet) >= ipv6Fixed && packet[0]>>4 == 6:
		offset, err = skipExtensions(packet)
		return offset, packet[8:40], err
	}
	return 0, nil, fmt.Errorf("%w: no whole IP header", ErrTruncated)
}

// skipExtensions walks an IPv6 packet's extension headers (RFC 8200 section 4) up to TCP.
func skipExtensions(packet []byte) (int, error) {
	next, offset := packet[6], ipv6Fixed
	for next != protoTCP {
		if next != protoHopByHop && next != protoRouting && next != protoDestination {
			return 0, fmt.Errorf("%w: next header %d", ErrNotTCP, next)
		}
		if len(packet) < offset+8 {
			return 0, fmt.Errorf("%w: extension header at byte %d", ErrTruncated, offset)
		}
		// The pseudo header wants the final destination, which is still inside a routing header with segments left.
		if next == protoRouting && packet[offset+3] != 0 {
			return 0, fmt.Errorf("%w: routing header with %d segments left", ErrHeader, packet[offset+3])
		}
		next, offset = packet[offset], offset+8+int(packet[offset+1])*8
	}
	if offset > len(packet) {
		return 0, fmt.Errorf("%w: extension headers end at byte %d of %d", ErrTruncated, offset, len(packet))
	}
	return offset, nil
}
