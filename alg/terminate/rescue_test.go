package terminate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// faulty panics once where it is told to, as a mistake of ours would.
type faulty struct {
	table
	certificates
	at     atomic.Value // string
	raised atomic.Bool
}

func (f *faulty) panicAt(where string) {
	if f.at.CompareAndSwap(where, "") {
		f.raised.Store(true)
		panic("a mistake in " + where)
	}
}

func (f *faulty) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	f.panicAt("Lookup")
	return f.table.Lookup(t)
}

func (f *faulty) Expect(e conntrack.Expectation) error {
	f.panicAt("Expect")
	return f.table.Expect(e)
}

func (f *faulty) Withdraw(e conntrack.Expectation) error {
	f.panicAt("Withdraw")
	return f.table.Withdraw(e)
}

func (f *faulty) Upstream(s *policy.Server, a netip.Addr) *tls.Config {
	config := f.certificates.Upstream(s, a)
	config.VerifyConnection = func(tls.ConnectionState) error {
		f.panicAt("VerifyConnection")
		return nil
	}
	return config
}

func (f *faulty) Downstream(s *policy.Server, r *policy.Rule, a netip.Addr, c *x509.Certificate) (*tls.Config, error) {
	f.panicAt("Downstream")
	base, err := f.certificates.Downstream(s, r, a, c)
	config := base.Clone()
	config.VerifyConnection = func(tls.ConnectionState) error {
		f.panicAt("VerifyConnection of the client")
		return nil
	}
	return config, err
}

// greeted brings a session to where its client has the greeting.
func (w *world) greeted() (server *end) {
	w.t.Helper()
	server = w.accept()
	server.say("220 ready")
	w.client.hear("220 ")
	return server
}

// loggedIn brings a session to where its user is logged in.
func (w *world) loggedIn() (server *end) {
	w.t.Helper()
	server = w.greeted()
	w.login(server)
	return server
}

// announced brings a session to where its server has announced a port.
func (w *world) announced() (server *end) {
	w.t.Helper()
	server = w.loggedIn()
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say("229 here (|||50000|)")
	w.client.hear("229 ")
	return server
}

// protected brings a session to where data connections have TLS.
func (w *world) protected() (server *end) {
	w.t.Helper()
	server = w.greeted()
	w.auth(server)
	for _, command := range []string{"PBSZ 0", "PROT P"} {
		w.client.say(command)
		server.hear(command)
		server.say("200 ok")
		w.client.hear("200 ")
	}
	w.login(server)
	return server
}

// relays has a transfer relayed in which a direction's end is a mistake, and returns the ends of its data connection.
func (w *world) relays(server *end, command string) (client, far net.Conn) {
	w.t.Helper()
	l := listen(w.t)
	client, hand := w.transfer(server, l, command)
	w.session().promise.failAt(w.faulty, "settle")
	w.gateway.running.Go(hand)
	far, err := l.Accept() // the other half, which the gateway makes
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { far.Close() })
	server.say("150 here")
	w.client.hear("150 ")
	return client, far
}

// failAt makes what is called when a transfer's bytes have moved a mistake. Nobody may be carrying the data connection yet.
func (n *promise) failAt(f *faulty, where string) {
	n.session.mu.Lock()
	defer n.session.mu.Unlock()
	settle := n.settle
	n.settle = func() {
		f.panicAt(where)
		settle()
	}
}

// session is that of the client at hand.
func (w *world) session() *session {
	w.t.Helper()
	w.gateway.mu.Lock()
	defer w.gateway.mu.Unlock()
	for s := range w.gateway.sessions {
		if s.client == w.client.c.LocalAddr().(*net.TCPAddr).AddrPort() {
			return s
		}
	}
	w.t.Fatal("the session is gone")
	return nil
}

// cutOff fails the test unless the gateway has let go of the other end of each connection.
func cutOff(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(testTimeout))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection to %s is still there", c.RemoteAddr())
		}
	}
}

// nothingLeft waits until the session of a mistake has nothing any more: no share and no pinhole, when what is left to
// the clock has lapsed.
func (w *world) nothingLeft() {
	w.t.Helper()
	deadline := time.Now().Add(testTimeout)
	left := func() bool {
		b := w.gateway.Books
		return w.gateway.Count() > 1 || b.Sessions.Used() > 1 || b.Pinholes.Used() > 0 ||
			b.Relays.Used() > 0 || b.Handshakes.Used() > 0 || b.Doors.Len() > 0
	}
	for left() {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d sessions are left, shares %+v", w.gateway.Count(), w.gateway.Books.Shares())
		}
		w.gateway.Expire(time.Now().Add(time.Hour))
		runtime.Gosched()
	}
}

// fault waits for the next fault, and checks what is told of it.
func (w *world) fault(want string) {
	w.t.Helper()
	deadline := time.After(testTimeout)
	for {
		select {
		case e := <-w.events:
			var fault *audit.Fault
			if !errors.As(e.Err, &fault) {
				continue
			}
			if e.Reason != alg.InternalError || !strings.Contains(fault.Error(), want) || !strings.Contains(string(fault.Stack), "panicAt") {
				w.t.Errorf("told %v %v %v\n%s", e.Kind, e.Reason, fault, fault.Stack)
			}
			return
		case <-deadline:
			w.t.Fatal("no fault was told")
		}
	}
}

// noFault checks that no other fault was told.
func (w *world) noFault() {
	w.t.Helper()
	for {
		select {
		case e := <-w.events:
			if fault := new(audit.Fault); errors.As(e.Err, &fault) {
				w.t.Errorf("told as well: %v\n%s", fault, fault.Stack)
			}
		default:
			return
		}
	}
}

// A mistake in any goroutine that serves a session ends that session, is told once, and leaves the other session alone.
func TestFaultsEndOneSession(t *testing.T) {
	for name, test := range map[string]struct {
		where   string
		begin   func(*world) (server *end) // what comes before the mistake; nil for a mistake before the greeting
		provoke func(w *world, server *end)
	}{
		"the beginning": {"Lookup", nil, nil},
		"the client's reader": {"Expect", (*world).loggedIn, func(w *world, server *end) {
			w.client.say("PORT 127,0,0,1,195,80")
		}},
		"the server's reader": {"Expect", (*world).loggedIn, func(w *world, server *end) {
			w.client.say("EPSV")
			server.hear("EPSV")
			server.say("229 here (|||50000|)")
		}},
		"the client's handshake": {"Downstream", (*world).greeted, func(w *world, server *end) {
			w.client.say("AUTH TLS")
			server.hear("AUTH TLS")
			server.say("234 go on")
			server.secure(w.tlsServer)
		}},
		"the clock": {"Withdraw", (*world).announced, func(w *world, server *end) {
			for !w.faulty.raised.Load() { // a session that is busy is left for the next time
				w.gateway.Expire(time.Now().Add(time.Hour))
			}
		}},
		"a data connection": {"Lookup", (*world).loggedIn, func(w *world, server *end) {
			w.faulty.at.Store("")
			hand := w.retrieve(server, listen(w.t))
			w.faulty.at.Store("Lookup")
			w.gateway.running.Go(hand)
		}},
		"the server's handshake on a data connection": {"VerifyConnection", (*world).protected, func(w *world, server *end) {
			l := listen(w.t)
			w.gateway.running.Go(w.retrieve(server, l))
			far, err := l.Accept() // the other half, which the gateway makes
			if err != nil {
				w.t.Fatal(err)
			}
			_ = w.tlsServer(far).Handshake() // it fails when the mistake is made
			far.Close()
		}},
		"the client's handshake on a data connection": {"VerifyConnection of the client", (*world).protected, func(w *world, server *end) {
			l := listen(w.t)
			data, hand := w.transfer(server, l, "RETR a")
			w.gateway.running.Go(hand)
			far, err := l.Accept()
			if err != nil {
				w.t.Fatal(err)
			}
			defer far.Close()
			_ = tlsClient(data).Handshake() // its side of TLS 1.3 is through before the gateway's
			cutOff(w.t, data, far)
		}},
		"what the server sends on a data connection": {"settle", (*world).loggedIn, func(w *world, server *end) {
			client, far := w.relays(server, "RETR a")
			io.WriteString(far, "all of it")
			far.(*net.TCPConn).CloseWrite()
			cutOff(w.t, client, far)
		}},
		"what the client sends on a data connection": {"settle", (*world).loggedIn, func(w *world, server *end) {
			client, far := w.relays(server, "STOR a")
			io.WriteString(client, "all of it")
			client.(*net.TCPConn).CloseWrite()
			cutOff(w.t, client, far)
		}},
		"the end": {"Withdraw", (*world).announced, func(w *world, server *end) {
			w.client.c.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data = policy.DataRelay })
			other, otherServer := w.client, w.greeted()
			if test.begin == nil {
				w.faulty.at.Store(test.where)
			}
			w.client = newEnd(t, dial(t, w.front))
			if test.begin != nil {
				server := test.begin(w)
				w.faulty.at.Store(test.where)
				test.provoke(w, server)
				server.hearEnd()
				server.c.Close()
			}
			w.fault("a mistake in " + test.where)
			w.client.c.Close()
			other.say("NOOP")
			otherServer.hear("NOOP")
			otherServer.say("200 ok")
			other.hear("200 ")
			w.nothingLeft()
			w.noFault()
		})
	}
}
