package terminate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// data carries a data connection that TPROXY handed over.
func (g *Gateway) data(ctx context.Context, c *net.TCPConn, d door) {
	abortive(c) // see newHalf
	n := g.take(d)
	if n == nil && g.Stray != nil && g.Stray(c) {
		_ = c.Close() // it is the other process's now
		return
	}
	if n == nil || !n.relayed.Load() {
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
	if err := n.carryCounted(ctx, c); err != nil {
		n.fail(reasonOf(err))
		n.session.report(audit.Event{
			Kind: audit.EventAudit, Reason: reasonOf(err), Mode: n.pinhole.Mode, From: n.pinhole.From, To: n.at, Err: err,
		})
	}
}

// carryCounted carries a data connection if there is room for it in its client's share.
func (n *promise) carryCounted(ctx context.Context, c *net.TCPConn) error {
	client, relays := n.session.client.Addr(), n.session.gateway.Books.Relays
	if err := relays.Take(client, 1); err != nil {
		reset(c)
		return fmt.Errorf("%w: %w", errRelays, err)
	}
	defer relays.Release(client, 1)
	return n.carry(ctx, c)
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
	if n.active() {
		near, far = far, near
	}
	from, to := n.onward(near, c)
	d, err := dialFrom(ctx, s.gateway.Conntrack, s.gateway.OwnMark, from, to)
	if err != nil {
		reset(c)
		return err
	}
	defer n.ended()
	r := &relay{promise: n}
	patience := s.policy.Limits.IdleTimeout
	r.halves[near], r.halves[far] = newHalf(c, patience), newHalf(d, patience)
	stop := context.AfterFunc(ctx, r.cut)
	defer stop()
	defer r.close()
	defer r.rescue()
	if !n.arrived(r.cut) {
		return nil
	}
	accepted, err := r.prepare(ctx)
	if err != nil {
		r.cut()
	}
	if !accepted || err != nil {
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

// Why a data connection is broken off before its bytes move.
var (
	errNoReuse     = errors.New("the data connection does not resume the control connection's TLS session")
	errCertificate = errors.New("the data connection's certificate is not of the control connection's holder")
	errProtection  = errors.New("the protection of data was changed after TLS had begun on the data connection")
	errUnanswered  = errors.New("the server neither accepts nor refuses the transfer")
	errRelays      = errors.New("too many data connections are relayed")
	errTooLarge    = errors.New("the transfer is over the policy's max-size")
)

// reasonOf is what the error that ended a data connection means for its transfer.
func reasonOf(err error) alg.Reason {
	switch {
	case errors.Is(err, errTooLarge):
		return alg.TooLarge
	case errors.Is(err, errRelays):
		return alg.PinholeLimit
	case errors.Is(err, errNoReuse):
		return alg.ReuseRequired
	case errors.Is(err, errCertificate):
		return alg.OtherCertificate
	}
	return alg.DataFailed
}
