package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ioTimeout bounds every read, write and connect, so that a packet that is never let go ends the benchmark.
const ioTimeout = 10

// stream is a TCP connection whose calls block in the kernel. Go's poller does not know it: the poller's thread would be
// woken at each end as well as the thread that waits, and a command's round trip would measure that.
type stream struct{ fd int }

// prepare sets what every connection here has: no Nagle, which would hold a reply back, and a bound on every call.
func prepare(fd int) error {
	limit := unix.Timeval{Sec: ioTimeout}
	return errors.Join(
		os.NewSyscallError("TCP_NODELAY", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)),
		os.NewSyscallError("SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)),
		os.NewSyscallError("SO_SNDTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)))
}

func address(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// dial connects from the network namespace of the calling thread, from a certain port unless it is 0.
func dial(from uint16, to netip.AddrPort) (*stream, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = prepare(fd); err == nil && from != 0 {
		err = bind(fd, netip.AddrPortFrom(netip.IPv4Unspecified(), from))
	}
	if err == nil {
		err = os.NewSyscallError("connect", connect(fd, to))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return &stream{fd}, nil
}

// connect waits for the connection also if a signal of the Go runtime's interrupts the call (connect(2), EINTR).
func connect(fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, address(to))
	if err != unix.EINTR {
		return err
	}
	for err == unix.EINTR {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, ioTimeout*1000)
	}
	if code, e := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); e != nil || code != 0 {
		return errors.Join(e, unix.Errno(code))
	}
	return err
}

// bind takes a port, also one that an earlier connection of ours still has in TIME_WAIT.
func bind(fd int, at netip.AddrPort) error {
	return errors.Join(
		os.NewSyscallError("SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, address(at))))
}

// listen listens in the network namespace of the calling thread.
func listen(at netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = bind(fd, at); err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 128))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", at, err)
	}
	return fd, nil
}

// accept takes the next connection of a listener.
func accept(listener int) (*stream, error) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, os.NewSyscallError("accept", err)
		default:
			return &stream{fd}, prepare(fd)
		}
	}
}

// local gives the connection's own end.
func (s *stream) local() (netip.AddrPort, error) {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	in, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("a %T is not an IPv4 address", name)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)), nil
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (done int, err error) {
	for done < len(p) {
		n, err := unix.Write(s.fd, p[done:])
		if err != nil && err != unix.EINTR {
			return done, os.NewSyscallError("write", err)
		}
		done += max(n, 0)
	}
	return done, nil
}

// Close implements io.Closer.
func (s *stream) Close() error { return unix.Close(s.fd) }

// The rest of net.Conn is for crypto/tls, which needs none of it here: ioTimeout stands in for deadlines.
func (s *stream) LocalAddr() net.Addr              { return nil }
func (s *stream) RemoteAddr() net.Addr             { return nil }
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

// lines reads lines from a connection. The line is valid until the next call of next.
type lines struct {
	from io.Reader
	buf  [4096]byte
	r, w int
}

func (l *lines) next() ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.r:l.w], '\n'); i >= 0 {
			line := l.buf[l.r : l.r+i]
			l.r += i + 1
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		if l.r > 0 {
			l.w = copy(l.buf[:], l.buf[l.r:l.w])
			l.r = 0
		}
		n, err := l.from.Read(l.buf[l.w:])
		if err != nil {
			return nil, err
		}
		l.w += n
	}
}
