package nfq

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// What Decode refuses. Each is wrapped with the detail; compare with errors.Is.
var (
	// ErrTruncated: the packet ends before its headers or its stated length do.
	ErrTruncated = errors.New("truncated packet")
	// ErrHeader: a header contradicts itself, so where the payload begins cannot be trusted.
	ErrHeader = errors.New("bad header")
	// ErrFragment: conntrack reassembles before our rules see a packet, so a fragment here is one that nobody
	// checked as a whole. It is refused even when it is the first and holds the ports.
	ErrFragment = errors.New("IP fragment")
	// ErrNotTCP: another protocol, or one hidden behind a header that we do not look behind (ESP, AH, tunnels).
	ErrNotTCP = errors.New("not TCP")
)

const (
	ipv4Fixed = 20 // RFC 791 section 3.1: the header without options
	ipv6Fixed = 40 // RFC 8200 section 3
)

// Decoder turns IP packets into Segments. It is reused from packet to packet and allocates nothing for a packet that it
// accepts; one Decoder serves one goroutine.
type Decoder struct {
	ip4     layers.IPv4
	ip6     ipv6Header
	ext     layers.IPv6ExtensionSkipper
	tcp     layers.TCP
	v4, v6  *gopacket.DecodingLayerParser
	decoded []gopacket.LayerType
}

// NewDecoder returns a Decoder that is ready for use.
func NewDecoder() *Decoder {
	d := new(Decoder)
	d.v4 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4)
	d.v4.SetDecodingLayerContainer(container(&d.ip4, &d.tcp))
	d.v6 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv6)
	d.v6.SetDecodingLayerContainer(container(&d.ip6, &d.ext, &d.tcp))
	// gopacket names the layer behind TCP by port number; we take the payload ourselves and want no error for it.
	d.v4.IgnoreUnsupported = true
	d.v6.IgnoreUnsupported = true
	return d
}

// container registers the layers in an array: for so few, a linear search beats the parser's default map.
func container(decoders ...gopacket.DecodingLayer) gopacket.DecodingLayerContainer {
	var c gopacket.DecodingLayerContainer = gopacket.DecodingLayerArray(nil)
	for _, d := range decoders {
		c = c.Put(d)
	}
	return c
}

// Decode reads an IP packet without a link header into seg. The packet may be longer than its IP header says, as
// padded Ethernet frames are; the padding is cut off. The slices of seg alias packet. After an error seg is not valid.
func (d *Decoder) Decode(packet []byte, seg *Segment) error {
	packet, parser, err := d.trim(packet)
	if err != nil {
		return err
	}
	if err := parser.DecodeLayers(packet, &d.decoded); err != nil {
		return fmt.Errorf("%w: %v", ErrHeader, err)
	}
	if err := d.check(); err != nil {
		return err
	}
	d.fill(packet, parser == d.v6, seg)
	return nil
}

// check holds the decoded layers to one IP header, extension headers without a fragment header, and TCP. The parser
// would follow IP in IP, and give the inner ports to the outer addresses.
func (d *Decoder) check() error {
	for _, layer := range d.decoded[1:] {
		switch layer {
		case layers.LayerTypeTCP:
			return nil
		case layers.LayerTypeIPv6Fragment:
			return fmt.Errorf("%w (IPv6 fragment header)", ErrFragment)
		case layers.LayerTypeIPv4, layers.LayerTypeIPv6:
			return fmt.Errorf("%w (a tunnel: IP in IP)", ErrNotTCP)
		}
	}
	return fmt.Errorf("%w (nothing that could be read follows %v)", ErrNotTCP, d.decoded[len(d.decoded)-1])
}

// trim cuts the packet to the length that its IP header states, and picks the parser for its version. It refuses what
// gopacket would guess about: a stated length of zero, and one beyond the bytes at hand.
func (d *Decoder) trim(packet []byte) ([]byte, *gopacket.DecodingLayerParser, error) {
	if len(packet) == 0 {
		return nil, nil, fmt.Errorf("%w: it is empty", ErrTruncated)
	}
	var header, total int
	var parser *gopacket.DecodingLayerParser
	switch version := packet[0] >> 4; version {
	case 4:
		header, parser = ipv4Fixed, d.v4
	case 6:
		header, parser = ipv6Fixed, d.v6
	default:
		return nil, nil, fmt.Errorf("%w: IP version %d", ErrHeader, version)
	}
	if len(packet) < header {
		return nil, nil, fmt.Errorf("%w: %d bytes, an IP header has %d", ErrTruncated, len(packet), header)
	}
	if header == ipv4Fixed {
		total = int(binary.BigEndian.Uint16(packet[2:]))
		if binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 { // more-fragments bit, or an offset (RFC 791 section 3.1)
			return nil, nil, fmt.Errorf("%w (IPv4)", ErrFragment)
		}
	} else {
		total = ipv6Fixed + int(binary.BigEndian.Uint16(packet[4:]))
	}
	if total <= header {
		return nil, nil, fmt.Errorf("%w: stated length %d leaves no payload", ErrHeader, total)
	}
	if total > len(packet) {
		return nil, nil, fmt.Errorf("%w: %d bytes of the %d that the IP header states", ErrTruncated, len(packet), total)
	}
	return packet[:total], parser, nil
}

// fill copies the decoded headers into seg.
func (d *Decoder) fill(packet []byte, v6 bool, seg *Segment) {
	var src, dst netip.Addr
	if v6 {
		src, dst = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
	} else {
		src, dst = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
	}
	t := &d.tcp
	*seg = Segment{
		Src:     netip.AddrPortFrom(src, uint16(t.SrcPort)),
		Dst:     netip.AddrPortFrom(dst, uint16(t.DstPort)),
		Seq:     t.Seq,
		Ack:     t.Ack,
		Flags:   flag(t.FIN, FIN) | flag(t.SYN, SYN) | flag(t.RST, RST) | flag(t.ACK, ACK) | flag(t.URG, URG),
		Packet:  packet,
		Payload: t.Payload,
	}
}

func flag(set bool, f Flags) Flags {
	if set {
		return f
	}
	return 0
}

// ipv6Header decodes the fixed IPv6 header and leaves every extension header to the skipper. layers.IPv6 takes the
// hop-by-hop header for its own, allocates its options, and then cuts the payload at the wrong place.
type ipv6Header struct {
	payload []byte
	next    layers.IPProtocol
}

// DecodeFromBytes implements gopacket.DecodingLayer. The outer length was checked by trim; this one is for a tunnel's.
func (h *ipv6Header) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	if len(data) < ipv6Fixed {
		return ErrTruncated
	}
	h.next = layers.IPProtocol(data[6])
	h.payload = data[ipv6Fixed:]
	return nil
}

// CanDecode implements gopacket.DecodingLayer.
func (h *ipv6Header) CanDecode() gopacket.LayerClass { return layers.LayerTypeIPv6 }

// NextLayerType implements gopacket.DecodingLayer.
func (h *ipv6Header) NextLayerType() gopacket.LayerType { return h.next.LayerType() }

// LayerPayload implements gopacket.DecodingLayer.
func (h *ipv6Header) LayerPayload() []byte { return h.payload }
