package replay

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestPcap: either byte order, microseconds and nanoseconds, the modified format, flags in the link type's word, gzip.
func TestPcap(t *testing.T) {
	packets := pasv(t).packets
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		file := pcapFile(order, linkRaw, packets, nil)
		t.Run(order.String(), func(t *testing.T) {
			events := expect(t, file, pasvPinhole)
			if at := start.Add(7 * time.Millisecond); !events[len(events)-1].Time.Equal(at) {
				t.Errorf("the pinhole's time is %v, not %v", events[len(events)-1].Time, at)
			}
		})
		t.Run(order.String()+", flags", func(t *testing.T) {
			flagged := bytes.Clone(file)
			copy(flagged[20:], order.AppendUint32(nil, 0x24000000|uint32(linkRaw)))
			expect(t, flagged, pasvPinhole)
		})
		t.Run(order.String()+", nanoseconds", func(t *testing.T) {
			nano := bytes.Clone(file)
			copy(nano, order.AppendUint32(nil, magicNano))
			events := expect(t, nano, pasvPinhole)
			if at := start.Add(7 * time.Microsecond); !events[len(events)-1].Time.Equal(at) {
				t.Errorf("the pinhole's time is %v, not %v", events[len(events)-1].Time, at)
			}
		})
	}
	t.Run("modified", func(t *testing.T) {
		file := binary.LittleEndian.AppendUint32(nil, magicModified)
		file = append(file, rawFile(nil)[4:]...)
		for _, p := range packets {
			header := make([]byte, 24)
			header[8], header[12] = byte(len(p)), byte(len(p))
			file = append(append(file, header...), p...)
		}
		expect(t, file, pasvPinhole)
	})
	t.Run("gzip", func(t *testing.T) {
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		_, _ = w.Write(rawFile(packets))
		_ = w.Close()
		expect(t, zipped.Bytes(), pasvPinhole)
		if _, got, err := told(zipped.Bytes()[:zipped.Len()-9]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut off: %v, after %q", err, got)
		}
	})
}

// ngFile puts pcapng blocks together.
type ngFile struct {
	order binary.AppendByteOrder
	bytes []byte
}

func (f *ngFile) block(kind uint32, body ...[]byte) *ngFile {
	b := bytes.Join(body, nil)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	n := uint32(len(b) + 12)
	f.bytes = f.order.AppendUint32(f.order.AppendUint32(f.bytes, kind), n)
	f.bytes = f.order.AppendUint32(append(f.bytes, b...), n)
	return f
}

func (f *ngFile) section(order binary.AppendByteOrder, minor uint16) *ngFile {
	f.order = order
	body := order.AppendUint16(order.AppendUint16(f.u32(byteOrderMagic), 1), minor)
	return f.block(blockSectionHeader, body, bytes.Repeat([]byte{0xff}, 8))
}

func (f *ngFile) u32(values ...uint32) (b []byte) {
	for _, v := range values {
		b = f.order.AppendUint32(b, v)
	}
	return b
}

func (f *ngFile) device(link linkType, options ...byte) *ngFile {
	return f.block(blockInterface, f.order.AppendUint16(nil, uint16(link)), []byte{0, 0}, f.u32(0), options)
}

func (f *ngFile) enhanced(number uint32, stamp uint64, p []byte) *ngFile {
	n := uint32(len(p))
	return f.block(blockEnhancedPacket, f.u32(number, uint32(stamp>>32), uint32(stamp), n, n), p)
}

// TestPcapng: sections of either byte order, interfaces with link types and clocks of their own, every packet block, and
// blocks that are nobody's business.
func TestPcapng(t *testing.T) {
	p := pasv(t).packets
	f := &ngFile{}
	f.section(binary.BigEndian, 0).device(linkEthernet).device(linkRaw, 0, optionResolution, 0, 1, 9, 0, 0, 0)
	f.enhanced(1, uint64(start.UnixNano()), p[0])
	f.block(0xbad, []byte("unknown"))
	f.enhanced(0, uint64(start.UnixMicro())+1, append(make([]byte, 12), append([]byte{8, 0}, p[1]...)...))
	f.section(binary.LittleEndian, 2).block(5, make([]byte, 20)).device(linkRaw, optionResolution, 0, 1, 0, 0x80|20, 0, 0, 0,
		optionOffset, 0, 8, 0, 100, 0, 0, 0, 0, 0, 0, 0, optionEnd, 0, 0, 0)
	f.block(blockObsoletePacket, f.u32(0xffff0000, 0, 1, uint32(len(p[2])), uint32(len(p[2]))), p[2])
	f.block(blockSimplePacket, f.u32(uint32(len(p[3]))), p[3])
	f.enhanced(0, uint64(start.Unix())<<20, p[4])
	for i := 5; i < len(p); i++ {
		f.enhanced(0, uint64(start.Unix())<<20+1<<19, p[i])
	}
	events := expect(t, f.bytes, pasvPinhole)
	if at := start.Add(100*time.Second + 500*time.Millisecond); !events[len(events)-1].Time.Equal(at) {
		t.Errorf("the pinhole's time is %v, not %v", events[len(events)-1].Time, at)
	}
}

// TestDamaged: what cannot be is an error that says what, behind the report of what was before it.
func TestDamaged(t *testing.T) {
	p := pasv(t).packets
	good := func() *ngFile {
		f := new(ngFile).section(binary.LittleEndian, 0).device(linkRaw)
		for i, packet := range p {
			f.enhanced(0, uint64(i), packet)
		}
		return f
	}
	lying := good().enhanced(0, 0, p[0])
	lying.bytes[len(lying.bytes)-4]++
	wide := bytes.Clone(rawFile(p[:1]))
	copy(wide[24+8:], []byte{0, 0, 0, 0x7f})
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"unknown interface", "interface 7, of 1", good().enhanced(7, 0, p[0]).bytes},
		{"no interface in a new section", "interface 0, of 0", good().section(binary.BigEndian, 0).enhanced(0, 0, p[0]).bytes},
		{"clock of 2^-100", "2^-100", good().device(linkRaw, optionResolution, 0, 1, 0, 0x80|100, 0, 0, 0).bytes},
		{"clock of 10^-20", "10^-20", good().device(linkRaw, optionResolution, 0, 1, 0, 20, 0, 0, 0).bytes},
		{"option too long", "option 5", good().device(linkRaw, 5, 0, 255, 255).bytes},
		{"short packet block", "too short", good().block(blockEnhancedPacket, make([]byte, 16)).bytes},
		{"packet longer than its block", "too short", good().block(blockEnhancedPacket, lying.u32(0, 0, 0, 99, 99)).bytes},
		{"lengths that differ", "in front", lying.bytes},
		{"endless block", "bytes", append(good().bytes, 6, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff)},
		{"cut off", "unexpected EOF", append(good().bytes, good().bytes[:50]...)},
		{"cut off behind a type", "unexpected EOF", append(good().bytes, 6, 0, 0, 0)},
		{"no byte order", "magic", append(bytes.Clone(new(ngFile).section(binary.LittleEndian, 0).bytes[:8]), 1, 2, 3, 4, 5)},
		{"pcap packet of 2 GiB", "at most", wide},
		{"pcap version 3", "version 3", append([]byte{0xd4, 0xc3, 0xb2, 0xa1, 3}, make([]byte, 19)...)},
		{"pcap without a whole header", "EOF", rawFile(nil)[:20]},
		{"text", "neither pcap nor pcapng", []byte("220 this is not a capture, but it is longer than a header")},
		{"two bytes", "neither pcap nor pcapng", []byte("22")},
		{"nothing", "empty", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, got, err := told(c.file)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, %q expected", err, c.want)
			}
			if bytes.HasPrefix(c.file, good().bytes[:100]) && len(got) != 1 {
				t.Errorf("before it was told %q", got)
			}
		})
	}
}
