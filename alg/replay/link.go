package replay

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// linkType says what a frame begins with (https://www.tcpdump.org/linktypes.html).
type linkType uint16

const (
	linkNull      linkType = 0 // BSD loopback: 4 bytes of address family
	linkEthernet  linkType = 1
	linkPPP       linkType = 9
	linkRawBSD    linkType = 12 // raw IP as some systems number it
	linkRawOpen   linkType = 14
	linkPPPHDLC   linkType = 50
	linkPPPoE     linkType = 51
	linkRaw       linkType = 101
	linkCiscoHDLC linkType = 104
	linkLoop      linkType = 108 // OpenBSD loopback
	linkSLL       linkType = 113 // Linux "cooked"
	linkIPv4      linkType = 228
	linkIPv6      linkType = 229
	linkNFLog     linkType = 239
	linkSLL2      linkType = 276 // Linux "cooked", version 2: what tcpdump -i any writes
)

const (
	etherIPv4      = 0x0800
	etherIPv6      = 0x86dd
	etherVLAN      = 0x8100 // IEEE 802.1Q
	etherService   = 0x88a8 // IEEE 802.1ad, the outer of two tags
	etherQinQ      = 0x9100 // the same as several vendors number it
	etherMPLS      = 0x8847
	etherMPLSMulti = 0x8848
	etherPPPoE     = 0x8864 // RFC 2516, session stage
	pppIPv4        = 0x0021
	pppIPv6        = 0x0057
)

// network gives the IP packet of a frame, perhaps with padding behind it, or nil.
func network(link linkType, b []byte) []byte {
	switch link {
	case linkRaw, linkRawBSD, linkRawOpen, linkIPv4, linkIPv6:
		return b
	case linkNull, linkLoop:
		return behind(b, 4)
	case linkEthernet:
		return typed(b, 12, 14)
	case linkCiscoHDLC:
		return typed(b, 2, 4)
	case linkSLL:
		return typed(b, 14, 16)
	case linkSLL2:
		return typed(b, 0, 20)
	case linkPPP, linkPPPHDLC:
		return ppp(b)
	case linkPPPoE:
		return ppp(behind(b, 6))
	case linkNFLog:
		return nflog(b)
	}
	return others(link, b)
}

// behind gives what follows n bytes.
func behind(b []byte, n int) []byte {
	if len(b) < n {
		return nil
	}
	return b[n:]
}

// typed goes by an EtherType at offset at, behind a header of the given length.
func typed(b []byte, at, header int) []byte {
	for len(b) >= header {
		kind := binary.BigEndian.Uint16(b[at:])
		b = b[header:]
		switch kind {
		case etherIPv4, etherIPv6:
			return b
		case etherVLAN, etherService, etherQinQ:
			at, header = 2, 4
		case etherPPPoE:
			return ppp(behind(b, 6))
		case etherMPLS, etherMPLSMulti:
			return mpls(b)
		default:
			return nil
		}
	}
	return nil
}

// ppp reads a PPP header: address and control may be left out, and so may the protocol's first byte (RFC 1661 section 6).
func ppp(b []byte) []byte {
	if len(b) > 2 && b[0] == 0xff && b[1] == 3 {
		b = b[2:]
	}
	if len(b) > 0 && b[0]&1 == 1 {
		b = append([]byte{0}, b...)
	}
	if len(b) < 2 {
		return nil
	}
	if kind := binary.BigEndian.Uint16(b); kind != pppIPv4 && kind != pppIPv6 {
		return nil
	}
	return b[2:]
}

// mpls passes over labels up to the bottom of their stack (RFC 3032 section 2.1). What follows is known by its first bits.
func mpls(b []byte) []byte {
	for len(b) > 4 {
		bottom := b[2]&1 == 1
		b = b[4:]
		if bottom {
			return b
		}
	}
	return nil
}

// nflog finds the packet among the attributes of a netfilter log message.
func nflog(b []byte) []byte {
	const payload = 9
	for b = behind(b, 4); len(b) >= 4; {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return nil
		}
		if kind == payload {
			return b[4:n]
		}
		b = behind(b, (n+3)&^3)
	}
	return nil
}

// others leaves link types that are seldom seen around FTP (wireless, FDDI, pflog) to gopacket.
func others(link linkType, b []byte) []byte {
	if link > math.MaxUint8 {
		return nil
	}
	b = slices.Clip(b)
	p := gopacket.NewPacket(b, layers.LinkType(link), gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	l := p.NetworkLayer()
	if l == nil {
		return nil
	}
	// What is behind the header lies in the same buffer, up to the end of the frame.
	header := l.LayerContents()
	return header[:cap(header)]
}
