package ftp

import (
	"bytes"
	"net/netip"
	"testing"
)

// FuzzHostPort: what parses is what its canonical form parses to.
func FuzzHostPort(f *testing.F) {
	for _, s := range []string{
		"192,0,2,2,4,1", "Entering Passive Mode (192,0,2,2,4,1).", "|1|192.0.2.2|1025|", "|2|2001:db8::1|1025|",
		"Entering Extended Passive Mode (|||1025|)", "(((1025()", "=1,2,3,4,5,6", "1,2,3,4,5,6,7", "|2|::ffff:192.0.2.2|1|",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if to, err := ParsePort(b); err == nil {
			again(t, to, FormatPort(to), ParsePort)
		}
		if to, err := ParsePASV(b); err == nil {
			again(t, to, FormatPASV(to), ParsePASV)
		}
		if to, err := ParseEPRT(b); err == nil {
			again(t, to, FormatEPRT(to), ParseEPRT)
		}
		if port, err := ParseEPSV(b); err == nil {
			if got, err := ParseEPSV([]byte(FormatEPSV(port))); got != port || err != nil {
				t.Errorf("229 for %d: got %d, %v", port, got, err)
			}
		}
	})
}

func again(t *testing.T, want netip.AddrPort, text string, parse func([]byte) (netip.AddrPort, error)) {
	t.Helper()
	if want.Port() == 0 {
		t.Errorf("port 0 in %q", text)
	}
	if got, err := parse([]byte(text)); got != want || err != nil {
		t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
	}
}

// FuzzLines: however a stream is cut, the lines are the same, and they cover it without a gap.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"NOOP\r\nUSER a\r\n", "NO\rOP\n\xff\xf4\xff\xf2ABOR\r\n", "\xff\xfb\n\r\n", "A\x00\r\n"} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		whole := cut(string(stream), max(len(stream), 1))
		pieces := cut(string(stream), max(int(size), 1))
		if len(whole) != len(pieces) {
			t.Fatalf("%d lines whole, %d in pieces of %d", len(whole), len(pieces), size)
		}
		for i := range whole {
			if whole[i] != pieces[i] {
				t.Errorf("line %d: whole %s, in pieces %s", i, whole[i], pieces[i])
			}
		}
		if n := bytes.Count(stream, []byte("\n")); len(whole) > n {
			t.Errorf("%d lines out of %d line feeds", len(whole), n)
		}
	})
}

// FuzzCommand: a command that parses prints as a line that parses to the same.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{"NOOP", "retr a b", "STOR ", "XSHA256 a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cmd, err := ParseCommand(text)
		if err != nil {
			return
		}
		got, err := ParseCommand([]byte(cmd.String()))
		if err != nil || got.Verb != cmd.Verb || !bytes.Equal(got.Arg, cmd.Arg) {
			t.Errorf("%q: %+v prints as %q, which is %+v, %v", text, cmd, cmd, got, err)
		}
	})
}

// FuzzReplies: no line is taken for the end of a reply that has another code than its beginning.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("230-a\n230 b\n220 c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r Replies
		begun := 0
		for _, line := range bytes.Split(text, []byte("\n")) {
			reply, err := r.Line(line)
			switch {
			case err != nil && begun != 0:
				t.Errorf("line %q inside a reply: %v", line, err)
			case err != nil:
			case begun != 0 && reply.Code != begun:
				t.Errorf("a reply that began with %d goes on with %d", begun, reply.Code)
			case reply.Last:
				begun = 0
			default:
				begun = reply.Code
			}
		}
	})
}
