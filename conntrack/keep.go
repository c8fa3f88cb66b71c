package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// establishedTimeout is how long the kernel keeps an established TCP connection in which nothing is sent.
	establishedTimeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
	// keepsPerTimeout is how often a control connection is kept alive within that time, so that one round may be late.
	keepsPerTimeout = 4
	// keepAtLeastEvery and keepAtMostEvery bound the pause between two rounds: a rule may give connections a shorter time than
	// the machine has set, and a round lists the data connections.
	keepAtLeastEvery = time.Minute
	keepAtMostEvery  = time.Second
)

// KeepControl keeps the entries of control connections while their data connections live, until ctx ends. Nothing is sent on a
// control connection during a transfer, and conntrack must not forget it for that. failed is called when a round fails.
func (c *Conn) KeepControl(ctx context.Context, wanted func(netip.AddrPort) bool, failed func(error)) {
	for {
		pause := keepAtLeastEvery
		life, err := EstablishedTimeout()
		if err == nil {
			c.life.Store(int64(life))
			pause = KeepEvery(life)
			err = c.keepControl(life, wanted)
		}
		if err != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// KeepEvery is how often something has to be heard of a connection that conntrack forgets after a while.
func KeepEvery(life time.Duration) time.Duration {
	return max(keepAtMostEvery, min(life/keepsPerTimeout, keepAtLeastEvery))
}

// EstablishedTimeout is how long this network namespace keeps an established TCP connection in which nothing is sent.
func EstablishedTimeout() (time.Duration, error) {
	text, err := os.ReadFile(establishedTimeout)
	if err != nil {
		return 0, fmt.Errorf("conntrack: %w", err)
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("conntrack: %s: %w", establishedTimeout, err)
	}
	return time.Duration(seconds) * time.Second, nil
}

// keepControl gives each wanted control connection that has a live data connection what a packet would give it: a whole life.
func (c *Conn) keepControl(life time.Duration, wanted func(netip.AddrPort) bool) error {
	masters, err := c.liveMasters(wanted)
	for master := range masters {
		if kept := c.renew(master, life); kept != nil && !errors.Is(kept, ErrNotFound) {
			err = errors.Join(err, fmt.Errorf("conntrack: keep %s to %s: %w", master.Src, master.Dst, kept))
		}
	}
	return err
}

// liveMasters lists the wanted connections of which others that live were expected.
func (c *Conn) liveMasters(wanted func(netip.AddrPort) bool) (map[Tuple]struct{}, error) {
	masters := map[Tuple]struct{}{}
	err := c.eachChild(func(e child) {
		if e.state == tcpEstablished && wanted(e.master.Dst) {
			masters[e.master] = struct{}{}
		}
	})
	return masters, err
}

// renew sets how long an established connection is kept if nothing more is sent. One that is being closed is left alone.
func (c *Conn) renew(t Tuple, life time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.req.end(c.beginEntry(msgCTGet, t))
	if err := c.ask(); err != nil {
		return err
	}
	if now, err := decodeChild(c.reply); err != nil || now.state != tcpEstablished {
		return err
	}
	start := c.beginEntry(msgCTNew, t)
	c.req.uint32(ctaTimeout, wholeSeconds(life))
	c.req.end(start)
	return c.ask()
}
