package inspect

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ftpalg/alg"
	"ftpalg/alg/internal/transcript"
	"ftpalg/policy"
)

// A way to send one line in two segments, cut at k. Each must come to the same as the whole line in one segment.
var evasions = map[string]func(w *wire, from alg.Side, line []byte, k int){
	"split": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
	},
	"first part repeated": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
	},
	"both parts repeated": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
	},
	"repeated whole": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, 0, line, nil)
	},
	"repeated with other content": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
		w.send(from, 0, garbage(line), nil)
	},
	"second part overlaps with other content": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, 0, line[:k], nil)
		w.send(from, 0, append(garbage(line[:k]), line[k:]...), nil)
	},
	"second part first": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, k, line[k:], nil)
		w.send(from, 0, line[:k], nil)
	},
	"second part first, twice": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, k, line[k:], nil)
		w.send(from, 0, line[:k], nil)
		w.send(from, k, line[k:], nil)
	},
	"second part first, first overlaps with other content": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, k, line[k:], nil)
		w.send(from, 0, append(slices.Clone(line[:k]), garbage(line[k:])...), nil)
	},
	"first part lost": func(w *wire, from alg.Side, line []byte, k int) {
		w.send(from, k, line[k:], nil)
		w.send(from, 0, line, nil)
	},
}

// garbage is other content of the same length.
func garbage(b []byte) []byte { return bytes.Repeat([]byte{'G'}, len(b)) }

// TestEvasion sends every line of every transcript split at every byte, in every way of evasions, and compares events
// and delivered bytes with the same transcript sent in whole lines.
func TestEvasion(t *testing.T) {
	files, _ := filepath.Glob("../../testdata/transcripts/*.txt")
	if len(files) < 10 {
		t.Fatal("where are the transcripts?")
	}
	for _, file := range files {
		tr, err := transcript.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			p := transcriptPolicy(t, tr)
			whole := play(t, p, tr, -1, 0, nil)
			for i, step := range tr.Steps {
				for k := 1; k < len(step.Data); k++ {
					for name, evade := range evasions {
						got := play(t, p, tr, i, k, evade)
						if same(whole, got) {
							continue
						}
						t.Fatalf("line %d %q cut at %d, %s:\n got %q\nwant %q\nclient got %q want %q\nserver got %q want %q",
							step.Line, step.Data, k, name, got.events, whole.events,
							got.receivers[1].stream(), whole.receivers[1].stream(),
							got.receivers[0].stream(), whole.receivers[0].stream())
					}
				}
			}
		})
	}
}

func transcriptPolicy(t testing.TB, tr *transcript.Transcript) *policy.Policy {
	if tr.Policy == "" {
		return policy.AllowAll()
	}
	p, err := policy.Load(filepath.Join("../..", tr.Policy))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// play sends a transcript, its step special in another way.
func play(t testing.TB, p *policy.Policy, tr *transcript.Transcript, special, k int, evade func(*wire, alg.Side, []byte, int)) *wire {
	w := newWire(t, p, tr.Client, tr.Server)
	for i, step := range tr.Steps {
		from := alg.Server
		if step.FromClient {
			from = alg.Client
		}
		if i != special {
			w.say(from, step.Data)
			continue
		}
		evade(w, from, step.Data, k)
		w.sent[from] += uint32(len(step.Data))
	}
	w.in.End(clock, w.key, 0)
	w.settled()
	return w
}

// same compares two plays. Once a session is ended by ftpalg it may differ in how many whole lines went on before.
func same(a, b *wire) bool {
	if !slices.Equal(a.events, b.events) {
		return false
	}
	ended := len(a.events) > 0 && !strings.HasSuffix(a.events[len(a.events)-1], alg.ConnectionClosed.String())
	return ended || bytes.Equal(a.receivers[0].stream(), b.receivers[0].stream()) &&
		bytes.Equal(a.receivers[1].stream(), b.receivers[1].stream())
}
