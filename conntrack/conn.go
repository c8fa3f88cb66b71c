// Package conntrack speaks ctnetlink: it installs, withdraws and lists expectations, looks control connections up,
// reports the end of connections, and finds or registers the helper that expectations hang on.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxBatch is the number of messages in the longest request: delete, create, set the timeout.
	maxBatch = 3
	// requestCap holds maxBatch messages about IPv6, the longest of them 256 bytes, so that the buffer never grows.
	requestCap = 1024
	// ackWait bounds the wait for an answer. The kernel answers within the send call, so that this is never reached
	// unless the answer was lost.
	ackWait = 1 // seconds
	// maxTimeout bounds a pinhole's life; what stands for longer is a rule and not a pinhole.
	maxTimeout = 24 * time.Hour
)

// Conn talks to the connection tracking of one network namespace. It is safe for concurrent use. One request is under
// way at a time: the kernel serialises ctnetlink requests under a mutex of its own, so more sockets would wait there.
// Requests use a blocking socket of our own and not netlink.Conn, which takes twice the time and 40 allocations, and
// waits for ever after a single entry, since ctnetlink marks it as part of a list.
type Conn struct {
	port uint32       // the netlink port of fd
	life atomic.Int64 // how long conntrack keeps an established connection in which nothing is sent, a time.Duration

	mu     sync.Mutex
	fd     int // -1 once closed
	seq    uint32
	req    encoder
	n      uint32     // messages in req
	answer [4096]byte // one datagram; an entry takes a few hundred bytes
	reply  []byte

	dumps *netlink.Conn // lists can be long and must not hold up mu
}

// Dial connects to the connection tracking of the calling thread's network namespace.
func Dial() (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: open a netlink socket: %w", err)
	}
	fd, port, err := dialKernel()
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("conntrack: open a netlink socket: %w", err)
	}
	c := &Conn{port: port, fd: fd, dumps: nl, req: encoder{make([]byte, 0, requestCap)}}
	life, err := EstablishedTimeout()
	if err != nil {
		life = math.MaxInt64 // an entry that is nearly forgotten counts as reset then
	}
	c.life.Store(int64(life))
	return c, nil
}

// Port is the netlink port that events give as the writer of what this Conn has made.
func (c *Conn) Port() uint32 { return c.port }

// dialKernel opens the blocking socket of the hot path. It is connected to the kernel's port 0, so that no other
// process can send to it. Answers leave out the message they answer.
func dialKernel() (fd int, port uint32, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, 0, fmt.Errorf("socket: %w", err)
	}
	err = errors.Join(
		os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})),
		os.NewSyscallError("NETLINK_CAP_ACK", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)),
		os.NewSyscallError("SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: ackWait})),
	)
	if err == nil { // connecting has bound it
		var own unix.Sockaddr
		if own, err = unix.Getsockname(fd); err == nil {
			return fd, own.(*unix.SockaddrNetlink).Pid, nil
		}
		err = os.NewSyscallError("getsockname", err)
	}
	unix.Close(fd)
	return -1, 0, err
}

// Close releases the sockets. Expectations stay until they are used or time out.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return fmt.Errorf("conntrack: close: %w", os.ErrClosed)
	}
	err := errors.Join(unix.Close(c.fd), c.dumps.Close())
	c.fd = -1
	return err
}

// Expect installs an expectation which lives for x.Timeout, and returns when it stands. An expectation for the same
// end points is replaced, whichever control connection announced it: the later announcement is the valid one, unless
// x is exclusive. On an error nothing stands that did not stand before, unless the error says otherwise.
func (c *Conn) Expect(x Expectation) error {
	if err := x.normalise(); err != nil {
		return describe("expect", &x, err)
	}
	if x.Timeout <= 0 || x.Timeout > maxTimeout {
		return describe("expect", &x, fmt.Errorf("%w: timeout %v is not within 0 and %v", ErrInvalid, x.Timeout, maxTimeout))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.install(&x); err != nil {
		return describe("expect", &x, err)
	}
	return nil
}

// install creates the expectation and gives it its timeout in one system call: the kernel ignores the timeout on
// creation, and takes it from a second message without NLM_F_EXCL. Only the last message asks for an answer, since
// errors are answered always; so success costs one send and one receive.
func (c *Conn) install(x *Expectation) error {
	c.reset()
	c.add(msgExpNew, netlink.Create|netlink.Excl, x)
	c.add(msgExpNew, netlink.Acknowledge, x)
	errs, err := c.exchange()
	created, timed := errs[0], errs[1]
	if err == nil && created == unix.EEXIST && x.Exclusive {
		return explain(unix.EBUSY, ErrNoMaster)
	}
	if err == nil && created == unix.EEXIST {
		c.reset()
		c.add(msgExpDelete, 0, x) // its failure means that the old one went by itself just now
		c.add(msgExpNew, netlink.Create|netlink.Excl, x)
		c.add(msgExpNew, netlink.Acknowledge, x)
		errs, err = c.exchange()
		created, timed = errs[1], errs[2]
	}
	switch {
	case err == nil && created != 0:
		return explain(created, ErrNoMaster)
	case err == nil && timed == 0:
		return nil
	case err == nil:
		err = fmt.Errorf("set CTA_EXPECT_TIMEOUT: %w", timed)
	}
	// The expectation may stand now, with its helper's own and far longer timeout.
	if undo := c.remove(x); undo != nil && !errors.Is(undo, ErrNotFound) {
		err = fmt.Errorf("%w; it may still stand, since taking it back failed: %w", err, undo)
	}
	return err
}

// Withdraw deletes the expectation for x's end points. The error is ErrNotFound if it was used or timed out already.
func (c *Conn) Withdraw(x Expectation) error {
	if err := x.normalise(); err != nil {
		return describe("withdraw", &x, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.remove(&x); err != nil {
		return describe("withdraw", &x, err)
	}
	return nil
}

func (c *Conn) remove(x *Expectation) error {
	c.reset()
	c.add(msgExpDelete, netlink.Acknowledge, x)
	return c.ask()
}

func (c *Conn) reset() { c.req.b, c.n = c.req.b[:0], 0 }

// add appends a message about x to the request.
func (c *Conn) add(msg uint8, flags netlink.HeaderFlags, x *Expectation) {
	c.seq++
	c.n++
	start := c.req.begin(unix.NFNL_SUBSYS_CTNETLINK_EXP, msg, flags, c.seq)
	if msg == msgExpDelete {
		c.req.expectationKey(x)
	} else {
		c.req.expectation(x)
	}
	c.req.end(start)
}

// exchange sends the request and reads answers until that to its last message, which must ask for one. It returns
// each message's errno, 0 for success, and leaves what the kernel told beside that in c.reply.
func (c *Conn) exchange() (errs [maxBatch]unix.Errno, err error) {
	if c.fd < 0 {
		return errs, os.ErrClosed
	}
	if _, err := unix.Write(c.fd, c.req.b); err != nil {
		return errs, fmt.Errorf("send to the kernel: %w", err)
	}
	first := c.seq - c.n + 1
	c.reply = c.reply[:0]
	for {
		n, err := unix.Read(c.fd, c.answer[:])
		if err == unix.EINTR {
			continue // SO_RCVTIMEO turns off the restart of an interrupted read.
		}
		if err != nil {
			return errs, fmt.Errorf("receive the kernel's answer: %w", err)
		}
		a, err := decodeAnswer(c.answer[:n])
		if err != nil {
			return errs, err
		}
		at := a.seq - first
		switch {
		case at >= c.n:
			// An answer to an earlier request, left behind by one that failed half way. It means nothing any more.
		case !a.ack:
			c.reply = append(c.reply, a.data...)
		default:
			errs[at] = a.errno
			if a.seq == c.seq {
				return errs, nil
			}
		}
	}
}

// answer is one message from the kernel: an acknowledgement or data.
type answer struct {
	seq   uint32     // of the request
	ack   bool       // NLMSG_ERROR, which is what an acknowledgement is called
	errno unix.Errno // 0 for success
	data  []byte
}

func decodeAnswer(b []byte) (answer, error) {
	if len(b) < headerLen {
		return answer{}, fmt.Errorf("the kernel's answer is %d bytes, less than a header", len(b))
	}
	length := binary.NativeEndian.Uint32(b)
	if length < headerLen || length > uint32(len(b)) {
		return answer{}, fmt.Errorf("the kernel's answer gives %d bytes as its length and has %d", length, len(b))
	}
	a := answer{seq: binary.NativeEndian.Uint32(b[8:]), data: b[headerLen:length]}
	if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
		if len(a.data) < 4 {
			return answer{}, fmt.Errorf("the kernel's acknowledgement has %d bytes and no error number", len(a.data))
		}
		a.ack, a.errno = true, unix.Errno(-int32(binary.NativeEndian.Uint32(a.data)))
	}
	return a, nil
}

// normalise checks what the kernel would misread, and turns IPv4-mapped addresses into IPv4: conntrack keeps the
// family that is on the wire.
func (x *Expectation) normalise() error {
	for _, p := range [...]*netip.AddrPort{&x.Master.Src, &x.Master.Dst, &x.From, &x.To, &x.Real} {
		if p == &x.Real && !p.IsValid() {
			break
		}
		*p = netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
		a := p.Addr()
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.Zone() != "":
			return fmt.Errorf("%w: %s is not the address of a host (no zone, not unspecified)", ErrInvalid, a)
		case a.Is4() != x.Master.Src.Addr().Is4():
			return fmt.Errorf("%w: %s and %s are of different address families", ErrInvalid, x.Master.Src.Addr(), a)
		case p.Port() == 0 && p != &x.From:
			return fmt.Errorf("%w: port 0 at %s", ErrInvalid, a)
		}
	}
	return nil
}

func describe(verb string, x *Expectation, err error) error {
	return fmt.Errorf("conntrack: %s %s to %s, announced by %s to %s: %w",
		verb, x.From, x.To, x.Master.Src, x.Master.Dst, err)
}
