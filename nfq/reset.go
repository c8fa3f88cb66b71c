package nfq

import (
	"encoding/binary"
	"fmt"
)

const (
	ipv4LengthOff   = 2
	ipv4ChecksumOff = 10
	ipv6LengthOff   = 4
	tcpSeqOff       = 4
	tcpOffsetOff    = 12
	tcpFlagsOff     = 13
	rstAck          = 0x14
	urgFlag         = 0x20
)

// Reset turns a TCP packet, in place, into one that ends the connection for its receiver: RST at seq, which must be the
// byte that the receiver waits for (RFC 9293 section 3.10.7.4), without options and payload. It returns the shorter
// packet. The packet must be one that Decode accepted.
func Reset(packet []byte, seq uint32) ([]byte, error) {
	offset, _, err := transport(packet)
	if err != nil {
		return nil, fmt.Errorf("cannot make a reset: %w", err)
	}
	if len(packet) < offset+tcpFixed {
		return nil, fmt.Errorf("cannot make a reset: %w: %d bytes of TCP", ErrTruncated, len(packet)-offset)
	}
	packet = packet[:offset+tcpFixed]
	tcp := packet[offset:]
	binary.BigEndian.PutUint32(tcp[tcpSeqOff:], seq)
	tcp[tcpOffsetOff], tcp[tcpFlagsOff] = tcpFixed/4<<4, rstAck
	clear(tcp[tcpFlagsOff+1 : tcpChecksumOff]) // window
	clear(tcp[tcpChecksumOff+2 : tcpFixed])    // urgent pointer
	fixLength(packet, offset)
	return packet, FixChecksums(packet)
}

// WithPayload gives a TCP packet another payload. FixChecksums must follow.
func WithPayload(packet, payload []byte) ([]byte, error) {
	offset, _, err := transport(packet)
	if err != nil {
		return nil, fmt.Errorf("cannot change a payload: %w", err)
	}
	if len(packet) < offset+tcpFixed {
		return nil, fmt.Errorf("cannot change a payload: %w: %d bytes of TCP", ErrTruncated, len(packet)-offset)
	}
	headers := offset + int(packet[offset+tcpOffsetOff]>>4)*4
	if len(packet) < headers {
		return nil, fmt.Errorf("cannot change a payload: %w: %d bytes of TCP", ErrTruncated, len(packet)-offset)
	}
	packet = append(packet[:headers:headers], payload...)
	fixLength(packet, offset)
	return packet, nil
}

// fixLength has the IP header, which is offset bytes long, tell the packet's length.
func fixLength(packet []byte, offset int) {
	if packet[0]>>4 == 6 {
		binary.BigEndian.PutUint16(packet[ipv6LengthOff:], uint16(len(packet)-ipv6Fixed))
		return
	}
	binary.BigEndian.PutUint16(packet[ipv4LengthOff:], uint16(len(packet)))
	fixIPv4Header(packet[:offset])
}

// ClearUrgent takes the URG flag and the urgent pointer out of a TCP packet, in place. FixChecksums must follow.
func ClearUrgent(packet []byte) {
	offset, _, err := transport(packet)
	if err != nil || len(packet) < offset+tcpFixed {
		return // FixChecksums refuses it as well
	}
	tcp := packet[offset:]
	tcp[tcpFlagsOff] &^= urgFlag
	clear(tcp[tcpChecksumOff+2 : tcpFixed])
}

// ClearFIN takes the FIN flag out of a TCP packet, in place, whose last bytes go on later. FixChecksums must follow.
func ClearFIN(packet []byte) {
	offset, _, err := transport(packet)
	if err != nil || len(packet) < offset+tcpFixed {
		return // FixChecksums refuses it as well
	}
	packet[offset+tcpFlagsOff] &^= byte(FIN)
}

// fixIPv4Header computes the header's own checksum (RFC 791 section 3.1).
func fixIPv4Header(header []byte) {
	binary.BigEndian.PutUint16(header[ipv4ChecksumOff:], 0)
	sum := onesAdd(0, header)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(header[ipv4ChecksumOff:], ^uint16(sum))
}
