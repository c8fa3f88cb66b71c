package lab

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftpalg/nfq/rules"
)

// terminating is the policy that terminates, with relayed data and something extra at its end.
func terminating(t *testing.T, s *Stage, extra string) string {
	t.Helper()
	return Termination{Rule: []string{"data: relay"}}.Policy(s.Server) + extra
}

// reload has ftpalg read another policy, and waits until it is in force.
func reload(t *testing.T, s *Stage, d *Daemon, text string) {
	t.Helper()
	mark := d.Mark()
	if err := errors.Join(os.WriteFile(s.Lab.Path("policy.yaml"), []byte(text), 0o600), d.Reload()); err != nil {
		t.Fatal(err)
	}
	waitLog(t, d, mark, "policy reloaded", "")
}

// Outcome: a reload that begins to terminate leaves inspected sessions alone, and one that goes on leaves terminated ones
// alone; each session is carried as it began.
func TestReloadToTerminate(t *testing.T) {
	s := newFaultStage(t)
	d := startFTPAlg(t, s.Lab, Policy())
	inspected := login(t, s, plainPASV)
	reload(t, s, d, terminating(t, s, ""))
	mark := d.Mark()
	terminated := login(t, s, opaquePASV)
	waitLog(t, d, mark, "login", "") // what stays encrypted tells no name
	reload(t, s, d, terminating(t, s, "bounce: peer\n"))
	download(t, s, inspected, plainPASV)
	download(t, s, terminated, opaquePASV)
	do(t, inspected, 221, "QUIT")
	do(t, terminated, 221, "QUIT")
}

// Outcome: renewed certificates are shown to new clients, and the sessions that were there go on.
func TestCertificateRenewed(t *testing.T) {
	s := newFaultStage(t)
	d := startFTPAlg(t, s.Lab, terminating(t, s, ""))
	before := login(t, s, opaquePASV)
	cert, key, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(s.Server.CA)
	if err != nil {
		t.Fatal(err)
	}
	// The server keeps what it read; the clients, and ftpalg as a client, have to trust both.
	if err := errors.Join(os.WriteFile(s.Server.CA, append(bytes.Clone(cert), old...), 0o644), os.WriteFile(s.Server.Key, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	reload(t, s, d, terminating(t, s, ""))
	after := login(t, s, opaquePASV)
	if shown(after).Equal(shown(before)) {
		t.Error("the renewed certificate is not shown")
	}
	download(t, s, before, opaquePASV)
	download(t, s, after, opaquePASV)
}

// shown is the certificate that a session's client was shown.
func shown(c *control) *x509.Certificate {
	return c.conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
}

// Outcome: a terminated session ends with the daemon, and both its ends see that at once; the rules stay and nothing is
// forwarded past them; a successor carries new sessions, and leaves nothing behind when it ends.
func TestTerminatedAndKilled(t *testing.T) {
	s := newFaultStage(t)
	first := startFTPAlg(t, s.Lab, terminating(t, s, ""))
	c := login(t, s, opaquePASV)
	before := ruleset(t, s.Lab) + routing(t, s.Lab)
	kill(t, first)
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if line, err := c.ReadLine(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client read %q, %v, not that its session is over", line, err)
	}
	if n := answered(t, s.Lab, Client, []netip.AddrPort{netip.AddrPortFrom(Addr(Server, IPv4), ExplicitPort)}); n > 0 {
		t.Error("a client reached the server while nobody terminated its connection")
	}
	if after := ruleset(t, s.Lab) + routing(t, s.Lab); after != before {
		t.Errorf("the rules did not stay when the daemon was killed:\n%s", after)
	}
	second := startFTPAlg(t, s.Lab, terminating(t, s, ""))
	if after := ruleset(t, s.Lab) + routing(t, s.Lab); after != before {
		t.Errorf("the rules of the successor are not those that it found:\n%s\nbefore:\n%s", after, before)
	}
	for _, scenario := range []Scenario{opaquePASV, plainPASV, plainEPSV6} {
		c := login(t, s, scenario)
		download(t, s, c, scenario)
		do(t, c, 221, "QUIT")
	}
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if after := ruleset(t, s.Lab) + routing(t, s.Lab); strings.Contains(after, "-A") || strings.Contains(after, "21021") {
		t.Errorf("rules are still there when the daemon has ended:\n%s", after)
	}
}

// Outcome: where somebody else holds the port for terminated connections, on one address alone, ftpalg takes the next that is free
// and says so; its rules lead there, after a handover as well, though the first port is free then. With --no-rules, where the
// operator's rules name the port, it does not start.
func TestTransparentPortHeld(t *testing.T) {
	s := newFaultStage(t)
	first := rules.DefaultTerminate.Port
	held := hold(t, s.Lab, fmt.Sprintf("127.0.0.1:%d", first))
	held6 := hold(t, s.Lab, fmt.Sprintf("[::1]:%d", first+1))
	policy := terminating(t, s, "")
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	if d, err := s.Lab.StartDaemon(t.Context(), binary, policy, "--no-rules"); err == nil {
		t.Fatalf("with --no-rules ftpalg starts: %v", d.Stop())
	} else if !strings.Contains(err.Error(), fmt.Sprint("port ", first)) {
		t.Errorf("with --no-rules: %v", err)
	}
	serve(t, s, policy)
	waitLog(t, s.Daemon, 0, "somebody else holds the port for terminated connections; the rules lead to another", "")
	transfer := func(after string) {
		t.Helper()
		if text := ruleset(t, s.Lab); !strings.Contains(text, fmt.Sprintf("--on-port %d", first+2)) {
			t.Errorf("after %s no rule leads to port %d:\n%s", after, first+2, text)
		}
		for _, scenario := range []Scenario{opaquePASV, plainEPSV6} {
			c := login(t, s, scenario)
			download(t, s, c, scenario)
			do(t, c, 221, "QUIT")
		}
	}
	transfer("the start")
	held.Close()
	held6.Close()
	mark := s.Daemon.Mark()
	if err := syscall.Kill(s.ready(t, 0), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	now := s.ready(t, mark)
	transfer("the handover")
	s.stopped(t, now)
}

// hold opens a listener on the gateway that is none of ftpalg's.
func hold(t *testing.T, l *Lab, address string) (held net.Listener) {
	t.Helper()
	err := l.InNS(Gateway, func() (err error) {
		held, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	return held
}

// routing is the gateway's policy routing, and the routes that are not in its main tables.
func routing(t *testing.T, l *Lab) string {
	t.Helper()
	var all strings.Builder
	for _, family := range []string{"-4", "-6"} {
		for _, what := range [][]string{{"rule", "show"}, {"route", "show", "table", "all", "proto", "21"}} {
			out, err := l.Run(t.Context(), Gateway, "ip", append([]string{family}, what...)...)
			if err != nil {
				t.Fatal(err)
			}
			all.WriteString(out)
		}
	}
	return all.String()
}
