package ftp

import (
	"bytes"
	"fmt"
	"testing"
)

// limit is small, so that tests reach it.
const limit = 32

// cut feeds a stream in pieces of at most size bytes and describes the lines that come out.
func cut(stream string, size int) (lines []string) {
	var l Lines
	for rest := []byte(stream); len(rest) > 0; {
		piece := rest[:min(size, len(rest))]
		rest = rest[len(piece):]
		for len(piece) > 0 {
			line, n, ok := l.Next(piece, limit)
			if ok {
				lines = append(lines, fmt.Sprintf("%q %d+%d eol %d flaws %d", line.Text, line.Start, line.Len, line.EOL, line.Flaws))
			}
			piece = piece[n:]
		}
	}
	return lines
}

func TestLines(t *testing.T) {
	for _, test := range []struct {
		name, stream string
		want         []string
	}{
		{"plain", "NOOP\r\nUSER a\r\n", []string{`"NOOP" 0+6 eol 2 flaws 0`, `"USER a" 6+8 eol 2 flaws 0`}},
		{"bare LF is a leniency", "NOOP\nQUIT\n", []string{`"NOOP" 0+5 eol 1 flaws 1`, `"QUIT" 5+5 eol 1 flaws 1`}},
		{"empty", "\r\n\n", []string{`"" 0+2 eol 2 flaws 0`, `"" 2+1 eol 1 flaws 1`}},
		{"stray CR", "NO\rOP\r\n", []string{`"NOOP" 0+7 eol 2 flaws 2`}},
		{"CR CR LF", "NOOP\r\r\n", []string{`"NOOP" 0+7 eol 2 flaws 2`}},
		{"CR NUL (RFC 854)", "NO\r\x00OP\r\n", []string{`"NOOP" 0+8 eol 2 flaws 6`}},
		{"NUL", "NO\x00OP\r\n", []string{`"NOOP" 0+7 eol 2 flaws 4`}},
		{"8-bit", "RETR \xc3\xa9\r\n", []string{`"RETR é" 0+9 eol 2 flaws 0`}},
		{"ABOR behind IAC IP IAC DM", "\xff\xf4\xff\xf2ABOR\r\n", []string{`"ABOR" 0+10 eol 2 flaws 32`}},
		{"IAC IAC stays as it came", "RETR \xff\xff\r\n", []string{`"RETR \xff\xff" 0+9 eol 2 flaws 16`}},
		{"IAC before CR LF", "CWD \xe8\xff\r\n", []string{`"CWD \xe8\xff" 0+8 eol 2 flaws 16`}},
		{"signals alone", "\xff\xf1\r\n", []string{`"" 0+4 eol 2 flaws 32`}},
		{"negotiation", "\xff\xfb\x01NOOP\r\n", []string{`"\xff\xfb\x01NOOP" 0+9 eol 2 flaws 16`}},
		{"IAC before text", "S\xffITE\r\n", []string{`"S\xffITE" 0+7 eol 2 flaws 16`}},
		{"IAC before LF", "NOOP\xff\nSITE\r\n", []string{`"NOOPSITE" 0+12 eol 2 flaws 8`}},
		{"an option that is LF", "NOOP\xff\xfb\nSITE\r\n", []string{`"NOOP\xff\xfbSITE" 0+13 eol 2 flaws 24`}},
		{"subnegotiation", "\xff\xfaSITE\xff\xf0\r\n", []string{`"SITE\xff\xf0" 0+10 eol 2 flaws 24`}},
		{"too long", "RETR aaaaaaaaaabbbbbbbbbbccccccccccdd\r\n",
			[]string{`"RETR aaaaaaaaaabbbbbbbbbbccccccc" 0+39 eol 2 flaws 64`}},
		{"not complete", "NOOP\r", nil},
	} {
		for size := 1; size <= len(test.stream); size++ {
			if got := cut(test.stream, size); fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("%s in pieces of %d:\n got %v\nwant %v", test.name, size, got, test.want)
			}
		}
	}
}

func TestParseCommand(t *testing.T) {
	for text, want := range map[string]Command{
		"NOOP":       {Verb: "NOOP"},
		"noop":       {Verb: "NOOP"},
		"Retr a b":   {Verb: "RETR", Arg: []byte("a b")},
		"RETR ":      {Verb: "RETR", Arg: []byte{}},
		"RETR  a":    {Verb: "RETR", Arg: []byte(" a")},
		"XSHA256 a":  {Verb: "XSHA256", Arg: []byte("a")},
		"unheard of": {Verb: "UNHEARD", Arg: []byte("of")},
	} {
		got, err := ParseCommand([]byte(text))
		if err != nil || got.Verb != want.Verb || !bytes.Equal(got.Arg, want.Arg) || (got.Arg == nil) != (want.Arg == nil) {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", " NOOP", "NO\tOP", "\tNOOP", "STOR\ta", "NO\x80OP", "ABCDEFGHIJKLM", "N-OP"} {
		if got, err := ParseCommand([]byte(text)); err == nil {
			t.Errorf("%q: got %+v; a refusal was wanted", text, got)
		}
	}
}

func TestReplies(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
		want  []string // one a line: code, last, text
	}{
		{"one line", []string{"220 ready"}, []string{`220 true "ready"`}},
		{"no text", []string{"220"}, []string{`220 true ""`}},
		// RFC 959 section 4.2: lines in between may begin with digits, or anything.
		{"several lines", []string{"230-hi", "  230 not yet", "220 nor this", "230-nor this", "230 in"},
			[]string{`230 false "hi"`, `230 false "  230 not yet"`, `230 false "220 nor this"`, `230 false "230-nor this"`, `230 true "in"`}},
		{"protected reply (RFC 2228)", []string{"631 abc"}, []string{`631 true "abc"`}},
		{"no code", []string{"hello"}, []string{"error"}},
		{"two digits", []string{"99 no"}, []string{"error"}},
		{"no space", []string{"230_no"}, []string{"error"}},
		{"out of range", []string{"700 no"}, []string{"error"}},
		{"empty", []string{""}, []string{"error"}},
	} {
		var r Replies
		for i, line := range test.lines {
			got := "error"
			if reply, err := r.Line([]byte(line)); err == nil {
				got = fmt.Sprintf("%d %v %q", reply.Code, reply.Last, reply.Text)
			}
			if got != test.want[i] {
				t.Errorf("%s: line %q: got %s, want %s", test.name, line, got, test.want[i])
			}
		}
	}
}
