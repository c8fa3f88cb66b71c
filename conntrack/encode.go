package conntrack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// headerLen is the length of a netlink message header, struct nlmsghdr.
const headerLen = unix.NLMSG_HDRLEN

// encoder appends netlink messages and attributes to a buffer that is kept between requests, so that installing an
// expectation costs no allocation. All lengths here are multiples of four once an attribute is padded, as netlink asks.
type encoder struct{ b []byte }

// begin appends a message header and returns where the message starts, for end.
func (e *encoder) begin(subsystem, msg uint8, flags netlink.HeaderFlags, seq uint32) int {
	start := len(e.b)
	e.b = append(e.b, make([]byte, headerLen)...)
	h := e.b[start:]
	binary.NativeEndian.PutUint16(h[4:], uint16(subsystem)<<8|uint16(msg))
	binary.NativeEndian.PutUint16(h[6:], uint16(netlink.Request|flags))
	binary.NativeEndian.PutUint32(h[8:], seq)
	return start
}

// end writes the length of the message that starts at start.
func (e *encoder) end(start int) {
	binary.NativeEndian.PutUint32(e.b[start:], uint32(len(e.b)-start))
}

// family appends struct nfgenmsg, which opens every netfilter message: address family, version 0, resource 0.
func (e *encoder) family(f uint8) { e.b = append(e.b, f, unix.NFNETLINK_V0, 0, 0) }

// nest opens a nested attribute and returns where it starts, for close.
func (e *encoder) nest(typ uint16) int {
	start := len(e.b)
	e.b = binary.NativeEndian.AppendUint16(e.b, 0)
	e.b = binary.NativeEndian.AppendUint16(e.b, typ|unix.NLA_F_NESTED)
	return start
}

// close writes the length of the nested attribute that starts at start.
func (e *encoder) close(start int) {
	binary.NativeEndian.PutUint16(e.b[start:], uint16(len(e.b)-start))
}

// bytes appends an attribute and its padding.
func (e *encoder) bytes(typ uint16, v []byte) {
	e.b = binary.NativeEndian.AppendUint16(e.b, uint16(4+len(v)))
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	e.b = append(e.b, v...)
	for len(e.b)%4 != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) uint8(typ uint16, v uint8) { e.bytes(typ, []byte{v}) }

func (e *encoder) uint16(typ, v uint16) { e.bytes(typ, []byte{byte(v >> 8), byte(v)}) }

func (e *encoder) uint32(typ uint16, v uint32) {
	e.bytes(typ, []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// text appends a string with the NUL that ctnetlink insists on: without it the answer is EINVAL.
func (e *encoder) text(typ uint16, s string) { e.bytes(typ, append([]byte(s), 0)) }

// tuple appends one direction of a TCP connection. Both addresses are of one family: check sees to it.
func (e *encoder) tuple(typ uint16, t Tuple) {
	outer := e.nest(typ)
	ip := e.nest(ctaTupleIP)
	if t.Src.Addr().Is4() {
		src, dst := t.Src.Addr().As4(), t.Dst.Addr().As4()
		e.bytes(ctaIPv4Src, src[:])
		e.bytes(ctaIPv4Dst, dst[:])
	} else {
		src, dst := t.Src.Addr().As16(), t.Dst.Addr().As16()
		e.bytes(ctaIPv6Src, src[:])
		e.bytes(ctaIPv6Dst, dst[:])
	}
	e.close(ip)
	proto := e.nest(ctaTupleProto)
	e.uint8(ctaProtoNum, unix.IPPROTO_TCP)
	e.uint16(ctaProtoSrcPort, t.Src.Port())
	e.uint16(ctaProtoDstPort, t.Dst.Port())
	e.close(proto)
	e.close(outer)
}

// expectation appends the body of an IPCTNL_MSG_EXP_NEW. The kernel reads the timeout only where the expectation
// exists already; it costs nothing in the message that creates it.
func (e *encoder) expectation(x *Expectation) {
	e.family(familyOf(x.To.Addr()))
	e.tuple(ctaExpectMaster, x.Master)
	e.tuple(ctaExpectTuple, Tuple{x.From, x.To})
	e.tuple(ctaExpectMask, mask(x))
	e.uint32(ctaExpectTimeout, wholeSeconds(x.Timeout))
	if x.Real.IsValid() {
		e.nat(x)
	}
}

// followMaster is the kernel's function (nf_nat_follow_master) that gives a connection its control connection's addresses.
const followMaster = "nat-follow-master"

// nat appends where the kernel has to lead the connection. Its direction is that which the control connection would call
// the same: from the client or to it.
func (e *encoder) nat(x *Expectation) {
	e.text(ctaExpectFn, followMaster)
	nat := e.nest(ctaExpectNAT)
	e.uint32(ctaExpectNATDir, direction(x))
	e.tuple(ctaExpectNATTuple, Tuple{x.Real, x.To}) // the kernel reads the source alone
	e.close(nat)
}

// direction is 0 (IP_CT_DIR_ORIGINAL) for what the control connection's client opens, and 1 for what its server opens.
func direction(x *Expectation) uint32 {
	if x.From.Addr() == x.Master.Src.Addr() {
		return 0
	}
	return 1
}

// expectationKey appends the body of an IPCTNL_MSG_EXP_DELETE. CTA_EXPECT_ID stays out: the kernel's identifier of an
// expectation is not known to the one who created it.
func (e *encoder) expectationKey(x *Expectation) {
	e.family(familyOf(x.To.Addr()))
	e.tuple(ctaExpectTuple, Tuple{x.From, x.To})
}

var (
	ones4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	ones6 = netip.AddrFrom16([16]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255})
)

// mask says which parts of the tuple count: all of both addresses and the destination port, and the source port if
// one is given.
func mask(x *Expectation) Tuple {
	ones := ones6
	if x.To.Addr().Is4() {
		ones = ones4
	}
	var srcPort uint16
	if x.From.Port() != 0 {
		srcPort = 0xffff
	}
	return Tuple{netip.AddrPortFrom(ones, srcPort), netip.AddrPortFrom(ones, 0xffff)}
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// wholeSeconds rounds up: a pinhole must not close before its time.
func wholeSeconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }
