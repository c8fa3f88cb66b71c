package alg

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ftpalg/alg/internal/transcript"
	"ftpalg/policy"
)

// now is any time: the engine has no clock.
var now = time.Unix(1_700_000_000, 0)

// describe gives an effect as the transcripts have it, or "" for one that they do not mention.
func describe(e Effect) string {
	switch e.Kind {
	case OpenPinhole:
		return fmt.Sprintf("pinhole %s %s %s", e.Pinhole.Mode, e.Pinhole.From.Addr(), e.Pinhole.To)
	case ClosePinhole:
		return fmt.Sprintf("closed %s %s", e.Pinhole.To, e.Reason)
	case Deny:
		return "deny " + e.Reason.String()
	case Rewrite:
		// Its length is the line's, which TestRewriteKeepsLength checks; here the first word is enough.
		if word, _, _ := strings.Cut(string(e.New), " "); strings.Trim(word, "X\r\n") != "" {
			return "rewrite " + word
		}
		return "rewrite X"
	case Say:
		return fmt.Sprintf("say %s: %s", e.Side, e.Text)
	case StartTLS:
		return "tls " + e.Side.String()
	case StopTLS:
		return "clear " + e.Side.String()
	case Protect:
		return fmt.Sprintf("protection %s %s", e.Protection.Control, e.Protection.Data)
	case End:
		return "end " + e.Reason.String()
	case Audit:
		return "audit " + e.Reason.String()
	case BeginTransfer:
		return "transfer " + e.Direction.String()
	}
	return ""
}

func describeAll(fx []Effect) (all []string) {
	for _, e := range fx {
		if d := describe(e); d != "" {
			all = append(all, d)
		}
	}
	return all
}

func transcripts(t testing.TB) []*transcript.Transcript {
	inspected, _ := filepath.Glob("../testdata/transcripts/*.txt")
	terminated, _ := filepath.Glob("../testdata/transcripts/terminated/*.txt")
	if len(inspected) == 0 || len(terminated) == 0 {
		t.Fatal("no transcripts")
	}
	var all []*transcript.Transcript
	for _, f := range append(inspected, terminated...) {
		tr, err := transcript.Load(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tr)
	}
	return all
}

// control gives the engine of a transcript.
func control(t testing.TB, tr *transcript.Transcript) *Control {
	p := policy.AllowAll()
	if tr.Policy != "" {
		var err error
		if p, err = policy.Load(filepath.Join("..", tr.Policy)); err != nil {
			t.Fatal(err)
		}
	}
	d := p.Decide(tr.Client.Addr(), tr.Server)
	if why := Admit(d); why != NoReason {
		t.Fatalf("%s: %v", tr.Name, why)
	}
	return begin(p, d, tr.Client, tr.Server)
}

func side(fromClient bool) Side {
	if fromClient {
		return Client
	}
	return Server
}

func TestTranscripts(t *testing.T) {
	for _, tr := range transcripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(tr.Name), ".txt"), func(t *testing.T) {
			c := control(t, tr)
			for _, step := range tr.Steps {
				got := describeAll(c.Feed(now, side(step.FromClient), step.Data, nil))
				if !slices.Equal(got, step.Expect) {
					t.Errorf("%s:%d: %q\n got %q\nwant %q", tr.Name, step.Line, step.Data, got, step.Expect)
				}
			}
		})
	}
}

// TestRewriteKeepsLength: a denied line is overwritten over its whole length and not a byte beyond, its terminator
// stays.
func TestRewriteKeepsLength(t *testing.T) {
	for _, tr := range transcripts(t) {
		c := control(t, tr)
		for _, step := range tr.Steps {
			var line Effect
			for _, e := range c.Feed(now, side(step.FromClient), step.Data, nil) {
				switch e.Kind {
				case Deny:
					line = e
				case Rewrite:
					if e.Len != len(e.New) || e.Start+uint64(e.Len) != line.Start+uint64(line.Len) || e.Start < line.Start {
						t.Errorf("%s:%d: rewrites %d+%d of line %d+%d", tr.Name, step.Line, e.Start, e.Len, line.Start, line.Len)
					}
				}
			}
		}
	}
}
