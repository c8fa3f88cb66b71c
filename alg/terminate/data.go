package terminate

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// needsRelay reports whether data connections have to come here. TLS on them is relayed, since the client's TLS session is not
// the server's: a server that wants the control connection's session resumed, or a client that looks for its own, would
// refuse what goes direct.
func (s *session) needsRelay() bool {
	if s.server.Addr() != s.real.Addr() || s.client.Addr() != s.seen {
		return true // each side knows other addresses
	}
	switch s.rule.Data {
	case policy.DataRelay:
		return true
	case policy.DataDirect:
		return false
	}
	levels := s.dataLevels()
	return levels[alg.Client] == alg.TLS || levels[alg.Server] == alg.TLS || s.rule.MaxSize > 0
}

// passesBy reports whether data can go on through the kernel, untouched.
func (s *session) passesBy() bool {
	levels := s.dataLevels()
	return !s.needsRelay() && levels[alg.Client] == levels[alg.Server]
}

// dataLevels are how data is protected now, by side.
func (s *session) dataLevels() [2]alg.Level {
	return s.dialogue.control.DataLevels()
}

// maxRelays bounds the data connections that a session leaves behind when their transfers are over: a client may have the
// next one while the last is not read to its end, and a few were given up.
const maxRelays = 8

// open promises a data connection, and gives where it is to come. It stands when the reason is NoReason (design rule 2).
func (s *session) open(p alg.Pinhole) (at netip.AddrPort, why alg.Reason) {
	relayed := s.needsRelay()
	if !relayed && !s.passesBy() {
		return at, alg.ProtectionDiffers
	}
	relayed = relayed || s.rule.Data == policy.DataAuto && s.gateway.relayedLately(s.hosts())
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
	if err := s.sameEntry(); err != nil {
		s.report(audit.Event{Kind: audit.EventAudit, Reason: alg.NoConnection, Mode: p.Mode, From: p.From, To: n.at, Err: err})
		_ = s.gateway.withdraw(n) // it may have been used
		s.gateway.drop(n)
		return at, alg.ExpectationFailed
	}
	s.abandonPromise()
	s.promise = n
	s.setPinhole(n.stands(), n.until)
	s.report(audit.Event{Kind: audit.EventPinhole, Mode: p.Mode, From: p.From, To: n.at})
	return n.at, alg.NoReason
}

// sharedPortTries bounds the search for a port at an address that several clients share.
const sharedPortTries = 16

// install has a data connection promised, at another port if several clients share the address and one has that port.
func (s *session) install(n *promise) (why alg.Reason, err error) {
	for range sharedPortTries {
		if why, err = s.gateway.promise(n); why != alg.ExpectationFailed || !n.pinhole.Shared {
			return why, err
		}
		n.at = netip.AddrPortFrom(n.at.Addr(), uint16(firstSourcePort+rand.IntN(lastSourcePort-firstSourcePort+1)))
	}
	return why, err
}

// abandonPromise lets go of a data connection for which no transfer was asked.
func (s *session) abandonPromise() {
	if s.promise != nil {
		s.promise.abandon()
		s.promise = nil
	}
}

// hosts are who the data connections are between.
func (s *session) hosts() hosts { return hosts{s.client.Addr(), s.server.Addr()} }

// tuple is the client's connection as conntrack knows it.
func (s *session) tuple() conntrack.Tuple { return conntrack.Tuple{Src: s.client, Dst: s.server} }

// markMaster has the kernel bring this session's data connections here, or not. What it said before may be gone: see
// sameEntry.
func (s *session) markMaster(relayed bool) error {
	var mark uint32
	if relayed {
		mark = s.gateway.RelayMark
	}
	return s.gateway.Conntrack.SetMark(s.tuple(), mark, s.gateway.RelayMark)
}

// sameEntry is an error, and ends the session, if conntrack's entry of the client's connection is not the one that the session
// began with. A client can have the kernel forget that (a RST that conntrack believes and our socket does not) and make another
// with a SYN, which has not our mark. Entries never come back: if it is the same after an expectation was made under it, then it
// was the same when the mark was set.
func (s *session) sameEntry() error {
	entry, err := s.gateway.Conntrack.Lookup(s.tuple())
	if err == nil && entry.ID != s.entry {
		err = errors.New("conntrack has another entry for the control connection than it began with")
	}
	if err != nil {
		s.abandon(alg.NoConnection)
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
	err := s.gateway.withdraw(n)
	if errors.Is(err, conntrack.ErrNotFound) {
		if err = nil; why != alg.TimedOut {
			why = alg.Used
		}
	}
	if why == alg.TransferDone && n.isAccepted() {
		// Its connection was made, if the expectation is there all the same: conntrack takes a SYN between the ports of a
		// connection that was reset for a part of that one.
		why = alg.Used
	}
	if n.relayed.Load() && why == alg.Used || !s.gateway.drop(n) {
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

// protect has the data connection that was announced come here, if PROT after the announcement makes that necessary and it
// has not come yet. One that has is found out when its transfer begins.
func (s *session) protect() {
	n := s.promise
	if n == nil || n.relayed.Load() || s.passesBy() || s.rule.Data == policy.DataDirect {
		return
	}
	if s.gateway.withdraw(n) != nil {
		return
	}
	err := s.markMaster(true)
	if err == nil {
		n.relayed.Store(true)
		err = s.gateway.open(n)
	}
	if err == nil {
		if err = s.sameEntry(); err != nil {
			_ = s.gateway.withdraw(n)
		}
	}
	if err != nil && s.gateway.drop(n) {
		s.dialogue.control.Expire()
		s.closed(n, alg.ExpectationFailed, err)
	}
}

// begin tells the data connection at hand that a transfer is asked for. The reason is why it must not be.
func (s *session) begin(d alg.Direction) alg.Reason {
	n := s.promise
	strict := s.rule.TLS.RequireReuse || s.rule.TLS.CA != ""
	if (strict || s.rule.MaxSize > 0) && !s.mayCome(n) {
		return alg.DataFailed
	}
	if n == nil {
		return alg.NoReason
	}
	t := &transfer{direction: d, levels: s.dataLevels(), configs: s.configs, shown: s.shown}
	switch {
	case strict && s.configs[alg.Client] != nil && t.levels[alg.Client] != alg.TLS:
		return alg.DataUnprotected // it could not show what the policy asks for
	case !n.relayed.Load() && !s.passesBy():
		return alg.ProtectionDiffers
	case n.isBroken():
		return alg.DataFailed
	case !n.ask(t):
		s.abandonPromise() // of a transfer that was given up
	}
	return alg.NoReason
}

// mayCome reports whether the data connection of a transfer is this session's. A server that has been told an active client's port
// may connect there for every transfer from then on, and another session may have announced that port since (RFC 959 section 3.2).
func (s *session) mayCome(n *promise) bool { return n != nil && (!n.active() || s.gateway.keeps(n)) }

// accepted tells the data connection at hand that the server carries the transfer out.
func (s *session) accepted() {
	if s.promise != nil {
		s.promise.accept()
	}
}

// finish returns the reply that has to stand in the place of a transfer's own, or "".
func (s *session) finish(code int) string {
	n := s.promise
	if n == nil {
		return ""
	}
	if code < 300 {
		n.accept() // the server has left 1yz out
		if n.relayed.Load() {
			s.awaitSettled(n)
		}
	}
	if !n.refuse() {
		s.abandonPromise() // what became of it is no later transfer's
	}
	n.mu.Lock()
	defer n.mu.Unlock()
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
	s.dialogue.settling = true // nothing else is said meanwhile
	s.mu.Unlock()
	select {
	case <-n.settled:
	case <-late.C:
	case <-s.gateway.life.Done():
	}
	s.mu.Lock()
	s.dialogue.settling = false
}

// givenUp reports whether the client may have given the transfer at hand up, or the gateway has: then some servers owe a reply
// for ever.
func (s *session) givenUp() bool {
	d := s.dialogue.control.Transferring()
	if s.dialogue.aborted || s.promise == nil || d == alg.NoTransfer {
		return s.dialogue.aborted
	}
	s.promise.mu.Lock()
	defer s.promise.mu.Unlock()
	return s.promise.over && (d != alg.Upload || s.promise.broken)
}
