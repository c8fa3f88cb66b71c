package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for what must happen. It is long because the machine may be busy with other things.
var patience = patient(20 * time.Second)

// silence is how long nothing must come where nothing may come. TCP repeats itself twice in that time.
const silence = 800 * time.Millisecond

// startFTPAlg runs ftpalg on the lab's gateway. What it has logged in the end must not contain the lab's password,
// whatever the test was about.
func startFTPAlg(t *testing.T, l *Lab, policy string, flags ...string) *Daemon {
	t.Helper()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.StartDaemon(context.WithoutCancel(t.Context()), binary, policy, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if strings.Contains(d.Output(), Password) {
			t.Error("ftpalg logged the password")
		}
		if t.Failed() {
			t.Logf("ftpalg's log ends in:\n%s", tail(d.Output(), 4000))
		}
	})
	return d
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// ends is a control connection through the gateway between two ends that say what the test tells them to, each write a
// segment of its own.
type ends struct{ client, server *net.TCPConn }

// side is an end of a connection: who speaks.
type side byte

const (
	fromClient side = 'C'
	fromServer side = 'S'
)

func (e *ends) from(s side) (speaker, listener *net.TCPConn) {
	if s == fromClient {
		return e.client, e.server
	}
	return e.server, e.client
}

// master is the connection as conntrack names it.
func (e *ends) master() (client, server netip.AddrPort) {
	return addrPort(e.client.LocalAddr()), addrPort(e.client.RemoteAddr())
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// scripted connects the client host to the server host's control port. Both ends go away with the test.
func scripted(t *testing.T, l *Lab, family Family) *ends {
	t.Helper()
	at := netip.AddrPortFrom(Addr(Server, family), ExplicitPort)
	return connectTo(t, l, at, at)
}

// connectTo is scripted with a server that listens at an address of its own, and is reached at one that may be another.
func connectTo(t *testing.T, l *Lab, at, reached netip.AddrPort) *ends {
	t.Helper()
	e := &ends{}
	listener := listen(t, l, Server, at)
	defer listener.Close()
	e.client = dial(t, l, Client, reached)
	if err := listener.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	e.server = conn
	t.Cleanup(e.close)
	return e
}

func (e *ends) close() {
	for _, c := range []*net.TCPConn{e.client, e.server} {
		_ = c.SetLinger(0) // a reset ends the connection at both ends and in conntrack, at once
		_ = c.Close()
	}
}

// listen waits for the address if a listener was there a moment ago: one that is closed lives on in a child of ours that is about
// to become another program.
func listen(t *testing.T, l *Lab, h Host, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var listener *net.TCPListener
	err := Wait(ctx, "the address "+at.String(), func() (bool, error) {
		err := l.InNS(h, func() (err error) {
			listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			return err
		})
		if errors.Is(err, syscall.EADDRINUSE) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func dial(t *testing.T, l *Lab, h Host, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := l.tryDial(h, to)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (l *Lab) tryDial(h Host, to netip.AddrPort) (*net.TCPConn, error) {
	var conn net.Conn
	err := l.InNS(h, func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), patience)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s to %s: %w", h, to, err)
	}
	return conn.(*net.TCPConn), nil
}

// say sends text from one end, in one segment, and returns what the other end got in its place: as many bytes, because
// the gateway never changes a stream's length.
func (e *ends) say(s side, text string, within time.Duration) (string, error) {
	speaker, listener := e.from(s)
	if _, err := io.WriteString(speaker, text); err != nil {
		return "", err
	}
	return hear(listener, len(text), within)
}

func hear(c net.Conn, n int, within time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	heard := make([]byte, n)
	got, err := io.ReadFull(c, heard)
	return string(heard[:got]), err
}

// tell sends a line from one end and fails the test unless exactly this line arrives.
func (e *ends) tell(t *testing.T, s side, line string) {
	t.Helper()
	if heard, err := e.say(s, line+"\r\n", patience); err != nil || heard != line+"\r\n" {
		t.Fatalf("%c: %q arrived as %q: %v", s, line, heard, err)
	}
}

// login plays the beginning of a session.
func (e *ends) login(t *testing.T) {
	t.Helper()
	e.tell(t, fromServer, "220 ready")
	e.tell(t, fromClient, "USER "+User)
	e.tell(t, fromServer, "331 password, please")
	e.tell(t, fromClient, "PASS "+Password)
	e.tell(t, fromServer, "230 in")
}

// wantReset fails the test unless an end learns promptly that its connection was reset.
func wantReset(t *testing.T, who string, c net.Conn) {
	t.Helper()
	if heard, err := hear(c, 1, 5*time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: got %q and %v, want a reset", who, heard, err)
	}
}

// waitLog returns the first event after a mark with a message and a reason.
func waitLog(t *testing.T, d *Daemon, mark int, msg, reason string) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	event, err := d.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == msg && (reason == "" || e.Reason == reason) })
	if err != nil {
		t.Fatalf("no %q with reason %q in the log: %v", msg, reason, err)
	}
	return event
}

// count counts the events after a mark with a message and a reason.
func count(d *Daemon, mark int, msg, reason string) (n int) {
	for _, e := range d.Since(mark) {
		if e.Msg == msg && (reason == "" || e.Reason == reason) {
			n++
		}
	}
	return n
}

// pasv is the reply of a server that listens on a port of its IPv4 address.
func pasv(port uint16) string {
	address := strings.ReplaceAll(Addr(Server, IPv4).String(), ".", ",")
	return fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d).", address, port>>8, port&0xff)
}

// sessionList asks the running daemon for its sessions.
func sessionList(t *testing.T, l *Lab, d *Daemon) (clients []netip.AddrPort) {
	t.Helper()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Run(t.Context(), Gateway, binary, "sessions", "--json", "--socket", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines([]byte(out)) {
		var s struct{ Client netip.AddrPort }
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		clients = append(clients, s.Client)
	}
	return clients
}
