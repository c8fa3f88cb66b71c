package nfq

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"
)

const (
	// copyRange asks for whole packets: the kernel's limit, the longest that a netlink attribute can be.
	copyRange = 0xffff
	// receiveBuffer is the socket's. The default of 208 KiB holds about 90 packets of 1500 bytes as the kernel
	// accounts for them, far less than MaxLen, and then packets are lost with ENOBUFS.
	receiveBuffer = 16 << 20
)

// conn is one binding of a queue: the library's socket and the goroutine that receives from it.
type conn struct {
	queue  *Queue
	nfq    *nfqueue.Nfqueue
	port   uint32 // netlink port of the socket
	cancel context.CancelFunc
	packet Packet        // reused for every packet
	ended  chan struct{} // closed when nothing is received any more
	err    error         // why it ended; read only after that
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
	if err := c.enlargeBuffer(); err != nil {
		q.opt.Logger.Warn("receive buffer not enlarged: bursts may be lost", "queue", q.num, "err", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if err := lib.RegisterWithErrorFunc(ctx, c.hook, c.fault); err != nil {
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

// enlargeBuffer sets the receive buffer past net.core.rmem_max, as CAP_NET_ADMIN may.
func (c *conn) enlargeBuffer() error {
	raw, err := c.nfq.Con.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	return errors.Join(err, set)
}

// hook is called by the library with each packet.
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

// fault is called by the library when receiving fails. It returns 0 to go on.
func (c *conn) fault(err error) int {
	if errors.Is(err, unix.ENOBUFS) {
		c.queue.overruns.Add(1)
		return 0
	}
	c.err = fmt.Errorf("queue %d: receive: %w", c.queue.num, err)
	close(c.ended)
	return 1
}

// verdict tells the kernel.
func (c *conn) verdict(id uint32, v Verdict) error {
	var options []nfqueue.VerdictOption
	if v.SetMark {
		options = append(options, nfqueue.WithMark(v.Mark))
	}
	if v.Payload != nil {
		options = append(options, nfqueue.WithAlteredPacket(v.Payload))
	}
	what := nfqueue.NfDrop
	if v.Accept {
		what = nfqueue.NfAccept
	}
	return c.nfq.SetVerdictWithOption(id, what, options...)
}

// close unbinds and waits until the handler runs no more. It may be called again.
func (c *conn) close() {
	c.cancel()
	_ = c.nfq.Close() // the kernel frees the queue with the socket, whatever the library may say
}
