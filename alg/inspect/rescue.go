package inspect

import (
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/nfq"
)

// A mistake of ours (a panic) ends the session that it befell and no other: what serves a session runs under guard, or recovers
// and calls rescue.

// rescue ends a session after a mistake in the work on a packet, which is dropped. The session is nil where there is none.
func (in *Inspector) rescue(sh *shard, s *session, now time.Time, p Packet, mistake any) {
	in.failed(sh, s, now, audit.NewFault(mistake))
	in.verdict(p, nfq.Verdict{})
}

// guard runs work on a session that no packet brings about. The shard is locked.
func (in *Inspector) guard(sh *shard, s *session, now time.Time, work func()) {
	defer func() {
		if mistake := recover(); mistake != nil {
			in.failed(sh, s, now, audit.NewFault(mistake))
		}
	}()
	work()
}

// failed ends a session after a mistake of ours. Its state machine, which may be what is wrong, is not asked any more. Its pinhole
// leaves the books, and the kernel when it times out.
func (in *Inspector) failed(sh *shard, s *session, now time.Time, fault *audit.Fault) {
	e := audit.Event{Time: now, Kind: audit.EventDeny, Reason: alg.InternalError, Err: fault}
	if s == nil {
		in.event(e)
		return
	}
	s.refused, s.control = true, nil
	in.giveUpHeld(s, func(g *segment) { in.verdict(g.Packet, nfq.Verdict{}) })
	if s.opaque {
		s.opaque = false
		sh.pair(s).opaque--
	}
	sh.dropPair(s)
	sh.dropMissed(s)
	delete(sh.holding, s)
	for d, owner := range sh.open {
		if owner == s {
			in.leave(sh, s, d)
		}
	}
	in.event(s.event(now, e))
}
