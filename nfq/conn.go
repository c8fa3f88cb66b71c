package nfq

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// copyRange asks for whole packets: the kernel's limit, the longest that a netlink attribute can be.
	copyRange = 0xffff
	// maxPayload is the longest packet that fits a verdict's attribute, whose length field has 16 bits.
	maxPayload = 0xffff - attrLen
)

// errEnded ends the library's loop when the conn closes.
var errEnded = errors.New("closed")

// conn is one binding of a queue. The library binds, configures and unbinds it. Packets and verdicts pass by the
// library: its loop takes two system calls and some 14 allocations to receive and its verdict 10 more, which is more
// than all of the rest of ftpalg's work on a packet.
type conn struct {
	queue   *Queue
	nfq     *nfqueue.Nfqueue
	socket  *socket
	cancel  context.CancelFunc
	closing atomic.Bool
	packet  Packet // reused for every packet
	batch   batch
	ended   chan struct{} // closed when nothing is received any more
	err     error         // why it ended; read only after that
}

// dial binds the queue, with what is optional only if the kernel has it.
func dial(q *Queue) (*conn, error) {
	const attempts = 2 // EAGAIN means that the module was loaded just now, and that the request should come again
	for range attempts {
		if !q.opt.Conntrack {
			break
		}
		c, err := bind(q, nfqueue.NfQaCfgFlagConntrack)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EOPNOTSUPP) {
			q.conntrack.Store(err == nil)
			return c, err
		}
	}
	return bind(q, 0)
}

// bind opens the socket, binds the queue and starts to receive.
func bind(q *Queue, flags uint32) (*conn, error) {
	config := nfqueue.Config{NfQueue: q.num, MaxPacketLen: copyRange, MaxQueueLen: q.opt.MaxLen, Copymode: nfqueue.NfQnlCopyPacket, Flags: flags}
	if q.opt.FailOpen {
		config.Flags |= nfqueue.NfQaCfgFlagFailOpen
	}
	lib, err := nfqueue.Open(&config)
	if err != nil {
		return nil, fmt.Errorf("queue %d: open a netlink socket: %w", q.num, err)
	}
	c := &conn{queue: q, nfq: lib, ended: make(chan struct{})}
	c.batch.send = c.send
	if c.socket, err = openSocket(q.opt.Batch, c.receive); err != nil {
		_ = lib.Close()
		return nil, fmt.Errorf("queue %d: set up a netlink socket: %w", q.num, err)
	}
	_ = lib.Con.Close() // the library's own, which Go polls
	lib.Con = netlink.NewConn(c.socket, c.socket.port)
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if err := lib.RegisterWithErrorFunc(ctx, func(nfqueue.Attribute) int { return 0 }, c.fault); err != nil {
		cancel()
		_ = lib.Close()
		return nil, bindError(q.num, err)
	}
	return c, nil
}

// bindError explains a failed bind. The kernel answers EPERM when another socket has the queue, as it does without
// CAP_NET_ADMIN.
func bindError(num uint16, err error) error {
	if entry, found, _ := lookup(num); found {
		return fmt.Errorf("%w: %s: stop that process, or choose other queue numbers (%w)", ErrTaken, entry.Owner(), err)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("queue %d: bind: %w: run as root, or with CAP_NET_ADMIN", num, err)
	}
	return fmt.Errorf("queue %d: bind: %w", num, err)
}

// fault is called by the library when receive has returned; it ends the library's loop, which unbinds then.
func (c *conn) fault(err error) int {
	if !errors.Is(err, errEnded) {
		c.err = fmt.Errorf("queue %d: receive: %w", c.queue.num, err)
	}
	close(c.ended)
	return 1
}

// receive reads packets until the conn closes or fails.
func (c *conn) receive() error {
	c.decide(c.socket.backlog)
	c.socket.backlog = nil
	for !c.closing.Load() {
		read, err := c.socket.read()
		switch err {
		case nil:
			c.decide(read)
		case unix.ENOBUFS:
			c.queue.overruns.Add(1)
		case unix.EINTR, unix.EAGAIN: // a signal to the Go runtime, or wakeInterval
		default:
			return err
		}
	}
	return errEnded
}

// decide hands on what was read together, and sends the verdicts that have waited for that.
func (c *conn) decide(read [][]byte) {
	if len(read) > 1 {
		c.batch.begin()
	}
	for _, data := range read {
		c.dispatch(data)
	}
	if err := c.batch.end(); err != nil {
		c.queue.opt.Logger.Error("verdicts not given", "queue", c.queue.num, "err", err)
	}
}

// dispatch hands on the packets of one datagram. Only the kernel and holders of CAP_NET_ADMIN can write to this socket.
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
	if family == unix.AF_INET || family == unix.AF_INET6 {
		c.queue.handler(&c.packet)
	} else if err := c.queue.Verdict(c.packet.ID, Verdict{}); err != nil {
		c.queue.opt.Logger.Error("packet not dropped", "family", family, "err", err)
	}
}

// verdict tells the kernel, at once or with others.
func (c *conn) verdict(id uint32, v Verdict) error {
	if len(v.Payload) > maxPayload {
		return fmt.Errorf("a packet of %d bytes; the kernel takes %d", len(v.Payload), maxPayload)
	}
	return c.batch.add(c.queue.num, id, v)
}

// send tells the kernel of some verdicts.
func (c *conn) send(messages []byte, count uint64) error {
	if err := c.socket.write(messages); err != nil {
		return err
	}
	c.queue.verdicts.Add(count)
	return nil
}

// close unbinds and waits until the handler runs no more. It may be called again.
func (c *conn) close() {
	c.closing.Store(true)
	_ = c.socket.write(appendHeader(nil, unix.NLMSG_NOOP, unix.NLM_F_REQUEST|unix.NLM_F_ACK)) // the answer wakes receive
	<-c.ended
	c.cancel()
	_ = c.nfq.Close() // the kernel frees the queue with the socket, whatever the library may say
}
