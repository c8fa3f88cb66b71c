package replay

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// TestLinkTypes: the same packets behind every kind of link header.
func TestLinkTypes(t *testing.T) {
	ethernet := func(kinds ...uint16) func([]byte) []byte {
		return func(p []byte) []byte {
			frame := make([]byte, 12)
			for _, kind := range kinds {
				frame = binary.BigEndian.AppendUint16(frame, kind)
				if kind != etherService && kind != etherQinQ && kind != etherVLAN {
					break
				}
				frame = append(frame, 0, 7)
			}
			if last := kinds[len(kinds)-1]; last != etherPPPoE && last != etherMPLS {
				frame = binary.BigEndian.AppendUint16(frame, etherOf(p))
			}
			return append(frame, p...)
		}
	}
	behind := func(header ...byte) func([]byte) []byte {
		return func(p []byte) []byte { return append(slices.Clone(header), p...) }
	}
	typed := func(before, after int) func([]byte) []byte {
		return func(p []byte) []byte {
			frame := binary.BigEndian.AppendUint16(make([]byte, before), etherOf(p))
			return append(append(frame, make([]byte, after)...), p...)
		}
	}
	pppType := func(p []byte) byte {
		if p[0]>>4 == 6 {
			return 0x57
		}
		return 0x21
	}
	for _, c := range []struct {
		name string
		link linkType
		wrap func([]byte) []byte
	}{
		{"raw", linkRaw, nil},
		{"raw, BSD", linkRawBSD, nil},
		{"raw, OpenBSD", linkRawOpen, nil},
		{"IPv4", linkIPv4, nil},
		{"IPv6", linkIPv6, nil},
		{"null", linkNull, behind(2, 0, 0, 0)},
		{"loop", linkLoop, behind(0, 0, 0, 2)},
		{"Ethernet", linkEthernet, typed(12, 0)},
		{"VLAN", linkEthernet, ethernet(etherVLAN)},
		{"802.1ad", linkEthernet, ethernet(etherService, etherVLAN)},
		{"QinQ 0x9100", linkEthernet, ethernet(etherQinQ, etherVLAN)},
		{"PPPoE", linkEthernet, func(p []byte) []byte {
			return ethernet(etherPPPoE)(append([]byte{0x11, 0, 0, 3, 0, 0, 0, pppType(p)}, p...))
		}},
		{"MPLS, two labels", linkEthernet, func(p []byte) []byte {
			return ethernet(etherMPLS)(append([]byte{0, 1, 0, 64, 0, 1, 1, 64}, p...))
		}},
		{"PPP", linkPPP, func(p []byte) []byte { return append([]byte{0xff, 3, 0, pppType(p)}, p...) }},
		{"PPP, compressed", linkPPP, func(p []byte) []byte { return append([]byte{pppType(p)}, p...) }},
		{"PPP in HDLC", linkPPPHDLC, func(p []byte) []byte { return append([]byte{0xff, 3, 0, pppType(p)}, p...) }},
		{"PPPoE without Ethernet", linkPPPoE, func(p []byte) []byte { return append([]byte{0x11, 0, 0, 3, 0, 0, 0, pppType(p)}, p...) }},
		{"Cisco HDLC", linkCiscoHDLC, typed(2, 0)},
		{"Linux cooked", linkSLL, typed(14, 0)},
		{"Linux cooked 2", linkSLL2, typed(0, 18)},
		{"nflog", linkNFLog, func(p []byte) []byte {
			frame := []byte{2, 0, 0, 1, 8, 0, 5, 0, 0, 0, 0, 1}
			frame = binary.NativeEndian.AppendUint16(frame, uint16(4+len(p)))
			frame = binary.NativeEndian.AppendUint16(frame, 9)
			return append(frame, p...)
		}},
		{"FDDI, by gopacket", 10, behind(append(append([]byte{0x50}, make([]byte, 12)...), 0xaa, 0xaa, 3, 0, 0, 0, 8, 0)...)},
		{"padding behind", linkRaw, func(p []byte) []byte { return append(slices.Clone(p), 0, 0, 0, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, pcapFile(binary.LittleEndian, c.link, pasv(t).packets, c.wrap), pasvPinhole)
			if c.link != 10 {
				expect(t, pcapFile(binary.LittleEndian, c.link, epsv6(t).packets, c.wrap), epsv6Pinhole)
			}
		})
	}
}

func etherOf(p []byte) uint16 {
	if p[0]>>4 == 6 {
		return etherIPv6
	}
	return etherIPv4
}

// TestShortFrames: no beginning of a frame makes trouble, and none of them is a packet.
func TestShortFrames(t *testing.T) {
	frame := make([]byte, 40)
	for link := range linkType(300) {
		if ip := network(link, frame[:3]); len(ip) > 3 {
			t.Errorf("link type %d: %d bytes of a frame of 3", link, len(ip))
		}
		for n := range frame {
			network(link, frame[:n])
		}
	}
	for _, tag := range []uint16{etherVLAN, etherService, etherQinQ, etherMPLS, etherPPPoE} {
		binary.BigEndian.PutUint16(frame[12:], tag)
		for n := range frame {
			if ip := network(linkEthernet, frame[:n]); ip != nil {
				t.Errorf("%s: a packet in %d zero bytes", fmt.Sprintf("EtherType %#x", tag), n)
			}
		}
	}
}
