// Package transcript reads the dialogues under testdata/transcripts: what two ends of a control connection say, and what
// must come of it.
//
//	# a comment
//	client 192.0.2.2:40000
//	server 198.51.100.2:21
//	policy testdata/policies/strict.yaml     (optional; relative to the project; without it everything is allowed)
//	C: USER anonymous                        a line of the client's; CR LF is added
//	S: 331 Password, please.                 a line of the server's
//	C\ POR                                   bytes as they are, with Go's escapes, no line end
//	> pinhole PASV 192.0.2.2 198.51.100.2:50001
//
// A line that begins with > is what the line above it leads to, in order.
package transcript

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Step is what one side says, and what comes of it.
type Step struct {
	FromClient bool
	Data       []byte
	Expect     []string
	Line       int
}

// Transcript is one dialogue.
type Transcript struct {
	Name           string
	Client, Server netip.AddrPort
	Policy         string
	Steps          []Step
}

// Load reads a file.
func Load(file string) (*Transcript, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	t := &Transcript{
		Name:   file,
		Client: netip.MustParseAddrPort("192.0.2.2:40000"),
		Server: netip.MustParseAddrPort("198.51.100.2:21"),
	}
	lines := bufio.NewScanner(bytes.NewReader(src))
	for n := 1; lines.Scan(); n++ {
		if err := t.line(lines.Text(), n); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n, err)
		}
	}
	return t, lines.Err()
}

func (t *Transcript) line(s string, n int) (err error) {
	word, rest, _ := strings.Cut(s, " ")
	switch word {
	case "", "#":
	case "client":
		t.Client, err = netip.ParseAddrPort(rest)
	case "server":
		t.Server, err = netip.ParseAddrPort(rest)
	case "policy":
		t.Policy = rest
	case "C:", "S:":
		t.Steps = append(t.Steps, Step{FromClient: word == "C:", Data: []byte(rest + "\r\n"), Line: n})
	case `C\`, `S\`:
		raw, err := strconv.Unquote(`"` + strings.ReplaceAll(rest, `"`, `\"`) + `"`)
		if err != nil {
			return fmt.Errorf("bad escapes in %s: %w", rest, err)
		}
		t.Steps = append(t.Steps, Step{FromClient: word == `C\`, Data: []byte(raw), Line: n})
	case ">":
		if len(t.Steps) == 0 {
			return fmt.Errorf("an expectation before anything was said")
		}
		last := &t.Steps[len(t.Steps)-1]
		last.Expect = append(last.Expect, rest)
	default:
		return fmt.Errorf("unknown word %q", word)
	}
	return err
}
