package replay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"ftpalg/alg/audit"
	"ftpalg/policy"
)

// talk makes the IP packets of a control connection.
type talk struct {
	t              testing.TB
	client, server netip.AddrPort
	next           [2]uint32 // sequence numbers, by sideIndex
	packets        [][]byte
}

func newTalk(t testing.TB, client, server string) *talk {
	return &talk{t: t, client: netip.MustParseAddrPort(client), server: netip.MustParseAddrPort(server), next: [2]uint32{1000, 5000}}
}

// segment adds a packet. What it acknowledges is everything that was said so far.
func (k *talk) segment(client bool, edit func(*layers.TCP), payload string) *talk {
	src, dst := k.client, k.server
	if !client {
		src, dst = dst, src
	}
	own := &k.next[sideIndex(client)]
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), ACK: true,
		Seq: *own, Ack: k.next[sideIndex(!client)], Window: 1000,
	}
	if edit != nil {
		edit(tcp)
	}
	*own += uint32(len(payload))
	if tcp.SYN || tcp.FIN {
		*own++
	}
	k.packets = append(k.packets, packet(k.t, src.Addr(), dst.Addr(), tcp, payload))
	return k
}

// packet gives an IP packet.
func packet(t testing.TB, src, dst netip.Addr, tcp *layers.TCP, payload string) []byte {
	t.Helper()
	var ip gopacket.SerializableLayer
	if src.Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		_ = tcp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func (k *talk) open() *talk {
	return k.segment(true, func(h *layers.TCP) { h.SYN, h.ACK = true, false }, "").
		segment(false, func(h *layers.TCP) { h.SYN = true }, "").segment(true, nil, "")
}

// say adds lines: the client's with "C: " in front, the server's with "S: ".
func (k *talk) say(lines ...string) *talk {
	for _, line := range lines {
		text, client := strings.CutPrefix(line, "C: ")
		k.segment(client, nil, strings.TrimPrefix(text, "S: ")+"\r\n")
	}
	return k
}

// pasv is a connection with one PASV and its reply.
func pasv(t testing.TB) *talk {
	return newTalk(t, "192.0.2.2:40000", "198.51.100.2:21").open().say("S: 220 ready", "C: USER a", "S: 230 in", "C: PASV", "S: 227 (198,51,100,2,195,80)")
}

const pasvPinhole = "PASV 192.0.2.2 198.51.100.2:50000"

// epsv6 is the same for IPv6.
func epsv6(t testing.TB) *talk {
	return newTalk(t, "[2001:db8:1::2]:40000", "[2001:db8:2::2]:21").open().say("S: 220 ready", "C: USER a", "S: 230 in", "C: EPSV", "S: 229 (|||50001|)")
}

const epsv6Pinhole = "EPSV 2001:db8:1::2 [2001:db8:2::2]:50001"

// start is when the captures of these tests begin.
var start = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// pcapFile writes packets, one a millisecond, behind the link header that wrap adds.
func pcapFile(order binary.AppendByteOrder, link linkType, packets [][]byte, wrap func([]byte) []byte) []byte {
	file := order.AppendUint32(nil, magicMicro)
	file = order.AppendUint16(file, 2)
	file = order.AppendUint16(file, 4)
	file = append(file, make([]byte, 8)...)
	file = order.AppendUint32(file, 65535)
	file = order.AppendUint32(file, uint32(link))
	for i, p := range packets {
		if wrap != nil {
			p = wrap(p)
		}
		at := start.Add(time.Duration(i) * time.Millisecond)
		file = order.AppendUint32(file, uint32(at.Unix()))
		file = order.AppendUint32(file, uint32(at.Nanosecond()/1000))
		file = order.AppendUint32(file, uint32(len(p)))
		file = order.AppendUint32(file, uint32(len(p)))
		file = append(file, p...)
	}
	return file
}

func rawFile(packets [][]byte) []byte { return pcapFile(binary.LittleEndian, linkRaw, packets, nil) }

// told replays a file and gives what matters most: pinholes, refusals and ends of sessions.
func told(file []byte) (events []audit.Event, list []string, err error) {
	err = Run(bytes.NewReader(file), policy.AllowAll(), func(e audit.Event) {
		events = append(events, e)
		switch r := NewRecord(e); e.Kind {
		case audit.EventPinhole:
			list = append(list, r.Mode+" "+r.From+" "+r.To)
		case audit.EventDeny, audit.EventEnd:
			list = append(list, r.Event+" "+r.Reason)
		}
	})
	return events, list, err
}

func expect(t *testing.T, file []byte, want ...string) []audit.Event {
	t.Helper()
	events, got, err := told(file)
	if err != nil {
		t.Error(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	return events
}
