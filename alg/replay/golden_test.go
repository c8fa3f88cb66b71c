package replay

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ftpalg/alg/audit"
	"ftpalg/nfq"
	"ftpalg/policy"
)

var update = flag.Bool("update", false, "write the golden files anew; then read them")

const captures = "../../testdata/captures"

// isCapture tells whether a file is one by its name.
func isCapture(name string) bool {
	name = strings.TrimSuffix(name, ".gz")
	return slices.Contains([]string{".pcap", ".pcapng", ".cap", ".dmp"}, filepath.Ext(name))
}

// captureFiles lists the captures below a directory.
func captureFiles(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && isCapture(path) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// replayed gives what `ftpalg replay --json` prints of a capture without a policy, and the events.
func replayed(t *testing.T, file string) (text []byte, events []audit.Event, err error) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	print := JSON(&out)
	err = Run(f, policy.AllowAll(), func(e audit.Event) {
		events = append(events, e)
		print(e)
	})
	return out.Bytes(), events, err
}

// TestGolden holds the reports of our own captures, which scripts/lab/record makes, to the golden files beside them.
func TestGolden(t *testing.T) {
	files := captureFiles(t, captures)
	if len(files) == 0 {
		t.Fatal("no captures")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got, _, err := replayed(t, file)
			cut := strings.Contains(file, "truncated")
			if cut != errors.Is(err, io.ErrUnexpectedEOF) || !cut && err != nil {
				t.Errorf("replay: %v", err)
			}
			name, _, _ := strings.Cut(filepath.Base(file), ".")
			golden := filepath.Join(filepath.Dir(file), name+".json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant (%s)\n%s", got, golden, want)
			}
		})
	}
}

// TestPinholesAreTheDataConnections compares the pinholes of our own captures with the data connections in them, each of
// which was really made: one for one, in order, and none beside them. So a golden file cannot be wrong unnoticed.
func TestPinholesAreTheDataConnections(t *testing.T) {
	for _, file := range captureFiles(t, captures) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, events, _ := replayed(t, file)
			var pinholes []string
			for _, e := range events {
				if e.Kind == audit.EventPinhole {
					pinholes = append(pinholes, e.From.Addr().String()+" → "+e.To.String())
				}
			}
			if made := dataConnections(t, file); !slices.Equal(pinholes, made) {
				t.Errorf("pinholes %q, data connections %q", pinholes, made)
			}
		})
	}
}

// dataConnections lists the SYNs of a capture to other ports than the control ports.
func dataConnections(t *testing.T, file string) (list []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packets, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	decoder := nfq.NewDecoder()
	var seg nfq.Segment
	for {
		frame, err := packets.next()
		if err != nil {
			return list // the truncated file's error is TestGolden's
		}
		if err := decoder.Decode(network(frame.link, frame.data), &seg); err != nil {
			t.Fatal(err)
		}
		if seg.Flags&(nfq.SYN|nfq.ACK) == nfq.SYN && !policy.AllowAll().IsControlPort(seg.Dst) {
			list = append(list, seg.Src.Addr().String()+" → "+seg.Dst.String())
		}
	}
}

// TestCorpus replays other people's captures where they are: what they have in them is not for us to say, but replay
// must get through them, and what it says of them is printed.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("FTPALG_CORPUS")
	if dir == "" {
		dir = "../../../shared/corpus"
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skip("NOT TESTED: no foreign captures: set FTPALG_CORPUS to a directory with some")
	}
	for _, file := range captureFiles(t, dir) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, events, err := replayed(t, file)
			counts := map[string]int{}
			for _, e := range events {
				counts[e.Kind.String()]++
			}
			t.Log(counts)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
