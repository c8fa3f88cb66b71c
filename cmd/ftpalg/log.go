package main

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

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
		o.ReplaceAttr = printable
		return slog.New(slog.NewJSONHandler(lines, &o)), lines.close, nil
	}
	return nil, nil, fmt.Errorf("%w: --log-format %q: text or json expected", errUsage, format)
}

// printable escapes in JSON what the text log escapes by itself: who reads the value may show it on a terminal.
func printable(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case string:
		a.Value = slog.StringValue(audit.Printable(v))
	case error:
		a.Value = slog.StringValue(audit.Printable(v.Error()))
	}
	return a
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
