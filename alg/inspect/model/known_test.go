package model

import (
	"slices"
	"strings"
	"testing"
)

// ask is an exchange, in step.
func ask(lines ...string) (list []Action) {
	for _, line := range lines {
		list = append(list, Action{Do: Say, Text: line + "\r\n"}, Action{Do: Reply})
	}
	return list
}

func say(text string) []Action { return []Action{{Do: Say, Text: text}} }

func do(list ...Do) (actions []Action) {
	for _, d := range list {
		actions = append(actions, Action{Do: d})
	}
	return actions
}

// loggedIn is how most dialogues begin.
var loggedIn = append(do(Reply), ask("USER lab", "PASS pw")...)

// hidden is a command between the line ends inside a forged record.
const hidden = "\r\nMKD evil\r\n"

// TestKnown plays what has led past the gateway once.
func TestKnown(t *testing.T) {
	for _, c := range []struct {
		name   string
		server string
		rule   int
		steps  [][]Action
	}{
		{"a reply during a transfer is taken for the transfer's", "proftpd", 1, [][]Action{loggedIn, ask("CWD /", "PASV", "RETR /big", "CWD /pub/nowhere"),
			do(Drain, Reply, Reply), ask("PWD", "RETR secret/key")}},
		{"AUTH during a transfer, and records that nobody sealed", "proftpd", 0, [][]Action{loggedIn, ask("PASV", "RETR /big", "AUTH TLS"), do(Drain, Reply, Reply),
			say(Record(22, "AAAA") + Record(20, "\x01") + Record(21, "\x01\x00")), say(Record(23, hidden) + Record(21, "\x01\x00"))}},
		{"the same with TLS", "pure-ftpd-tls", 0, [][]Action{loggedIn, ask("PASV", "RETR /big", "AUTH TLS"), do(Drain, Reply, Reply),
			say(Record(22, "AAAA") + Record(20, "\x01") + Record(21, "\x01\x00")), say(Record(23, hidden) + Record(21, "\x01\x00"))}},
		{"a blank line that is answered", "proftpd", 1, [][]Action{loggedIn, ask("CWD /"), say("\r\nCWD /secret\r\n"), do(Reply, Reply), ask("RETR key")}},
		{"a line of IAC that is answered", "vsftpd", 1, [][]Action{loggedIn, ask("CWD /"), say("\xff\xf1\r\nCWD /secret\r\n"), do(Reply, Reply), ask("RETR key")}},
		{"IAC WILL hides a slash", "pure-ftpd", 1, [][]Action{loggedIn, ask("CWD /", "RETR /pub/d\xff\xfb/../../secret/key")}},
		{"options before a path", "proftpd", 1, [][]Action{loggedIn, ask("CWD /", "LIST -a/secret")}},
		{"a line too long for an answer", "proftpd", 1, [][]Action{loggedIn, ask("CWD /"), say(strings.Repeat("A", 6000) + "\r\n"), ask("CWD /nowhere", "NOOP"),
			ask("RETR secret/key")}},
		{"HTTP with PORT in its body", "vsftpd", 0, [][]Action{say("POST / HTTP/1.1\r\nHost: 198.51.100.2\r\n\r\nPORT 192,0,2,2,31,144\r\n")}},
		{"HTTP behind a greeting", "vsftpd", 0, [][]Action{do(Reply), say("POST / HTTP/1.1\r\nHost: 198.51.100.2\r\n\r\nPORT 192,0,2,2,31,144\r\n")}},
		{"a connection that goes on with the last one's numbers", "vsftpd-tls", 0, [][]Action{do(Reply), ask("AUTH TLS"), do(Reset, Reply),
			say("\x16\x03\x01\x40\x00" + hidden)}},
		{"a record after a start", "vsftpd", 0, [][]Action{loggedIn, do(Kill), say(Record(23, hidden) + Record(20, "\x01") + Record(21, "\x01\x00"))}},
		{"a forgotten connection is one reply late", "pure-ftpd", 1, [][]Action{loggedIn, ask("CWD /"), do(Forget, Tell, KeepAlive), ask("CWD /pub/nowhere", "NOOP", "NOOP"),
			ask("RETR secret/key")}},
		{"a forgotten connection is one reply early", "vsftpd", 0, [][]Action{loggedIn, say("NOOP\r\nNOOP\r\n"), do(Forget, Tell, KeepAlive), say("AUTH TLS\r\n"), do(Reply, Reply),
			say(Record(22, "AAAA") + Record(23, hidden))}},
		{"a greeting after a start is taken for a login", "textbook-tls", 3, [][]Action{do(Kill), ask("PASS pw"), say("PORT 192,0,2,2,156,65\r\n")}},
		{"a record after half a greeting, read by the last process", "proftpd-tls", 3, [][]Action{{{Do: Part, N: 8}, {Do: HandOver}},
			say("\x16\x03\x01\x40\x00" + hidden)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := habits(t)
			i := slices.IndexFunc(all, func(h *Habits) bool { return h.Name == c.server })
			if i < 0 {
				t.Fatalf("no %s was recorded", c.server)
			}
			for _, dropNew := range []bool{false, true} {
				u := rules[c.rule]
				s := Setup{Habits: all[i], Policy: parse(t, u.text), Denied: u.denied, Secret: u.secret, DropNew: dropNew}
				dialogue := slices.Concat(c.steps...)
				if fault, n, _ := Run(s, dialogue); fault != "" {
					t.Errorf("%s\n%s", fault, Format(dialogue[:n]))
				}
			}
		})
	}
}
