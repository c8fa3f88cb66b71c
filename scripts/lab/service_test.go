package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ftpalg/nfq/rules"
)

// manager is a service manager as the daemon sees it: a socket that takes messages (sd_notify(3)).
type manager struct {
	t        *testing.T
	messages chan string
}

// watchdog is how long the manager waits for a sign of life.
const watchdog = 4 * time.Second

// serve runs ftpalg under a service manager on a stage without a daemon. Its processes' output goes through a pipe of its
// own, so that it is seen to its end when the first of them has ended.
func serve(t *testing.T, s *Stage, policy string) *manager {
	t.Helper()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(s.Lab.Path("notify")) // of an earlier daemon
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.Lab.Path("notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, messages: make(chan string, 1000)}
	t.Cleanup(func() { socket.Close() })
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			m.messages <- string(buf[:n])
		}
	}()
	script := fmt.Sprintf("#!/bin/sh\nexport NOTIFY_SOCKET=%s WATCHDOG_USEC=%d\n%s \"$@\" 2>&1 | cat\n",
		s.Lab.Path("notify"), watchdog.Microseconds(), binary)
	if err := os.WriteFile(s.Lab.Path("service"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Daemon, err = s.Lab.StartDaemon(context.WithoutCancel(t.Context()), s.Lab.Path("service"), policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Daemon.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("ftpalg's log ends in:\n%s", tail(s.Daemon.Output(), 4000))
		}
	})
	return m
}

// hears waits for a message with a line that begins so, and returns the message.
func (m *manager) hears(want string) string {
	m.t.Helper()
	late := time.After(patience)
	for {
		select {
		case text := <-m.messages:
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, want) {
					return text
				}
			}
		case <-late:
			m.t.Fatalf("the service manager did not hear %q", want)
		}
	}
}

// silent fails the test if a message with a line that begins so comes in a time.
func (m *manager) silent(unwanted string, long time.Duration) {
	m.t.Helper()
	over := time.After(long)
	for {
		select {
		case text := <-m.messages:
			if strings.Contains(text, unwanted) {
				m.t.Errorf("the service manager heard %q", text)
			}
		case <-over:
			return
		}
	}
}

// ready waits until a process says that it is ready, and returns its id.
func (s *Stage) ready(t *testing.T, mark int) int {
	t.Helper()
	var line struct{ PID int }
	if err := json.Unmarshal([]byte(waitLog(t, s.Daemon, mark, msgReady, "").Line), &line); err != nil {
		t.Fatal(err)
	}
	return line.PID
}

// waitGone waits until a process has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Wait(ctx, fmt.Sprintf("process %d to end", pid), func() (bool, error) {
		return syscall.Kill(pid, 0) != nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// halfOpened is a real server on a stage without a daemon, and a policy that terminates IPv4 and inspects IPv6.
func halfOpened(t *testing.T, kind ServerKind) (*Stage, string) {
	t.Helper()
	s := unguarded(t, kind)
	policy := Termination{Rule: []string{"data: relay"}}.Policy(s.Server)
	policy = strings.Replace(policy, `addresses: [192.0.2.0/24, "2001:db8:1::/64"]`, `addresses: [192.0.2.0/24]`, 1)
	policy = strings.Replace(policy, "limits:", "  - {name: others to files, to: files, action: inspect}\nlimits:", 1)
	return s, policy
}

// TestShares: 'ftpalg sessions --shares' tells what a client with a terminated session and a relayed transfer uses of what all share.
func TestShares(t *testing.T) {
	s, policy := halfOpened(t, Servers[0])
	// The server's own certificate is a CA's as well.
	pair := fmt.Sprintf("{certificate: %s, key: %s}\n", s.Server.CA, s.Server.Key)
	policy = strings.Replace(policy, "    certificates:\n      - "+pair, "", 1) + "authority: " + pair
	serve(t, s, policy)
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	c := s.connect(t, explicitPASV)
	finish := c.half(t, "busy.bin", contents)
	out, err := s.Lab.Run(t.Context(), Gateway, binary, "sessions", "--shares", "--json", "--socket", s.Daemon.Socket)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]string{}
	for line := range strings.Lines(out) {
		var share struct {
			Of, Most string
			Used     int
		}
		if err := json.Unmarshal([]byte(line), &share); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		used[share.Of] = fmt.Sprint(share.Used, " ", share.Most)
	}
	for _, of := range []string{"sessions", "relayed data connections", "minted certificates"} {
		if want := "1 " + Addr(Client, IPv4).String(); used[of] != want {
			t.Errorf("%s: %q, want %q; all of it:\n%s", of, used[of], want, out)
		}
	}
	finish()
}

var plainIPv6 = Scenario{Client: held, Mode: EPSV, Family: IPv6, Protection: Plain, Data: Closed}

// half writes half of what there is and returns a function that writes the rest and expects success.
func (c *ftpClient) half(t *testing.T, name string, contents []byte) (finish func()) {
	t.Helper()
	data := c.open("STOR " + name)
	if _, err := data.Write(contents[:len(contents)/2]); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := data.Write(contents[len(contents)/2:]); err != nil {
			t.Errorf("%s: the second half: %v", name, err)
		}
		data.Close()
		if code, text := c.final(); code != 226 {
			t.Errorf("%s: %d %s", name, code, text)
		}
		if err := sameSum(name, c.stage.Server.File(name), contents); err != nil {
			t.Error(err)
		}
	}
}

// Outcome: a new process takes over while sessions live. Terminated ones, be they idle or in the middle of a transfer, go on
// in the old process, and may transfer more; inspected ones and new ones belong to the new process. The old process ends
// with the last of its sessions, and when the new one stops nothing is left.
func TestHandover(t *testing.T) {
	s, policy := halfOpened(t, Servers[0])
	s.write(t, "down.bin", contents)
	m := serve(t, s, policy)
	m.hears("READY=1")
	old := s.ready(t, 0)
	before := ruleset(t, s.Lab)

	idle, busy, inspected := s.connect(t, explicitPASV), s.connect(t, explicitPASV), s.connect(t, plainIPv6)
	finishBusy, finishInspected := busy.half(t, "busy.bin", contents), inspected.half(t, "inspected.bin", contents)

	mark := s.Daemon.Mark()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	now := s.ready(t, mark)
	m.hears(fmt.Sprintf("MAINPID=%d", now))
	m.hears("READY=1")
	m.hears("WATCHDOG=1")
	if after := ruleset(t, s.Lab); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}

	fresh := s.connect(t, implicitEPSV)
	if known := sessionList(t, s.Lab, s.Daemon); len(known) != 2 {
		t.Errorf("the new process follows %v, and not one inspected and one new session", known)
	}
	for name, c := range map[string]*ftpClient{"new": fresh, "idle": idle} {
		if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
			t.Errorf("%s session: %d, %d bytes", name, code, len(got))
		}
	}
	finishBusy()
	finishInspected()
	if got, code := inspected.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
		t.Errorf("inspected session: %d, %d bytes", code, len(got))
	}
	do(t, busy.control, 221, "QUIT")
	idle.alive() // in the old process
	do(t, idle.control, 221, "QUIT")
	waitGone(t, old)
	if after := ruleset(t, s.Lab); after != before {
		t.Errorf("when the old process had ended, the rules were\n%s", after)
	}
	if got, code := fresh.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
		t.Errorf("without the old process: %d, %d bytes", code, len(got))
	}
	s.stopped(t, now)
	m.hears("STOPPING=1")
}

// stopped stops a process and fails the test if anything is left of ftpalg.
func (s *Stage) stopped(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitGone(t, pid)
	if left := ruleset(t, s.Lab); strings.Contains(left, "FTPALG") {
		t.Errorf("left:\n%s", left)
	}
	kernel, err := s.kernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	if left, err := kernel.Expectations(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(s.Daemon.Socket); err == nil {
		t.Errorf("%s is left", s.Daemon.Socket)
	}
}

// Outcome: a new process takes over between a command and its reply, and between a reply and the data connection: the reply is
// taken for the command's, in clear text, and inside TLS a request and its reply earn one credit, no more. The password that the
// old process still had in its memory gets nowhere.
func TestHandoverInExchange(t *testing.T) {
	l := newLab(t)
	s := &Stage{Lab: l}
	m := serve(t, s, Policy())
	m.hears("READY=1")
	pid := s.ready(t, 0)
	handOver := func() {
		t.Helper()
		mark := s.Daemon.Mark()
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		before := pid
		pid = s.ready(t, mark)
		waitGone(t, before)
	}
	ports := Targets(Addr(Server, IPv4), NeverPassive)

	clear := scripted(t, l, IPv4)
	clear.login(t)
	client, server := scripted(t, l, IPv4).opaque(t, tls.VersionTLS13)
	clear.tell(t, fromClient, "PASV")
	if err := pass(client, server, "PASV"); err != nil {
		t.Fatal(err)
	}
	handOver()
	clear.tell(t, fromServer, pasv(ports[0].Port()))
	if n := answered(t, l, Client, ports[1:]); n != 0 {
		t.Errorf("%d ports are open that nobody announced", n)
	}
	if n := answered(t, l, Client, ports[:1]); n != 1 {
		t.Error("the announced port is closed")
	}
	if err := pass(server, client, "227 somewhere"); err != nil {
		t.Fatal(err)
	}
	handOver()
	if n := answered(t, l, Client, ports); n != 1 {
		t.Errorf("inside TLS a request with its reply opened %d ports, want 1", n)
	}
	clear.tell(t, fromClient, "LIST")
	clear.tell(t, fromServer, "226 done")
	clear.tell(t, fromClient, "PASV")
	clear.tell(t, fromServer, pasv(ports[0].Port()))
	handOver()
	clear.tell(t, fromClient, "EPSV") // the pinhole before it goes
	s.stopped(t, pid)
	if strings.Contains(s.Daemon.Output(), Password) {
		t.Error("ftpalg logged the password")
	}
}

// transferring runs sessions on a stage, in clear text and inside TLS that stays closed, that transfer without a pause. stop ends
// them and fails the test if a transfer has failed.
func transferring(t *testing.T, s *Stage) (stop func()) {
	t.Helper()
	s.write(t, "down.bin", []byte(strings.Repeat("contents ", 10000)))
	var clients errgroup.Group
	over, done := make(chan struct{}), atomic.Int64{}
	for i := range 6 {
		c := &churned{stage: s, scenario: Scenario{Mode: EPSV, Family: []Family{IPv4, IPv6}[i%2], Protection: Plain}}
		if i >= 3 {
			c.scenario.Protection = Explicit
		}
		c.control = login(t, s, c.scenario)
		clients.Go(func() error {
			for {
				select {
				case <-over:
					return nil
				default:
				}
				switch err := c.fetch(nil); {
				case err == nil:
					done.Add(1)
				case !strings.Contains(err.Error(), "Address already in use"): // so many that the server's ports run out
					return fmt.Errorf("%s: %w", c.scenario.Protection, err)
				}
			}
		})
	}
	return func() {
		t.Helper()
		close(over)
		if err := clients.Wait(); err != nil || done.Load() == 0 {
			t.Errorf("behind %d transfers: %v", done.Load(), err)
		}
		t.Logf("%d transfers", done.Load())
	}
}

// Outcome: no handover costs a transfer.
func TestHandoverUnderTransfers(t *testing.T) {
	s := unguarded(t, Servers[2]) // which lets data connections have any TLS session
	serve(t, s, Policy())
	pid := s.ready(t, 0)
	stop := transferring(t, s)
	for range 10 {
		mark := s.Daemon.Mark()
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		pid = s.ready(t, mark)
	}
	stop()
	if n := strings.Count(s.Daemon.Output(), "the kernel refused a verdict"); n > 0 {
		t.Errorf("%d packets were dropped while they waited in the queue: rules were replaced by the same", n)
	}
	s.stopped(t, pid)
}

// Outcome: nor does a reload that replaces rules, for which the kernel drops what waits in the queue.
func TestOtherRulesUnderTransfers(t *testing.T) {
	s := unguarded(t, Servers[2])
	s.Daemon = startFTPAlg(t, s.Lab, Policy())
	stop := transferring(t, s)
	for round := range 20 {
		text := Policy()
		if round%2 == 0 {
			text = policyWith(t, "limits:", "  - {name: nobody else, to: [files], action: deny}\nlimits:")
		}
		mark := s.Daemon.Mark()
		if err := errors.Join(os.WriteFile(s.Lab.Path("policy.yaml"), []byte(text), 0o600), s.Daemon.Reload()); err != nil {
			t.Fatal(err)
		}
		waitLog(t, s.Daemon, mark, "policy reloaded", "")
	}
	stop()
}

// Outcome: sessions of three processes at once; each data connection finds its own.
func TestHandoverTwice(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	s.write(t, "down.bin", contents)
	serve(t, s, policy)
	pids, sessions := []int{s.ready(t, 0)}, []*ftpClient{s.connect(t, explicitPASV)}
	for range 2 {
		mark := s.Daemon.Mark()
		if err := syscall.Kill(pids[len(pids)-1], syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, s.ready(t, mark))
		sessions = append(sessions, s.connect(t, explicitPASV))
	}
	for i, c := range sessions {
		if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
			t.Errorf("session of process %d: %d, %d bytes", i, code, len(got))
		}
	}
	do(t, sessions[1].control, 221, "QUIT")
	sessions[0].alive() // its data connections come by way of the second process, which has none of its own any more
	if got, code := sessions[0].get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
		t.Errorf("by way of a process without sessions: %d, %d bytes", code, len(got))
	}
	do(t, sessions[0].control, 221, "QUIT")
	waitGone(t, pids[0])
	waitGone(t, pids[1])
	sessions[2].alive()
	s.stopped(t, pids[2])
}

// Outcome: a successor that cannot work changes nothing.
func TestHandoverFails(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	serve(t, s, policy)
	old := s.ready(t, 0)
	terminated, inspected := s.connect(t, explicitPASV), s.connect(t, plainIPv6)
	if err := os.WriteFile(s.Lab.Path("policy.yaml"), []byte("version: 1\nwrong: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mark := s.Daemon.Mark()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	waitLog(t, s.Daemon, mark, "no handover; this process goes on", "")
	for _, c := range []*ftpClient{terminated, inspected, s.connect(t, explicitPASV), s.connect(t, plainIPv6)} {
		if _, code := c.get("LIST"); code != 226 {
			t.Errorf("LIST: %d", code)
		}
	}
	s.stopped(t, old)
}

// Outcome: a successor that fails when it has everything already, because its rules cannot be installed, costs nobody a session:
// the old process takes all of it back, with its own policy, and hands over to the next one that works.
func TestHandoverFailsHalfway(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	serve(t, s, policy)
	old := s.ready(t, 0)
	before := ruleset(t, s.Lab)
	inspected, terminated := s.connect(t, plainIPv6), s.connect(t, explicitPASV)
	table := fmt.Sprint(rules.DefaultTerminate.Table)
	if _, err := s.Lab.Run(t.Context(), Gateway, "ip", "-6", "rule", "add", "to", "2001:db8:9::/64", "lookup", table); err != nil {
		t.Fatal(err)
	}
	file := s.Lab.Path("policy.yaml")
	if err := os.WriteFile(file, []byte(Termination{}.Policy(s.Server)), 0o600); err != nil { // its rules need that table
		t.Fatal(err)
	}
	mark := s.Daemon.Mark()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	waitLog(t, s.Daemon, mark, "no handover; this process goes on", "")
	if again := s.ready(t, mark); again != old {
		t.Errorf("process %d works, and not %d", again, old)
	}
	if after := ruleset(t, s.Lab); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
	for _, c := range []*ftpClient{inspected, terminated, s.connect(t, plainIPv6), s.connect(t, explicitPASV)} {
		if _, code := c.get("LIST"); code != 226 {
			t.Errorf("LIST: %d", code)
		}
	}
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	mark = s.Daemon.Mark()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	now := s.ready(t, mark)
	for _, c := range []*ftpClient{inspected, terminated} {
		if _, code := c.get("LIST"); code != 226 {
			t.Errorf("LIST: %d", code)
		}
	}
	s.stopped(t, now)
}

// Outcome: a policy that terminates nothing any more, be it by a reload or with a new process, leaves the terminated sessions
// that there are: they transfer as before, while new ones are inspected. With the last of them their rules go.
func TestTerminatesNoMore(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"reload": syscall.SIGHUP, "handover": syscall.SIGUSR2} {
		t.Run(name, func(t *testing.T) {
			s, policy := halfOpened(t, Servers[2])
			serve(t, s, policy)
			pid := s.ready(t, 0)
			c := s.connect(t, explicitPASV)
			if err := os.WriteFile(s.Lab.Path("policy.yaml"), []byte(Policy()), 0o600); err != nil {
				t.Fatal(err)
			}
			mark := s.Daemon.Mark()
			if err := syscall.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
			if signal == syscall.SIGHUP {
				waitLog(t, s.Daemon, mark, "policy reloaded", "")
			} else {
				pid = s.ready(t, mark)
			}
			for range 2 {
				if _, code := c.get("LIST"); code != 226 {
					t.Errorf("LIST: %d", code)
				}
			}
			download(t, s, login(t, s, plainPASV), plainPASV)
			do(t, c.control, 221, "QUIT")
			ctx, cancel := context.WithTimeout(t.Context(), patient(30*time.Second))
			defer cancel()
			err := Wait(ctx, "the rules for terminated sessions to go", func() (bool, error) {
				return !strings.Contains(ruleset(t, s.Lab), "TPROXY"), nil
			})
			if err != nil {
				t.Error(err)
			}
			s.stopped(t, pid)
		})
	}
}

// Outcome: whichever process is killed, the gateway works: without the old one the new goes on, and behind the new one, with
// which the old one ends, a third process takes its place.
func TestHandoverKilled(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	for _, victim := range []string{"the old process", "the new process"} {
		serve(t, s, policy)
		old := s.ready(t, 0)
		terminated, inspected := s.connect(t, explicitPASV), s.connect(t, plainIPv6)
		mark := s.Daemon.Mark()
		if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		now := s.ready(t, mark)
		last := now
		if victim == "the old process" {
			if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waitGone(t, old)
		} else {
			if err := syscall.Kill(now, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waitGone(t, now)
			waitGone(t, old)
			serve(t, s, policy)
			last = s.ready(t, 0)
		}
		if _, err := io.ReadAll(terminated.conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the terminated session does not end", victim)
		}
		for _, c := range []*ftpClient{inspected, s.connect(t, explicitPASV)} {
			if _, code := c.get("LIST"); code != 226 {
				t.Errorf("%s: LIST: %d", victim, code)
			}
		}
		s.stopped(t, last)
	}
}

// Outcome: signals never end a process that has handed over, and with it its sessions: it leaves a reload to its successor,
// and another handover to whom it is for.
func TestSignalsBehindHandover(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	serve(t, s, policy)
	old := s.ready(t, 0)
	terminated := s.connect(t, explicitPASV)
	mark := s.Daemon.Mark()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	now := s.ready(t, mark)
	for signal, answer := range map[syscall.Signal]string{
		syscall.SIGUSR2: "no handover: this process has handed over already",
		syscall.SIGHUP:  "policy reloaded",
	} {
		mark := s.Daemon.Mark()
		if err := syscall.Kill(old, signal); err != nil {
			t.Fatal(err)
		}
		waitLog(t, s.Daemon, mark, answer, "")
	}
	if _, code := terminated.get("LIST"); code != 226 {
		t.Errorf("LIST: %d", code)
	}
	do(t, terminated.control, 221, "QUIT")
	waitGone(t, old)
	s.stopped(t, now)
}

// Outcome: a process that is told to end does so although the successor that it has just started hangs, and that one ends
// as well.
func TestStoppedWhileSuccessorStarts(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	serve(t, s, policy)
	old := s.ready(t, 0)
	file := s.Lab.Path("policy.yaml")
	if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	text, err := os.OpenFile(file, os.O_WRONLY, 0) // waits for the successor to read it
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	s.stopped(t, old)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = Wait(ctx, "the successor to end", func() (bool, error) {
		_, err := text.WriteString("#")
		return errors.Is(err, syscall.EPIPE), nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Outcome: a log that nobody reads any more costs its lines and nothing else.
func TestLogReaderGone(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	serve(t, s, policy)
	s.stopped(t, s.ready(t, 0)) // it has left the policy
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("ip", s.Lab.inside(Gateway, binary, []string{"run", "--policy", s.Lab.Path("policy.yaml"), "--socket", s.Daemon.Socket})...)
	daemon.Stderr = write
	if err := errors.Join(daemon.Start(), write.Close()); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(read); lines.Scan() && !strings.Contains(lines.Text(), "msg="+msgReady); {
	}
	read.Close()
	c := s.connect(t, explicitPASV) // of which there are lines
	if _, code := c.get("LIST"); code != 226 {
		t.Errorf("LIST: %d", code)
	}
	if err := errors.Join(daemon.Process.Signal(syscall.SIGTERM), daemon.Wait()); err != nil {
		t.Errorf("the end: %v", err)
	}
	if left := ruleset(t, s.Lab); strings.Contains(left, "FTPALG") {
		t.Errorf("left:\n%s", left)
	}
}

// Outcome: a policy whose rules cannot all be installed leaves those of the old policy, and its sessions go on.
func TestReloadFailsHalfway(t *testing.T) {
	s := unguarded(t, Servers[2])
	d := startFTPAlg(t, s.Lab, Policy())
	before := ruleset(t, s.Lab)
	c := login(t, s, plainPASV)
	table := fmt.Sprint(rules.DefaultTerminate.Table)
	if _, err := s.Lab.Run(t.Context(), Gateway, "ip", "-6", "rule", "add", "to", "2001:db8:9::/64", "lookup", table); err != nil {
		t.Fatal(err)
	}
	terminating := Termination{}.Policy(s.Server) // IPv4's rules go in first
	mark := d.Mark()
	if err := errors.Join(os.WriteFile(s.Lab.Path("policy.yaml"), []byte(terminating), 0o600), d.Reload()); err != nil {
		t.Fatal(err)
	}
	waitLog(t, d, mark, "policy not reloaded; the old one stays in force", "")
	if after := ruleset(t, s.Lab); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
	download(t, s, c, plainPASV)
	download(t, s, login(t, s, plainPASV), plainPASV)
}

// Outcome: the manager hears of a reload's beginning and end, and nothing of a daemon that hangs.
func TestNotify(t *testing.T) {
	s, policy := halfOpened(t, Servers[2])
	m := serve(t, s, policy)
	m.hears("READY=1")
	pid := s.ready(t, 0)
	s.connect(t, plainIPv6)
	s.connect(t, explicitPASV)
	m.hears("STATUS=1 sessions inspected, 1 terminated")
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if text := m.hears("RELOADING=1"); !strings.Contains(text, "\nMONOTONIC_USEC=") {
		t.Errorf("%q has no time", text)
	}
	m.hears("READY=1")
	m.hears("WATCHDOG=1")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.silent("WATCHDOG=1", watchdog)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.hears("WATCHDOG=1")
	s.stopped(t, pid)
	m.hears("STOPPING=1")
}
