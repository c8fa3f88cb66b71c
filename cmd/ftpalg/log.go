package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// Log lines are collected and written together: packets must not wait for a log, nor each line wake a thread.
const (
	logDelay = 20 * time.Millisecond
	// logPatience is how long the end waits for a standard error that nobody reads.
	logPatience = 2 * time.Second
	// logBacklog is how many bytes may wait for a slow reader of standard error before lines are dropped.
	logBacklog = 16 << 20
)

// newLogger gives the daemon's logger, which never blocks, and the function that writes out what waits.
func newLogger(w io.Writer, format, level string) (*slog.Logger, func(), error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("%w: --log-level %q: debug, info, warn or error expected", errUsage, level)
	}
	o.Level = l
	lines := newLineWriter(w)
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(lines, &o)), lines.close, nil
	case "json":
		return slog.New(slog.NewJSONHandler(lines, &o)), lines.close, nil
	}
	return nil, nil, fmt.Errorf("%w: --log-format %q: text or json expected", errUsage, format)
}

// lineWriter collects lines and writes them from a goroutine of its own.
type lineWriter struct {
	out     io.Writer
	mu      sync.Mutex
	lines   []byte
	dropped int
	closed  bool
	wake    chan struct{} // has room for one: something waits
	done    chan struct{}
}

func newLineWriter(w io.Writer) *lineWriter {
	l := &lineWriter{out: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.loop()
	return l
}

func (l *lineWriter) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.out.Write(line)
	}
	if len(l.lines)+len(line) > logBacklog {
		l.dropped++
		return len(line), nil
	}
	if len(l.lines) == 0 {
		l.wake <- struct{}{} // loop took the token before it took the lines
	}
	l.lines = append(l.lines, line...)
	return len(line), nil
}

func (l *lineWriter) loop() {
	defer close(l.done)
	for range l.wake {
		time.Sleep(logDelay)
		l.flush()
	}
	l.flush()
}

func (l *lineWriter) flush() {
	l.mu.Lock()
	lines, dropped := l.lines, l.dropped
	l.lines, l.dropped = nil, 0
	l.mu.Unlock()
	_, _ = l.out.Write(lines)
	if dropped > 0 {
		fmt.Fprintf(l.out, "ftpalg: %d log lines dropped: standard error is read too slowly\n", dropped)
	}
}

// patiently runs what may wait for standard error to be read, and returns when that takes too long.
func patiently(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(logPatience):
	}
}

// close writes what waits, if somebody reads it; what comes later is written at once.
func (l *lineWriter) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	close(l.wake)
	patiently(func() { <-l.done })
}

// newReporter gives the function that logs events: the session's number first, wire text quoted. Refusals and audit
// lines, which strangers can cause, are at most rate() a second; the others are counted.
func newReporter(log *slog.Logger, rate func() int) func(audit.Event) {
	limit := &limiter{}
	return func(e audit.Event) {
		level := levels[e.Kind]
		if level >= slog.LevelWarn || e.Kind == audit.EventAudit {
			ok, suppressed := limit.allow(e.Time, rate())
			if suppressed > 0 {
				log.Warn("lines suppressed", "count", suppressed)
			}
			if !ok {
				return
			}
		}
		log.LogAttrs(context.Background(), level, eventMessages[e.Kind], eventAttrs(e)...)
	}
}

var levels = map[audit.EventKind]slog.Level{
	audit.EventDeny: slog.LevelWarn,
}

var eventMessages = map[audit.EventKind]string{
	audit.EventSession: "session", audit.EventLogin: "login", audit.EventProtection: "protection",
	audit.EventPinhole: "pinhole", audit.EventClosed: "pinhole closed", audit.EventDeny: "deny",
	audit.EventAudit: "audit", audit.EventEnd: "session ended",
}

func eventAttrs(e audit.Event) []slog.Attr {
	attrs := make([]slog.Attr, 0, 8)
	if e.Session != 0 {
		attrs = append(attrs, slog.Uint64("session", e.Session))
	}
	if e.Reason != alg.NoReason {
		attrs = append(attrs, slog.String("reason", e.Reason.String()))
	}
	switch e.Kind {
	case audit.EventPinhole, audit.EventClosed:
		attrs = append(attrs, slog.String("mode", e.Mode.String()),
			slog.String("from", e.From.Addr().String()), slog.String("to", e.To.String()))
	case audit.EventProtection:
		attrs = append(attrs, slog.String("control", e.Protection.Control.String()),
			slog.String("data", e.Protection.Data.String()))
	case audit.EventLogin:
		attrs = append(attrs, slog.String("user", e.Text))
	default:
		if e.From.IsValid() {
			attrs = append(attrs, slog.String("client", e.From.String()), slog.String("server", e.To.String()))
		}
		if e.Text != "" {
			attrs = append(attrs, slog.String("text", e.Text))
		}
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	return attrs
}

// limiter lets so many events a second through and counts the others.
type limiter struct {
	mu         sync.Mutex
	second     time.Time
	passed     int
	suppressed int
}

// allow says whether an event may pass, and how many did not in the seconds before.
func (l *limiter) allow(now time.Time, rate int) (ok bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.second) >= time.Second {
		suppressed = l.suppressed
		l.second, l.passed, l.suppressed = now, 0, 0
	}
	if l.passed >= rate {
		l.suppressed++
		return false, suppressed
	}
	l.passed++
	return true, suppressed
}
