package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// eventBuffer holds the events that arrive while the reader is busy: about 10,000 ends of connections. The kernel
// charges some 800 bytes for an event of 300.
const eventBuffer = 8 << 20

// WatchDestroy calls fn with the entry of each TCP connection that conntrack forgets in the calling
// thread's network namespace, until ctx is done. It calls lost once as soon as it listens, and again whenever the
// kernel dropped events because the reader was too slow: each time the caller has to look for itself which of its
// connections are gone (Lookup), since no event will tell. The sysctl net.netfilter.nf_conntrack_events decides which
// connections report: with 2, the default, those that began while someone listened; with 0 none.
func WatchDestroy(ctx context.Context, fn func(Entry), lost func()) error {
	return watch(ctx, "ended connections", unix.NFNLGRP_CONNTRACK_DESTROY, nil, lost, func(m netlink.Message) error {
		e, err := decodeEntry(m.Data)
		if err == nil {
			fn(e)
		}
		return err
	})
}

// Expected is what conntrack expects, whoever made it expect that, under a control connection over TCP. Its Exclusive and Real are
// not known.
type Expected struct {
	Expectation
	Protocol uint8  // of the connection that is to come; where it has no ports these are 0
	Helper   string // of the control connection
	Writer   uint32 // the netlink port of the socket that made it (Conn.Port); 0 if the kernel's helper did, or where it is not told

	tuple []byte // as the kernel told it: by this it finds it again
}

// WatchExpectations calls fn with each expectation that comes about in the calling thread's network namespace, until ctx is
// done, except those that the socket with the netlink port own made (Conn.Port). For lost and the sysctl see WatchDestroy; what
// counts is when the control connection began.
func WatchExpectations(ctx context.Context, own uint32, fn func(Expected), lost func()) error {
	return watch(ctx, "expectations", unix.NFNLGRP_CONNTRACK_EXP_NEW, notFrom(own), lost, func(m netlink.Message) error {
		e, err := decodeExpected(m)
		if err == nil {
			fn(e)
		}
		return err
	})
}

// notFrom is a socket filter that lets no event through that a request of the given netlink port brought about: an event for each
// of our own pinholes would wake its reader for nothing.
func notFrom(port uint32) []bpf.Instruction {
	const offset = 12 // of nlmsg_pid in struct nlmsghdr, which is in the host's byte order; the load takes the network's
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port)), SkipTrue: 1},
		bpf.RetConstant{Val: math.MaxUint32},
		bpf.RetConstant{Val: 0},
	}
}

// watch calls fn for each message of a multicast group that passes the filter. It skips what is not TCP.
func watch(ctx context.Context, what string, group uint32, filter []bpf.Instruction, lost func(), fn func(netlink.Message) error) error {
	var nl *netlink.Conn
	for {
		// Once it has dropped an event, the kernel drops all of them until the reader has emptied the socket, and does
		// not tell again. A new socket is the only sure beginning. It opens before the old one closes: a connection
		// that begins while nobody listens never reports its end.
		fresh, err := dialEvents(group, filter)
		if nl != nil {
			nl.Close()
		}
		if err != nil {
			return fmt.Errorf("conntrack: watch for %s: %w", what, err)
		}
		nl = fresh
		lost()
		err = readEvents(ctx, nl, fn)
		switch {
		case ctx.Err() != nil:
			nl.Close()
			return nil
		case !errors.Is(err, unix.ENOBUFS):
			nl.Close()
			return fmt.Errorf("conntrack: watch for %s: %w", what, err)
		}
	}
}

// readEvents calls fn for each event until ctx is done or receiving fails.
func readEvents(ctx context.Context, nl *netlink.Conn, fn func(netlink.Message) error) error {
	stop := context.AfterFunc(ctx, func() { nl.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		msgs, err := nl.Receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := fn(m); err != nil && !errors.Is(err, errNotTCP) {
				return err
			}
		}
	}
}

func dialEvents(group uint32, filter []bpf.Instruction) (*netlink.Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := setFilter(nl, filter); err != nil {
		nl.Close()
		return nil, fmt.Errorf("socket filter: %w", err)
	}
	if err := nl.SetReadBuffer(eventBuffer); err != nil {
		nl.Close()
		return nil, fmt.Errorf("receive buffer of %d bytes: %w", eventBuffer, err)
	}
	if err := nl.JoinGroup(group); err != nil {
		nl.Close()
		return nil, fmt.Errorf("join the multicast group %d: %w", group, err)
	}
	return nl, nil
}

func setFilter(nl *netlink.Conn, filter []bpf.Instruction) error {
	if len(filter) == 0 {
		return nil
	}
	program, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	return nl.SetBPF(program)
}
