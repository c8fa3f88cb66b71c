package lab

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// requireRoot skips a test that needs network namespaces, and fails it where a skip would hide that nothing was tested.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" || os.Getenv("FTPALG_ROOT_TESTS") == "1" {
		t.Fatal("this test needs root, and CI or FTPALG_ROOT_TESTS=1 demands that it runs")
	}
	t.Skip("NOT TESTED: network namespaces need root")
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	requireRoot(t)
	l, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestCloseLeavesNothing(t *testing.T) {
	l := newLab(t)
	proc, err := l.Start(t.Context(), Server, "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-proc.Exited():
	case <-time.After(killGrace):
		t.Error("the program is still running")
	}
	left, _ := filepath.Glob("/run/netns/" + l.id + "*")
	if _, err := os.Stat(l.Dir); err == nil || len(left) > 0 {
		t.Errorf("left behind: %v, %s: %v", left, l.Dir, err)
	}
}

func TestInterruptedNewLeavesNothing(t *testing.T) {
	requireRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := New(ctx); err == nil {
		t.Error("New succeeded with a context that had ended", l.Close())
	}
	if left, _ := filepath.Glob("/run/netns/" + namespacePrefix + "-" + strconv.Itoa(os.Getpid()) + "-*-" + string(Server2)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A lab whose process was killed is removed by the next one, with the programs that ran in it.
func TestStaleLabIsRemoved(t *testing.T) {
	requireRoot(t)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	stale := &Lab{id: namespacePrefix + "-" + strconv.Itoa(dead.Process.Pid) + "-1"}
	if _, err := run(t.Context(), "ip", "netns", "add", stale.Namespace(Client)); err != nil {
		t.Fatal(err)
	}
	proc, err := stale.Start(t.Context(), Client, "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	inside := func() (bool, error) {
		pids, err := run(t.Context(), "ip", "netns", "pids", stale.Namespace(Client))
		return strings.TrimSpace(pids) != "", err
	}
	if err := Wait(t.Context(), "the program to be in its namespace", inside); err != nil {
		t.Fatal(err)
	}
	newLab(t)
	if _, err := os.Stat("/run/netns/" + stale.Namespace(Client)); err == nil {
		t.Error("the stale namespace is still there")
	}
	select {
	case <-proc.Exited():
	case <-time.After(killGrace):
		t.Error("the stale program is still running")
	}
}

func TestProbeTellsAnswersFromSilence(t *testing.T) {
	l := newLab(t)
	listening := netip.AddrPortFrom(Addr(Server, IPv4), 50000)
	closed := netip.AddrPortFrom(Addr(Server, IPv4), 50001)
	err := l.InNS(Server, func() error {
		listener, err := net.Listen("tcp", listening.String())
		if err == nil {
			t.Cleanup(func() { listener.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for policy, want := range map[ForwardPolicy]int{Accept: 2, Drop: 0} {
		if err := l.SetForward(t.Context(), policy); err != nil {
			t.Fatal(err)
		}
		result, err := l.Probe(Client, []netip.AddrPort{listening, closed})
		if err != nil || len(result.Answered) != want {
			t.Errorf("FORWARD %s: %v answered, %v; want %d", policy, result.Answered, err, want)
		}
	}
}

func TestDataVerbs(t *testing.T) {
	for name, output := range map[string]string{
		"curl":   "* Connected\n> USER lab\n> EPSV\n< 500 no\n> PASV\n> PASV\n",
		"lftp":   "---> USER lab\n---> EPSV\n<--- 500 no PORT here\n---> PASV\n",
		"ftplib": "*cmd* 'USER lab'\n*cmd* 'EPSV'\n*resp* '500 PORT'\n*cmd* 'PASV'\n",
		"tnftp":  "---> USER lab\n---> EPSV\n500 no\n---> PASV\n",
		"filezilla": "12:00:00 7 2 Command: USER lab\n12:00:00 7 2 Command: EPSV\n12:00:00 7 2 Response: 500 PORT\n" +
			"12:00:00 7 2 Command: PASV\n",
	} {
		for _, kind := range append(slices.Clone(Clients), FileZilla) {
			if kind.Name != name {
				continue
			}
			got := kind.dataVerbs(output)
			if len(got) != 2 || got[0] != EPSV || got[1] != PASV {
				t.Errorf("%s: data verbs %v, want [EPSV PASV]", name, got)
			}
		}
	}
}

func TestEventLogAcrossWrites(t *testing.T) {
	l := newEventLog()
	line := `{"msg":"pinhole","session":7,"mode":"EPSV","from":"2001:db8:1::2","to":"[2001:db8:2::2]:50031"}`
	for _, b := range []byte(line + "\nnoise\n") {
		if _, err := l.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	events, _ := l.since(0)
	want := Event{Msg: msgPinhole, Session: 7, Mode: "EPSV",
		From: Addr(Client, IPv6), To: netip.AddrPortFrom(Addr(Server, IPv6), 50031), Line: line}
	if len(events) != 1 || events[0] != want {
		t.Errorf("got %+v, want one %+v", events, want)
	}
}

// Every scenario's name is its own, and can be given to `go test -run`.
func TestScenarioNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range Scenarios() {
		name := s.String()
		if seen[name] || strings.ContainsAny(name, " ()") {
			t.Errorf("%q: not unique, or not a name for -run", name)
		}
		seen[name] = true
	}
	clients := len(Clients) + 1 // FileZilla
	inspected := len(Servers) * clients * 3 * 4 * 2
	// In each of 6 modes: clients with TLS with 4 kinds of it at 2 levels, direct and relayed; tnftp; and 3 clients by auto.
	terminated := len(Servers) * 6 * (clients*8*2 + 1*2 + 3*8)
	if want := inspected + terminated; len(seen) != want {
		t.Errorf("%d scenarios, want %d", len(seen), want)
	}
}
