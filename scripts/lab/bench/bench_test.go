package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftpalg/scripts/lab"
)

// TestMain lets the test's own program be what the benchmark starts: its server, and the child whose memory is measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "memory") {
		if err := dispatch(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// built returns programs made of the sources at hand.
func built(t *testing.T) programs {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" || os.Getenv("FTPALG_ROOT_TESTS") == "1" {
			t.Fatal("this test needs root, and CI or FTPALG_ROOT_TESTS=1 demands that it runs")
		}
		t.Skip("NOT TESTED: network namespaces need root")
	}
	p := programs{
		ftpalg: filepath.Join(t.TempDir(), "ftpalg"), floor: filepath.Join(t.TempDir(), "floor"), servers: "../../../.build/servers",
	}
	for _, build := range [][]string{
		{"go", "build", "-o", p.ftpalg, "../../../cmd/ftpalg"},
		{"cc", "-O2", "-o", p.floor, "../../bench.d/floor.c", "-lnetfilter_queue"},
	} {
		if out, err := exec.CommandContext(t.Context(), build[0], build[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", build, err, out)
		}
	}
	return p
}

// TestShort runs the whole benchmark, shortened, and looks for every measure in its table.
func TestShort(t *testing.T) {
	p := built(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, p, short, ""); err != nil {
		t.Error(err)
	}
	for _, measure := range []string{
		"bytes a session, 1000 idle, plain", "bytes a session, 1000 idle, tls", "ns a command, 1000 sessions",
		"allocations for NOOP", "allocations for PASV", "NOOP round trip p50", "NOOP round trip p99", "gateway process CPU",
		"CPU per command, 1000 sessions over 1", "sessions/s, Go server, 1 at", "sessions/s, Go server, 8 at", "sessions/s, vsftpd", "stalled of 3 sessions",
		"data connection of 32 MiB, MiB/s", "data connection of 32 MiB, CPU", "expectation installed, p50", "SYN flood: ftpalg CPU per SYN", "plain PASV session ms", "FTPS session, JIT",
		"queue: NOOP round trip", "queue: ftpalg CPU per command", "queue: packets queued a session", "queue: sessions/s, 1 at", "queue: sessions/s, 8 at", "queue: sessions/s, 32 at", "queue: ftpalg CPU per session, 32 at", "KiB a terminated session", "TLS handshakes/s, implicit", "TLS handshakes/s, AUTH TLS", "CPU per handshake",
		"FTPS sessions/s, Go server, explicit, 8 at", "FTPS sessions/s, Go server, explicit, 32 at", "FTPS sessions/s, Go server, implicit",
		"FTPS sessions/s, vsftpd", "CPU per FTPS session", "data, TLS on both sides", "data, PROT C, spliced, 32", "data, PROT C, spliced, 10 Gbit/s", "data, PROT C, past ftpalg, 32 MiB, MiB/s", "data, PROT C, past ftpalg, 32 MiB, CPU", "CPU per GiB, PROT C, past ftpalg",
		"CPU per GiB, TLS",
	} {
		if strings.Count(out.String(), "\n"+measure) == 0 {
			t.Errorf("%q is not in the table", measure)
		}
	}
	t.Log(out.String())
}

// TestBefore compares a build with itself, shortened.
func TestBefore(t *testing.T) {
	p := built(t)
	p.before = p.ftpalg
	var out bytes.Buffer
	if err := run(t.Context(), &out, p, short, ""); err != nil {
		t.Error(err)
	}
	for _, measure := range []string{
		"command, no state, one at a time, p50", "command, no state, pipelined, p50", "command, rests on paths, one at a time, p50",
		"command, rests on paths, pipelined, p50", "CPU per command, no state", "sessions/s, no state, 1 at", "sessions/s, no state, 8 at",
		"sessions/s, rests on paths, 8 at", "CPU per session", "FTPS sessions/s, relay", "FTPS sessions/s, defaults", "CPU per FTPS session, relay",
		"CPU per FTPS session, defaults", "KiB allocated per FTPS session, relay",
	} {
		if strings.Count(out.String(), "\n"+measure) == 0 {
			t.Errorf("%q is not in the table", measure)
		}
	}
	t.Log(out.String())
}

// The whole's ratio is that of the medians, and with it come the least and the greatest of the parts'.
func TestOver(t *testing.T) {
	var s series
	for i := range 10 {
		s.add(daemon, []float64{10, 20}[i/5])
		s.add(beforeDaemon, 20)
	}
	if ratio, text := s.over(builds{daemon, beforeDaemon, ""}); ratio != 1 || text != "1.000 (0.500-1.000)" {
		t.Errorf("%v, %s", ratio, text)
	}
}

// The trace's lines are as Go writes them (package runtime, GODEBUG).
func TestCollected(t *testing.T) {
	line := "gc 12 @3.405s 1%: 0.03+1.2+0.002 ms clock, 0.07+0.3/1.1/0+0.005 ms cpu, 31->32->5 MB, 32 MB goal, 0 MB stacks, 0 MB globals, 2 P\n"
	if m := collected.FindStringSubmatch("x\n" + line); len(m) != 3 || m[1] != "31" || m[2] != "5" {
		t.Errorf("%q", m)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	if m := median(values); m != 3 || values[0] != 5 {
		t.Errorf("median %v of %v", m, values)
	}
	if q := quantile(values, 0.99); q != 5 {
		t.Errorf("p99 is %v", q)
	}
}

// Of a hundred fair coins 41 to 60 show heads in 95 of 100 throws.
func TestInterval(t *testing.T) {
	var values []float64
	for i := range 100 {
		values = append(values, float64(99-i))
	}
	if got, want := withInterval(values), "50.000 [40.000-60.000]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := withInterval(values[99:]), "0.000 [0.000-0.000]"; got != want {
		t.Errorf("of one value %s, want %s", got, want)
	}
}

// The clock of a process is the one that it reads itself.
func TestProcessorClock(t *testing.T) {
	var read [3]unix.Timespec
	for i, clock := range []int32{unix.CLOCK_PROCESS_CPUTIME_ID, processorClock(os.Getpid()), unix.CLOCK_PROCESS_CPUTIME_ID} {
		if err := unix.ClockGettime(clock, &read[i]); err != nil {
			t.Fatal(err)
		}
	}
	if at := read[1].Nano(); at < read[0].Nano() || at > read[2].Nano() {
		t.Errorf("%d ns, between %d and %d", at, read[0].Nano(), read[2].Nano())
	}
}

// Rounds are compared with themselves, and those in which the floor was no slower than routed are left out.
func TestAdded(t *testing.T) {
	var s series
	for _, round := range [][ways]float64{{20, 0, 60, 70}, {90, 0, 80, 95}, {100, 0, 110, 110}} {
		for way, v := range round {
			s.add(way, v)
		}
	}
	got := s.ratios(added)
	if len(got) != 2 || math.Abs(got[0]-1.25) > 1e-9 || got[1] != 1 {
		t.Errorf("got %v, want 1.25 and 1", got)
	}
}

func TestAnnounced(t *testing.T) {
	if port, err := announced("227 Entering Passive Mode (198,51,100,2,195,80)."); port != 50000 || err != nil {
		t.Errorf("got %d, %v", port, err)
	}
	for _, reply := range []string{"", "227 no address", "227 (1,2,3,4,5)", "227 (1,2,3,4,256,0)", "227 (1,2,3,4,1,-1)"} {
		if port, err := announced(reply); err == nil {
			t.Errorf("%q: got %d", reply, port)
		}
	}
}

// The checksum of a SYN has to be right, or conntrack would call it invalid before ftpalg's rules count.
func TestSYNChecksum(t *testing.T) {
	p := syn(lab.Addr(lab.Client2, lab.IPv4), 12345)
	pseudo := append(append([]byte{}, p[12:20]...), 0, 6, 0, 20)
	if sum := checksum(append(pseudo, p[20:]...)); sum != 0 {
		t.Errorf("what is left of the sum is %#x", sum)
	}
}
