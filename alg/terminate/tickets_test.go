package terminate

import (
	"crypto/tls"
	"io"
	"testing"
	"time"
)

// visit makes one TLS connection to a server with a configuration and says whether the client's session was resumed.
func visit(t *testing.T, client, server *tls.Config) bool {
	t.Helper()
	a, b := pipe(t)
	a.SetDeadline(time.Now().Add(testTimeout))
	b.SetDeadline(time.Now().Add(testTimeout))
	c, s := tls.Client(a, client), tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x")) // behind the tickets, which are read with it
		}
		done <- err
	}()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return s.ConnectionState().DidResume
}

// A ticket is good for the data connections of its own control connection: another's is not resumed, in either version.
func TestTicketsAreBound(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		base := newCertificates(t).base
		type side struct {
			client, control *tls.Config
			data            func() *tls.Config // of the control connection as it is now
		}
		newSide := func(scope string, cache tls.ClientSessionCache) *side {
			x, tickets, resumed := &side{}, newTickets(scope), new(string)
			x.client = &tls.Config{InsecureSkipVerify: true, ServerName: "server", MaxVersion: version, ClientSessionCache: cache}
			x.control = tickets.control(base, resumed)
			x.data = func() *tls.Config { return tickets.data(base, *resumed) }
			return x
		}
		one, other := newSide("rule", tls.NewLRUClientSessionCache(4)), newSide("rule", tls.NewLRUClientSessionCache(4))
		if visit(t, one.client, one.control) || visit(t, other.client, other.control) {
			t.Fatal("a first connection resumed something")
		}
		for i := range 3 {
			if !visit(t, one.client, one.data()) {
				t.Errorf("TLS %#x: data connection %d did not resume its control connection's session", version, i)
			}
		}
		if visit(t, one.client, other.data()) {
			t.Errorf("TLS %#x: another control connection's ticket was taken", version)
		}
		stranger := newSide("another rule", nil)
		if visit(t, one.client, stranger.control) {
			t.Errorf("TLS %#x: a ticket of another rule was taken", version)
		}
		// A client that comes back may resume, and its data connections with the ticket that it came with.
		again := newSide("rule", nil)
		again.client = other.client
		if !visit(t, again.client, again.control) {
			t.Errorf("TLS %#x: a client that came back did not resume", version)
		}
		if !visit(t, again.client, again.data()) {
			t.Errorf("TLS %#x: and its data connection did not either", version)
		}
	}
}

// countedCache counts the tickets that a client gets.
type countedCache struct {
	tls.ClientSessionCache
	puts int
}

func (c *countedCache) Put(key string, s *tls.ClientSessionState) {
	c.puts++
	c.ClientSessionCache.Put(key, s)
}

// An upload's data connection resumes, as others do, and brings no ticket that its client would have to read.
func TestUploadsBringNoTickets(t *testing.T) {
	base := newCertificates(t).base
	tickets, resumed := newTickets("rule"), new(string)
	cache := &countedCache{ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "server", MinVersion: tls.VersionTLS13, ClientSessionCache: cache}
	visit(t, client, tickets.control(base, resumed))
	data := tickets.data(base, *resumed)
	before := cache.puts
	for range 2 {
		if !visit(t, client, withoutNewTickets(data)) {
			t.Error("an upload did not resume its control connection's session")
		}
	}
	client.ClientSessionCache = &countedCache{ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	if visit(t, client, withoutNewTickets(data)) {
		t.Error("a client without a ticket resumed")
	}
	if fresh := client.ClientSessionCache.(*countedCache); before == 0 || cache.puts != before || fresh.puts != 0 {
		t.Errorf("tickets: %d on the control connection, %d then, %d without a session", before, cache.puts, fresh.puts)
	}
	if !visit(t, &tls.Config{InsecureSkipVerify: true, ServerName: "server", ClientSessionCache: cache}, data) {
		t.Error("a download did not resume")
	}
	if cache.puts == before {
		t.Error("a download brought no ticket")
	}
}

// In TLS 1.2 uploads resume as well, and a client that speaks 1.3 does with a server that does not. FileZilla demands it.
func TestUploadsResumeInTLS12(t *testing.T) {
	for name, limit := range map[string]func(client, server *tls.Config){
		"client": func(client, _ *tls.Config) { client.MaxVersion = tls.VersionTLS12 },
		"server": func(_, server *tls.Config) { server.MaxVersion = tls.VersionTLS12 },
	} {
		base := newCertificates(t).base
		client := &tls.Config{InsecureSkipVerify: true, ServerName: "server", ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		limit(client, base)
		tickets, resumed := newTickets("rule"), new(string)
		visit(t, client, tickets.control(base, resumed))
		for i := range 3 {
			if !visit(t, client, withoutNewTickets(tickets.data(base, *resumed))) {
				t.Errorf("the %s speaks TLS 1.2: upload %d did not resume its control connection's session", name, i)
			}
		}
	}
}
