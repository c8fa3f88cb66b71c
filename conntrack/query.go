package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Expectations lists the expectations for TCP connections over IPv4 and IPv6, whoever made them, with the time that
// each has left. Those of the kernel's own helpers may let any host in: then From's address is unspecified.
func (c *Conn) Expectations() ([]Expectation, error) {
	all, err := c.Expected()
	list := make([]Expectation, 0, len(all))
	for _, e := range all {
		if e.Protocol == unix.IPPROTO_TCP {
			list = append(list, e.Expectation)
		}
	}
	return list, err
}

// Expected lists what is expected under TCP connections, of any protocol. Who made it is not told.
func (c *Conn) Expected() ([]Expected, error) {
	var e encoder
	e.family(unix.AF_UNSPEC)
	msgs, err := execute(c.dumps, unix.NFNL_SUBSYS_CTNETLINK_EXP, msgExpGet, netlink.Dump, e.b)
	if err != nil {
		return nil, fmt.Errorf("conntrack: list expectations: %w", err)
	}
	list := make([]Expected, 0, len(msgs))
	for _, m := range msgs {
		m.Header.PID = 0 // ours, as we asked
		x, err := decodeExpected(m)
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

// Remove deletes what somebody else may have made conntrack expect. The error is ErrNotFound if it is gone.
func (c *Conn) Remove(e Expected) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
	c.seq++
	c.n++
	start := c.req.begin(unix.NFNL_SUBSYS_CTNETLINK_EXP, msgExpDelete, netlink.Acknowledge, c.seq)
	c.req.family(familyOf(e.To.Addr()))
	c.req.bytes(ctaExpectTuple|unix.NLA_F_NESTED, e.tuple)
	c.req.end(start)
	if err := c.ask(); err != nil {
		return describe("remove", &e.Expectation, err)
	}
	return nil
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
	if err := t.normalise(); err != nil {
		return Entry{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.req.end(c.beginEntry(msgCTGet, t))
	if err := c.ask(); err != nil {
		return Entry{}, err
	}
	e, err := decodeEntry(c.reply)
	return e.notReset(time.Duration(c.life.Load())), err
}

// SetMark changes those bits of a TCP connection's connmark that are set in mask, to what they are in mark. Connections that
// are expected of it inherit the whole connmark when they begin. The tuple is as for Lookup. The error is ErrNotFound if
// conntrack does not know the connection.
func (c *Conn) SetMark(t Tuple, mark, mask uint32) error {
	if err := c.setMark(t, markChange{mark, mask}); err != nil {
		return describeMark(t, mark, mask, err)
	}
	return nil
}

func describeMark(t Tuple, mark, mask uint32, err error) error {
	return fmt.Errorf("conntrack: set mark %#x/%#x of %s to %s: %w", mark, mask, t.Src, t.Dst, err)
}

func (c *Conn) setMark(t Tuple, m markChange) error {
	if err := errors.Join(m.check(), t.normalise()); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	start := c.beginEntry(msgCTNew, t)
	m.append(&c.req)
	c.req.end(start)
	return c.ask()
}

// markChange is a change of some bits of a connmark.
type markChange struct{ value, mask uint32 }

func (m markChange) check() error {
	if m.value&^m.mask != 0 {
		return fmt.Errorf("%w: the mark has bits that its mask has not", ErrInvalid) // the kernel would toggle them
	}
	return nil
}

func (m markChange) append(e *encoder) {
	e.uint32(ctaMark, m.value)
	e.uint32(ctaMarkMask, m.mask)
}

// beginEntry begins a request about one connection that is there, and returns where it starts, for end.
func (c *Conn) beginEntry(msg uint8, t Tuple) (start int) {
	c.reset()
	c.seq++
	c.n++
	start = c.req.begin(unix.NFNL_SUBSYS_CTNETLINK, msg, netlink.Acknowledge, c.seq)
	c.req.family(familyOf(t.Src.Addr()))
	c.req.tuple(ctaTupleOrig, t)
	return start
}

// ask sends a request of one message, the answer to which may be that what it is about is not there.
func (c *Conn) ask() error {
	errs, err := c.exchange()
	if err == nil && errs[0] != 0 {
		err = explain(errs[0], ErrNotFound)
	}
	return err
}

// normalise turns IPv4-mapped addresses into IPv4, as conntrack keeps them.
func (t *Tuple) normalise() error {
	t.Src = netip.AddrPortFrom(t.Src.Addr().Unmap(), t.Src.Port())
	t.Dst = netip.AddrPortFrom(t.Dst.Addr().Unmap(), t.Dst.Port())
	if !t.valid() {
		return fmt.Errorf("%w: both ends must be addresses of one family", ErrInvalid)
	}
	return nil
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
