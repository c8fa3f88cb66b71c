package terminate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/policy"
)

// relayed brings a session under a policy to where a data connection is announced, and there at both ends.
func (w *world) relayed(server *end) (client, far net.Conn) {
	w.t.Helper()
	l := listen(w.t)
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say(fmt.Sprintf("229 here (|||%d|)", portOf(l)))
	w.client.hear("229 ")
	client = dial(w.t, l)
	near, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { client.Close() })
	from, to := endpoints(near.(*net.TCPConn))
	w.gateway.running.Go(func() { w.gateway.data(w.ctx, near.(*net.TCPConn), door{from.Addr(), to}) })
	far, err = l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { far.Close() })
	for _, c := range []net.Conn{client, far} {
		c.SetDeadline(time.Now().Add(testTimeout))
	}
	return client, far
}

func relayPolicy(change func(*policy.Rule)) func(*policy.Policy) {
	return func(p *policy.Policy) {
		p.Rules[0].Data = policy.DataRelay
		if change != nil {
			change(&p.Rules[0])
		}
	}
}

// What may move, and how much, is what the transfer says that the server accepts: not one before it that it refused, whose
// limit was another.
func TestRefusedTransferIsForgotten(t *testing.T) {
	w := newWorld(t, false, relayPolicy(func(r *policy.Rule) { r.MaxSize = 1000 }))
	server := w.loggedIn()
	client, far := w.relayed(server)
	w.client.say("MLSD /nowhere")
	server.hear("MLSD")
	server.say("550 no")
	w.client.hear("550 ")
	w.client.say("RETR a")
	server.hear("RETR a")
	server.say("150 here")
	w.client.hear("150 ")
	go far.Write(make([]byte, 5000)) // it is cut off
	if got, _ := io.ReadAll(client); len(got) > 1000 {
		t.Errorf("%d bytes came, and 1000 are allowed", len(got))
	}
	w.client.hear("552 ") // and the server has not said anything yet
	server.say("426 cut")
	w.client.say("NOOP")
	server.hear("NOOP")
	server.say("200 ok")
	w.client.hear("200 ")
}

// No byte moves before the server has accepted the transfer, in either direction.
func TestBytesWaitForTheServer(t *testing.T) {
	for _, command := range []string{"RETR a", "STOR a"} {
		w := newWorld(t, false, relayPolicy(nil))
		server := w.loggedIn()
		from, to := w.relayed(server)
		if command == "RETR a" {
			from, to = to, from
		}
		if _, err := from.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		w.client.say(command)
		server.hear(command)
		to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := to.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes moved before the server accepted the transfer (%v)", command, n, err)
		}
		server.say("150 here")
		w.client.hear("150 ")
		to.SetReadDeadline(time.Now().Add(testTimeout))
		if _, err := io.ReadFull(to, make([]byte, 5)); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// A server that leaves out 1yz has accepted what it says is done.
func TestServerWithoutPreliminaryReply(t *testing.T) {
	w := newWorld(t, false, relayPolicy(nil))
	server := w.loggedIn()
	client, far := w.relayed(server)
	w.client.say("RETR a")
	server.hear("RETR a")
	far.Write([]byte("data"))
	far.Close()
	server.say("226 done")
	if got, err := io.ReadAll(client); string(got) != "data" {
		t.Errorf("got %q, %v", got, err)
	}
	client.Close()
	w.client.hear("226 ")
}

// A server that neither accepts nor refuses a transfer is not waited for for ever.
func TestUnansweredTransfer(t *testing.T) {
	n := (&session{policy: policy.AllowAll()}).newPromise(alg.Pinhole{}, true)
	asked := &transfer{direction: alg.Download}
	if !n.ask(asked) || n.ask(asked) {
		t.Error("a data connection is there for one transfer at a time")
	}
	if _, err := n.awaitAnswer(t.Context(), asked, time.Millisecond); !errors.Is(err, errUnanswered) {
		t.Errorf("the wait ends with %v", err)
	}
	n.accept()
	if accepted, err := n.awaitAnswer(t.Context(), asked, time.Hour); !accepted || err != nil {
		t.Errorf("accepted, the wait ends with %t, %v", accepted, err)
	}
}

// When the next data connection is announced, one whose transfer was refused is broken off.
func TestNextAnnouncementCutsWhatWasRefused(t *testing.T) {
	w := newWorld(t, false, relayPolicy(nil))
	server := w.loggedIn()
	client, far := w.relayed(server)
	w.client.say("RETR nowhere")
	server.hear("RETR nowhere")
	server.say("550 no")
	w.client.hear("550 ")
	w.relayed(server)
	for _, c := range []net.Conn{client, far} {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it lives: %v", err)
		}
	}
}

// A client has a share of the relayed data connections; what is over it gets 425.
func TestRelaysOfOneClient(t *testing.T) {
	w := newWorld(t, false, relayPolicy(nil))
	server := w.loggedIn()
	account := w.gateway.Books.Relays
	for account.Take(w.client.c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(), 1) == nil {
	}
	w.client.say("EPSV")
	server.hear("EPSV")
	l := listen(t)
	server.say(fmt.Sprintf("229 here (|||%d|)", portOf(l)))
	w.client.hear("229 ")
	w.client.say("RETR a")
	server.hear("RETR a")
	dial(t, l)
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	from, to := endpoints(near.(*net.TCPConn))
	w.gateway.data(w.ctx, near.(*net.TCPConn), door{from.Addr(), to})
	w.client.hear("425 ")
}

// A transfer whose data would have to be in clear text is refused where the policy asks for a certificate or a TLS session on it,
// in a session under TLS.
func TestUnprotectedData(t *testing.T) {
	for name, change := range map[string]func(*policy.Rule){
		"session-reuse": func(r *policy.Rule) { r.TLS.RequireReuse = true },
		"client-ca":     func(r *policy.Rule) { r.TLS.CA = "/ca.pem" },
	} {
		w := newWorld(t, false, relayPolicy(change))
		s := w.accept()
		s.say("220 ready")
		w.client.hear("220 ")
		w.client.say("AUTH TLS")
		s.hear("AUTH TLS")
		s.say("234 go on")
		s.secure(w.tlsServer)
		w.client.hear("234 ")
		w.client.secure(tlsClient)
		w.login(s)
		w.relayed(s)
		w.client.say("RETR a")
		w.client.hear(alg.DataUnprotected.Reply()) // and the server hears nothing of it
		w.client.say("NOOP")
		s.hear("NOOP")
		if t.Failed() {
			t.Log(name)
		}
	}
}
