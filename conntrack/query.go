package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Expectations lists the expectations for TCP connections over IPv4 and IPv6, whoever made them, with the time that
// each has left. Those of the kernel's own helpers may let any host in: then From's address is unspecified.
func (c *Conn) Expectations() ([]Expectation, error) {
	var e encoder
	e.family(unix.AF_UNSPEC)
	msgs, err := execute(c.dumps, unix.NFNL_SUBSYS_CTNETLINK_EXP, msgExpGet, netlink.Dump, e.b)
	if err != nil {
		return nil, fmt.Errorf("conntrack: list expectations: %w", err)
	}
	list := make([]Expectation, 0, len(msgs))
	for _, m := range msgs {
		x, err := decodeExpectation(m.Data)
		switch {
		case errors.Is(err, errNotTCP):
		case err != nil:
			return nil, fmt.Errorf("conntrack: list expectations: %w", err)
		default:
			list = append(list, x)
		}
	}
	return list, nil
}

// Lookup finds a TCP connection by the tuple of its original direction; that of its reply direction finds it as well.
func (c *Conn) Lookup(t Tuple) (Entry, error) {
	e, err := c.lookup(t)
	if err != nil {
		return Entry{}, fmt.Errorf("conntrack: look up %s to %s: %w", t.Src, t.Dst, err)
	}
	return e, nil
}

func (c *Conn) lookup(t Tuple) (Entry, error) {
	t.Src = netip.AddrPortFrom(t.Src.Addr().Unmap(), t.Src.Port())
	t.Dst = netip.AddrPortFrom(t.Dst.Addr().Unmap(), t.Dst.Port())
	if !t.valid() {
		return Entry{}, fmt.Errorf("%w: both ends must be addresses of one family", ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
	c.seq++
	c.n++
	start := c.req.begin(unix.NFNL_SUBSYS_CTNETLINK, msgCTGet, netlink.Acknowledge, c.seq)
	c.req.family(familyOf(t.Src.Addr()))
	c.req.tuple(ctaTupleOrig, t)
	c.req.end(start)
	errs, err := c.exchange()
	switch {
	case err != nil:
		return Entry{}, err
	case errs[0] != 0:
		return Entry{}, explain(errs[0], ErrNotFound)
	}
	return decodeEntry(c.reply)
}

// execute sends one request through nl and gives the answers.
func execute(nl *netlink.Conn, subsystem, msg uint8, flags netlink.HeaderFlags, data []byte) ([]netlink.Message, error) {
	msgs, err := nl.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(uint16(subsystem)<<8 | uint16(msg)),
			Flags: netlink.Request | flags,
		},
		Data: data,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return msgs, err
}
