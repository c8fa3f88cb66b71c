package terminate

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// Conntrack holds the pinholes and the mark of relayed sessions. conntrack.Conn is one.
type Conntrack interface {
	Expect(conntrack.Expectation) error
	Withdraw(conntrack.Expectation) error
	Lookup(conntrack.Tuple) (conntrack.Entry, error)
	SetMark(t conntrack.Tuple, mark, mask uint32) error
}

// Certificates makes the TLS configurations of both sides. cert.Store is one.
type Certificates interface {
	Downstream(s *policy.Server, r *policy.Rule, addr netip.Addr, peer *x509.Certificate) (*tls.Config, error)
	Upstream(s *policy.Server, addr netip.Addr) *tls.Config
	HasCertificate(s *policy.Server) bool
}

const (
	// ticketLife is how long a key for tickets is used: TLS 1.2 has no secrecy beyond it (RFC 5077 section 5.5).
	ticketLife = 24 * time.Hour
	// timeWait is how long the kernel keeps the socket of a connection that it closed first (TCP_TIMEWAIT_LEN).
	timeWait = time.Minute
	// acceptPause is the wait after a failed accept, most likely for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// Options are what a Gateway works with.
type Options struct {
	Policy       *policy.Policy
	Certificates Certificates
	Conntrack    Conntrack
	Books        *ledger.Books     // nil for books of its own
	Report       func(audit.Event) // called from many goroutines
	Number       func() uint64     // gives the next session's number
	RelayMark    uint32            // connmark bit: data connections of such a control connection come here
	OwnMark      uint32            // mark of the packets of our own sockets
	// Stray is given a data connection that nobody here was promised, and says whether another process carries it. Nil if
	// there is none.
	Stray func(*net.TCPConn) bool
}

// Gateway carries the terminated control connections and their relayed data connections.
type Gateway struct {
	Options
	inForce atomic.Pointer[inForce]

	mu       sync.Mutex
	sessions map[*session]struct{}
	doors    map[door]*promise
	relayed  map[hosts]time.Time // when a data connection between two hosts was relayed last
	carried  int                 // connections

	life    context.Context // of the connections
	stop    func()          // ends it
	running sync.WaitGroup
}

// inForce is what new sessions begin with.
type inForce struct {
	policy  *policy.Policy
	certs   Certificates
	tickets [32]byte // key of the tickets that clients are given
	since   time.Time
}

// hosts are a client and a server.
type hosts struct{ client, server netip.Addr }

// door is where a data connection comes from and goes to.
type door struct {
	from netip.Addr
	to   netip.AddrPort
}

// New gives a gateway without sessions.
func New(o Options) *Gateway {
	g := &Gateway{
		Options: o, sessions: map[*session]struct{}{}, doors: map[door]*promise{}, relayed: map[hosts]time.Time{},
	}
	g.life, g.stop = context.WithCancel(context.Background())
	g.SetPolicy(o.Policy, o.Certificates)
	if g.Books == nil {
		g.Books = ledger.NewBooks(func() *policy.Limits { return &g.inForce.Load().policy.Limits })
	}
	return g
}

// SetPolicy puts another policy and other certificates in force for the sessions that begin from now on.
func (g *Gateway) SetPolicy(p *policy.Policy, certs Certificates) {
	g.inForce.Store(newInForce(p, certs))
}

func newInForce(p *policy.Policy, certs Certificates) *inForce {
	now := &inForce{policy: p, certs: certs, since: time.Now()}
	_, _ = rand.Read(now.tickets[:]) // documented never to fail
	return now
}

// renewTickets has sessions begin with another key for tickets when the one in force is too old. A policy that is put in force
// meanwhile stays, and has a key of its own.
func (g *Gateway) renewTickets(now time.Time) {
	if old := g.inForce.Load(); now.Sub(old.since) > ticketLife {
		g.inForce.CompareAndSwap(old, newInForce(old.policy, old.certs))
	}
}

// Serve lets connections be carried until ctx ends; then it ends the sessions and returns.
func (g *Gateway) Serve(ctx context.Context) {
	<-ctx.Done()
	g.mu.Lock()
	g.stop()
	for s := range g.sessions {
		s.abandon(alg.GatewayStopped)
	}
	g.mu.Unlock()
	g.running.Wait()
}

// Accept carries what a listener accepts until ctx ends. The listener stays open: another process may have it as well, and
// what waits in it is lost to neither.
func (g *Gateway) Accept(ctx context.Context, l *net.TCPListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) }) // an error means that it is closed
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			g.Carry(c.(*net.TCPConn))
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("terminate: %w", err)
		default:
			g.Report(audit.Event{Time: time.Now(), Kind: audit.EventAudit, Reason: alg.InternalError, Err: err})
			time.Sleep(acceptPause)
		}
	}
}

// Carry carries one connection, unless Serve has ended them.
func (g *Gateway) Carry(c *net.TCPConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.life.Err() != nil {
		reset(c)
		return
	}
	g.carried++
	g.running.Go(func() {
		defer g.carriedOne()
		defer g.rescue(c)
		g.carry(g.life, c)
	})
}

func (g *Gateway) carriedOne() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.carried--
}

// Idle says whether no connection is carried, neither a control nor a data connection.
func (g *Gateway) Idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.carried == 0
}

// Count is the number of sessions.
func (g *Gateway) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions)
}

// carry carries one connection that TPROXY handed over: its local address is where its client wanted to go.
func (g *Gateway) carry(ctx context.Context, c *net.TCPConn) {
	from, to := endpoints(c)
	now := g.inForce.Load()
	if !now.policy.IsControlPort(to) {
		g.data(ctx, c, door{from.Addr(), to})
		return
	}
	d := now.policy.Decide(from.Addr(), to)
	if d.Action != policy.Terminate {
		g.Report(audit.Event{Time: time.Now(), Kind: audit.EventDeny, Reason: alg.PolicyDenied, From: from, To: to})
		reset(c)
		return
	}
	s := g.newSession(now, d, c)
	if err := g.begin(s); err != nil {
		s.report(audit.Event{Kind: audit.EventDeny, Reason: alg.SessionLimit, Err: err})
		s.turnAway(alg.SessionLimit)
		return
	}
	defer g.end(s)
	s.run(ctx)
}

// endpoints gives the two ends of a connection.
func endpoints(c *net.TCPConn) (remote, local netip.AddrPort) {
	plain := func(a net.Addr) netip.AddrPort {
		p := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return plain(c.RemoteAddr()), plain(c.LocalAddr())
}

// begin counts a session. The error says which limit is reached.
func (g *Gateway) begin(s *session) error {
	if err := g.Books.Sessions.Take(s.client.Addr(), 1); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sessions[s] = struct{}{}
	return nil
}

func (g *Gateway) end(s *session) {
	g.Books.Sessions.Release(s.client.Addr(), 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sessions, s)
}

// Sessions lists the sessions, oldest first.
func (g *Gateway) Sessions() []audit.SessionInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []audit.SessionInfo
	for s := range g.sessions {
		list = append(list, s.Info())
	}
	slices.SortFunc(list, func(a, b audit.SessionInfo) int { return int(a.Number) - int(b.Number) })
	return list
}

// Servers are the addresses at which sessions' clients reach their servers, sorted, each once.
func (g *Gateway) Servers() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := make(map[netip.Addr]struct{})
	for s := range g.sessions {
		found[s.server.Addr()] = struct{}{}
	}
	return slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
}

// handshake runs one TLS handshake of a client's session, if there is room for it.
func (g *Gateway) handshake(client netip.Addr, run func() error) error {
	if err := g.Books.Handshakes.Take(client, 1); err != nil {
		return fmt.Errorf("TLS handshakes in flight: %w", err)
	}
	defer g.Books.Handshakes.Release(client, 1)
	return run()
}

// noteRelayed notes that a data connection between two hosts is, or was until now, relayed.
func (g *Gateway) noteRelayed(h hosts) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.relayed[h] = time.Now()
}

// relayedLately says whether a socket of a relayed data connection between two hosts may still wait for stragglers. The
// kernel finds it before all rules (early demultiplexing), and drops what it would forward: a direct data connection between
// the same ports.
func (g *Gateway) relayedLately(h hosts) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	last, ok := g.relayed[h]
	return ok && time.Since(last) < timeWait
}
