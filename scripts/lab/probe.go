package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeDeadline is how long an answer to a probe may take. The lab's round trip is well below a millisecond, so silence
// this long is the firewall's doing; it is shorter than TCP's first retransmission, which comes after a second, so each
// probe is one SYN.
var probeDeadline = min(patient(300*time.Millisecond), 900*time.Millisecond)

// ProbeResult is what came of a probe.
type ProbeResult struct {
	Sent     int              // number of SYNs
	Answered []netip.AddrPort // who answered, whether by SYN-ACK or by RST: either means that the firewall let the SYN by
}

func (r ProbeResult) String() string { return fmt.Sprintf("%d/%d", len(r.Answered), r.Sent) }

// Targets returns every port of a range at an address.
func Targets(addr netip.Addr, ports Ports) []netip.AddrPort {
	var targets []netip.AddrPort
	for port := int(ports.First); port <= int(ports.Last); port++ {
		targets = append(targets, netip.AddrPortFrom(addr, uint16(port)))
	}
	return targets
}

// Probe sends one SYN from a host to each target, all at once, and reports which were answered. A port without a
// listener answers with RST, so a probe needs nobody at the other end: silence is the firewall's.
func (l *Lab) Probe(from Host, targets []netip.AddrPort) (ProbeResult, error) {
	result := ProbeResult{Sent: len(targets)}
	var fds []unix.PollFd
	open := make(map[int32]netip.AddrPort)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(int(fd.Fd))
		}
	}()
	err := l.InNS(from, func() error {
		for _, target := range targets {
			fd, err := connectNonblocking(target)
			if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
				continue // its own routing knows no way: as good as silence
			}
			if err != nil {
				return fmt.Errorf("lab: probe from %s to %s: %w", from, target, err)
			}
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
			open[int32(fd)] = target
		}
		return nil
	})
	if err != nil {
		return result, err
	}
	err = collect(fds, open, &result)
	return result, err
}

// connectNonblocking starts a connection. Closing it later leaves no TIME_WAIT behind, so that probes do not use up
// the host's ports.
func connectNonblocking(target netip.AddrPort) (int, error) {
	family, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()})
	if target.Addr().Is4() {
		family, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if err := unix.Connect(fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// collect gathers answers until the deadline, or until everyone answered.
func collect(fds []unix.PollFd, open map[int32]netip.AddrPort, result *ProbeResult) error {
	deadline := time.Now().Add(probeDeadline)
	waiting := append([]unix.PollFd(nil), fds...)
	for len(waiting) > 0 {
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		if _, err := unix.Poll(waiting, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lab: poll: %w", err)
		}
		var silent []unix.PollFd
		for _, fd := range waiting {
			if fd.Revents == 0 {
				silent = append(silent, fd)
				continue
			}
			code, err := unix.GetsockoptInt(int(fd.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if err != nil {
				return fmt.Errorf("lab: SO_ERROR: %w", err)
			}
			reply := syscall.Errno(code)
			if reply == unix.EHOSTUNREACH || reply == unix.ENETUNREACH {
				continue // an ICMP error of the gateway's: it refuses, or knows no way
			}
			if reply != 0 && reply != unix.ECONNREFUSED && reply != unix.ECONNRESET {
				return fmt.Errorf("lab: probe to %s: %w: neither an answer nor silence", open[fd.Fd], reply)
			}
			result.Answered = append(result.Answered, open[fd.Fd])
		}
		waiting = silent
	}
	return nil
}
