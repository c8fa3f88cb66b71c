package conntrack

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func expectation(master, from, to string) Expectation {
	src, dst, _ := strings.Cut(master, " ")
	return Expectation{
		Master:  Tuple{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)},
		From:    netip.MustParseAddrPort(from),
		To:      netip.MustParseAddrPort(to),
		Timeout: 30 * time.Second,
	}
}

var (
	x4 = expectation("192.0.2.2:40000 198.51.100.2:21", "192.0.2.2:0", "198.51.100.2:50000")
	x6 = expectation("[2001:db8:1::2]:40000 [2001:db8:2::2]:21", "[2001:db8:1::2]:0", "[2001:db8:2::2]:50000")
)

// The vectors are written by hand from the kernel's headers: length and type in host order (little-endian here), with
// NLA_F_NESTED (0x8000) where attributes hold attributes; everything of netfilter's own in network order.
const (
	proto21    = "1c000280 0500010006000000 060002009c400000 0600030000150000" // TCP, 40000, 21
	proto50000 = "1c000280 0500010006000000 0600020000000000 06000300c3500000" // TCP, 0, 50000
	protoMask  = "1c000280 0500010006000000 0600020000000000 06000300ffff0000" // the source port does not count

	ip4     = "14000180 08000100c0000202 08000200c6336402"
	ip4Mask = "14000180 08000100ffffffff 08000200ffffffff"

	ip6     = "2c000180 1400030020010db8000100000000000000000002 1400040020010db8000200000000000000000002"
	ip6Mask = "2c000180 14000300ffffffffffffffffffffffffffffffff 14000400ffffffffffffffffffffffffffffffff"

	timeout30 = "080004000000001e"
)

func TestEncodeRequests(t *testing.T) {
	withPort := x4
	withPort.From = netip.MustParseAddrPort("192.0.2.2:50123")
	fraction := x4
	fraction.Timeout = 29*time.Second + time.Millisecond // rounded up
	behindDNAT := x4
	behindDNAT.Real = netip.MustParseAddrPort("198.51.100.9:50001")
	body4 := "02000000 34000180" + ip4 + proto21 + "34000280" + ip4 + proto50000 + "34000380" + ip4Mask + protoMask + timeout30
	for _, test := range []struct {
		name  string
		msg   uint8
		flags netlink.HeaderFlags
		x     Expectation
		want  string
	}{
		{"create IPv4", msgExpNew, netlink.Create | netlink.Excl, x4, "b8000000 0002 0106 01000000 00000000" + body4},
		{"set the timeout", msgExpNew, netlink.Acknowledge, x4, "b8000000 0002 0500 01000000 00000000" + body4},
		{"round the timeout up", msgExpNew, netlink.Acknowledge, fraction, "b8000000 0002 0500 01000000 00000000" + body4},
		{"create IPv6", msgExpNew, netlink.Create | netlink.Excl, x6, "00010000 0002 0106 01000000 00000000 0a000000" +
			"4c000180" + ip6 + proto21 + "4c000280" + ip6 + proto50000 + "4c000380" + ip6Mask + protoMask + timeout30},
		{"source port given", msgExpNew, netlink.Create | netlink.Excl, withPort, "b8000000 0002 0106 01000000 00000000 02000000" +
			"34000180" + ip4 + proto21 +
			"34000280" + ip4 + "1c000280 0500010006000000 06000200c3cb0000 06000300c3500000" +
			"34000380" + ip4Mask + "1c000280 0500010006000000 06000200ffff0000 06000300ffff0000" + timeout30},
		{"through NAT", msgExpNew, netlink.Create | netlink.Excl, behindDNAT, "10010000 0002 0106 01000000 00000000" + body4 +
			"16000b00 6e61742d666f6c6c6f772d6d617374657200 0000" + "40000a80 0800010000000000 34000280" +
			"14000180 08000100c6336409 08000200c6336402" + "1c000280 0500010006000000 06000200c3510000 06000300c3500000"},
		{"delete", msgExpDelete, netlink.Acknowledge, x4, "48000000 0202 0500 01000000 00000000" +
			"02000000 34000280" + ip4 + proto50000},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c Conn
			c.add(test.msg, test.flags, &test.x)
			equalHex(t, c.req.b, test.want)
		})
	}
}

func TestEncodeEntryRequests(t *testing.T) {
	for _, test := range []struct {
		name string
		msg  uint8
		x    Expectation
		rest func(*encoder)
		want string
	}{
		{"look up", msgCTGet, x4, func(*encoder) {}, "48000000 0101 0500 01000000 00000000 02000000 34000180" + ip4 + proto21},
		{"set the mark", msgCTNew, x4, markChange{0x02000000, 0x06000000}.append,
			"58000000 0001 0500 01000000 00000000 02000000 34000180" + ip4 + proto21 + "0800080002000000 0800150006000000"},
		{"set the mark, IPv6", msgCTNew, x6, markChange{1, 3}.append,
			"70000000 0001 0500 01000000 00000000 0a000000 4c000180" + ip6 + proto21 + "0800080000000001 0800150000000003"},
		{"set the label", msgCTNew, x4, (&labelChange{Label{0x10, 15: 1}, Label{0xf0, 15: 3}}).append,
			"70000000 0001 0500 01000000 00000000 02000000 34000180" + ip4 + proto21 +
				"14001600 10000000000000000000000000000001" + "14001700 f0000000000000000000000000000003"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c Conn
			start := c.beginEntry(test.msg, test.x.Master)
			test.rest(&c.req)
			c.req.end(start)
			equalHex(t, c.req.b, test.want)
		})
	}
}

func TestEncodeOwnHelper(t *testing.T) {
	equalHex(t, encodeOwn(unix.AF_INET6), "0a000000"+
		"0b000100 667470616c670000"+ // NFCTH_NAME "ftpalg"
		"14000280 06000100000a0000 0500020006000000"+ // IPv6, TCP
		"2c000480 0800010000000001"+ // one class of expectations
		"20000280 0b000100667470616c670000 0800020000000008 080003000000012c"+ // "ftpalg", 8, 300 s
		"0800050000000000 0800060000000000") // no private data, disabled: packets are never queued to user space
}

func equalHex(t *testing.T, got []byte, want string) {
	t.Helper()
	w, err := hex.DecodeString(strings.ReplaceAll(want, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, w) {
		t.Errorf("got  %x\nwant %x", got, w)
	}
}

// The buffer of a Conn is made once: the longest request must fit.
func TestRequestFits(t *testing.T) {
	var c Conn
	for range maxBatch {
		c.add(msgExpNew, 0, &x6)
	}
	if len(c.req.b) > requestCap {
		t.Errorf("%d messages take %d bytes, requestCap is %d", maxBatch, len(c.req.b), requestCap)
	}
}
