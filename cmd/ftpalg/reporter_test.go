package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// logged runs events through a reporter and returns the lines by message.
func logged(t *testing.T, rate int, run func(*reporter)) map[string][]map[string]any {
	t.Helper()
	var out bytes.Buffer
	log, flush, err := newLogger(&out, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	run(newReporter(log, func() int { return rate }))
	flush()
	lines := map[string][]map[string]any{}
	for line := range bytes.Lines(out.Bytes()) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines[m["msg"].(string)] = append(lines[m["msg"].(string)], m)
	}
	return lines
}

var second = time.Unix(1000, 0)

func client(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 40000)
}

func denial(n int) audit.Event {
	return audit.Event{Time: second, Session: uint64(n), Client: client(n).Addr(), Kind: audit.EventDeny, Reason: alg.CommandDenied, From: client(n)}
}

// However many SYNs strangers send, the denials of sessions are in the log, and the strangers' are told as a sum.
func TestStrangersHideNothing(t *testing.T) {
	lines := logged(t, 50, func(r *reporter) {
		for i := range 1000 {
			r.report(audit.Event{Time: second, Kind: audit.EventAudit, Reason: alg.NoSession, From: client(i)})
		}
		for range 20 {
			r.report(denial(1))
		}
		r.tell(second.Add(time.Second))
	})
	if n := len(lines["deny"]); n != 20 {
		t.Errorf("%d of 20 denials", n)
	}
	if n := len(lines["audit"]); n != 50 {
		t.Errorf("%d lines about strangers, want 50", n)
	}
	if s := lines["lines suppressed"]; len(s) != 1 || s[0]["count"] != 950.0 || s[0]["of"] != "strangers" || s[0]["reasons"] != "no-session 950" {
		t.Errorf("sum %v", s)
	}
}

// One client's lines of either kind leave room for another's, and are bounded in a second; the next has room again.
func TestLinesAreShares(t *testing.T) {
	lines := logged(t, 50, func(r *reporter) {
		for range 1000 {
			r.report(denial(1))
			r.report(audit.Event{Time: second, Session: 1, Client: client(1).Addr(), Kind: audit.EventPinhole})
			r.report(audit.Event{Time: second, Session: 1, Client: client(1).Addr(), Kind: audit.EventClosed, Reason: alg.NextDataCommand})
		}
		for range 20 {
			r.report(denial(2))
		}
		later := denial(1)
		later.Time = second.Add(time.Second)
		r.report(later)
		r.tell(later.Time)
	})
	if n := len(lines["deny"]); n != 20+20+1 {
		t.Errorf("%d denials: 20 of each client were due, and one in the next second", n)
	}
	if n := len(lines["pinhole"]) + len(lines["pinhole closed"]); n != 400 {
		t.Errorf("%d lines about pinholes, want 400", n)
	}
	var sums []string
	for _, s := range lines["lines suppressed"] {
		sums = append(sums, fmt.Sprint(s["of"], " ", s["count"], ": ", s["reasons"], ", ", s["most_lines_of"]))
	}
	want := "refusals 980: command-denied 980, 192.0.2.1\nsessions 1600: next-data-command 800, pinhole 800, 192.0.2.1"
	if got := strings.Join(sums, "\n"); got != want {
		t.Errorf("sums\n%s\nwant\n%s", got, want)
	}
}

// What a peer brought about is cut, in an error too; a stack of ours can be read.
func TestTextsAreCut(t *testing.T) {
	long := strings.Repeat("x", 600_000)
	lines := logged(t, 50, func(r *reporter) {
		e := denial(1)
		e.Reason, e.Text, e.Err = alg.UpstreamTLS, long, errors.New(long)
		r.report(e)
		e.Reason, e.Err = alg.InternalError, &audit.Fault{Stack: []byte(long)}
		r.report(e)
		r.report(audit.Event{Time: second, Session: 1, Kind: audit.EventLogin, Text: long})
	})
	for message, most := range map[string]int{"deny": maxLogError, faultMessage: maxLogStack} {
		key := map[string]string{"deny": "err", faultMessage: "stack"}[message]
		if got := len(lines[message][0][key].(string)); got < most || got > most+30 {
			t.Errorf("%s of %d bytes, want about %d", key, got, most)
		}
	}
	for _, line := range lines["deny"] {
		if got := len(line["text"].(string)); got > maxLogText+30 {
			t.Errorf("a text of %d bytes", got)
		}
	}
	if got := len(lines["login"][0]["user"].(string)); got > maxLogText+30 {
		t.Errorf("a user of %d bytes", got)
	}
}

// Faults of queues may be one for each packet.
func TestQueueLinesAreBounded(t *testing.T) {
	lines := logged(t, 50, func(r *reporter) {
		log := r.queueLog()
		for range 1000 {
			log.Warn("the kernel refused a verdict", "queue", 1)
		}
		r.tell(time.Now().Add(time.Second))
	})
	if n := len(lines["the kernel refused a verdict"]); n < 20 || n > 60 || len(lines["lines suppressed"]) == 0 {
		t.Errorf("%d lines, sums %v", n, lines["lines suppressed"])
	}
}

// A control character of whatever kind is escaped in both forms of the log, in texts as in errors.
func TestControlCharactersAreEscaped(t *testing.T) {
	const wire = "SITE \x1b[31m \x7f \u009b31m \x9b31m \u202etxt.exe \u2066 \u2028 \x00 \xd0\xaf Я \"q\""
	const want = `SITE \x1b[31m \x7f \u009b31m \x9b31m \u202etxt.exe \u2066 \u2028 \x00 Я Я "q"`
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log, flush, err := newLogger(&out, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		e := denial(1)
		e.Text, e.Err = wire, errors.New(wire)
		newReporter(log, func() int { return 1 }).report(e)
		log.Error("something else", "err", e.Err, slog.String("name", wire))
		flush()
		for _, bad := range []string{"\x1b", "\x7f", "\u009b", "\x9b31m", "\u202e", "\u2066", "\u2028", "\x00"} {
			if strings.Contains(out.String(), bad) {
				t.Errorf("%s: %q is in %q", format, bad, out.String())
			}
		}
		escaped := strings.ReplaceAll(out.String(), `\"`, `"`)
		if format == "json" {
			escaped = strings.ReplaceAll(escaped, `\\`, `\`)
		}
		if n := strings.Count(escaped, want); n != 4 {
			t.Errorf("%s: %d of 4 texts are as wanted: %s", format, n, out.String())
		}
	}
}
