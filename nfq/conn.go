package nfq

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"
)

const (
	// copyRange asks for whole packets: the kernel's limit, the longest that a netlink attribute can be.
	copyRange = 0xffff
	// receiveBuffer is the socket's. The default of 208 KiB holds about 90 packets of 1500 bytes as the kernel
	// accounts for them, far less than MaxLen, and then packets are lost with ENOBUFS.
	receiveBuffer = 16 << 20
	// messageMax holds the longest message: a packet of copyRange and its few attributes.
	messageMax = copyRange + 4096
	// maxPayload is the longest packet that fits a verdict's attribute, whose length field has 16 bits.
	maxPayload = 0xffff - attrLen
	// wakeInterval bounds how long a close can go unnoticed if the message that announces it is lost in a burst.
	wakeInterval = time.Second
)

// conn is one binding of a queue. The library opens, binds, configures and unbinds it. Packets and verdicts pass by
// the library: its loop takes two system calls and some 14 allocations to receive, and its verdict 10 more, which is
// more than all of the rest of ftpalg's work on a packet.
type conn struct {
	queue  *Queue
	nfq    *nfqueue.Nfqueue
	port   uint32 // netlink port of the socket
	cancel context.CancelFunc

	mu      sync.RWMutex // guards fd against a verdict after close: by then the number may be another file's
	fd      int          // -1 once closed
	closing atomic.Bool
	packet  Packet        // reused for every packet
	ended   chan struct{} // closed when nothing is received any more
	err     error         // why it ended; read only after that
}

// dial opens the socket, binds the queue and starts to receive.
func dial(q *Queue) (*conn, error) {
	config := nfqueue.Config{NfQueue: q.num, MaxPacketLen: copyRange, MaxQueueLen: q.opt.MaxLen, Copymode: nfqueue.NfQnlCopyPacket}
	if q.opt.FailOpen {
		config.Flags = nfqueue.NfQaCfgFlagFailOpen
	}
	lib, err := nfqueue.Open(&config)
	if err != nil {
		return nil, fmt.Errorf("queue %d: open a netlink socket: %w", q.num, err)
	}
	c := &conn{queue: q, nfq: lib, port: lib.Con.PID(), ended: make(chan struct{})}
	if err := c.socket(); err != nil {
		_ = lib.Close()
		return nil, fmt.Errorf("queue %d: set up the netlink socket: %w", q.num, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if err := lib.RegisterWithErrorFunc(ctx, c.hook, c.fault); err != nil {
		cancel()
		_ = lib.Close()
		return nil, bindError(q.num, err)
	}
	// The library's loop waits for its first packet. A deadline in the past ends that wait, and it calls fault,
	// which takes the loop's place.
	if err := lib.Con.SetReadDeadline(time.Unix(1, 0)); err != nil {
		cancel()
		_ = lib.Close()
		return nil, fmt.Errorf("queue %d: take the socket over: %w", q.num, err)
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

// socket learns the descriptor, and sets its receive buffer past net.core.rmem_max, as CAP_NET_ADMIN may.
func (c *conn) socket() error {
	raw, err := c.nfq.Con.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		c.fd = int(fd)
		interval := unix.NsecToTimeval(int64(wakeInterval))
		set = errors.Join(
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &interval))
	})
	return errors.Join(err, set)
}

// hook is called by the library for the packets that come before fault has taken the loop over.
func (c *conn) hook(a nfqueue.Attribute) int {
	if a.PacketID == nil {
		return 0
	}
	c.packet = Packet{ID: *a.PacketID}
	if a.Hook != nil {
		c.packet.Hook = *a.Hook
	}
	if a.Mark != nil {
		c.packet.Mark = *a.Mark
	}
	if a.Payload != nil {
		c.packet.Data = *a.Payload
	}
	c.queue.received.Add(1)
	c.queue.handler(&c.packet)
	return 0
}

// fault is called by the library when receiving fails, and dial sees to it that it does. It returns 0 to go on.
func (c *conn) fault(err error) int {
	switch {
	case errors.Is(err, unix.ENOBUFS):
		c.queue.overruns.Add(1)
		return 0
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = c.receive()
	}
	if !c.closing.Load() {
		c.err = fmt.Errorf("queue %d: receive: %w", c.queue.num, err)
	}
	close(c.ended)
	return 1
}

// verdict tells the kernel.
func (c *conn) verdict(id uint32, v Verdict) error {
	if len(v.Payload) > maxPayload {
		return fmt.Errorf("a packet of %d bytes; the kernel takes %d", len(v.Payload), maxPayload)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	*buf = appendVerdict((*buf)[:0], c.queue.num, id, v)
	return c.send(*buf)
}

// buffers are for verdicts; several goroutines may give one at a time.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// send writes a message to the kernel.
func (c *conn) send(message []byte) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return ErrClosed
	}
	for {
		if _, err := unix.Write(c.fd, message); err != unix.EINTR {
			return err
		}
	}
}

// close unbinds and waits until the handler runs no more. It may be called again.
func (c *conn) close() {
	c.closing.Store(true)
	_ = c.send(appendHeader(nil, unix.NLMSG_NOOP, unix.NLM_F_REQUEST|unix.NLM_F_ACK)) // the answer wakes receive
	<-c.ended
	c.mu.Lock()
	c.fd = -1
	c.mu.Unlock()
	c.cancel()
	_ = c.nfq.Close() // the kernel frees the queue with the socket, whatever the library may say
}
