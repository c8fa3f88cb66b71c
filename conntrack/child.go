package conntrack

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// child is what matters of a connection that was expected.
type child struct {
	master Tuple // not valid if nobody expected it
	orig   Tuple
	id     uint32
	state  uint8 // enum tcp_conntrack
}

// eachChild calls fn with each TCP connection that was expected.
func (c *Conn) eachChild(fn func(child)) error {
	var e encoder
	e.family(unix.AF_UNSPEC)
	e.uint32(ctaStatus, statusExpected) // kernels before 5.17 do not know the filter, and send all
	e.uint32(ctaStatusMask, statusExpected)
	msgs, err := execute(c.dumps, unix.NFNL_SUBSYS_CTNETLINK, msgCTGet, netlink.Dump, e.b)
	if err != nil {
		return fmt.Errorf("conntrack: list data connections: %w", err)
	}
	for _, m := range msgs {
		e, err := decodeChild(m.Data)
		switch {
		case errors.Is(err, errNotTCP):
		case err != nil:
			return fmt.Errorf("conntrack: list data connections: %w", err)
		case e.master.valid():
			fn(e)
		}
	}
	return nil
}

func decodeChild(data []byte) (e child, err error) {
	ad, err := attributes(data)
	if err != nil {
		return e, fmt.Errorf("conntrack entry: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			ad.Nested(e.orig.decode)
		case ctaTupleMaster:
			ad.Nested(e.master.decode)
		case ctaID:
			e.id = ad.Uint32()
		case ctaProtoInfo:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				return tcpState(ad, func(state uint8) { e.state = state })
			})
		}
	}
	if err := ad.Err(); err != nil {
		return e, fmt.Errorf("conntrack entry: %w", err)
	}
	return e, nil
}

// Forget deletes the entries of the TCP connections that have come of an expectation, and returns how many there were. Their
// packets belong to no connection that is known from then on: rules that let nothing begin without a SYN end them.
func (c *Conn) Forget(x Expected) (n int, err error) {
	var came []child
	err = c.eachChild(func(e child) {
		anyHost := x.From.Addr().IsUnspecified()
		if e.master == x.Master && e.orig.Dst == x.To && (anyHost || e.orig.Src.Addr() == x.From.Addr()) {
			came = append(came, e)
		}
	})
	for _, e := range came {
		switch gone := c.forget(e); {
		case gone == nil:
			n++
		case !errors.Is(gone, ErrNotFound):
			err = errors.Join(err, fmt.Errorf("conntrack: forget %s to %s: %w", e.orig.Src, e.orig.Dst, gone))
		}
	}
	return n, err
}

func (c *Conn) forget(e child) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := c.beginEntry(msgCTDelete, e.orig)
	c.req.uint32(ctaID, e.id) // another connection may have the same ends by now
	c.req.end(start)
	return c.ask()
}
