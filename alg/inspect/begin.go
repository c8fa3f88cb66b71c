package inspect

import (
	"cmp"
	"net/netip"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// begin makes a session, or says why there can be none. One that is over a limit, or denied by what it would be, is made
// to be refused: so both its ends learn of it. m is nil for one that begins now, and else what is remembered of it.
func (in *Inspector) begin(sh *shard, now time.Time, k Key, entry conntrack.Entry, m *Memory) (*session, alg.Reason) {
	p := in.policy.Load()
	d := p.Decide(k.Client.Addr(), k.Server)
	translated := natted(entry)
	if translated && p.Decide(k.Client.Addr(), entry.Reply.Src).Server != d.Server {
		return nil, alg.PolicyDenied // DNAT leads to somebody else
	}
	if d.Action != policy.Inspect {
		// Nor what is terminated: its packets are none of the queue's.
		return nil, alg.PolicyDenied
	}
	why := alg.Admit(d)
	phase := alg.PhaseUnknown
	if m != nil {
		if phase = decodeLabel(entry.Label); m.Phase != alg.PhaseUnknown {
			phase = m.Phase
		}
		why = cmp.Or(why, alg.AdmitResumed(d, phase, m.User))
	}
	s := &session{
		key: k, id: entry.ID, policy: p, rule: d.Rule,
		began: now, lastSeen: now, implicit: d.Implicit, resumed: m != nil, written: decodeLabel(entry.Label),
	}
	if s.resumed {
		s.number = m.Number
	}
	if s.number == 0 {
		s.number = in.number()
	}
	if why == alg.NoReason {
		why = in.countIn(s)
	}
	if why == alg.SessionLimit && now.Sub(sh.swept) >= sweepClosingEvery {
		sh.swept = now
		in.sweepClosing(sh, now, k.Client.Addr())
		why = in.countIn(s)
	}
	if why != alg.NoReason {
		if in.books.TurnedAway.Take(k.Client.Addr(), 1) != nil {
			return nil, why
		}
		s.refused, s.turnedAway = true, true
		sh.sessions[k] = s
		in.event(s.event(now, audit.Event{Kind: audit.EventDeny, Reason: why}))
		return s, alg.NoReason
	}
	sh.sessions[k] = s
	in.startSession(sh, s, d, m, phase, now)
	if translated {
		s.control.Translated(entry.Reply.Src.Addr(), entry.Reply.Dst.Addr(), resizes(entry))
		s.view = &Key{Client: entry.Reply.Dst, Server: entry.Reply.Src}
		in.views.add(*s.view, k)
		if s.resumed {
			s.recallAdjusted(entry)
		}
	}
	return s, alg.NoReason
}

// resizes reports whether conntrack can follow where a line becomes longer or shorter: with a helper it can. Under one that user
// space defined the kernel adjusts queued packets twice (nf_confirm_cthelper).
func resizes(entry conntrack.Entry) bool {
	return entry.Helper != "" && entry.Helper != conntrack.OwnHelper
}

// startSession gives a session its engine, and tells of it.
func (in *Inspector) startSession(sh *shard, s *session, d policy.Decision, m *Memory, phase alg.Phase, now time.Time) {
	if s.resumed {
		s.control = alg.Resume(s.policy, d, s.key.Client, s.key.Server, phase)
		if m.Number != 0 {
			in.recall(sh, s, m, now)
		}
		in.event(s.event(now, audit.Event{Kind: audit.EventSession, Reason: alg.SessionResumed}))
	} else {
		s.control = alg.New(s.policy, d, s.key.Client, s.key.Server)
		in.event(s.event(now, audit.Event{Kind: audit.EventSession}))
	}
	if sh.noteOpaque(s) {
		in.event(s.event(now, audit.Event{Kind: audit.EventProtection, Protection: s.control.Protection()}))
	}
}

// countIn counts a session, unless a limit is reached.
func (in *Inspector) countIn(s *session) alg.Reason {
	if in.books.Sessions.Take(s.key.Client.Addr(), 1) != nil {
		return alg.SessionLimit
	}
	in.count.Add(1)
	return alg.NoReason
}

// countOut takes a session off the counts.
func (in *Inspector) countOut(s *session) {
	if s.turnedAway {
		in.books.TurnedAway.Release(s.key.Client.Addr(), 1)
		return
	}
	in.count.Add(-1)
	in.books.Sessions.Release(s.key.Client.Addr(), 1)
}

// Begin makes a session between two hosts whatever the port is, for front ends that know it is one.
func (in *Inspector) Begin(now time.Time, k Key) {
	in.start(now, k, conntrack.Untranslated(k.tuple()), nil)
}

func (in *Inspector) start(now time.Time, k Key, entry conntrack.Entry, m *Memory) {
	sh := in.shard(k.Client.Addr(), k.Server.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in.guard(sh, nil, now, func() {
		if sh.sessions[k] == nil {
			in.begin(sh, now, k, entry, m)
		}
	})
}

// sweepClosing forgets a client's sessions that are over but for conntrack's memory of them (TIME_WAIT): they must not
// keep it from beginning others.
func (in *Inspector) sweepClosing(sh *shard, now time.Time, client netip.Addr) {
	for k, s := range sh.sessions {
		if k.Client.Addr() == client && !s.refused && !in.live(s) {
			in.forget(sh, s, now, alg.ConnectionClosed)
		}
	}
}
