package inspect

import (
	"strings"
	"testing"

	"ftpalg/alg"
	"ftpalg/policy"
)

// stepWire is a session that has logged in under a rule with paths, so that commands go in step.
func stepWire(t *testing.T) *wire {
	t.Helper()
	p, err := policy.Parse("test.yaml", []byte(`version: 1
servers: [{name: files, addresses: [198.51.100.2], implicit: []}]
rules: [{name: all, action: inspect, commands: {deny: [RETR /secret]}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, p, clientAddr, serverAddr)
	w.cuts = true
	w.greet()
	w.dialogue("C: CWD /", "S: 250 ok")
	return w
}

// dialogue says lines, each as one segment.
func (w *wire) dialogue(lines ...string) {
	for _, line := range lines {
		from := alg.Server
		if strings.HasPrefix(line, "C: ") {
			from = alg.Client
		}
		w.say(from, []byte(line[3:]+"\r\n"))
	}
}

// serverHears checks the last lines that have reached the server.
func (w *wire) serverHears(t *testing.T, want string) {
	t.Helper()
	if got := string(w.receivers[alg.Client].stream()); !strings.HasSuffix(got, want) {
		t.Errorf("the server heard %q, want %q at its end", got, want)
	}
}

// TestStepBySegment: a command waits in the queue until the one before has its reply.
func TestStepBySegment(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: CWD /pub/nowhere", "C: RETR ../secret/key", "C: PWD")
	w.serverHears(t, "CWD /pub/nowhere\r\n")
	w.dialogue("S: 550 no such directory")
	w.expect(t, "deny path-denied")
	w.serverHears(t, strings.Repeat("X", len("RETR ../secret/key"))+"\r\n")
	w.dialogue("S: 500 what?")
	w.serverHears(t, "PWD\r\n")
	w.dialogue(`S: 257 "/"`)
	w.settled()
}

// TestStepWithinSegment: of several commands in one segment the first goes on, and the client repeats the rest.
func TestStepWithinSegment(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: CWD /pub\r\nRETR a\r\nRETR b")
	w.serverHears(t, "CWD /pub\r\n")
	rest := "RETR a\r\nRETR b\r\n"
	w.send(alg.Client, -len(rest), []byte(rest), nil) // too early
	w.serverHears(t, "CWD /pub\r\n")
	w.dialogue("S: 250 ok")
	w.serverHears(t, "CWD /pub\r\nRETR a\r\n")
	w.dialogue("S: 550 no such file")
	w.send(alg.Client, -len("RETR b\r\n"), []byte("RETR b\r\n"), nil)
	w.serverHears(t, "RETR a\r\nRETR b\r\n")
	w.settled()
}

// TestStepOfMany: commands that change nothing need not wait for each other, and what follows them waits for all.
func TestStepOfMany(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: NOOP\r\nSIZE a\r\nTYPE I\r\nCWD /pub/deep")
	w.serverHears(t, "NOOP\r\nSIZE a\r\nTYPE I\r\n")
	w.send(alg.Client, -len("CWD /pub/deep\r\n"), []byte("CWD /pub/deep\r\n"), nil)
	w.dialogue("S: 200 ok", "S: 213 5")
	w.serverHears(t, "TYPE I\r\n")
	w.dialogue("S: 200 ok")
	w.serverHears(t, "CWD /pub/deep\r\n")
	w.settled()
}

// TestStepOfDenied: what is denied in any case need not wait.
func TestStepOfDenied(t *testing.T) {
	w := newWire(t, restricted(t, "commands: {deny: [SITE]}"), clientAddr, serverAddr)
	w.dialogue("S: 220 ready", "C: PORT 192,0,2,2,156,64\r\nEPRT |1|192.0.2.2|40000|")
	w.serverHears(t, strings.Repeat("X", len("PORT 192,0,2,2,156,64"))+"\r\n"+strings.Repeat("X", len("EPRT |1|192.0.2.2|40000|"))+"\r\n")
	w.settled()
}

// TestStepDuringTransfer: what may be sent during a transfer goes at once, and nothing else until it is over or has waited for
// too long; then replies and commands have parted.
func TestStepDuringTransfer(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: RETR big", "S: 150 here", "C: NOOP", "C: STAT", "C: CWD /pub/nowhere")
	w.serverHears(t, "NOOP\r\nSTAT\r\n")
	w.in.Expire(clock.Add(3e9))
	w.serverHears(t, "NOOP\r\nSTAT\r\n")
	w.in.Expire(clock.Add(5e9))
	w.serverHears(t, "STAT\r\nCWD /pub/nowhere\r\n")
	w.dialogue("S: 200 ok", "S: 211 well", "S: 550 no", "S: 226 done", "C: RETR ../secret/key")
	w.expect(t, "deny path-unknown")
	w.dialogue("S: 500 what?", "C: PWD", `S: 257 "/"`, "C: RETR secret/key")
	w.expect(t, "deny path-unknown")
	w.dialogue("S: 500 what?", "C: RETR /secret/key")
	w.expect(t, "deny path-denied")
	w.settled()
}

// TestStepAfterCutOff: after the second 150, by which Pure-FTPd ends a download whose data connection was closed, nothing waits, and
// the directory is known. Should the end come after all it is that transfer's.
func TestStepAfterCutOff(t *testing.T) {
	for _, late := range []string{"", "S: 226 done", "S: 426 cut"} {
		w := stepWire(t)
		w.dialogue("C: RETR big", "S: 150 here", "S: 150 0.001 seconds")
		if late != "" {
			w.dialogue(late)
		}
		w.dialogue("C: CWD /pub")
		w.serverHears(t, "CWD /pub\r\n")
		w.dialogue("S: 250 ok", "C: RETR a", "S: 150 here", "S: 226 done", "C: RETR ../secret/key")
		w.serverHears(t, strings.Repeat("X", len("RETR ../secret/key"))+"\r\n")
		w.expect(t, "deny path-denied")
		w.dialogue("S: 500 what?")
		w.settled()
	}
}

// TestCutOffOnce: the end of a transfer is excused once, and only where nothing else is without a reply.
func TestCutOffOnce(t *testing.T) {
	for name, lines := range map[string][]string{
		"twice":      {"S: 226 done", "S: 226 done", "C: CWD /pub", "S: 250 ok"},
		"CWD's":      {"C: CWD /pub", "S: 226 done", "S: 250 ok"},
		"the next's": {"C: RETR a", "S: 150 here", "S: 226 done", "S: 226 done", "C: CWD /pub", "S: 250 ok"},
	} {
		t.Run(name, func(t *testing.T) {
			w := stepWire(t)
			w.dialogue("C: RETR big", "S: 150 here", "S: 150 0.001 seconds")
			w.dialogue(lines...)
			w.dialogue("C: RETR a")
			w.expect(t, "deny path-unknown")
		})
	}
}

// TestOneReplyOfSeveral: a reply that could be one of two commands', of which one changes what is believed, is believed of neither.
func TestOneReplyOfSeveral(t *testing.T) {
	for name, replies := range map[string][]string{
		"NOOP's or CWD's": {"S: 226 done", "C: NOOP", "S: 200 ok"},
		"STAT's or CWD's": {"S: 226 done", "S: 450 no such file"},
	} {
		w := stepWire(t)
		w.dialogue("C: RETR big", "S: 150 here", "C: STAT /nowhere", "C: CWD /pub/deep")
		w.in.Expire(clock.Add(5e9))
		w.dialogue(append(replies, "C: RETR ../../secret/key")...)
		if last := w.events[len(w.events)-1]; last != "deny path-unknown" {
			t.Errorf("%s: %q", name, w.events)
		}
	}
}

// TestRestOfDeniedLine: what follows a line that was refused before it was complete waits for its turn as well.
func TestRestOfDeniedLine(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: RETR big", "S: 150 here")
	w.say(alg.Client, []byte("AUTH"))
	w.in.Expire(clock.Add(5e9))
	w.say(alg.Client, []byte("\r\nCWD /pub/deep\r\nRETR a\r\n"))
	w.serverHears(t, "XXXX\r\n")
}

// TestStepWithoutReply: NOOP and ABOR may stay without a reply, and the working directory is known all the same; another command
// without one leaves everything in doubt.
func TestStepWithoutReply(t *testing.T) {
	w := stepWire(t)
	w.dialogue("C: RETR big", "S: 150 here", "C: NOOP", "C: ABOR", "S: 226 aborted", "C: CWD /pub")
	w.serverHears(t, "ABOR\r\n")
	w.in.Expire(clock.Add(5e9))
	w.serverHears(t, "CWD /pub\r\n")
	w.dialogue("S: 250 ok", "C: RETR ../secret/key")
	w.expect(t, "deny path-denied")
	w.dialogue("S: 500 what?", "C: SITE HELP", "C: RETR a")
	w.in.Expire(clock.Add(20e9))
	w.serverHears(t, "SITE HELP\r\n")
	w.in.Expire(clock.Add(40e9))
	w.expect(t, "deny path-unknown")
	w.dialogue("C: AUTH TLS")
	w.expect(t, "deny out-of-step")
	w.settled()
}
