package terminate

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ftp"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// another begins another session of the same client, and brings it to where its user is logged in.
func (w *world) another() (client, server *end) {
	w.t.Helper()
	first := w.client
	defer func() { w.client = first }()
	w.client = newEnd(w.t, dial(w.t, w.front))
	server = w.loggedIn()
	return w.client, server
}

// announces has a client announce a port, which the server accepts.
func announces(client, server *end, l net.Listener) {
	client.t.Helper()
	command := "PORT " + ftp.FormatPort(l.Addr().(*net.TCPAddr).AddrPort())
	client.say(command)
	server.hear(command)
	server.say("200 ok")
	client.hear("200 ")
}

// refused has a client announce a port, which the gateway refuses.
func refused(client *end, l net.Listener) {
	client.t.Helper()
	client.say("PORT " + ftp.FormatPort(l.Addr().(*net.TCPAddr).AddrPort()))
	client.hear("425 ")
}

// connects is the server's connection to a client's port, which is handed to the gateway as TPROXY would.
func (w *world) connects(l net.Listener) net.Conn {
	w.t.Helper()
	far := dial(w.t, l)
	w.t.Cleanup(func() { far.Close() })
	c, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	from, to := endpoints(c.(*net.TCPConn))
	w.gateway.running.Go(func() { w.gateway.data(w.ctx, c.(*net.TCPConn), door{from.Addr(), to}) })
	return far
}

// While a session's data connection is to come no other session can announce the same port: its transfer would be carried with
// the other's limits. The session itself can, and once the connection is here the others can.
func TestPortOfAnotherSession(t *testing.T) {
	for name, limit := range map[string]int64{"limited": 1000, "unlimited": 0} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false, relayPolicy(func(r *policy.Rule) { r.MaxSize = limit }))
			a, aServer := w.client, w.loggedIn()
			b, bServer := w.another()
			l := listen(t)
			announces(a, aServer, l)
			refused(b, l)
			announces(a, aServer, l)
			a.say("RETR a")
			aServer.hear("RETR a")
			refused(b, l)
			far := w.connects(l)
			near, err := l.Accept() // the other half, which the gateway makes
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			announces(b, bServer, l)
			aServer.say("150 here")
			a.hear("150 ")
			go func() {
				far.Write(make([]byte, 5000))
				far.Close()
			}()
			near.SetDeadline(time.Now().Add(testTimeout))
			got, _ := io.ReadAll(near)
			if limit > 0 && int64(len(got)) > limit || limit == 0 && len(got) != 5000 {
				t.Errorf("%d bytes came", len(got))
			}
		})
	}
}

// A server listens at a port for one session at a time: who is told of a port last has it, though it was announced to another
// session that has not come, as ProFTPD does after it has refused that one's transfer.
func TestPassivePortOfAnotherSession(t *testing.T) {
	w := newWorld(t, false, relayPolicy(nil))
	a, aServer := w.client, w.loggedIn()
	b, bServer := w.another()
	l := listen(t)
	for _, ends := range [][2]*end{{a, aServer}, {b, bServer}} {
		ends[0].say("PASV")
		ends[1].hear("PASV")
		ends[1].say("227 here " + ftp.FormatPASV(l.Addr().(*net.TCPAddr).AddrPort()))
		ends[0].hear("227 ")
		if ends[0] == a {
			a.say("RETR nowhere")
			aServer.hear("RETR nowhere")
			aServer.say("550 no")
			a.hear("550 ")
		}
	}
	near := w.connects(l)
	b.say("RETR b")
	bServer.hear("RETR b")
	far, err := l.Accept() // the other half, which the gateway makes
	if err != nil {
		t.Fatal(err)
	}
	bServer.say("150 here")
	b.hear("150 ")
	fmt.Fprint(far, "contents")
	far.Close()
	near.SetDeadline(time.Now().Add(testTimeout))
	if got, err := io.ReadAll(near); string(got) != "contents" {
		t.Errorf("%q, %v", got, err)
	}
}

// An inspected session's pinhole is not replaced while it stands; when it was used its ends are free, and then they are the terminated
// session's: the inspected one can neither have them nor take them away.
func TestPortOfInspectedSession(t *testing.T) {
	w := newWorld(t, false, relayPolicy(func(r *policy.Rule) { r.MaxSize = 1000 }))
	a, aServer := w.client, w.loggedIn()
	l := listen(t)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	x := conntrack.Expectation{From: netip.AddrPortFrom(to.Addr(), 0), To: to}
	at, inspected, doors := ledger.Door{From: x.From, To: x.To}, "an inspected session", &w.gateway.Books.Doors
	expect := func() error { return w.table.Expect(x) }
	if err := doors.Open(at, inspected, false, expect); err != nil {
		t.Fatal(err)
	}
	refused(a, l)
	w.table.Use(x.From, x.To)
	announces(a, aServer, l)
	if err := doors.Open(at, inspected, false, expect); err != ledger.ErrHeld {
		t.Errorf("the inspected session has the port: %v", err)
	}
	if held, _ := doors.Shut(at, inspected, func() error { return w.table.Withdraw(x) }); held || len(w.table.Open()) != 1 {
		t.Errorf("the inspected session took the port away: %v, %v", held, w.table.Open())
	}
	a.say("QUIT")
	aServer.hear("QUIT")
	aServer.say("221 bye")
	a.hear("221 ")
	for doors.Len() > 0 {
		runtime.Gosched()
	}
}

// A pinhole lapses while a transfer waits for its server to connect: the port stays the session's, as the server may still try.
func TestPortOfWaitingTransfer(t *testing.T) {
	w := newWorld(t, false, relayPolicy(func(r *policy.Rule) { r.MaxSize = 1000 }))
	a, aServer := w.client, w.loggedIn()
	b, bServer := w.another()
	l := listen(t)
	announces(a, aServer, l)
	a.say("RETR a")
	aServer.hear("RETR a")
	later := time.Now().Add(time.Hour)
	w.gateway.Expire(later)
	refused(b, l)
	aServer.say("425 no connection")
	a.hear("425 ")
	w.gateway.Expire(later)
	announces(b, bServer, l)
}

// Where data is limited a transfer whose promise has lapsed goes no further: its server would connect to a port that may be
// another session's now.
func TestTransferWithoutPromise(t *testing.T) {
	w := newWorld(t, false, relayPolicy(func(r *policy.Rule) { r.MaxSize = 1000 }))
	a, aServer := w.client, w.loggedIn()
	b, bServer := w.another()
	l := listen(t)
	a.say("RETR a") // to the default data port (RFC 959 section 3.2)
	a.hear(alg.DataFailed.Reply())
	announces(a, aServer, l)
	w.gateway.Expire(time.Now().Add(time.Hour))
	announces(b, bServer, l)
	a.say("RETR a")
	a.hear(alg.DataFailed.Reply())
	a.say("NOOP")
	aServer.hear("NOOP") // and nothing of RETR
}

// A port whose connection the kernel has carried by itself is free for another session, although nobody was told that it came.
func TestPortOfDirectConnection(t *testing.T) {
	w := newWorld(t, false, nil)
	a, aServer := w.client, w.loggedIn()
	b, bServer := w.another()
	l := listen(t)
	announces(a, aServer, l)
	refused(b, l)
	at := l.Addr().(*net.TCPAddr).AddrPort()
	w.table.Use(at, at) // the server is at the same address
	announces(b, bServer, l)
	if open := w.table.Open(); len(open) != 1 {
		t.Errorf("expectations %s", fmt.Sprint(open))
	}
}
