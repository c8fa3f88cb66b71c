package nfq

import (
	"bytes"
	"iter"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer is the socket's. The default of 208 KiB holds about 90 packets of 1500 bytes as the kernel
	// accounts for them, far less than MaxLen, and then packets are lost with ENOBUFS.
	receiveBuffer = 16 << 20
	// messageMax holds the longest message: a packet of copyRange and its few attributes.
	messageMax = copyRange + 4096
	// wakeInterval bounds how long a close can go unnoticed if the message that announces it is lost in a burst, and
	// how long the kernel may take to answer a request.
	wakeInterval = time.Second
)

// socket is the netlink socket under the library, which finds a netlink.Socket in it. It blocks and Go's poller does
// not know it: the poller's thread would be woken by each packet as well as the thread that waits for it here, and a
// round trip through the queue would take half as long again.
type socket struct {
	port  uint32 // netlink port
	serve func() error

	mu sync.RWMutex // guards fd against a use after Close: by then the number may be another file's
	fd int          // -1 once closed

	messages []unix.Mmsghdr // what one read fills: each message has a buffer
	buffers  [][]byte
	got      [][]byte // what the last read filled of them

	asked   bool     // a request has not been answered yet; only the library's own calls change it
	backlog [][]byte // packets that came between a request and its answer
}

// openSocket opens the socket, to read up to batch messages at a time. serve is called in the place of the library's receive
// loop.
func openSocket(batch int, serve func() error) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	s := newSocket(fd, batch, serve)
	if err := s.setUp(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func newSocket(fd, batch int, serve func() error) *socket {
	s := &socket{
		fd: fd, serve: serve,
		messages: make([]unix.Mmsghdr, batch), buffers: make([][]byte, batch), got: make([][]byte, 0, batch),
	}
	vectors := make([]unix.Iovec, batch)
	for i := range s.messages {
		s.buffers[i] = make([]byte, messageMax) // pages that no packet reaches take no memory
		vectors[i].Base = &s.buffers[i][0]
		vectors[i].SetLen(messageMax)
		s.messages[i].Hdr.Iov = &vectors[i]
		s.messages[i].Hdr.SetIovlen(1)
	}
	return s
}

// setUp binds the socket to a port of the kernel's choice, and sets its receive buffer past net.core.rmem_max, as
// CAP_NET_ADMIN may.
func (s *socket) setUp() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	s.port = name.(*unix.SockaddrNetlink).Pid
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return err
	}
	interval := unix.NsecToTimeval(int64(wakeInterval))
	return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &interval)
}

// read waits for a datagram, wakeInterval at most; so long can Close have to wait. What waits behind it comes along. The
// datagrams are valid until the next call.
func (s *socket) read() ([][]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return nil, ErrClosed
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages[0])), uintptr(len(s.messages)),
		unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	s.got = s.got[:0]
	for i := range int(n) {
		s.got = append(s.got, s.buffers[i][:s.messages[i].Len])
	}
	return s.got, nil
}

// write sends messages to the kernel, which works them off before the call returns. That is not blocking, so the Go
// scheduler is not told: having slept in read, this goroutine would be put aside once more.
func (s *socket) write(messages []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return ErrClosed
	}
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// Close implements netlink.Socket.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

// Send implements netlink.Socket, for the library's requests.
func (s *socket) Send(m netlink.Message) error {
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	s.asked = true
	return s.write(b)
}

// SendMessages implements netlink.Socket.
func (s *socket) SendMessages(messages []netlink.Message) error {
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Receive implements netlink.Socket. The library calls it for the answer to a request, and without one in its receive
// loop; that call serves the queue until it closes.
func (s *socket) Receive() ([]netlink.Message, error) {
	if !s.asked {
		return nil, s.serve()
	}
	s.asked = false
	return s.answer()
}

// ReceiveIter implements netlink.Socket.
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		messages, err := s.Receive()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		for _, m := range messages {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// answer reads the answer to a request. Where rules stand from before a restart, packets come in as soon as the queue is
// bound; they are kept for serve.
func (s *socket) answer() ([]netlink.Message, error) {
	for {
		read, err := s.read()
		if err == unix.EINTR || err == unix.ENOBUFS {
			continue
		}
		if err != nil {
			return nil, err
		}
		var answer []netlink.Message
		for _, data := range read {
			data = bytes.Clone(data)
			if len(data) >= headerLen && messageType(data) == typePacket {
				s.backlog = append(s.backlog, data)
				continue
			}
			var m netlink.Message
			if err := m.UnmarshalBinary(data); err != nil {
				return nil, err
			}
			answer = append(answer, m)
		}
		if len(answer) > 0 {
			return answer, nil
		}
	}
}
