package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"ftpalg/scripts/lab"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of processor time in /proc/PID/stat: USER_HZ, the same on every Linux machine.
const clockTick = time.Second / 100

// processorTime is what a process has used so far, with all threads and all processes that it started, also those that
// have ended: mod_proxy has one for each session.
func processorTime(pid int) (sum time.Duration, err error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for _, field := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		used, err := processorTime(child)
		if err != nil && !gone(err) {
			return 0, err
		}
		sum += used
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may have anything in it (proc(5)).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat has only %d fields behind the name", pid, len(fields))
	}
	for _, field := range fields[11:15] { // utime, stime, and the same of children that were waited for
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}

// gone says that a process has ended.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// rates is what rounds of some work showed: how much of it a second, and what it cost the process in the middle.
type rates struct {
	series
	used [ways]time.Duration
	work [ways]float64
}

// cost gives the processor time of a unit of work, in units.
func (r *rates) cost(format string, unit time.Duration) (cells [ways]string) {
	for way, work := range r.work {
		if work > 0 && r.used[way] > 0 {
			cells[way] = fmt.Sprintf(format, float64(r.used[way])/float64(unit)/work)
		}
	}
	return cells
}

// pace runs rounds of work on some gateways, the same amount on each.
func pace(ctx context.Context, gateways []*gateway, rounds int, amount float64, f func(g *gateway) error) (*rates, error) {
	r := &rates{}
	err := interleave(ctx, gateways, rounds, func(g *gateway) error {
		before, err := g.processorTime()
		if err != nil {
			return err
		}
		start := time.Now()
		if err := f(g); err != nil {
			return err
		}
		r.add(g.way, amount/time.Since(start).Seconds())
		after, err := g.processorTime()
		r.used[g.way] += after - before
		r.work[g.way] += amount
		return err
	})
	return r, err
}

func (g *gateway) processorTime() (time.Duration, error) {
	if g.proc == nil {
		return 0, nil
	}
	return processorTime(g.proc.PID())
}

// How many clients there are at a time: enough to keep all processors busy, and enough to do so where each has to wait.
const (
	atOnce = 8
	crowd  = 32
)

// dialects of FTPS as clients use it.
var (
	explicitTLS = dialect{port: benchPort, auth: true, private: true}
	implicitTLS = dialect{port: implicitPort, implicit: true, private: true}
	realTLS     = dialect{port: 21, auth: true, private: true}
)

// repeat runs f by several clients at a time, each so many times.
func (g *gateway) repeat(clients, each int, f func() error) error {
	return g.many(clients, func() error {
		for range each {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	})
}

// bulk fetches one large file.
func (g *gateway) bulk(d dialect, mebibytes int, buf []byte) error {
	return g.InNS(g.host, func() error {
		c, err := g.login(d)
		if err != nil {
			return err
		}
		if err := c.fetch(strconv.Itoa(mebibytes<<20), mebibytes<<20, buf); err != nil {
			return errors.Join(err, c.conn.Close())
		}
		return c.quit()
	})
}

// limited runs f while the servers' links have a rate, if one is given.
func limited(ctx context.Context, gateways []*gateway, rate string, f func() error) error {
	if rate == "" {
		return f()
	}
	change := func(line string) error {
		var errs []error
		for _, g := range gateways {
			_, err := g.Run(ctx, lab.Server, "tc", strings.Fields(line)...)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if err := change("qdisc add dev eth0 root tbf burst 2mb latency 20ms rate " + rate); err != nil {
		return err
	}
	return errors.Join(f(), change("qdisc del dev eth0 root"))
}

// resident is the memory that a process has, in bytes.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	return pages * float64(os.Getpagesize()), err
}

// idleMemory gives the memory of a session that is logged in over TLS and idle, in bytes.
func (g *gateway) idleMemory(sessions int) (float64, error) {
	before, err := resident(g.proc.PID())
	if err != nil {
		return 0, err
	}
	each := sessions / atOnce
	clients := make(chan *ftpClient, atOnce*each)
	err = g.repeat(atOnce, each, func() error {
		c, err := g.login(explicitTLS)
		if err == nil {
			clients <- c
		}
		return err
	})
	close(clients)
	defer func() {
		for c := range clients {
			_ = c.conn.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	after, err := resident(g.proc.PID())
	return (after - before) / float64(atOnce*each), err
}
