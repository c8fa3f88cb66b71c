package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Connections lists the TCP connections, over IPv4 and IPv6, that were opened to a port that wanted says yes to.
func (c *Conn) Connections(wanted func(netip.AddrPort) bool) ([]Entry, error) {
	var e encoder
	e.family(unix.AF_UNSPEC)
	msgs, err := execute(c.dumps, unix.NFNL_SUBSYS_CTNETLINK, msgCTGet, netlink.Dump, e.b)
	if err != nil {
		return nil, fmt.Errorf("conntrack: list connections: %w", err)
	}
	life := time.Duration(c.life.Load())
	var list []Entry
	for _, m := range msgs {
		entry, err := decodeEntry(m.Data)
		switch {
		case errors.Is(err, errNotTCP):
		case err != nil:
			return nil, fmt.Errorf("conntrack: list connections: %w", err)
		case wanted(entry.Orig.Dst):
			list = append(list, entry.notReset(life))
		}
	}
	return list, nil
}
