package terminate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
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

func (f *faulty) Downstream(s *policy.Server, r *policy.Rule, a netip.Addr, c *x509.Certificate) (*tls.Config, error) {
	f.panicAt("Downstream")
	return f.certificates.Downstream(s, r, a, c)
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
		"the end": {"Withdraw", (*world).announced, func(w *world, server *end) {
			w.client.c.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false, nil)
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
			for w.gateway.Count() > 1 {
				runtime.Gosched()
			}
			w.noFault()
		})
	}
}
