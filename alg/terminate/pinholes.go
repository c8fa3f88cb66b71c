package terminate

import (
	"errors"
	"maps"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
)

// promise notes a data connection that is to come, and has the kernel expect it. A connection does not say which session it
// belongs to, so between the same ends it is promised to one session at a time: whose server connects there must not be carried
// as another session's transfer, which may have other limits. A session that announces the same ends again has them. So has one to
// which the server announces a port that it has announced to another: it listens there for one session at a time, and ProFTPD stops
// when it refuses a transfer.
func (g *Gateway) promise(n *promise) (alg.Reason, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.doors[n.door()]
	switch {
	case before == nil:
	case before.session == n.session, !n.active():
		_ = g.withdraw(before) // it may have been used
		g.strike(before)
		before.settle()
		before.session.closed(before, alg.NextDataCommand, nil)
		before = nil
	case before.relayed.Load():
		return alg.ExpectationFailed, ledger.ErrHeld
	}
	if g.Books.Pinholes.Take(n.session.client.Addr(), 1) != nil {
		return alg.PinholeLimit, nil
	}
	if err := g.expect(n); err != nil {
		return alg.ExpectationFailed, err
	}
	if before != nil {
		g.strike(before) // the kernel has carried its connection, as it expects it no more
		before.session.closed(before, alg.Used, nil)
	}
	g.doors[n.door()] = n
	return alg.NoReason, nil
}

// expect has the kernel expect a data connection that a share was taken for, or returns the share.
func (g *Gateway) expect(n *promise) (err error) {
	stands := false
	defer func() {
		if !stands {
			g.Books.Pinholes.Release(n.session.client.Addr(), 1)
		}
	}()
	err = g.open(n)
	stands = err == nil
	return err
}

// open has the kernel expect a data connection. One that is to come here is this session's alone: an inspected session that announces
// the same ends would have it go through the kernel.
func (g *Gateway) open(n *promise) error {
	return g.Books.Doors.Open(n.ends(), n, n.relayed.Load(), func() error { return g.Conntrack.Expect(n.expectation()) })
}

// withdraw has the kernel expect a data connection no more. The error is conntrack.ErrNotFound if it was used, or if the same ends
// are another session's.
func (g *Gateway) withdraw(n *promise) error {
	held, err := g.Books.Doors.Shut(n.ends(), n, func() error { return g.Conntrack.Withdraw(n.expectation()) })
	if !held {
		return conntrack.ErrNotFound
	}
	return err
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
	g.Books.Doors.Release(n.ends(), n)
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
	if err := g.withdraw(n); err != nil && !errors.Is(err, conntrack.ErrNotFound) {
		n.session.report(audit.Event{Kind: audit.EventAudit, Reason: alg.ExpectationFailed, Mode: n.pinhole.Mode, From: n.pinhole.From, To: n.at, Err: err})
	}
	g.strike(n)
	return n
}

// Expire forgets the pinholes that the kernel let lapse and what else is too old, and renews the key for tickets. Call it
// every second.
func (g *Gateway) Expire(now time.Time) {
	g.renewTickets(now)
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
	if s.promise == n && n.active() && s.dialogue.control.Transferring() != alg.NoTransfer {
		return // its server may still try to connect, which must not be to what another session announces
	}
	if s.promise == n && s.dialogue.control.Pinhole() == n.pinhole {
		s.shut(n.pinhole, alg.TimedOut)
		s.dialogue.control.Expire()
	} else if s.gateway.drop(n) {
		n.settle()
		s.closed(n, alg.Used, nil) // by a connection that did not come to be
	}
}
