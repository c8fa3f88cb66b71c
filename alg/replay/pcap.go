package replay

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// pcap reads the classic format (draft-ietf-opsawg-pcap), in either byte order and with microseconds or nanoseconds.
type pcap struct {
	r      io.Reader
	order  binary.ByteOrder
	unit   time.Duration // of a timestamp's fraction
	extra  int           // bytes that a packet's header has beyond the usual
	link   linkType
	packet []byte
}

const (
	pcapFileHeader   = 24
	pcapPacketHeader = 16
	magicMicro       = 0xa1b2c3d4
	magicNano        = 0xa1b23c4d
	magicModified    = 0xa1b2cd34 // an old patch of libpcap's: packet headers are 8 bytes longer
)

func openPcap(r io.Reader) (*pcap, error) {
	var h [pcapFileHeader]byte
	if err := inside(r, h[:]); err != nil {
		return nil, fmt.Errorf("neither pcap nor pcapng: the file header: %w", err)
	}
	p := &pcap{r: r, unit: time.Microsecond}
	for _, p.order = range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch p.order.Uint32(h[:]) {
		case magicNano:
			p.unit = time.Nanosecond
		case magicModified:
			p.extra = 8
		case magicMicro:
		default:
			continue
		}
		if major := p.order.Uint16(h[4:]); major != 2 {
			return nil, fmt.Errorf("pcap version %d, 2 expected", major)
		}
		p.link = linkType(p.order.Uint16(h[p.linkOffset():])) // the other half has flags
		return p, nil
	}
	return nil, fmt.Errorf("neither pcap nor pcapng: it begins with %#x", h[:magicLength])
}

// linkOffset is where the lower half of the link type's word is.
func (p *pcap) linkOffset() int {
	if p.order == binary.BigEndian {
		return pcapFileHeader - 2
	}
	return pcapFileHeader - 4
}

func (p *pcap) next() (frame, error) {
	var h [pcapPacketHeader + 8]byte
	if _, err := io.ReadFull(p.r, h[:pcapPacketHeader+p.extra]); err != nil {
		return frame{}, err
	}
	captured := p.order.Uint32(h[8:])
	if captured > maxPacket {
		return frame{}, fmt.Errorf("a packet of %d bytes, at most %d expected", captured, maxPacket)
	}
	if int(captured) > cap(p.packet) {
		p.packet = make([]byte, maxPacket)
	}
	data := p.packet[:captured]
	if err := inside(p.r, data); err != nil {
		return frame{}, err
	}
	at := time.Unix(int64(p.order.Uint32(h[:])), int64(p.order.Uint32(h[4:]))*int64(p.unit)).UTC()
	return frame{at: at, link: p.link, data: data}, nil
}
