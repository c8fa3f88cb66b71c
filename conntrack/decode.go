package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errNotTCP says that a message is well-formed and about another protocol; its readers skip it.
var errNotTCP = errors.New("not TCP")

// genLen is the length of struct nfgenmsg, which opens every netfilter message.
const genLen = 4

// attributes gives a decoder for what follows struct nfgenmsg. Netfilter numbers are in network order.
func attributes(data []byte) (*netlink.AttributeDecoder, error) {
	if len(data) < genLen {
		return nil, fmt.Errorf("message of %d bytes has no struct nfgenmsg", len(data))
	}
	ad, err := netlink.NewAttributeDecoder(data[genLen:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}

// Decode reads the attributes of a conntrack entry as they come with a queued packet (NFQA_CT).
func Decode(attributes []byte) (Entry, error) {
	ad, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return Entry{}, fmt.Errorf("conntrack entry: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	return decodeAttributes(ad)
}

// decodeEntry reads the body of an IPCTNL_MSG_CT_NEW or _DELETE message.
func decodeEntry(data []byte) (Entry, error) {
	ad, err := attributes(data)
	if err != nil {
		return Entry{}, fmt.Errorf("conntrack entry: %w", err)
	}
	return decodeAttributes(ad)
}

func decodeAttributes(ad *netlink.AttributeDecoder) (e Entry, err error) {
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			ad.Nested(e.Orig.decode)
		case ctaTupleReply:
			ad.Nested(e.Reply.decode)
		case ctaStatus:
			e.Status = ad.Uint32()
		case ctaProtoInfo:
			ad.Nested(e.decodeState)
		case ctaTimeout:
			e.Timeout = time.Duration(ad.Uint32()) * time.Second
		case ctaID:
			e.ID = ad.Uint32()
		case ctaSeqAdjOrig:
			ad.Nested(e.Adjusted[0].decode)
		case ctaSeqAdjReply:
			ad.Nested(e.Adjusted[1].decode)
		case ctaMark:
			e.Mark = ad.Uint32()
		case ctaLabels:
			copy(e.Label[:], ad.Bytes())
		case ctaHelp:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == ctaHelpName {
						e.Helper = strings.TrimRight(string(ad.Bytes()), "\x00")
					}
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil {
		return Entry{}, fmt.Errorf("conntrack entry: %w", err)
	}
	if !e.Orig.valid() || !e.Reply.valid() {
		return Entry{}, errors.New("conntrack entry: CTA_TUPLE_ORIG or CTA_TUPLE_REPLY is missing")
	}
	return e, nil
}

// resetTimeout is what conntrack leaves an established connection after a RST whose sequence number it does not trust: the
// entry keeps its state and gets the time of a closed one (nf_conntrack_tcp_timeout_close), until another packet comes.
const resetTimeout = 10 * time.Second

// notReset takes an established connection that will be forgotten soon for one that was reset. Where every connection has no more
// than that time (life) nothing tells them apart, and its state has to do.
func (e Entry) notReset(life time.Duration) Entry {
	if life > resetTimeout && e.Timeout <= resetTimeout {
		e.Live = false
	}
	return e
}

// decodeState reads a nested CTA_PROTOINFO attribute.
func (e *Entry) decodeState(ad *netlink.AttributeDecoder) error {
	return tcpState(ad, func(state uint8) {
		e.Opened = tcpEstablished <= state && state <= tcpClose
		e.Live = state == tcpEstablished
	})
}

// tcpState reads the state (enum tcp_conntrack) in a nested CTA_PROTOINFO attribute.
func tcpState(ad *netlink.AttributeDecoder, found func(state uint8)) error {
	for ad.Next() {
		if ad.Type() != ctaProtoInfoTCP {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if ad.Type() == ctaProtoInfoTCPState {
					found(ad.Uint8())
				}
			}
			return nil
		})
	}
	return nil
}

// decodeExpectation reads the body of an IPCTNL_MSG_EXP_NEW or _DELETE message about TCP.
func decodeExpectation(data []byte) (Expectation, error) {
	e, err := decodeExpected(netlink.Message{Data: data})
	if err == nil && e.Protocol != unix.IPPROTO_TCP {
		err = fmt.Errorf("%w: CTA_PROTO_NUM is %d", errNotTCP, e.Protocol)
	}
	return e.Expectation, err
}

// decodeExpected reads an IPCTNL_MSG_EXP_NEW message. The control connection is TCP.
func decodeExpected(m netlink.Message) (Expected, error) {
	x := Expected{Writer: m.Header.PID}
	var tuple, mask Tuple
	ad, err := attributes(m.Data)
	if err != nil {
		return Expected{}, fmt.Errorf("expectation: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaExpectMaster:
			ad.Nested(x.Master.decode)
		case ctaExpectTuple:
			x.tuple = ad.Bytes()
			ad.Nested(func(ad *netlink.AttributeDecoder) (err error) {
				x.Protocol, err = tuple.decodeAny(ad)
				return err
			})
		case ctaExpectMask:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				_, err := mask.decodeAny(ad)
				return err
			})
		case ctaExpectTimeout:
			x.Timeout = time.Duration(ad.Uint32()) * time.Second
		case ctaExpectHelpName:
			x.Helper = strings.TrimRight(string(ad.Bytes()), "\x00")
		}
	}
	if err := ad.Err(); err != nil {
		return Expected{}, fmt.Errorf("expectation: %w", err)
	}
	if !x.Master.valid() || !tuple.valid() || !mask.valid() {
		return Expected{}, errors.New("expectation: CTA_EXPECT_MASTER, _TUPLE or _MASK is missing")
	}
	x.From, x.To = tuple.Src, tuple.Dst
	if mask.Src.Port() == 0 {
		x.From = netip.AddrPortFrom(x.From.Addr(), 0)
	}
	return x, nil
}

// decode reads a nested CTA_TUPLE_* attribute. It fails with errNotTCP for another protocol.
func (t *Tuple) decode(ad *netlink.AttributeDecoder) error {
	protocol, err := t.decodeAny(ad)
	if err == nil && protocol != unix.IPPROTO_TCP {
		return fmt.Errorf("%w: CTA_PROTO_NUM is %d", errNotTCP, protocol)
	}
	return err
}

// decodeAny reads one of any protocol, and gives its number. What has no ports has 0 for them.
func (t *Tuple) decodeAny(ad *netlink.AttributeDecoder) (protocol uint8, err error) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) (err error) {
				src, dst, err = decodeAddrs(ad)
				return err
			})
		case ctaTupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ctaProtoNum:
						protocol = ad.Uint8()
					case ctaProtoSrcPort:
						srcPort = ad.Uint16()
					case ctaProtoDstPort:
						dstPort = ad.Uint16()
					}
				}
				return nil
			})
		}
	}
	*t = Tuple{netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)}
	return protocol, ad.Err()
}

// decodeAddrs reads a nested CTA_TUPLE_IP attribute.
func decodeAddrs(ad *netlink.AttributeDecoder) (src, dst netip.Addr, err error) {
	for ad.Next() {
		typ := ad.Type()
		a, ok := netip.AddrFromSlice(ad.Bytes())
		if want4 := typ == ctaIPv4Src || typ == ctaIPv4Dst; typ >= ctaIPv4Src && typ <= ctaIPv6Dst && (!ok || a.Is4() != want4) {
			return src, dst, fmt.Errorf("CTA_TUPLE_IP attribute %d has %d bytes", typ, len(ad.Bytes()))
		}
		switch typ {
		case ctaIPv4Src, ctaIPv6Src:
			src = a
		case ctaIPv4Dst, ctaIPv6Dst:
			dst = a
		}
	}
	return src, dst, nil
}

// valid reports whether both addresses were there, and of one family.
func (t Tuple) valid() bool {
	return t.Src.IsValid() && t.Dst.IsValid() && t.Src.Addr().Is4() == t.Dst.Addr().Is4()
}
