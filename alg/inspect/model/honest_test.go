package model

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
)

// errand is what an honest client wants.
var errand = []string{
	"USER lab", "PASS pw", "SYST", "PWD", "CWD /pub", "TYPE I", "PASV", "RETR ok", "NOOP", "EPSV", "STOR /pub/new", "CWD /pub/nowhere", "CDUP", "PWD",
	"PORT 192,0,2,2,156,64", "LIST /pub", "EPRT |1|192.0.2.2|40001|", "RETR /pub/ok", "STAT", "QUIT",
}

// patience is how long a client waits for a reply.
const patience = 30 * time.Second

// serve has the server answer all that it has read, and end its transfers.
func (w *World) serve() {
	for len(w.server.outbox) > 0 || w.server.transfer {
		if len(w.server.outbox) == 0 {
			w.server.drained()
		}
		if n := len(w.server.outbox); n > 0 {
			w.emit(1, 0)
		}
	}
}

// repeat sends again what the server has not got, as TCP does, until it has all of it or patience is over.
func (w *World) repeat(sent []byte) {
	for waited := time.Duration(0); waited < patience && w.server.phase != closed; waited += time.Second {
		w.serve()
		missing := w.ends[alg.Client].next - w.ends[alg.Server].received
		if missing == 0 {
			return
		}
		w.tick(time.Second)
		if missing = w.ends[alg.Client].next - w.ends[alg.Server].received; missing > 0 {
			w.segment(alg.Client, w.ends[alg.Client].next-missing, bytes.Clone(sent[len(sent)-int(missing):]), false)
		}
	}
	w.serve()
}

// TestHonest: a client that means well has all its commands answered by the server, whatever the policy rests on, with each server,
// in step and pipelined, and when ftpalg is started anew, hands over or reads its policy again in the middle.
func TestHonest(t *testing.T) {
	for _, h := range habits(t) {
		for i, u := range rules {
			for _, fate := range []Do{"", Reload, HandOver, Kill} {
				for _, n := range []int{0, 1, 1 << 20} { // in step, byte by byte in step, and pipelined
					s := Setup{Habits: h, Policy: parse(t, u.text), Denied: u.denied, Secret: u.secret, DropNew: true, Handshake: i%2 == 0}
					name := fmt.Sprintf("%s, %s, %s, %d", h.Name, u.text, fate, n)
					if problem := runErrand(s, fate, n); problem != "" {
						t.Errorf("%s: %s", name, problem)
					}
				}
			}
		}
	}
}

// runErrand says what went wrong. Path rules may refuse a relative path whose directory is not known any more.
func runErrand(s Setup, fate Do, n int) string {
	w := NewWorld(s)
	w.serve()
	text := strings.Join(errand, "\r\n") + "\r\n"
	if n == 1<<20 {
		w.say(alg.Client, []byte(text), 1400, false)
		w.Apply(Action{Do: fateOr(fate)})
		w.repeat([]byte(text))
	}
	for i, line := range errand {
		if n == 1<<20 {
			break
		}
		if i == len(errand)/2 {
			w.Apply(Action{Do: fateOr(fate)})
		}
		line += "\r\n"
		before := len(w.heard)
		w.say(alg.Client, []byte(line), max(1, len(line)*(1-n)), false)
		w.repeat([]byte(line))
		if len(w.heard) == before {
			return fmt.Sprintf("%q is not answered", line)
		}
	}
	switch {
	case len(w.faults) > 0:
		return w.faults[0]
	case n != 1<<20 && fate != Kill && expected(w) < 4:
		return fmt.Sprintf("%d pinholes for 4 data connections", expected(w))
	case n == 1<<20 && w.ends[alg.Server].received != w.ends[alg.Client].next && w.server.phase != closed:
		return fmt.Sprintf("%d bytes never reach the server", w.ends[alg.Client].next-w.ends[alg.Server].received)
	case n != 1<<20 && !bytes.Contains(w.heard, []byte("221")): // Pure-FTPd does not take it during a transfer
		return fmt.Sprintf("no farewell: the client heard %q", w.heard)
	}
	return ""
}

// expected counts the expectations that were asked for.
func expected(w *World) (n int) {
	for _, c := range w.kernel.Calls() {
		if c.Verb == "expect" {
			n++
		}
	}
	return n
}

func fateOr(d Do) Do {
	if d == "" {
		return Reload
	}
	return d
}
