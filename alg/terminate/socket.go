package terminate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
)

const (
	// The source ports of connections that we make in a client's or server's name. They lie below those that hosts
	// choose for themselves, and none is used that conntrack knows a connection of: ours and the host's own would be the
	// same connection to it.
	firstSourcePort = 10240
	lastSourcePort  = 32767
	// sourcePortTries bounds the search for one.
	sourcePortTries = 64
	// dialTimeout bounds the wait for a server. It is shorter than clients', so that they are told.
	dialTimeout = 15 * time.Second
	// keepAlive finds peers that are gone.
	keepAlive = time.Minute
	// keepAliveProbes is how many minutes a peer may take to answer.
	keepAliveProbes = 9
)

// errNoSourcePort says that a host has as many connections to one port as there can be.
var errNoSourcePort = errors.New("no source port is free")

// Listen opens the transparent listeners that TPROXY hands connections to, one for each address family that the machine
// has, all on one port: the first that is free of as many as may be tried, beginning with the given one. Connections and what is
// sent on them carry the mark.
func Listen(port uint16, tries int, mark uint32) ([]*net.TCPListener, error) {
	for next := port; ; next++ {
		all, err := listenOn(next, mark)
		if err == nil {
			return all, nil
		}
		if tries--; tries <= 0 || next == math.MaxUint16 || !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("terminate: listen for TPROXY on port %d (of those from %d on): %w; stop what holds it, or choose another --transparent-port",
				next, port, err)
		}
	}
}

// listenOn opens the listeners on one port, or none.
func listenOn(port uint16, mark uint32) (all []*net.TCPListener, err error) {
	lc := net.ListenConfig{Control: transparent(mark), KeepAliveConfig: keptAlive()}
	for _, host := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		l, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(host, port).String())
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a machine without IPv6
		}
		if err != nil {
			for _, open := range all {
				open.Close()
			}
			return nil, err
		}
		all = append(all, l.(*net.TCPListener))
	}
	return all, nil
}

// keptAlive has conntrack remember a connection in which nothing is said, such as the control connection during a transfer. A
// peer has the same time to answer whatever that takes, as far as the kernel counts (MAX_TCP_KEEPCNT). What conntrack's time-out is
// when the listeners open counts for all connections.
var keptAlive = sync.OnceValue(func() net.KeepAliveConfig {
	every := keepAlive
	if life, err := conntrack.EstablishedTimeout(); err == nil {
		every = conntrack.KeepEvery(life)
	}
	return net.KeepAliveConfig{Enable: true, Idle: every, Interval: every, Count: min(127, int(keepAliveProbes*keepAlive/every))}
})

// transparent makes a socket that may have addresses that are not ours (IP_TRANSPARENT, linux/net/ipv4/ip_sockglue.c).
func transparent(mark uint32) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			if network == "tcp6" {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
		})
		return errors.Join(ctlErr, err)
	}
}

// lookup finds a connection in conntrack.
type lookup interface {
	Lookup(conntrack.Tuple) (conntrack.Entry, error)
}

// dialFrom connects to a port in a host's name.
func dialFrom(ctx context.Context, known lookup, mark uint32, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for range sourcePortTries {
		local := netip.AddrPortFrom(from, uint16(firstSourcePort+rand.IntN(lastSourcePort-firstSourcePort+1)))
		if _, err := known.Lookup(conntrack.Tuple{Src: local, Dst: to}); err == nil {
			continue
		} else if !errors.Is(err, conntrack.ErrNotFound) {
			return nil, err
		}
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Control: transparent(mark), KeepAliveConfig: keptAlive()}
		c, err := d.DialContext(ctx, "tcp", to.String())
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("connect to %s from %s: %w", to, local, err)
		}
		return c.(*net.TCPConn), nil
	}
	return nil, fmt.Errorf("connect to %s from %s: %w", to, from, errNoSourcePort)
}

// inlineUrgent keeps urgent data, such as that of ABOR (RFC 959 section 4.1.3), in the stream, where every other byte is.
func inlineUrgent(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	return errors.Join(ctlErr, err)
}

// stage is the state of a connection as TCP has it (RFC 9293 section 3.3.2), by the kernel's number; BPF_TCP_CLOSE if it cannot be
// told, as of one that is closed here.
func stage(c *net.TCPConn) uint8 {
	raw, err := c.SyscallConn()
	if err != nil {
		return unix.BPF_TCP_CLOSE
	}
	state := uint8(unix.BPF_TCP_CLOSE)
	_ = raw.Control(func(fd uintptr) { // an error means that it is closed here
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = info.State
		}
	})
	return state
}

// reset closes a connection so that its peer sees an error and not an end: what was sent is not the whole.
func reset(c *net.TCPConn) {
	abortive(c)
	_ = c.Close()
}

// abortive has a connection reset by whatever closes it (socket(7), SO_LINGER with a time of 0).
func abortive(c *net.TCPConn) {
	_ = c.SetLinger(0) // if it fails the connection is gone already
}
