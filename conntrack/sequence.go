package conntrack

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
)

// ErrNoAdjustment means that conntrack moves no sequence numbers of a connection: it has no NAT, or no helper since its SYN.
var ErrNoAdjustment = errors.New("conntrack does not move its sequence numbers (it needs NAT, and a helper since its first packet)")

// statusAdjusts is IPS_SEQ_ADJUST: the kernel moves the connection's sequence numbers.
const statusAdjusts = 1 << 6

// Adjustment is how conntrack moves the sequence numbers of one direction, and back those that the other side acknowledges.
type Adjustment struct {
	Position      uint32 // the sender's number of the last byte that moves by Before; those behind it move by After
	Before, After int32
}

// AdjustSequence has the kernel move sequence numbers of a TCP connection from now on: of what comes from its server if reply is
// set, and else of what comes from its client. When it returns the kernel does so. The tuple is as for Lookup.
func (c *Conn) AdjustSequence(t Tuple, reply bool, a Adjustment) error {
	err := c.adjust(t, reply, a)
	if err == nil {
		var e Entry
		if e, err = c.lookup(t); err == nil && e.Status&statusAdjusts == 0 {
			err = ErrNoAdjustment // the kernel says that it has done it, and has not
		}
	}
	if err != nil {
		return describeAdjustment(t, err)
	}
	return nil
}

// decode reads a nested CTA_SEQ_ADJ_* attribute.
func (a *Adjustment) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case ctaSeqAdjPosition:
			a.Position = ad.Uint32()
		case ctaSeqAdjBefore:
			a.Before = int32(ad.Uint32())
		case ctaSeqAdjAfter:
			a.After = int32(ad.Uint32())
		}
	}
	return nil
}

func describeAdjustment(t Tuple, err error) error {
	return fmt.Errorf("conntrack: adjust sequence numbers of %s to %s: %w", t.Src, t.Dst, err)
}

func (c *Conn) adjust(t Tuple, reply bool, a Adjustment) error {
	if err := t.normalise(); err != nil {
		return err
	}
	direction := uint16(ctaSeqAdjOrig)
	if reply {
		direction = ctaSeqAdjReply
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	start := c.beginEntry(msgCTNew, t)
	nest := c.req.nest(direction)
	c.req.uint32(ctaSeqAdjPosition, a.Position)
	c.req.uint32(ctaSeqAdjBefore, uint32(a.Before))
	c.req.uint32(ctaSeqAdjAfter, uint32(a.After))
	c.req.close(nest)
	c.req.end(start)
	return c.ask()
}
