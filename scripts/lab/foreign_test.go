package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftpalg/conntrack"
)

// The helper "sane" opens a port of a server's for a client that sends eight bytes and for a reply that begins with a port in
// the place where that helper looks for it (nf_conntrack_sane).
const (
	saneRequest = "\x00\x00\x00\x07abcd"
	saneReply   = "\x00\x00\x00\x00\x00\x00\x00\x16 of a line\r\n"
)

// TestCarrierStaysSilent: what the kernel's helper would act on does not get to it, in clear text and in TLS, inspected and
// terminated, over IPv4 and IPv6.
func TestCarrierStaysSilent(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	l := newLab(t)
	startFTPAlg(t, l, Policy()+"helper: sane\n")
	kernel := dialConntrack(t, l)
	for _, family := range []Family{IPv4, IPv6} {
		for _, opaque := range []bool{false, true} {
			e := scripted(t, l, family)
			e.login(t)
			if opaque {
				if err := pass(e.client, e.server, "AUTH TLS"); err != nil {
					t.Fatal(err)
				}
				if err := pass(e.server, e.client, "234 go on"); err != nil {
					t.Fatal(err)
				}
				if err := pass(e.client, e.server, "\x16\x03\x01\x10\x00\x01\x00\x0f\xfc\x03\x03"); err != nil { // a record that is not over for long
					t.Fatal(err)
				}
			}
			e.askSANE(t, e.client, e.server)
			if got := expected(t, kernel, e); got != nothing {
				t.Errorf("IPv%d, in TLS %v: the kernel expects %s", family, opaque, got)
			}
		}
	}
}

// TestCarrierStaysSilentTerminated is the same where the client's segments end at ftpalg's own sockets.
func TestCarrierStaysSilentTerminated(t *testing.T) {
	s := newTheatre(t, Termination{})
	kernel := dialConntrack(t, s.Lab)
	client, server := s.greet()
	e := &ends{client: client.conn.(*net.TCPConn), server: server.conn.(*net.TCPConn)}
	e.askSANE(t, e.client, e.server)
	if got := expected(t, kernel, e); got != nothing {
		t.Errorf("the kernel expects %s", got)
	}
}

// askSANE has one end ask for a port and the other name one. It does not matter what arrives.
func (e *ends) askSANE(t *testing.T, client, server net.Conn) {
	t.Helper()
	if _, err := io.WriteString(client, saneRequest); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(silence))
	_, _ = io.ReadFull(server, make([]byte, len(saneRequest)))
	if _, err := io.WriteString(server, saneReply); err != nil {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(silence))
	_, _ = io.ReadFull(client, make([]byte, len(saneReply)))
}

// TestForeignExpectation: what somebody else has conntrack expect under a control connection is removed, and ends its session.
func TestForeignExpectation(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	e := scripted(t, l, IPv4)
	e.login(t)
	e.intrude(t, l, d)
	if _, err := e.client.Write([]byte("NOOP\r\n")); err != nil {
		t.Fatal(err)
	}
	if text, err := hear(e.server, 1, patience); err == nil || text != "" {
		t.Errorf("the server hears %q, %v", text, err)
	}
}

// TestForeignExpectationUsed: a connection that has come of one before ftpalg saw it does not go on.
func TestForeignExpectationUsed(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	e := scripted(t, l, IPv4)
	e.login(t)
	from, to := e.master()
	target := netip.AddrPortFrom(to.Addr(), 22)
	listener := listen(t, l, Server, target)
	t.Cleanup(func() { listener.Close() })
	kernel, mark := dialConntrack(t, l), d.Mark()
	freeze(t, d)
	err := kernel.Expect(conntrack.Expectation{
		Master: conntrack.Tuple{Src: from, Dst: to}, From: netip.AddrPortFrom(from.Addr(), 0), To: target, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	near := dial(t, l, Client, target)
	t.Cleanup(func() { near.Close() })
	far, err := acceptSoon(listener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitLog(t, d, mark, "session ended", "foreign-expectation")
	if _, err := near.Write([]byte("too late")); err != nil {
		t.Fatal(err)
	}
	if text, err := hear(far, 1, silence); err == nil || text != "" {
		t.Errorf("over the foreign connection came %q, %v", text, err)
	}
}

// freeze stops every thread of the daemon, until it is continued or the test is over.
func freeze(t *testing.T, d *Daemon) {
	t.Helper()
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Signal(syscall.SIGCONT) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Wait(ctx, "the daemon to stand still", func() (bool, error) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID()))
		for _, thread := range threads {
			status, _ := os.ReadFile(thread) // it may be gone
			if len(status) > 0 && !bytes.Contains(status, []byte("State:\tT")) {
				return false, nil
			}
		}
		return len(threads) > 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignExpectationTerminated: here ftpalg's own sockets end at once.
func TestForeignExpectationTerminated(t *testing.T) {
	s := newTheatre(t, Termination{})
	client, server := s.greet()
	e := &ends{client: client.conn.(*net.TCPConn), server: server.conn.(*net.TCPConn)}
	e.intrude(t, s.Lab, s.Daemon)
	for name, end := range map[string]net.Conn{"client": e.client, "server": e.server} {
		_ = end.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(end); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// intrude makes an expectation under a control connection, and returns when ftpalg has removed it.
func (e *ends) intrude(t *testing.T, l *Lab, d *Daemon) {
	t.Helper()
	kernel, mark := dialConntrack(t, l), d.Mark()
	from, to := e.master()
	err := kernel.Expect(conntrack.Expectation{
		Master: conntrack.Tuple{Src: from, Dst: to}, From: netip.AddrPortFrom(from.Addr(), 0), To: netip.AddrPortFrom(to.Addr(), 22), Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	event, err := d.WaitEvent(t.Context(), mark, func(e Event) bool { return e.Reason == "foreign-expectation" && e.Msg != "session ended" })
	if err != nil || !strings.Contains(event.Line, `"level":"ERROR"`) {
		t.Errorf("the alarm is %q, %v", event.Line, err)
	}
	if _, err := d.WaitEvent(t.Context(), mark, func(e Event) bool { return e.Reason == "foreign-expectation" && e.Msg == "session ended" }); err != nil {
		t.Error(err)
	}
	if got := expected(t, kernel, e); got != nothing {
		t.Errorf("the kernel still expects %s", got)
	}
}
