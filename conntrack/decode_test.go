package conntrack

import (
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// What the kernel sends has attributes that we do not read as well: an identifier, a class, flags, a zone.
var (
	dumped4 = unhex("02000000 34000180" + ip4 + proto21 + "34000280" + ip4 + proto50000 + "34000380" + ip4Mask + protoMask +
		timeout30 + "08000500deadbeef 0800080000000000 0800090000000000")
	dumped6 = unhex("0a000000 4c000180" + ip6 + proto21 + "4c000280" + ip6 + proto50000 + "4c000380" + ip6Mask + protoMask + timeout30)
	entry4  = unhex("02000000 34000180" + ip4 + proto21 +
		"34000280 14000180 08000100c6336402 08000200c0000202 1c000280 0500010006000000 0600020000150000 060003009c400000" +
		"080003000000018e 0800070000069780 0800080000000200 10000580 0900010073616e6500000000")
)

func TestDecodeExpectation(t *testing.T) {
	for name, test := range map[string]struct {
		data []byte
		want Expectation
	}{"IPv4": {dumped4, x4}, "IPv6": {dumped6, x6}} {
		got, err := decodeExpectation(test.data)
		if err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, test.want)
		}
	}
}

// A source port that the mask leaves out is not part of the expectation, whatever the tuple says.
func TestDecodeExpectationMaskedPort(t *testing.T) {
	data := unhex("02000000 34000180" + ip4 + proto21 +
		"34000280" + ip4 + "1c000280 0500010006000000 0600020012340000 06000300c3500000" +
		"34000380" + ip4Mask + protoMask + timeout30)
	if got, err := decodeExpectation(data); err != nil || got != x4 {
		t.Errorf("got %+v, %v\nwant %+v", got, err, x4)
	}
}

func TestDecodeEntry(t *testing.T) {
	want := Entry{
		Orig:    x4.Master,
		Reply:   Tuple{x4.Master.Dst, x4.Master.Src},
		Mark:    0x200,
		Helper:  "sane",
		Status:  0x18e,
		Timeout: 432000 * time.Second,
	}
	if got, err := decodeEntry(entry4); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, test := range []struct{ name, data, want string }{
		{"no struct nfgenmsg", "0200", "message of 2 bytes has no struct nfgenmsg"},
		{"nothing in it", "02000000", "CTA_EXPECT_MASTER, _TUPLE or _MASK is missing"},
		{"mask missing", "02000000 34000180" + ip4 + proto21 + "34000280" + ip4 + proto50000, "_MASK is missing"},
		{"another protocol", "02000000 0c000180 08000280 0500010011000000", ""}, // lengths do not nest
		{"UDP", "02000000 10000180 0c000280 0500010011000000", "not TCP: CTA_PROTO_NUM is 17"},
		{"3-byte address", "02000000 2c000180 0c000180 07000100c0000200 1c000280" + proto21[8:], "CTA_TUPLE_IP attribute 1 has 3 bytes"},
		{"port of one byte", "02000000 34000180" + ip4 + "1c000280 0500010006000000 050002009c000000 0600030000150000", "not a uint16"},
		{"attribute runs over the end", "02000000 ff000180" + ip4, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, err := decodeExpectation(unhex(test.data))
			if err == nil || !strings.Contains(err.Error(), test.want) || x != (Expectation{}) {
				t.Errorf("got %+v, %v, want an error with %q", x, err, test.want)
			}
		})
	}
}

// FuzzDecode gives the decoders rubbish. They must not panic, and what they accept must be fit for use.
func FuzzDecode(f *testing.F) {
	for _, whole := range [][]byte{dumped4, dumped6, entry4} {
		f.Add(whole)
		f.Add(whole[:len(whole)-3])
		f.Add(whole[:len(whole)/2])
	}
	f.Add([]byte{2, 0, 0, 0, 4, 0, 1, 0x80})
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, data []byte) {
		if x, err := decodeExpectation(data); err == nil {
			usable(t, x.Master)
			usable(t, Tuple{x.From, x.To})
		}
		if e, err := decodeEntry(data); err == nil {
			usable(t, e.Orig)
			usable(t, e.Reply)
		}
		if e, err := decodeChild(data); err == nil && e.master.valid() {
			usable(t, e.master)
		}
		decodeAnswer(data)
	})
}

// usable asserts that a tuple survives being encoded and decoded.
func usable(t *testing.T, want Tuple) {
	var e encoder
	e.family(familyOf(want.Src.Addr()))
	e.tuple(ctaTupleOrig, want)
	e.tuple(ctaTupleReply, want)
	got, err := decodeEntry(e.b)
	if err != nil || got.Orig != want {
		t.Errorf("%v came back as %v, %v", want, got.Orig, err)
	}
	for _, a := range []netip.Addr{want.Src.Addr(), want.Dst.Addr()} {
		if !a.IsValid() {
			t.Errorf("%v has no address", want)
		}
	}
}

// An established connection that will be forgotten soon was reset, though conntrack did not trust the sequence number, unless all
// connections are forgotten as soon.
func TestDecodeEntryReset(t *testing.T) {
	const established = "10000480 0c000180 0500010003000000"
	for timeout, live := range map[string]bool{"00069780": true, "0000000b": true, "0000000a": false, "00000000": false} {
		data := unhex("02000000 34000180" + ip4 + proto21 +
			"34000280 14000180 08000100c6336402 08000200c0000202 1c000280 0500010006000000 0600020000150000 060003009c400000" +
			"08000700" + timeout + established)
		e, err := decodeEntry(data)
		if e = e.notReset(5 * 24 * time.Hour); err != nil || !e.Opened || e.Live != live {
			t.Errorf("with %s seconds left: %+v, %v", timeout, e, err)
		}
		if e, _ := decodeEntry(data); !e.notReset(resetTimeout).Live {
			t.Errorf("with %s seconds left, of ten at most: not live", timeout)
		}
	}
}
