package nfq

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Layout of nfnetlink messages: linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_queue.h. Netlink's own
// fields are in the byte order of the machine; netfilter's are in network order.
const (
	headerLen = 16 // nlmsghdr: length, type, flags, sequence, port
	genLen    = 4  // nfgenmsg: family, version, queue number
	attrLen   = 4  // nlattr: length, type

	subsysQueue = 3 << 8      // NFNL_SUBSYS_QUEUE, in the message type's high byte
	typePacket  = subsysQueue // NFQNL_MSG_PACKET is 0
	typeVerdict = subsysQueue | 1

	attrPacketHdr  = 1 // NFQA_PACKET_HDR: id, hardware protocol, hook
	attrVerdictHdr = 2
	attrMark       = 3
	attrPayload    = 10
	attrConntrack  = 11 // NFQA_CT: the attributes of the packet's conntrack entry, as in ctnetlink's messages

	attrTypeMask = 0x3fff // the two high bits are flags

	nfDrop   = 0
	nfAccept = 1
)

// errMessage: what came from the kernel is not a message as linux/netlink.h has it.
var errMessage = errors.New("malformed netlink message")

func align(n int) int { return (n + 3) &^ 3 }

// nextMessage cuts the first netlink message from what one read returned.
func nextMessage(data []byte) (message, rest []byte, err error) {
	if len(data) < headerLen {
		return nil, nil, fmt.Errorf("%w: %d bytes, a header has %d", errMessage, len(data), headerLen)
	}
	n := uint64(binary.NativeEndian.Uint32(data))
	if n < headerLen || n > uint64(len(data)) {
		return nil, nil, fmt.Errorf("%w: length %d of %d bytes", errMessage, n, len(data))
	}
	return data[:n], data[min(align(int(n)), len(data)):], nil
}

// messageType is the type of a message that nextMessage cut.
func messageType(message []byte) uint16 { return binary.NativeEndian.Uint16(message[4:]) }

// messageErrno is the error number in a message of type NLMSG_ERROR; 0 is an acknowledgement.
func messageErrno(message []byte) unix.Errno {
	if len(message) < headerLen+4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(message[headerLen:])))
}

// parsePacket reads a message of typePacket. p.Data and p.Conntrack alias it. The family comes back for the caller to judge.
func parsePacket(message []byte, p *Packet) (family uint8, err error) {
	if len(message) < headerLen+genLen {
		return 0, fmt.Errorf("%w: no nfgenmsg", errMessage)
	}
	family = message[headerLen]
	*p = Packet{}
	found := false
	for attrs := message[headerLen+genLen:]; len(attrs) >= attrLen; {
		n := int(binary.NativeEndian.Uint16(attrs))
		if n < attrLen || n > len(attrs) {
			return 0, fmt.Errorf("%w: attribute of %d bytes where %d are left", errMessage, n, len(attrs))
		}
		value := attrs[attrLen:n]
		switch binary.NativeEndian.Uint16(attrs[2:]) & attrTypeMask {
		case attrPacketHdr:
			if len(value) < 7 {
				return 0, fmt.Errorf("%w: NFQA_PACKET_HDR of %d bytes", errMessage, len(value))
			}
			p.ID, p.Hook, found = binary.BigEndian.Uint32(value), value[6], true
		case attrMark:
			if len(value) < 4 {
				return 0, fmt.Errorf("%w: NFQA_MARK of %d bytes", errMessage, len(value))
			}
			p.Mark = binary.BigEndian.Uint32(value)
		case attrPayload:
			p.Data = value
		case attrConntrack:
			p.Conntrack = value
		}
		attrs = attrs[min(align(n), len(attrs)):]
	}
	if !found {
		return 0, fmt.Errorf("%w: no NFQA_PACKET_HDR", errMessage)
	}
	return family, nil
}

// appendVerdict appends the message that gives a verdict.
func appendVerdict(b []byte, queue uint16, id uint32, v Verdict) []byte {
	start := len(b)
	b = appendHeader(b, typeVerdict, unix.NLM_F_REQUEST)
	b = append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, queue)
	what := uint32(nfDrop)
	if v.Accept {
		what = nfAccept
	}
	b = appendAttr(b, attrVerdictHdr, 8)
	b = binary.BigEndian.AppendUint32(b, what)
	b = binary.BigEndian.AppendUint32(b, id)
	if v.SetMark {
		b = appendAttr(b, attrMark, 4)
		b = binary.BigEndian.AppendUint32(b, v.Mark)
	}
	if v.Payload != nil {
		b = appendAttr(b, attrPayload, len(v.Payload))
		b = append(b, v.Payload...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendHeader appends a netlink header, whose length is that of a message without content.
func appendHeader(b []byte, kind, flags uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, headerLen)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port: the kernel needs neither
}

func appendAttr(b []byte, kind uint16, size int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+size))
	return binary.NativeEndian.AppendUint16(b, kind)
}
