package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Window is the life of one expectation: for so long the kernel let one connection in.
type Window struct {
	From     netip.Prefix // the hosts that it admitted
	To       netip.AddrPort
	Opened   time.Time
	Closed   time.Time // zero while it stands
	identity string
}

// PortSeconds is how long the window's port was reachable.
func (w Window) PortSeconds() float64 { return w.Closed.Sub(w.Opened).Seconds() }

// watch follows the expectations of a lab's gateway as the kernel reports them.
type watch struct{ proc *Proc }

// expectationGroups finds who listens to NFNLGRP_CONNTRACK_EXP_NEW, _UPDATE and _DESTROY in the kernel's list of netlink
// sockets: address, family, port id, groups.
var expectationGroups = regexp.MustCompile(`(?m)^\S+ +12 +\d+ +00000038 `)

// watchExpectations returns when the kernel reports.
func (l *Lab) watchExpectations(ctx context.Context) (*watch, error) {
	proc, err := l.Start(context.WithoutCancel(ctx), Gateway, "conntrack", "-E", "expect", "-o", "timestamp")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	err = Wait(ctx, "the watch over expectations", func() (bool, error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", proc.PID()))
		return expectationGroups.Match(text), err
	})
	return &watch{proc}, err
}

var expectationLine = regexp.MustCompile(`(?m)^\[(\d+)\.(\d+)\s*\]\s+\[(NEW|DESTROY)\] .*?(src=(\S+) dst=(\S+) sport=\d+ dport=(\d+) mask-src=(\S+) .*master-src=\S+ master-dst=\S+ sport=\d+ dport=\d+).*$`)

// mark is a position in the report, for since.
func (w *watch) mark() int { return len(w.proc.Output()) }

// since returns the windows that opened since a mark.
func (w *watch) since(mark int) (all []Window) {
	for _, m := range expectationLine.FindAllStringSubmatch(w.proc.Output()[mark:], -1) {
		at := eventTime(m[1], m[2])
		if m[3] == "NEW" {
			port, _ := strconv.ParseUint(m[7], 10, 16) // the pattern has digits only
			to, _ := netip.ParseAddr(m[6])
			all = append(all, Window{From: masked(m[5], m[8]), To: netip.AddrPortFrom(to, uint16(port)), Opened: at, identity: m[4]})
			continue
		}
		for i := len(all) - 1; i >= 0; i-- {
			if all[i].identity == m[4] && all[i].Closed.IsZero() {
				all[i].Closed = at
				break
			}
		}
	}
	return all
}

func eventTime(seconds, micros string) time.Time {
	s, _ := strconv.ParseInt(seconds, 10, 64)
	us, _ := strconv.ParseInt(micros, 10, 64)
	return time.Unix(s, us*1000)
}

// masked makes a prefix of an address and its mask.
func masked(address, mask string) netip.Prefix {
	a, _ := netip.ParseAddr(address)
	m, _ := netip.ParseAddr(mask)
	bits := 0
	for _, b := range m.AsSlice() {
		bits += strings.Count(strconv.FormatUint(uint64(b), 2), "1")
	}
	return netip.PrefixFrom(a, bits)
}

// first waits for the first window since a mark.
func (w *watch) first(ctx context.Context, mark int) (window Window, err error) {
	err = Wait(ctx, "an expectation", func() (bool, error) {
		all := w.since(mark)
		if len(all) > 0 {
			window = all[0]
		}
		return len(all) > 0, nil
	})
	return window, err
}

// settle waits until there are some windows since a mark and all of them are closed. Those that are not in time are open
// until now.
func (w *watch) settle(mark, some int, patience time.Duration) (all []Window, open int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = Wait(ctx, "expectations to go", func() (bool, error) { // the caller judges by what is open
		all, open = w.since(mark), 0
		for i := range all {
			if all[i].Closed.IsZero() {
				all[i].Closed = time.Now()
				open++
			}
		}
		return open == 0 && len(all) >= some, nil
	})
	return all, open
}
