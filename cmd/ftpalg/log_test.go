package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLineWriter: every line comes out once, whole and in order, and close waits for them.
func TestLineWriter(t *testing.T) {
	var out bytes.Buffer
	l := newLineWriter(&out)
	var want strings.Builder
	for i := range 10_000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		_, _ = l.Write([]byte(line))
	}
	l.close()
	<-l.done
	if out.String() != want.String() {
		t.Errorf("%d bytes came out, %d went in", out.Len(), want.Len())
	}
}

// TestLineWriterBounded: a reader that does not read costs lines, not memory, and is told.
func TestLineWriterBounded(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	l := newLineWriter(out)
	line := bytes.Repeat([]byte("x"), 1<<20)
	for range 40 {
		_, _ = l.Write(line)
	}
	close(out.release)
	l.close()
	<-l.done // a busy machine may be out of the patience of close
	if n := out.Len(); n > 2*logBacklog+1000 || !strings.Contains(out.String(), "log lines dropped") {
		t.Errorf("%d bytes came out", n)
	}
}

// stuck is a writer that blocks until it is released.
type stuck struct {
	bytes.Buffer
	release chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	<-s.release
	return s.Buffer.Write(b)
}

// TestLineWriterEnds: a reader that never reads does not keep the daemon from ending.
func TestLineWriterEnds(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	defer close(out.release)
	l := newLineWriter(out)
	_, _ = l.Write([]byte("stopped\n"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.close()
	}()
	select {
	case <-ended:
	case <-time.After(10 * logPatience):
		t.Error("it waits for the reader")
	}
}
