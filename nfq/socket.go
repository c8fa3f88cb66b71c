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

	buf     []byte
	asked   bool     // a request has not been answered yet; only the library's own calls change it
	backlog [][]byte // packets that came between a request and its answer
}

// openSocket opens the socket. serve is called in the place of the library's receive loop.
func openSocket(serve func() error) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, serve: serve, buf: make([]byte, messageMax)}
	if err := s.setUp(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return s, nil
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

// read waits for one datagram, wakeInterval at most; so long can Close have to wait.
func (s *socket) read() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return nil, ErrClosed
	}
	n, err := unix.Read(s.fd, s.buf)
	if err != nil {
		return nil, err
	}
	return s.buf[:n], nil
}

// write sends one message to the kernel, which works it off before the call returns. That is not blocking, so the Go
// scheduler is not told: having slept in read, this goroutine would be put aside once more.
func (s *socket) write(message []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return ErrClosed
	}
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&message[0])), uintptr(len(message)))
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
		data, err := s.read()
		if err == unix.EINTR || err == unix.ENOBUFS {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(data) >= headerLen && messageType(data) == typePacket {
			s.backlog = append(s.backlog, bytes.Clone(data))
			continue
		}
		var m netlink.Message
		if err := m.UnmarshalBinary(bytes.Clone(data)); err != nil {
			return nil, err
		}
		return []netlink.Message{m}, nil
	}
}
