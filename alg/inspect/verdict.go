package inspect

import (
	"errors"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/nfq"
)

// Packet is a packet that waits for its verdict.
type Packet struct {
	ID    uint32
	Mark  uint32 // as it came; other owners' bits go on unchanged
	Queue Queue

	Conntrack []byte // its conntrack entry, if the kernel tells of it (nfq.Packet)
}

// verdict gives a verdict. An error means that the queue is gone, and the packet with it.
func (in *Inspector) verdict(p Packet, v nfq.Verdict) { _ = p.Queue.Verdict(p.ID, v) }

// accept lets a segment go on, changed where it had to be.
func (in *Inspector) accept(g *segment) {
	g.cutRequest()
	v := nfq.Verdict{Accept: true}
	if g.changed {
		if nfq.FixChecksums(g.data) != nil {
			in.verdict(g.Packet, nfq.Verdict{})
			return
		}
		v.Payload = g.data
	}
	in.verdict(g.Packet, v)
}

// refuse answers a segment's sender with a reset: the packet goes on, marked, to the rule that does so. Its payload is
// blanked, in case another rule lets it pass before that one. Without such a rule it is dropped.
func (in *Inspector) refuse(g *segment) {
	if in.refused == 0 {
		in.verdict(g.Packet, nfq.Verdict{})
		return
	}
	v := nfq.Verdict{Accept: true, SetMark: true, Mark: g.Mark | in.refused}
	if len(g.payload) > 0 {
		clear(g.payload)
		if nfq.FixChecksums(g.data) != nil {
			in.verdict(g.Packet, nfq.Verdict{})
			return
		}
		v.Payload = g.data
	}
	in.verdict(g.Packet, v)
}

// reset handles a segment of a session that is refused. The first of each direction becomes a reset for its receiver,
// who would otherwise wait for ever; the others are refused, so that their sender learns of it as well. seq is the byte
// that the receiver waits for.
func (in *Inspector) reset(s *session, from alg.Side, g *segment, seq uint32) {
	if s.told[from.Other()] {
		in.refuse(g)
		return
	}
	s.told[from.Other()] = true
	packet, err := nfq.Reset(g.data, seq)
	if err != nil {
		in.refuse(g)
		return
	}
	in.verdict(g.Packet, nfq.Verdict{Accept: true, Payload: packet})
}

// drop drops a segment; its sender will repeat it.
func (in *Inspector) drop(s *session, now time.Time, g segment, why alg.Reason) {
	in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: why}))
	in.verdict(g.Packet, nfq.Verdict{})
}

// carryOut does what the engine asked for in sh.fx. current is the segment at work, if it is not in hand.
func (in *Inspector) carryOut(sh *shard, s *session, now time.Time, current *segment) {
	for i := 0; i < len(sh.fx); i++ {
		switch e := sh.fx[i]; e.Kind {
		case alg.OpenPinhole:
			if why := in.announce(sh, s, now, e, current); why != alg.NoReason {
				sh.fx = s.control.Refuse(e, why, sh.fx)
			}
		case alg.ClosePinhole:
			in.closed(sh, s, now, e.Pinhole, e.Reason)
		case alg.Rewrite:
			st := &s.streams[e.Side]
			st.overwrite(st.seqAt(e.Start), e.New, current)
		case alg.End:
			s.refused = true
			in.event(s.event(now, audit.Event{Kind: audit.EventEnd, Reason: e.Reason, Text: audit.WireText(e.Text)}))
			sh.noteOpaque(s)
			in.giveUpHeld(s, in.refuse)
		case alg.Protect:
			sh.noteOpaque(s)
			in.event(s.event(now, audit.Event{Kind: audit.EventProtection, Protection: e.Protection}))
		case alg.Login:
			in.login(s, now, e)
		case alg.Deny:
			in.event(s.event(now, audit.Event{Kind: audit.EventDeny, Reason: e.Reason, Text: audit.WireText(e.Text)}))
		case alg.Audit:
			in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: e.Reason, Text: audit.WireText(e.Text)}))
		}
	}
}

func (in *Inspector) login(s *session, now time.Time, e alg.Effect) {
	switch {
	case e.Side == alg.Server: // accepted
		in.event(s.event(now, audit.Event{Kind: audit.EventLogin, Text: s.user}))
	default: // USER, or REIN
		s.user = audit.WireText(e.Text)
	}
}

// announce installs a pinhole, so that the line which promises it can go on: perhaps with another length.
func (in *Inspector) announce(sh *shard, s *session, now time.Time, e alg.Effect, current *segment) alg.Reason {
	if e.New != nil && !s.streams[e.Side].mayResize(e, current) {
		return alg.NoRoom
	}
	why := in.open(sh, s, now, e.Pinhole)
	if why != alg.NoReason || e.New == nil {
		return why
	}
	if err := in.resize(s, e); err != nil {
		in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.NoRoom, Err: err}))
		in.closed(sh, s, now, e.Pinhole, alg.NoRoom)
		return alg.NoRoom
	}
	return alg.NoReason
}

// open installs a pinhole. NoReason means that it stands.
func (in *Inspector) open(sh *shard, s *session, now time.Time, p alg.Pinhole) alg.Reason {
	sh.dropMissed(s)
	d := ledger.Door{From: p.From, To: p.To}
	if other := sh.open[d]; other != nil && !p.Shared {
		// The kernel holds one expectation for two ends; it is this session's now.
		in.closed(sh, other, now, other.control.Pinhole(), alg.NextDataCommand)
		other.control.Expire()
	}
	if in.books.Pinholes.Take(s.key.Client.Addr(), 1) != nil {
		return alg.PinholeLimit
	}
	if err := in.books.Doors.Open(d, s, false, func() error { return in.conntrack.Expect(s.expectation(p)) }); err != nil {
		in.books.Pinholes.Release(s.key.Client.Addr(), 1)
		in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.ExpectationFailed, Mode: p.Mode, From: p.From, To: p.To, Err: err}))
		return alg.ExpectationFailed
	}
	if other := sh.open[d]; other != nil {
		// Its pinhole did not stand any more, or ours would have been refused: its data connection was not queued.
		in.unbook(sh, other, now, other.control.Pinhole(), alg.Used, nil)
		other.control.Expire()
	}
	sh.open[d] = s
	s.pinholeUntil = now.Add(s.policy.PinholeTimeout)
	in.event(s.event(now, audit.Event{Kind: audit.EventPinhole, Mode: p.Mode, From: p.From, To: p.To}))
	return alg.NoReason
}

// closed withdraws a pinhole, and says whether it stood. If it did not any more it was used, or has timed out.
func (in *Inspector) closed(sh *shard, s *session, now time.Time, p alg.Pinhole, why alg.Reason) (stood bool) {
	d := ledger.Door{From: p.From, To: p.To}
	if sh.open[d] != s {
		return false
	}
	held, err := in.books.Doors.Shut(d, s, func() error { return in.conntrack.Withdraw(s.expectation(p)) })
	stood = held && err == nil
	if !held || errors.Is(err, conntrack.ErrNotFound) {
		err = nil
		if why != alg.TimedOut {
			why = alg.Used
		}
	}
	in.unbook(sh, s, now, p, why, err)
	return stood
}

// unbook takes a pinhole off the books. The error is what kept it from being withdrawn.
func (in *Inspector) unbook(sh *shard, s *session, now time.Time, p alg.Pinhole, why alg.Reason, err error) {
	in.leave(sh, s, ledger.Door{From: p.From, To: p.To})
	in.event(s.event(now, audit.Event{Kind: audit.EventClosed, Reason: why, Mode: p.Mode, From: p.From, To: p.To, Err: err}))
}

// leave gives a door of a session's back, and its share.
func (in *Inspector) leave(sh *shard, s *session, d ledger.Door) {
	delete(sh.open, d)
	in.books.Doors.Release(d, s)
	in.books.Pinholes.Release(s.key.Client.Addr(), 1)
}

func (s *session) expectation(p alg.Pinhole) conntrack.Expectation {
	return conntrack.Expectation{
		Master:  s.key.tuple(),
		From:    p.From,
		To:      p.To,
		Timeout: s.policy.PinholeTimeout,
		Real:    p.Real,

		Exclusive: p.Shared,
	}
}
