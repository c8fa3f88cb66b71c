package terminate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// promise is one data connection that was announced, on its way from the announcement to its end.
type promise struct {
	session *session
	pinhole alg.Pinhole
	at      netip.AddrPort // where it is to come: the pinhole's To, but for the port if another client has that one
	until   time.Time      // when the pinhole lapses
	relayed bool

	begun   chan struct{} // closed when the transfer command has gone on: only then is it known how data is protected
	gone    chan struct{} // closed when nobody will ask for a transfer any more
	settled chan struct{} // closed when what is to be moved has been, or cannot be

	settle func() // closes settled

	mu       sync.Mutex
	transfer alg.Direction
	levels   [2]alg.Level
	configs  [2]*tls.Config // those of the session at that time: after CCC and another AUTH it has others
	started  bool
	instead  string // the reply that the transfer has to end with
	broken   bool   // its data connection could not be made, or its TLS failed
	over     bool   // its data connection came, and is gone
}

// relays decides whether data connections come here or go through the kernel.
func (s *session) relays() bool {
	if s.server.Addr() != s.real.Addr() || s.client.Addr() != s.seen {
		return true // each side knows other addresses
	}
	switch s.rule.Data {
	case policy.DataRelay:
		return true
	case policy.DataDirect:
		return false
	}
	client, server := s.dialogue.side[alg.Client].data, s.dialogue.side[alg.Server].data
	return client != server || s.rule.MaxSize > 0 || s.rule.TLS.RequireReuse || s.gateway.relayedLately(s.hosts()) ||
		client == alg.TLS && (s.target.Upstream.SessionReuse || !s.alike || s.gateway.insists(s.server.Addr()))
}

// maxRelays bounds the data connections that a session leaves behind when their transfers are over: a client may have the
// next one while the last is not read to its end, and a few were given up.
const maxRelays = 8

// open promises a data connection, and gives where it is to come. It stands when the reason is NoReason (design rule 2).
func (s *session) open(p alg.Pinhole) (at netip.AddrPort, why alg.Reason) {
	relayed := s.relays()
	client, server := s.dialogue.side[alg.Client].data, s.dialogue.side[alg.Server].data
	if !relayed && client != server {
		return at, alg.ProtectionDiffers
	}
	if relayed && s.relaying.Load() >= maxRelays {
		return at, alg.PinholeLimit
	}
	if err := s.markMaster(relayed); err != nil {
		s.report(audit.Event{Kind: audit.EventAudit, Reason: alg.ExpectationFailed, Err: err})
		return at, alg.ExpectationFailed
	}
	n := s.newPromise(p, relayed)
	if why, err := s.install(n); why != alg.NoReason {
		s.report(audit.Event{Kind: audit.EventAudit, Reason: why, Mode: p.Mode, From: p.From, To: n.at, Err: err})
		return at, why
	}
	s.abandonPromise()
	s.promise = n
	s.setPinhole(n.stands(), n.until)
	s.report(audit.Event{Kind: audit.EventPinhole, Mode: p.Mode, From: p.From, To: n.at})
	return n.at, alg.NoReason
}

// sharedPortTries bounds the search for a port at an address that several clients share.
const sharedPortTries = 16

// install puts a promise on the books, and the expectation into the kernel.
func (s *session) install(n *promise) (why alg.Reason, err error) {
	for range sharedPortTries {
		if why = s.gateway.promise(n); why != alg.NoReason && why != alg.ExpectationFailed {
			return why, nil
		}
		if why == alg.NoReason {
			if err = s.gateway.Conntrack.Expect(n.expectation()); err == nil {
				return alg.NoReason, nil
			}
			s.gateway.drop(n)
		}
		if !n.pinhole.Shared {
			break
		}
		n.at = netip.AddrPortFrom(n.at.Addr(), uint16(firstSourcePort+rand.IntN(lastSourcePort-firstSourcePort+1)))
	}
	return alg.ExpectationFailed, err
}

func (s *session) newPromise(p alg.Pinhole, relayed bool) *promise {
	settled := make(chan struct{})
	return &promise{
		session: s, pinhole: p, at: p.To, relayed: relayed, until: time.Now().Add(s.policy.PinholeTimeout),
		begun: make(chan struct{}), gone: make(chan struct{}),
		settled: settled, settle: sync.OnceFunc(func() { close(settled) }),
	}
}

// stands is the pinhole where it came to be.
func (n *promise) stands() alg.Pinhole {
	p := n.pinhole
	p.To = n.at
	return p
}

func (n *promise) expectation() conntrack.Expectation {
	s := n.session
	return conntrack.Expectation{Master: s.tuple(), From: n.pinhole.From, To: n.at, Timeout: s.policy.PinholeTimeout, Exclusive: n.pinhole.Shared}
}

// abandonPromise lets go of a data connection for which no transfer was asked.
func (s *session) abandonPromise() {
	if s.promise != nil {
		close(s.promise.gone)
		s.promise = nil
	}
}

// hosts are who the data connections are between.
func (s *session) hosts() hosts { return hosts{s.client.Addr(), s.server.Addr()} }

// tuple is the client's connection as conntrack knows it.
func (s *session) tuple() conntrack.Tuple { return conntrack.Tuple{Src: s.client, Dst: s.server} }

// markMaster has the kernel bring this session's data connections here, or not.
func (s *session) markMaster(relayed bool) error {
	if s.marked == relayed {
		return nil
	}
	var mark uint32
	if relayed {
		mark = s.gateway.RelayMark
	}
	err := s.gateway.Conntrack.SetMark(s.tuple(), mark, s.gateway.RelayMark)
	if err == nil {
		s.marked = relayed
	}
	return err
}

// shut withdraws a pinhole. If it is not there any more it was used. A relayed connection is on its way then: it may wait to
// be accepted while the server, which has sent all it had, says that the transfer is over. It finds its promise kept.
func (s *session) shut(p alg.Pinhole, why alg.Reason) {
	n := s.promise
	if n == nil || n.pinhole != p || !s.gateway.keeps(n) {
		return // its connection is here, and that was reported
	}
	err := s.gateway.Conntrack.Withdraw(n.expectation())
	if errors.Is(err, conntrack.ErrNotFound) {
		if err = nil; why != alg.TimedOut {
			why = alg.Used
		}
	}
	if n.relayed && why == alg.Used || !s.gateway.drop(n) {
		return
	}
	n.settle()
	s.closed(n, why, err)
}

func (s *session) closed(n *promise, why alg.Reason, err error) {
	s.infoMu.Lock()
	if s.info.Pinhole == n.stands() { // and not one that was promised later
		s.info.Pinhole, s.info.PinholeUntil = alg.Pinhole{}, time.Time{}
	}
	s.infoMu.Unlock()
	s.report(audit.Event{
		Kind: audit.EventClosed, Reason: why, Mode: n.pinhole.Mode, From: n.pinhole.From, To: n.at, Err: err,
	})
}

func (s *session) setPinhole(p alg.Pinhole, until time.Time) {
	s.infoMu.Lock()
	defer s.infoMu.Unlock()
	s.info.Pinhole, s.info.PinholeUntil = p, until
}

// begin tells the data connection at hand that its transfer has begun, and how it is protected.
func (s *session) begin(t alg.Direction) {
	if n := s.promise; n != nil {
		n.begin(t, [2]alg.Level{s.dialogue.side[alg.Client].data, s.dialogue.side[alg.Server].data}, s.configs)
	}
}

func (n *promise) begin(t alg.Direction, levels [2]alg.Level, configs [2]*tls.Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.started {
		n.started, n.transfer, n.levels, n.configs = true, t, levels, configs
		close(n.begun)
	}
}

// finish gives the reply that has to stand in the place of a transfer's own. It learns from the server's whether it
// insists on TLS sessions that it knows (RFC 4217 section 10.2, and what servers do).
func (s *session) finish(code int) string {
	n := s.promise
	if n == nil {
		return ""
	}
	if n.relayed && code < 300 {
		s.awaitSettled(n)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.broken && code < 300 && n.instead == "" {
		n.instead = alg.DataFailed.Reply()
	}
	if code < 300 || n.instead != "" {
		s.abandonPromise() // what became of it is no later transfer's
	}
	if !n.relayed && n.started && n.levels[alg.Server] == alg.TLS && (code == 522 || code == 425) && s.rule.Data == policy.DataAuto {
		s.gateway.insist(s.server.Addr())
	}
	return n.instead
}

// settleTimeout bounds the wait for data that a reply has overtaken. A client that takes longer for it gets the reply before,
// as it might without a gateway.
const settleTimeout = 5 * time.Second

// awaitSettled holds a transfer's reply back until its data has gone on: a server may say that all is well when it has sent
// everything, and the gateway has not counted it yet, nor even connected to an active client, who takes the reply for the end.
func (s *session) awaitSettled(n *promise) {
	limit := settleTimeout
	if s.rule.MaxSize > 0 {
		limit = s.policy.Limits.IdleTimeout
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	s.dialogue.own = settling // nothing else is said meanwhile
	s.mu.Unlock()
	select {
	case <-n.settled:
	case <-late.C:
	}
	s.mu.Lock()
	s.dialogue.own = none
}

// fail has the transfer end with another reply than the server's.
func (n *promise) fail(reply string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.instead == "" {
		n.instead = reply
	}
}

// ends notes the end of the data connection. If something failed the transfer ends with an error, whatever the server thinks of
// it.
func (n *promise) ends(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over, n.broken = true, err != nil
}

// givenUp says whether the client may have given the transfer at hand up: then some servers owe a reply for ever.
func (s *session) givenUp() bool {
	d := s.dialogue.control.Transferring()
	if s.dialogue.aborted || s.promise == nil || d == alg.NoTransfer || d == alg.Upload {
		return s.dialogue.aborted
	}
	s.promise.mu.Lock()
	defer s.promise.mu.Unlock()
	return s.promise.over
}

func (n *promise) door() door { return door{n.pinhole.From.Addr(), n.at} }

// promise notes a data connection that is to come. One that another session was promised between the same ends is this
// session's now, as the kernel holds one expectation for them; but not where several clients share an address: then it is
// ExpectationFailed.
func (g *Gateway) promise(n *promise) alg.Reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.doors[n.door()]
	switch {
	case before != nil && n.pinhole.Shared && before.session != n.session:
		return alg.ExpectationFailed
	case before != nil:
		g.strike(before)
		before.session.closed(before, alg.NextDataCommand, nil)
	}
	if g.Books.Pinholes.Take(n.session.client.Addr(), 1) != nil {
		return alg.PinholeLimit
	}
	g.doors[n.door()] = n
	return alg.NoReason
}

// keeps says whether a promise is on the books.
func (g *Gateway) keeps(n *promise) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.doors[n.door()] == n
}

// drop takes a promise off the books, and says whether it was on them.
func (g *Gateway) drop(n *promise) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.doors[n.door()] != n {
		return false
	}
	g.strike(n)
	return true
}

// strike takes a promise off the books that is on them. g.mu must be held.
func (g *Gateway) strike(n *promise) {
	delete(g.doors, n.door())
	g.Books.Pinholes.Release(n.session.client.Addr(), 1)
}

// take gives what was promised at a door, which is open no more: not in the kernel either, where conntrack may have taken the
// connection for a part of one between the same ports that was reset. The lock is held meanwhile, so that what falls is not
// the expectation of the door's next promise.
func (g *Gateway) take(d door) *promise {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.doors[d]
	if n == nil {
		return nil
	}
	if err := g.Conntrack.Withdraw(n.expectation()); err != nil && !errors.Is(err, conntrack.ErrNotFound) {
		n.session.report(audit.Event{Kind: audit.EventAudit, Reason: alg.ExpectationFailed, Mode: n.pinhole.Mode, From: n.pinhole.From, To: n.at, Err: err})
	}
	g.strike(n)
	return n
}

// Expire forgets the pinholes that the kernel let lapse and what else is too old, and renews the key for tickets. Call it
// every second.
func (g *Gateway) Expire(now time.Time) {
	if f := g.inForce.Load(); now.Sub(f.since) > ticketLife {
		g.SetPolicy(f.policy, f.certs)
	}
	var lapsed []*promise
	g.mu.Lock()
	maps.DeleteFunc(g.relayed, func(_ hosts, last time.Time) bool { return now.Sub(last) > timeWait })
	for _, n := range g.doors {
		if now.After(n.until) {
			lapsed = append(lapsed, n)
		}
	}
	g.mu.Unlock()
	for _, n := range lapsed {
		n.lapse()
	}
}

// lapse forgets a pinhole that the kernel let lapse; later, if its session is busy: one whose client does not read, or is slow
// to shake hands, must not keep the others waiting.
func (n *promise) lapse() {
	s := n.session
	defer s.rescue()
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.promise == n && s.dialogue.control.Pinhole() == n.pinhole {
		s.shut(n.pinhole, alg.TimedOut)
		s.dialogue.control.Expire()
	} else if s.gateway.drop(n) {
		n.settle()
		s.closed(n, alg.Used, nil) // by a connection that did not come to be
	}
}

// data carries a data connection that TPROXY handed over.
func (g *Gateway) data(ctx context.Context, c *net.TCPConn, d door) {
	n := g.take(d)
	if n == nil && g.Stray != nil && g.Stray(c) {
		_ = c.Close() // it is the other process's now
		return
	}
	if n == nil || !n.relayed {
		from, to := endpoints(c)
		g.Report(audit.Event{Time: time.Now(), Kind: audit.EventDeny, Reason: alg.NoSession, From: from, To: to})
		reset(c)
		return
	}
	n.session.relaying.Add(1)
	defer n.session.relaying.Add(-1)
	defer n.session.rescue()
	n.used()
	g.noteRelayed(n.session.hosts())
	defer g.noteRelayed(n.session.hosts())
	defer n.settle()
	err := n.carry(ctx, c)
	n.ends(err)
	if err != nil {
		n.session.report(audit.Event{
			Kind: audit.EventAudit, Reason: alg.DataFailed, Mode: n.pinhole.Mode, From: n.pinhole.From, To: n.at, Err: err,
		})
	}
}

// used takes the pinhole off the books: its data connection is here.
func (n *promise) used() {
	s := n.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.promise == n && s.dialogue.control.Pinhole() == n.pinhole {
		s.dialogue.control.Expire()
	}
	s.closed(n, alg.Used, nil)
}

// carry relays the data connection: the other half is made in the name of who has connected.
func (n *promise) carry(ctx context.Context, c *net.TCPConn) error {
	s := n.session
	near, far := alg.Client, alg.Server
	if n.pinhole.Mode == policy.PORT || n.pinhole.Mode == policy.EPRT {
		near, far = far, near
	}
	from, to := n.onward(near, c)
	d, err := dialFrom(ctx, s.gateway.Conntrack, s.gateway.OwnMark, from, to)
	if err != nil {
		reset(c)
		return err
	}
	r := &relay{promise: n}
	patience := s.policy.Limits.IdleTimeout
	r.halves[near], r.halves[far] = newHalf(c, patience), newHalf(d, patience)
	stop := context.AfterFunc(ctx, r.cut)
	defer stop()
	defer r.close()
	if !n.waitBegun(ctx) {
		return nil // the session ended before it asked for anything
	}
	if err := r.secure(); err != nil {
		r.cut()
		return err
	}
	return r.pump()
}

// onward is where the other half goes, and from where, as the host there sees it.
func (n *promise) onward(near alg.Side, c *net.TCPConn) (netip.Addr, netip.AddrPort) {
	s := n.session
	from, to := endpoints(c)
	switch {
	case !n.pinhole.Real.IsValid():
		return from.Addr(), to
	case near == alg.Client:
		return s.seen, n.pinhole.Real
	}
	return s.server.Addr(), n.pinhole.Real
}

// waitBegun waits for the transfer command.
func (n *promise) waitBegun(ctx context.Context) bool {
	select {
	case <-n.begun:
		return true
	case <-n.gone:
	case <-ctx.Done():
		return false
	}
	select {
	case <-n.begun: // before the next data command came
		return true
	default:
		return false
	}
}

// secure brings both halves to their protection. The two handshakes run side by side, as neither end waits for the other.
// They begin when the server is ready to send or receive, which may take it long, so they have the time that an idle session
// has; as there is one a session they do not count as handshakes in flight.
func (r *relay) secure() error {
	n, s := r.promise, r.promise.session
	var both errgroup.Group
	for side, level := range n.levels {
		if level != alg.TLS {
			continue
		}
		h, config := r.halves[side], n.configs[side]
		if alg.Side(side) == alg.Client && n.transfer == alg.Upload {
			config = withoutNewTickets(config)
		}
		both.Go(func() error {
			over := func(c net.Conn) *tls.Conn { return tls.Server(c, config) }
			if alg.Side(side) == alg.Server {
				over = func(c net.Conn) *tls.Conn { return tls.Client(c, config) }
			}
			if err := h.secure(s.policy.Limits.IdleTimeout, over); err != nil {
				r.cut() // so that the other handshake need not wait
				return fmt.Errorf("TLS with the %s: %w", alg.Side(side), err)
			}
			return nil
		})
	}
	if err := both.Wait(); err != nil {
		return err
	}
	if client := r.halves[alg.Client]; client.tls != nil && s.rule.TLS.RequireReuse && !client.tls.ConnectionState().DidResume {
		n.fail(alg.ReuseRequired.Reply())
		return errNoReuse
	}
	return nil
}

// errNoReuse says that a data connection came with a TLS session that is not its control connection's.
var errNoReuse = errors.New("the data connection does not resume the control connection's TLS session")
