package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// daemonStart bounds the time that ftpalg takes until it says that it is ready.
var daemonStart = patient(20 * time.Second)

// policyText is the policy that the demo's scenarios run under. The passive range is wider than what the servers use of
// it, so that there are ports which the policy knows and nobody promises.
const policyText = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    explicit: [%d]
    implicit: [%d]
    passive: %d-%d
clients:
  - name: office
    addresses: [192.0.2.0/24, "2001:db8:1::/64"]
rules:
  - name: office to files
    from: [office]
    to: [files]
    action: inspect
    opaque: pinhole
    opaque-active: pinhole
limits:
  audit-rate: 10000 # so that the strangers' probes do not crowd out what befalls the session
`

// Policy returns the policy file of the demo.
func Policy() string {
	return fmt.Sprintf(policyText, ExplicitPort, ImplicitPort, PolicyPassive.First, PolicyPassive.Last)
}

// Event is a line of ftpalg's log that tells of a session's pinholes and refusals.
type Event struct {
	Msg     string
	Session uint64
	Mode    string // PASV, EPSV, PORT, EPRT or JIT
	From    netip.Addr
	To      netip.AddrPort
	Reason  string
	PID     int    // with ready: of the process in charge
	Line    string `json:"-"` // as ftpalg wrote it
}

// The messages of ftpalg's log that the lab looks for.
const (
	msgReady   = "ready"
	msgPinhole = "pinhole"
)

// Daemon is ftpalg as it runs on the lab's gateway.
type Daemon struct {
	*Proc
	// Socket is where `ftpalg sessions` and `ftpalg pinholes` reach it.
	Socket string
	events *eventLog
}

// StartDaemon writes a policy and starts ftpalg with it on the gateway. It returns when ftpalg is ready.
func (l *Lab) StartDaemon(ctx context.Context, binary, policy string, flags ...string) (*Daemon, error) {
	file := l.Path("policy.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	d := &Daemon{Socket: l.Path("ftpalg.sock"), events: newEventLog()}
	args := append([]string{"run", "--policy", file, "--log-format", "json", "--socket", d.Socket}, flags...)
	var err error
	if d.Proc, err = l.startWith(ctx, Gateway, d.events, binary, args...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	if _, err := d.WaitEvent(ctx, 0, func(e Event) bool { return e.Msg == msgReady }); err != nil {
		return nil, fmt.Errorf("lab: ftpalg did not get ready: %w: it printed %q", errors.Join(err, d.Stop()), d.Output())
	}
	return d, nil
}

// Mark returns a position in the daemon's log: what Since and WaitEvent count from.
func (d *Daemon) Mark() int { return d.events.len() }

// Since returns the events after a mark.
func (d *Daemon) Since(mark int) []Event {
	events, _ := d.events.since(mark)
	return events
}

// WaitEvent returns the first event after a mark that matches. It fails when ctx or the daemon ends first.
func (d *Daemon) WaitEvent(ctx context.Context, mark int, match func(Event) bool) (Event, error) {
	for {
		events, changed := d.events.since(mark)
		for _, e := range events {
			if match(e) {
				return e, nil
			}
		}
		mark += len(events)
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("lab: waiting for an event of ftpalg's: %w", ctx.Err())
		case <-d.Exited():
			return Event{}, errors.New("lab: ftpalg has ended")
		}
	}
}

// Stop asks the daemon what the kernel expects, and ends it. What it did not ask for is an error.
func (d *Daemon) Stop() error {
	select {
	case <-d.Exited():
		return d.Proc.Stop()
	default:
		return errors.Join(d.onlyOurs(), d.Proc.Stop())
	}
}

// onlyOurs fails if the kernel expects something under control connections that the daemon did not ask for.
func (d *Daemon) onlyOurs() error {
	c, err := net.DialTimeout("unix", d.Socket, daemonStart)
	if err != nil {
		return nil // it has ended meanwhile, or another has taken over
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(daemonStart))
	if _, err := fmt.Fprintln(c, "pinholes"); err != nil {
		return fmt.Errorf("lab: ask ftpalg for pinholes: %w", err)
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		var p struct{ Foreign bool }
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil || p.Foreign {
			return fmt.Errorf("lab: the kernel expects what ftpalg did not ask for: %s", lines.Text())
		}
	}
	return lines.Err()
}

// HandOver has another process take over, as an upgrade does, and returns when that one is in charge. The stage needs Successors.
func (d *Daemon) HandOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	events := slices.DeleteFunc(d.Since(0), func(e Event) bool { return e.Msg != msgReady })
	mark := d.Mark()
	if err := syscall.Kill(events[len(events)-1].PID, syscall.SIGUSR2); err != nil {
		return fmt.Errorf("lab: ftpalg is to hand over: %w", err)
	}
	if _, err := d.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == msgReady }); err != nil {
		return fmt.Errorf("lab: ftpalg did not hand over: %w", err)
	}
	return nil
}

// Reload asks the daemon to read its policy file again, as an operator does.
func (d *Daemon) Reload() error { return d.Signal(syscall.SIGHUP) }

// eventLog collects the events from a JSON log as it is written.
type eventLog struct {
	mu      sync.Mutex
	partial []byte
	events  []Event
	changed chan struct{} // closed, and replaced, when an event arrives
}

func newEventLog() *eventLog { return &eventLog{changed: make(chan struct{})} }

// Write implements io.Writer for the program's output. Lines that are not JSON are kept in the program's output only.
func (l *eventLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		line, rest, found := bytes.Cut(l.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.partial = rest
		var e Event
		if json.Unmarshal(line, &e) == nil {
			e.Line = string(line)
			l.events = append(l.events, e)
			close(l.changed)
			l.changed = make(chan struct{})
		}
	}
}

func (l *eventLog) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// since returns the events after a mark, and a channel that is closed when there are more.
func (l *eventLog) since(mark int) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Event(nil), l.events[mark:]...), l.changed
}
