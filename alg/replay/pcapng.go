package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// pcapng reads the newer format (draft-ietf-opsawg-pcapng): blocks of a type, their length, a body, and the length
// again, in sections that have a byte order and interfaces of their own.
type pcapng struct {
	r          io.Reader
	order      binary.ByteOrder // of the section
	interfaces []captureInterface
	block      []byte
	last       time.Time // of the frame before
}

// captureInterface is what an interface description block tells that matters here.
type captureInterface struct {
	link    linkType
	snaplen uint32 // 0: none
	units   uint64 // of a timestamp, in a second
	offset  int64  // seconds to add to it
}

// Block types, and the options of an interface description that are read.
const (
	blockInterface      = 1
	blockObsoletePacket = 2
	blockSimplePacket   = 3
	blockEnhancedPacket = 6
	blockSectionHeader  = 0x0a0d0d0a // a palindrome: the same in both byte orders

	optionEnd        = 0
	optionResolution = 9
	optionOffset     = 14
)

const (
	blockHeader  = 8        // type and length
	blockTrailer = 4        // length
	maxBlock     = 16 << 20 // libpcap's own bound
	// maxInterfaces bounds what a file can make us remember.
	maxInterfaces  = 1 << 16
	byteOrderMagic = 0x1a2b3c4d
	defaultUnits   = 1_000_000
)

func isSectionHeader(b []byte) bool { return binary.BigEndian.Uint32(b) == blockSectionHeader }

func (p *pcapng) next() (frame, error) {
	for {
		kind, body, err := p.readBlock()
		if err != nil {
			return frame{}, err
		}
		f, ok, err := p.take(kind, body)
		if err != nil {
			return frame{}, fmt.Errorf("pcapng block of type %d: %w", kind, err)
		}
		if ok {
			p.last = f.at
			return f, nil
		}
	}
}

// take reads one block's body; ok says that it has a packet.
func (p *pcapng) take(kind uint32, body []byte) (f frame, ok bool, err error) {
	switch kind {
	case blockSectionHeader:
		p.interfaces = nil
	case blockInterface:
		err = p.describe(body)
	case blockEnhancedPacket, blockObsoletePacket:
		f, err = p.packet(kind, body)
		ok = err == nil
	case blockSimplePacket:
		f, err = p.simplePacket(body)
		ok = err == nil
	}
	return f, ok, err
}

// readBlock gives the next block's type and body, which is good until the next call.
func (p *pcapng) readBlock() (kind uint32, body []byte, err error) {
	var h [blockHeader + magicLength]byte
	if _, err := io.ReadFull(p.r, h[:blockHeader]); err != nil {
		return 0, nil, err
	}
	have := blockHeader
	if isSectionHeader(h[:]) {
		if err := inside(p.r, h[blockHeader:]); err != nil {
			return 0, nil, err
		}
		have = len(h)
		if p.order, err = byteOrder(h[blockHeader:]); err != nil {
			return 0, nil, err
		}
	}
	kind = p.order.Uint32(h[:])
	length := p.order.Uint32(h[4:])
	if length < uint32(have+blockTrailer) || length > maxBlock || length%4 != 0 {
		return 0, nil, fmt.Errorf("a pcapng block of %d bytes", length)
	}
	if int(length) > cap(p.block) {
		p.block = make([]byte, length)
	}
	p.block = append(p.block[:0], h[:have]...)[:length]
	if err := inside(p.r, p.block[have:]); err != nil {
		return 0, nil, err
	}
	end := length - blockTrailer
	if again := p.order.Uint32(p.block[end:]); again != length {
		return 0, nil, fmt.Errorf("a pcapng block whose length is %d in front and %d behind", length, again)
	}
	return kind, p.block[blockHeader:end], nil
}

func byteOrder(magic []byte) (binary.ByteOrder, error) {
	switch uint32(byteOrderMagic) {
	case binary.LittleEndian.Uint32(magic):
		return binary.LittleEndian, nil
	case binary.BigEndian.Uint32(magic):
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("a pcapng section with the byte-order magic %#x", magic)
}

var errShortBlock = errors.New("it is too short")

// describe adds an interface.
func (p *pcapng) describe(body []byte) error {
	const fixed = 8
	switch {
	case len(body) < fixed:
		return errShortBlock
	case len(p.interfaces) == maxInterfaces:
		return fmt.Errorf("more than %d interfaces", maxInterfaces)
	}
	i := captureInterface{
		link: linkType(p.order.Uint16(body)), snaplen: p.order.Uint32(body[4:]), units: defaultUnits,
	}
	for rest := body[fixed:]; len(rest) >= 4; {
		code, n := p.order.Uint16(rest), int(p.order.Uint16(rest[2:]))
		rest = rest[4:]
		if code == optionEnd {
			break
		}
		if n > len(rest) {
			return fmt.Errorf("option %d: %w", code, errShortBlock)
		}
		if err := i.option(p.order, code, rest[:n]); err != nil {
			return err
		}
		rest = rest[min((n+3)&^3, len(rest)):]
	}
	p.interfaces = append(p.interfaces, i)
	return nil
}

// option takes if_tsresol, a negative power of ten or with its high bit of two, and if_tsoffset.
func (i *captureInterface) option(order binary.ByteOrder, code uint16, value []byte) error {
	switch {
	case code == optionResolution && len(value) == 1:
		exponent := int(value[0] & 0x7f)
		if value[0]&0x80 != 0 {
			if exponent > 63 {
				return fmt.Errorf("timestamps of 2^-%d seconds", exponent)
			}
			i.units = 1 << exponent
			return nil
		}
		if exponent > 19 {
			return fmt.Errorf("timestamps of 10^-%d seconds", exponent)
		}
		i.units = 1
		for range exponent {
			i.units *= 10
		}
	case code == optionOffset && len(value) == 8:
		i.offset = max(-lastSecond, min(int64(order.Uint64(value)), lastSecond))
	}
	return nil
}

// packet reads an enhanced packet block, or the obsolete one whose interface number is shorter.
func (p *pcapng) packet(kind uint32, body []byte) (frame, error) {
	const fixed = 20
	if len(body) < fixed {
		return frame{}, errShortBlock
	}
	number := p.order.Uint32(body)
	if kind == blockObsoletePacket {
		number = uint32(p.order.Uint16(body))
	}
	if int64(number) >= int64(len(p.interfaces)) {
		return frame{}, fmt.Errorf("a packet of interface %d, of %d", number, len(p.interfaces))
	}
	i := p.interfaces[number]
	stamp := uint64(p.order.Uint32(body[4:]))<<32 | uint64(p.order.Uint32(body[8:]))
	captured := p.order.Uint32(body[12:])
	if captured > maxPacket || int(captured) > len(body)-fixed {
		return frame{}, fmt.Errorf("a packet of %d bytes: %w", captured, errShortBlock)
	}
	return frame{at: i.time(stamp), link: i.link, data: body[fixed : fixed+captured]}, nil
}

// simplePacket reads a block without a timestamp: the packet is taken to be as old as the one before.
func (p *pcapng) simplePacket(body []byte) (frame, error) {
	const fixed = 4
	if len(body) < fixed || len(p.interfaces) == 0 {
		return frame{}, errShortBlock
	}
	i := p.interfaces[0]
	captured := min(p.order.Uint32(body), uint32(len(body)-fixed))
	if i.snaplen > 0 {
		captured = min(captured, i.snaplen)
	}
	return frame{at: p.last, link: i.link, data: body[fixed : fixed+captured]}, nil
}

// lastSecond is the end of the year 9999: RFC 3339, which the report's times are in, goes no further.
const lastSecond = 253402300799

func (i captureInterface) time(stamp uint64) time.Time {
	hi, lo := bits.Mul64(stamp%i.units, uint64(time.Second))
	nanos, _ := bits.Div64(hi, lo, i.units)
	seconds := int64(min(stamp/i.units, lastSecond)) + i.offset
	return time.Unix(max(0, min(seconds, lastSecond)), int64(nanos)).UTC()
}
