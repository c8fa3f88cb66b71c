package nfq

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	client4 = netip.MustParseAddrPort("192.0.2.2:40000")
	server4 = netip.MustParseAddrPort("198.51.100.2:21")
	client6 = netip.MustParseAddrPort("[2001:db8:1::2]:40000")
	server6 = netip.MustParseAddrPort("[2001:db8:2::2]:21")
)

// build serialises a TCP segment with gopacket, an encoder that shares no code with ours, correct checksums included.
func build(t testing.TB, src, dst netip.AddrPort, payload string, change func(*layers.IPv4, *layers.TCP)) []byte {
	t.Helper()
	tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()),
		Seq: 1000, Ack: 2000, ACK: true, PSH: true, Window: 512}
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
		SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP,
		SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if change != nil {
		change(ip4, tcp)
	}
	stack := []gopacket.SerializableLayer{ip4, tcp, gopacket.Payload(payload)}
	_ = tcp.SetNetworkLayerForChecksum(ip4)
	if src.Addr().Is6() {
		stack[0] = ip6
		_ = tcp.SetNetworkLayerForChecksum(ip6)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// withExtensions inserts IPv6 extension headers behind the fixed header; each is {type, bytes…} with its next-header
// byte filled in here.
func withExtensions(packet []byte, exts ...[]byte) []byte {
	out := bytes.Clone(packet[:ipv6Fixed])
	at := 6 // where the next-header byte to patch stands
	for _, e := range exts {
		out[at] = e[0]
		at = len(out)
		out = append(out, e[1:]...)
	}
	out[at] = protoTCP
	out = append(out, packet[ipv6Fixed:]...)
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-ipv6Fixed))
	return out
}

var (
	hopByHop    = []byte{protoHopByHop, 0, 0, 1, 4, 0, 0, 0, 0}
	destination = []byte{protoDestination, 0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	routing     = []byte{protoRouting, 0, 0, 4, 0, 0, 0, 0, 0}
	routingLeft = []byte{protoRouting, 0, 0, 4, 1, 0, 0, 0, 0}
	fragment    = []byte{44, 0, 0, 0, 1, 0, 0, 0, 9}
)

func ipOptions(ip *layers.IPv4, _ *layers.TCP) {
	ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
}

func tcpOptions(_ *layers.IPv4, tcp *layers.TCP) {
	tcp.Options = []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}} // timestamps
}

func TestDecode(t *testing.T) {
	v4, v6 := build(t, client4, server4, "PASV\r\n", nil), build(t, client6, server6, "PASV\r\n", nil)
	for name, packet := range map[string][]byte{
		"IPv4":                        v4,
		"IPv4 padded by the link":     append(bytes.Clone(v4), 0, 0, 0, 0, 0, 0),
		"IPv4 options":                build(t, client4, server4, "PASV\r\n", ipOptions),
		"TCP options":                 build(t, client4, server4, "PASV\r\n", tcpOptions),
		"IPv6":                        v6,
		"IPv6 padded by the link":     append(bytes.Clone(v6), 0, 0),
		"IPv6 hop-by-hop":             withExtensions(v6, hopByHop),
		"IPv6 hop-by-hop, padded":     append(withExtensions(v6, hopByHop), 1, 2, 3, 4, 5, 6, 7, 8),
		"IPv6 three extensions":       withExtensions(v6, hopByHop, routing, destination),
		"IPv6 destination extension ": withExtensions(v6, destination),
	} {
		t.Run(name, func(t *testing.T) {
			var seg Segment
			if err := NewDecoder().Decode(packet, &seg); err != nil {
				t.Fatal(err)
			}
			src, dst := client4, server4
			if packet[0]>>4 == 6 {
				src, dst = client6, server6
			}
			if seg.Src != src || seg.Dst != dst || seg.Seq != 1000 || seg.Ack != 2000 || seg.Flags != ACK {
				t.Errorf("headers: %+v", seg)
			}
			if string(seg.Payload) != "PASV\r\n" {
				t.Errorf("payload %q", seg.Payload)
			}
			if &seg.Packet[len(seg.Packet)-1] != &seg.Payload[len(seg.Payload)-1] {
				t.Error("the payload does not alias the end of the trimmed packet")
			}
		})
	}
}

func TestDecodeFlags(t *testing.T) {
	packet := build(t, client4, server4, "\xff\xf2ABOR\r\n", func(_ *layers.IPv4, tcp *layers.TCP) {
		tcp.URG, tcp.FIN, tcp.Urgent = true, true, 2
	})
	var seg Segment
	if err := NewDecoder().Decode(packet, &seg); err != nil {
		t.Fatal(err)
	}
	if seg.Flags != ACK|URG|FIN {
		t.Errorf("flags %05b", seg.Flags)
	}
	ClearUrgent(seg.Packet)
	if err := FixChecksums(seg.Packet); err != nil {
		t.Fatal(err)
	}
	want := build(t, client4, server4, "\xff\xf2ABOR\r\n", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.FIN = true })
	if !bytes.Equal(seg.Packet, want) {
		t.Errorf("cleared:\n got %x\nwant %x", seg.Packet, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	v4, v6 := build(t, client4, server4, "PASV\r\n", nil), build(t, client6, server6, "PASV\r\n", nil)
	patch := func(packet []byte, at int, value byte) []byte {
		packet = bytes.Clone(packet)
		packet[at] = value
		return packet
	}
	inIPv4 := append(bytes.Clone(v4[:20]), v4...)
	inIPv4[9], inIPv4[3] = 4, byte(len(inIPv4))
	inIPv6 := append(bytes.Clone(v6[:40]), v6...)
	inIPv6[6], inIPv6[5] = 41, byte(len(inIPv6)-40)
	for _, c := range []struct {
		name   string
		packet []byte
		want   error
	}{
		{"nothing", nil, ErrTruncated},
		{"half an IPv4 header", v4[:12], ErrTruncated},
		{"half an IPv6 header", v6[:39], ErrTruncated},
		{"IPv4 shorter than stated", v4[:len(v4)-1], ErrTruncated},
		{"IPv6 shorter than stated", v6[:len(v6)-1], ErrTruncated},
		{"IP version 5", patch(v4, 0, 0x55), ErrHeader},
		{"IPv4 header length 4", patch(v4, 0, 0x44), ErrHeader},
		{"IPv4 header longer than the packet", patch(v4, 0, 0x4f), ErrHeader},
		{"IPv4 stated length 0", patch(patch(v4, 2, 0), 3, 0), ErrHeader},
		{"IPv6 stated length 0", patch(patch(v6, 4, 0), 5, 0), ErrHeader},
		{"first fragment", patch(v4, 6, 0x20), ErrFragment},
		{"later fragment", patch(v4, 7, 1), ErrFragment},
		{"IPv6 fragment", withExtensions(v6, fragment), ErrFragment},
		{"IPv6 fragment behind an extension", withExtensions(v6, hopByHop, fragment), ErrFragment},
		{"TCP data offset 4", patch(v4, 32, 0x40), ErrHeader},
		{"TCP data offset beyond the packet", patch(v4, 32, 0xf0), ErrHeader},
		{"UDP", patch(v4, 9, 17), ErrNotTCP},
		{"IPv4 in IPv4", inIPv4, ErrNotTCP},
		{"IPv6 in IPv6", inIPv6, ErrNotTCP},
		{"IPv6 extension longer than the packet", withExtensions(v6, patch(hopByHop, 2, 200)), ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seg Segment
			if err := NewDecoder().Decode(c.packet, &seg); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	v6 := build(t, client6, server6, "PASV\r\n", nil)
	for name, packet := range map[string][]byte{
		"IPv4":              build(t, client4, server4, "PASV\r\n", tcpOptions),
		"IPv4 options":      build(t, client4, server4, "PASV\r\n", ipOptions),
		"IPv6 + extensions": withExtensions(v6, hopByHop, destination),
	} {
		d, seg := NewDecoder(), new(Segment)
		n := testing.AllocsPerRun(100, func() {
			if err := d.Decode(packet, seg); err != nil {
				t.Fatal(err)
			}
			if err := FixChecksums(seg.Packet); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations a packet", name, n)
		}
	}
}

// TestFixChecksums compares with gopacket's checksums, at even and odd lengths, after the payload was overwritten.
func TestFixChecksums(t *testing.T) {
	for _, payload := range []string{"", "x", "PASV", "PASV\r", "PASV\r\n", "SITE EXEC /bin/sh\r\n"} {
		for _, ends := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
			want := build(t, ends[0], ends[1], payload, tcpOptions)
			got := bytes.Clone(want)
			offset, _, err := transport(got)
			if err != nil {
				t.Fatal(err)
			}
			got[offset+tcpChecksumOff] ^= 0xa5
			if err := FixChecksums(got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%q from %v: err %v\n got %x\nwant %x", payload, ends[0], err, got, want)
			}
			if ends[0] == client6 { // extension headers do not enter the sum
				ext := withExtensions(want, hopByHop, routing, destination)
				changed := bytes.Clone(ext)
				if err := FixChecksums(changed); err != nil || !bytes.Equal(changed, ext) {
					t.Errorf("extensions: err %v\n got %x\nwant %x", err, changed, ext)
				}
			}
		}
	}
}

func TestFixChecksumsRefuses(t *testing.T) {
	v6 := build(t, client6, server6, "x", nil)
	for name, c := range map[string]struct {
		packet []byte
		want   error
	}{
		"empty":                {nil, ErrTruncated},
		"half a TCP header":    {v6[:50], ErrTruncated},
		"routing, not arrived": {withExtensions(v6, routingLeft), ErrHeader},
		"fragment":             {withExtensions(v6, fragment), ErrNotTCP},
	} {
		if err := FixChecksums(c.packet); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// FuzzDecode: whatever arrives, Decode neither panics nor reaches outside the packet, and what it accepts has a payload
// that the checksum code finds at the same place.
func FuzzDecode(f *testing.F) {
	v6 := build(f, client6, server6, "EPSV\r\n", nil)
	f.Add(build(f, client4, server4, "PASV\r\n", ipOptions))
	f.Add(build(f, client4, server4, "", tcpOptions))
	f.Add(v6)
	f.Add(withExtensions(v6, hopByHop, routing, destination))
	f.Add(withExtensions(v6, fragment))
	d := NewDecoder()
	f.Fuzz(func(t *testing.T, packet []byte) {
		var seg Segment
		if d.Decode(packet, &seg) != nil {
			return
		}
		if len(seg.Packet) > len(packet) || len(seg.Payload) > len(seg.Packet)-tcpFixed-ipv4Fixed {
			t.Fatalf("%d bytes of payload in %d of packet in %d", len(seg.Payload), len(seg.Packet), len(packet))
		}
		offset, _, err := transport(seg.Packet)
		if errors.Is(err, ErrHeader) {
			return // a routing header with segments left: decoded, but never rewritten
		}
		if err != nil {
			t.Fatalf("Decode accepts what transport refuses: %v", err)
		}
		if header := int(seg.Packet[offset+12]>>4) * 4; offset+header+len(seg.Payload) != len(seg.Packet) {
			t.Fatalf("payload of %d bytes is not at %d of %d", len(seg.Payload), offset+header, len(seg.Packet))
		}
		if err := FixChecksums(seg.Packet); err != nil {
			t.Fatal(err)
		}
	})
}
