package terminate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// greetingTimeout is long, because some servers look names up before they speak.
const greetingTimeout = time.Minute

// session is one control connection: a peer on each side and the dialogue between them. Two goroutines read, one a peer;
// what they read goes through the dialogue under mu.
type session struct {
	gateway  *Gateway
	number   uint64
	client   netip.AddrPort
	server   netip.AddrPort // as the client sees it
	real     netip.AddrPort // where that server itself is, behind DNAT
	seen     netip.Addr     // the client's address as the server sees it, behind source NAT
	policy   *policy.Policy
	rule     *policy.Rule
	target   *policy.Server
	certs    Certificates
	key      [32]byte // of tickets
	implicit bool

	mu       sync.Mutex
	turn     *sync.Cond // something changed that the client's reader may wait for
	peers    [2]*peer
	dialogue dialogue
	due      bool // TLS begins with the client before it is read next
	over     bool
	greeted  time.Time // when the greeting is due
	asked    time.Time // when the server was sent something last
	heard    time.Time // when it said something last

	tickets tickets
	configs [2]*tls.Config    // of the next data connections, by side
	shown   *x509.Certificate // by the client, where the policy asks for one
	promise *promise          // of the data connection at hand
	entry   uint32            // id of conntrack's entry of the client's connection

	relaying atomic.Int32 // data connections that are here

	infoMu sync.Mutex
	info   audit.SessionInfo
}

func (g *Gateway) newSession(now *inForce, d policy.Decision, c *net.TCPConn) *session {
	client, server := endpoints(c)
	s := &session{
		gateway: g, number: g.Number(), client: client, server: server, real: d.Real, seen: client.Addr(),
		policy: now.policy, rule: d.Rule, target: d.Server, certs: now.certs, key: now.tickets, implicit: d.Implicit,
	}
	s.turn = sync.NewCond(&s.mu)
	s.tickets = newTickets(d.Rule.Name + "\x00" + d.Server.Name)
	s.peers[alg.Client] = &peer{tcp: c, in: lineReader{limit: now.policy.Limits.Line}}
	shows := now.certs.HasCertificate(d.Server)
	s.dialogue = dialogue{
		out: s, control: alg.NewTerminated(now.policy, d, client, server, shows), rule: d.Rule,
		limit: now.policy.Limits.LoginFailures, shows: shows,
	}
	s.info = audit.SessionInfo{
		Number: s.number, Client: client, Server: server, Rule: d.Rule.Name, Began: time.Now(), LastSeen: time.Now(),
		Protection: alg.Protection{Control: alg.Clear, Data: alg.Clear},
	}
	return s
}

// run carries the session from its beginning to its end.
func (s *session) run(ctx context.Context) {
	var reader sync.WaitGroup
	defer s.close()
	defer reader.Wait()
	defer s.rescue()
	s.report(audit.Event{Kind: audit.EventSession})
	greeting, err := s.connect(ctx)
	if err != nil {
		why := failure(err)
		s.report(audit.Event{Kind: audit.EventEnd, Reason: why, Err: err})
		if server := s.peers[alg.Server]; server != nil {
			_ = server.tcp.Close() // it need not wait until the client has read why
		}
		s.turnAway(why)
		return
	}
	if s.implicit {
		if err := s.secureClient(); err != nil {
			s.report(audit.Event{Kind: audit.EventEnd, Reason: alg.ClientTLS, Err: err})
			return
		}
		s.dialogue.control.Secured(alg.Client, true, nil)
		s.dialogue.protected(s.dialogue.control.Protection())
	}
	s.greet(greeting)
	reader.Go(s.readServer)
	s.readClient()
}

// greet passes on the greeting that was read before AUTH.
func (s *session) greet(greeting []line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range greeting {
		s.dialogue.serverLine(l)
	}
}

// failure names what kept a session from beginning.
func failure(err error) alg.Reason {
	if errors.Is(err, errUpstreamTLS) {
		return alg.UpstreamTLS
	}
	return alg.ServerUnreachable
}

// errUpstreamTLS wraps what went wrong with TLS towards the server.
var errUpstreamTLS = errors.New("TLS with the server")

// connect makes the connection to the server, and protects it where the policy says so. Where AUTH comes first it gives
// the server's greeting, which the client has yet to see.
func (s *session) connect(ctx context.Context) (greeting []line, err error) {
	if err := inlineUrgent(s.peers[alg.Client].tcp); err != nil {
		return nil, err
	}
	if entry, err := s.gateway.Conntrack.Lookup(s.tuple()); err == nil { // without one no data connection can be expected
		s.entry = entry.ID
	}
	channel, port := s.target.Dial(s.real.Port())
	at := netip.AddrPortFrom(s.real.Addr(), port)
	c, err := dialFrom(ctx, s.gateway.Conntrack, s.gateway.OwnMark, s.client.Addr(), at)
	if err != nil {
		return nil, err
	}
	if err := s.translated(c); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.peers[alg.Server] = &peer{tcp: c, in: lineReader{limit: 2 * s.policy.Limits.Line}}
	s.greeted = time.Now().Add(s.greetingTimeout())
	s.mu.Unlock()
	asked := false
	switch {
	case channel == policy.Implicit && s.implicit:
		// What MS-FTPS 1.3 takes for granted may be the client's to say all the same: some servers have no PROT without PBSZ.
		err = s.secureServer()
	case channel == policy.Implicit || channel == policy.Explicit:
		greeting, err = s.negotiate(channel)
		asked = true
	default:
		return nil, nil
	}
	s.dialogue.control.Secured(alg.Server, asked, nil)
	return greeting, err
}

// translated learns how the server sees the client: source NAT may have changed its address on the way.
func (s *session) translated(c *net.TCPConn) error {
	to, from := endpoints(c)
	entry, err := s.gateway.Conntrack.Lookup(conntrack.Tuple{Src: from, Dst: to})
	if errors.Is(err, conntrack.ErrNotFound) {
		return nil // conntrack has nothing to do with it
	}
	if err != nil {
		return fmt.Errorf("find the connection to the server in conntrack: %w", err)
	}
	s.seen = entry.Reply.Dst.Addr()
	s.dialogue.control.Translated(s.real.Addr(), s.seen, false)
	return nil
}

// greetingTimeout bounds the wait for the whole of the server's greeting, and of what has to be agreed on before it goes on.
func (s *session) greetingTimeout() time.Duration {
	return min(greetingTimeout, s.policy.Limits.IdleTimeout)
}

// readServer takes the server's lines.
func (s *session) readServer() {
	server := s.peers[alg.Server]
	defer server.drain()
	defer s.rescue()
	for {
		l, err := server.next(s.serverDeadline())
		if !s.serverSaid(l, err) {
			return
		}
	}
}

// serverSaid takes what the server's reader has got, and reports whether the session goes on.
func (s *session) serverSaid(l line, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
	case timedOut(err) && s.patient():
	case timedOut(err):
		s.dialogue.end(alg.ServerUnreachable)
	case err != nil:
		s.lost(err)
	default:
		s.heard = time.Now()
		s.dialogue.serverLine(l)
		s.turn.Broadcast()
	}
	return !s.over
}

// serverDeadline is until when the server has to say something.
func (s *session) serverDeadline() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := time.Now().Add(s.policy.Limits.IdleTimeout)
	if !s.greeted.IsZero() && s.dialogue.control.Outstanding() > 0 {
		return s.greeted
	}
	s.greeted = time.Time{}
	return idle
}

// slowestReply is how long a server may take to answer: one that computes the hash of a large file is not idle, nor is the client
// that waits for it. TCP itself finds servers that are gone.
const slowestReply = time.Hour

// patient reports whether the server's silence is in order: nobody asked anything, or a transfer is under way, or the answer may
// take longer.
func (s *session) patient() bool {
	c := s.dialogue.control
	return s.greeted.IsZero() && !s.dialogue.settling && !c.Asking() &&
		(c.Outstanding() == 0 || c.Transferring() != alg.NoTransfer || time.Since(s.asked) < slowestReply)
}

// readClient takes the client's lines, each when it can be answered.
func (s *session) readClient() {
	client := s.peers[alg.Client]
	defer client.drain()
	defer s.rescue()
	for s.prepareClient() {
		l, err := client.next(time.Now().Add(s.policy.Limits.IdleTimeout))
		s.clientSaid(l, err)
	}
}

// clientSaid takes what the client's reader has got.
func (s *session) clientSaid(l line, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case timedOut(err) && errors.Is(err, errSlowLine):
		s.lost(err)
	case timedOut(err) && s.dialogue.busy(): // it waits for a reply
	case timedOut(err):
		s.dialogue.end(alg.IdleTimeout)
	case err != nil:
		if errors.Is(err, io.EOF) {
			s.waitReplies() // it says no more, and may still read
		}
		s.lost(err)
	default:
		s.waitTurn(l)
		s.touch()
		s.dialogue.clientLine(l)
	}
}

// prepareClient waits until the client may be read, and begins TLS with it if that is due. It says whether the session
// goes on.
func (s *session) prepareClient() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.over && !s.dialogue.listen() {
		s.turn.Wait()
	}
	if s.due && !s.over {
		s.due = false
		if err := s.secureClient(); err != nil {
			s.end(audit.Event{Kind: audit.EventEnd, Reason: alg.ClientTLS, Err: err})
		}
	}
	return !s.over
}

// lost ends the session because one of its connections is gone, or too slow.
func (s *session) lost(err error) {
	why := alg.ConnectionClosed
	if timedOut(err) {
		why = alg.IdleTimeout
	}
	s.end(audit.Event{Kind: audit.EventEnd, Reason: why})
}

// end ends the session: both readers stop when they have heard the rest.
func (s *session) end(e audit.Event) {
	if s.over {
		return
	}
	if !s.dialogue.over {
		s.report(e)
	}
	s.dialogue.over, s.over = true, true
	s.turn.Broadcast()
	for _, p := range s.peers {
		if p != nil {
			p.goodbye()
		}
	}
}

// abandon ends the session for a reason that is none of what its ends have said. A client that does not read, or does not shake
// hands, may keep the session busy until then, and with it whoever waits for its end.
func (s *session) abandon(why alg.Reason) {
	_ = s.peers[alg.Client].tcp.SetDeadline(time.Now().Add(lingerTimeout)) // an error means that it is gone
	s.gateway.running.Go(func() {
		defer s.rescue()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.end(audit.Event{Kind: audit.EventEnd, Reason: why})
	})
}

// close leaves nothing of the session behind.
func (s *session) close() {
	defer s.rescue()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	defer s.disconnect()
	defer s.abandonPromise()
	for _, e := range s.dialogue.control.Close(nil) {
		if e.Kind == alg.ClosePinhole {
			s.shut(e.Pinhole, e.Reason)
		}
	}
}

func (s *session) disconnect() {
	for _, p := range s.peers {
		if p != nil {
			_ = p.tcp.Close() // it may be closed already
		}
	}
}

// turnAway ends a connection whose session cannot be, with a reply where the client can read one and else with an alert.
func (s *session) turnAway(why alg.Reason) {
	client := s.peers[alg.Client]
	if !s.implicit {
		_ = client.send([]byte(why.Reply()+"\r\n"), inClear) // it is told if it listens
		client.goodbye()
		client.drain()
		return
	}
	_ = s.gateway.handshake(s.client.Addr(), func() error {
		return client.secure(time.Now().Add(s.policy.Limits.HandshakeTimeout), func(c net.Conn) *tls.Conn {
			return tls.Server(c, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return nil, errUpstreamTLS
			}})
		})
	})
	client.goodbye()
	client.drain()
}

// send, secure, unsecure, hangUp and report are what the dialogue acts with.

func (s *session) send(to alg.Side, text []byte, said transport) {
	if s.over || to == alg.Client && s.due {
		return
	}
	if to == alg.Server {
		s.asked = time.Now()
	}
	if err := s.peers[to].send(text, said); errors.Is(err, errTransport) {
		s.end(audit.Event{Kind: audit.EventEnd, Reason: alg.InternalError, Err: fmt.Errorf("%s: %w", to, err)})
	} else if err != nil {
		s.lost(err)
	}
}

func (s *session) secure(side alg.Side) error {
	if side == alg.Client {
		s.due = true
		s.abandonPromise() // what was announced in clear text is no part of the session in TLS
		return nil
	}
	if err := s.secureServer(); err != nil {
		s.report(audit.Event{Kind: audit.EventAudit, Reason: alg.UpstreamTLS, Err: err})
		return err
	}
	return nil
}

func (s *session) unsecure(side alg.Side) error {
	err := s.peers[side].unsecure()
	if err != nil {
		s.end(audit.Event{Kind: audit.EventEnd, Reason: alg.ConnectionClosed, Err: fmt.Errorf("CCC, %s: %w", side, err)})
	}
	return err
}

func (s *session) hangUp(why alg.Reason) {
	s.end(audit.Event{Kind: audit.EventEnd, Reason: why})
}

func (s *session) report(e audit.Event) {
	e.Time, e.Session, e.Client = time.Now(), s.number, s.client.Addr()
	if !e.To.IsValid() {
		e.From, e.To = s.client, s.server
	}
	s.gateway.Report(e)
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	switch e.Kind {
	case audit.EventProtection:
		s.info.Protection = e.Protection
	case audit.EventLogin:
		s.info.User = e.Text
	}
}

// touch notes that the client spoke.
func (s *session) touch() {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.info.LastSeen = time.Now()
}

// Info is what the operator sees of the session.
func (s *session) Info() audit.SessionInfo {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	return s.info
}
