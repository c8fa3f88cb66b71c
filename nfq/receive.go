package nfq

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// receive reads packets until the conn closes or fails. The descriptor blocks meanwhile: the thread sleeps in the
// kernel and is woken by it directly, where Go's poller would add a wake-up of its own to each packet.
func (c *conn) receive() error {
	if err := unix.SetNonblock(c.fd, false); err != nil {
		return err
	}
	buf := make([]byte, messageMax)
	for !c.closing.Load() {
		n, err := unix.Read(c.fd, buf)
		switch err {
		case nil:
			c.dispatch(buf[:n])
		case unix.ENOBUFS:
			c.queue.overruns.Add(1)
		case unix.EINTR, unix.EAGAIN: // a signal to the Go runtime, or wakeInterval
		default:
			return err
		}
	}
	// The library unbinds next, and needs its socket as it was.
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return err
	}
	return c.nfq.Con.SetReadDeadline(time.Time{})
}

// dispatch hands on the packets of one read. Only the kernel and CAP_NET_ADMIN can write to this socket.
func (c *conn) dispatch(data []byte) {
	for len(data) > 0 {
		message, rest, err := nextMessage(data)
		if err != nil {
			c.queue.opt.Logger.Error("netlink message not understood", "queue", c.queue.num, "err", err)
			return
		}
		data = rest
		switch messageType(message) {
		case typePacket:
			c.deliver(message)
		case unix.NLMSG_ERROR: // an answer to a verdict or to close; a verdict that failed has lost its packet already
			if errno := messageErrno(message); errno != 0 {
				c.queue.opt.Logger.Warn("the kernel refused a verdict", "queue", c.queue.num, "err", errno)
			}
		}
	}
}

// deliver calls the handler. What is neither IPv4 nor IPv6 (a bridge may queue ARP) is dropped here.
func (c *conn) deliver(message []byte) {
	family, err := parsePacket(message, &c.packet)
	if err != nil {
		c.queue.opt.Logger.Error("queued packet not understood", "queue", c.queue.num, "err", err)
		return
	}
	c.queue.received.Add(1)
	if family != unix.AF_INET && family != unix.AF_INET6 {
		if err := c.queue.Verdict(c.packet.ID, Verdict{}); err != nil {
			c.queue.opt.Logger.Error("packet not dropped", "queue", c.queue.num, "err", fmt.Errorf("family %d: %w", family, err))
		}
		return
	}
	c.queue.handler(&c.packet)
}
