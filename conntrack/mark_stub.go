package conntrack

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func (c *Conn) SetMark(t Tuple, mark, mask uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
	c.seq++
	c.n++
	start := c.req.begin(unix.NFNL_SUBSYS_CTNETLINK, msgCTNew, netlink.Acknowledge, c.seq)
	c.req.family(familyOf(t.Src.Addr()))
	c.req.tuple(ctaTupleOrig, t)
	c.req.uint32(ctaMark, mark)
	c.req.uint32(21, mask)
	c.req.end(start)
	errs, err := c.exchange()
	if err == nil && errs[0] != 0 {
		return explain(errs[0], ErrNotFound)
	}
	return err
}
