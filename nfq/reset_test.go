package nfq

import (
	"bytes"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestReset compares with the packet that gopacket builds, checksums included.
func TestReset(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		tcp := &layers.TCP{
			SrcPort: 40000, DstPort: 21, Seq: 5, Ack: 77, ACK: true, PSH: true, URG: true, Urgent: 3, Window: 500,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}},
		}
		packet, err := Reset(serialize(t, v6, tcp, "NOOP\r\n"), 4242)
		if err != nil {
			t.Fatal(err)
		}
		want := serialize(t, v6, &layers.TCP{SrcPort: 40000, DstPort: 21, Seq: 4242, Ack: 77, ACK: true, RST: true}, "")
		if !bytes.Equal(packet, want) {
			t.Errorf("IPv6 %v:\n got %x\nwant %x", v6, packet, want)
		}
	}
	if _, err := Reset([]byte{0x45}, 1); err == nil {
		t.Error("a packet of one byte was accepted")
	}
}

// TestWithPayload compares with the packet that gopacket builds: a longer payload, a shorter one and none.
func TestWithPayload(t *testing.T) {
	tcp := func() *layers.TCP {
		return &layers.TCP{SrcPort: 40000, DstPort: 21, Seq: 5, Ack: 77, ACK: true, PSH: true, Window: 500,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}}}
	}
	for _, v6 := range []bool{false, true} {
		for _, payload := range []string{"NOOP\r\nQUIT\r\n", "NO", ""} {
			packet, err := WithPayload(serialize(t, v6, tcp(), "NOOP\r\n"), []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			if err := FixChecksums(packet); err != nil {
				t.Fatal(err)
			}
			if want := serialize(t, v6, tcp(), payload); !bytes.Equal(packet, want) {
				t.Errorf("IPv6 %v, %q:\n got %x\nwant %x", v6, payload, packet, want)
			}
		}
	}
	if _, err := WithPayload([]byte{0x45}, nil); err == nil {
		t.Error("a packet of one byte was accepted")
	}
}

func serialize(t *testing.T, v6 bool, tcp *layers.TCP, payload string) []byte {
	t.Helper()
	var ip gopacket.SerializableLayer
	if v6 {
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP,
			SrcIP: net.ParseIP("2001:db8:1::2"), DstIP: net.ParseIP("2001:db8:2::2")}
		_ = tcp.SetNetworkLayerForChecksum(l)
		ip = l
	} else {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
			SrcIP: net.IPv4(192, 0, 2, 2), DstIP: net.IPv4(198, 51, 100, 2)}
		_ = tcp.SetNetworkLayerForChecksum(l)
		ip = l
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
