package replay

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/policy"
)

// FuzzRun: no capture file makes the replay crash or hang, and no pinhole comes without its session.
func FuzzRun(f *testing.F) {
	f.Add(small(f, false))
	f.Add(small(f, true))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	six := epsv6(f).packets
	last := six[len(six)-1]
	six = append(six[:len(six)-1], fragment6(last, 24, len(last), false), fragment6(last, 0, 24, true))
	f.Add(pcapFile(binary.BigEndian, linkSLL2, six, func(p []byte) []byte {
		return append(append([]byte{0x86, 0xdd}, make([]byte, 18)...), p...)
	}))
	f.Add(new(ngFile).section(binary.BigEndian, 0).device(linkRaw, 0, optionResolution, 0, 1, 0x83, 0, 0, 0).enhanced(0, 1, last).bytes)
	f.Fuzz(func(t *testing.T, file []byte) {
		began := map[uint64]bool{}
		_ = Run(bytes.NewReader(file), policy.AllowAll(), func(e audit.Event) {
			if e.Reason == alg.InternalError {
				t.Errorf("internal error: %v", e.Err)
			}
			switch e.Kind {
			case audit.EventSession:
				began[e.Session] = true
			case audit.EventPinhole:
				if !began[e.Session] {
					t.Errorf("pinhole of session %d, which has not begun", e.Session)
				}
			}
			_ = NewRecord(e)
		})
	})
}

// small is a capture of a greeting, a PASV and its reply.
func small(f *testing.F, ng bool) []byte {
	var file bytes.Buffer
	var write func(gopacket.CaptureInfo, []byte) error
	if ng {
		w, err := pcapgo.NewNgWriter(&file, layers.LinkTypeRaw)
		if err != nil {
			f.Fatal(err)
		}
		defer w.Flush()
		write = w.WritePacket
	} else {
		w := pcapgo.NewWriter(&file)
		if err := w.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
			f.Fatal(err)
		}
		write = w.WritePacket
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{198, 51, 100, 2}, DstIP: []byte{192, 0, 2, 2}}
	seq := uint32(1)
	for _, line := range []string{"220 ready\r\n", "227 (198,51,100,2,195,80)\r\n"} {
		tcp := &layers.TCP{SrcPort: 21, DstPort: 40000, Seq: seq, Ack: 1, ACK: true}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
		if err := gopacket.SerializeLayers(buf, opts, ip, tcp, gopacket.Payload(line)); err != nil {
			f.Fatal(err)
		}
		info := gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(buf.Bytes()), Length: len(buf.Bytes())}
		if err := write(info, buf.Bytes()); err != nil {
			f.Fatal(err)
		}
		seq += uint32(len(line))
	}
	return bytes.Clone(file.Bytes())
}
