package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// Faults are logged with their stack, each once, and counted, even where the bound on log lines is reached.
func TestFaults(t *testing.T) {
	var out bytes.Buffer
	r := newReporter(slog.New(slog.NewTextHandler(&out, nil)), func() int { return 0 })
	for i := range 2 {
		e := audit.Event{Time: time.Unix(1, 0), Session: uint64(7 + i), Kind: audit.EventDeny, Reason: alg.InternalError}
		e.Err = fmt.Errorf("wrapped: %w", audit.NewFault("a mistake"))
		r.report(e)
	}
	if r.faults.Load() != 2 {
		t.Errorf("%d faults are counted", r.faults.Load())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "session=7") || !strings.Contains(lines[1], "faults=2") || !strings.Contains(lines[1], "TestFaults") {
		t.Errorf("logged %q", lines)
	}
}
