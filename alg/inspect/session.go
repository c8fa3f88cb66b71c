package inspect

import (
	"slices"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/policy"
)

// session is one control connection: its two streams and its engine.
type session struct {
	key      Key
	view     *Key   // what its server sees of it, if that is something else
	id       uint32 // of its conntrack entry
	number   uint64
	policy   *policy.Policy // in force when it began, and for all of its life
	rule     *policy.Rule
	control  *alg.Control // nil in a session that was refused from the start
	streams  [2]stream
	user     string
	began    time.Time
	lastSeen time.Time

	missed       *missed // the last SYN, if it did not use its pinhole
	pinholeUntil time.Time
	implicit     bool
	resumed      bool
	written      alg.Phase // in its label, or tried in vain for want of room
	refused      bool      // no packet goes on any more
	turnedAway   bool      // was refused from the start
	told         [2]bool   // which sides were sent a reset because of that
	credited     bool      // stands in its pair's list
	opaque       bool      // counted as inside TLS in its pair
}

// pair is what two hosts have between them, for just-in-time pinholes.
type pair struct {
	opaque   int        // sessions inside TLS
	credited []*session // sessions with a credit, the newest last
	granted  []*session // sessions whose credit was spent last, the newest last: for repeated SYNs
}

// maxGranted bounds the memory of repeated SYNs between two hosts.
const maxGranted = 16

func (sh *shard) pair(s *session) *pair {
	h := hosts{s.key.Client.Addr(), s.key.Server.Addr()}
	if sh.pairs[h] == nil {
		sh.pairs[h] = &pair{}
	}
	return sh.pairs[h]
}

// credit puts a session that has just earned a credit where its data connection's SYN will find it.
func (sh *shard) credit(s *session) {
	p := sh.pair(s)
	if n := len(p.credited); n > 0 && p.credited[n-1] == s {
		return
	}
	if s.credited {
		p.credited = slices.DeleteFunc(p.credited, func(x *session) bool { return x == s })
	}
	p.credited, s.credited = append(p.credited, s), true
}

// noteOpaque keeps the pair's count of sessions inside TLS, and says whether this one is.
func (sh *shard) noteOpaque(s *session) bool {
	now := s.control.Opaque(alg.Client)
	switch {
	case now && !s.opaque:
		sh.pair(s).opaque++
	case !now && s.opaque:
		sh.pair(s).opaque--
	}
	s.opaque = now
	return now
}

// dropPair takes a session out of its pair, and the pair away with its last session inside TLS.
func (sh *shard) dropPair(s *session) {
	h := hosts{s.key.Client.Addr(), s.key.Server.Addr()}
	p := sh.pairs[h]
	if p == nil {
		return
	}
	is := func(x *session) bool { return x == s }
	p.credited, p.granted = slices.DeleteFunc(p.credited, is), slices.DeleteFunc(p.granted, is)
	if p.opaque <= 0 {
		delete(sh.pairs, h)
	}
}

// Sessions lists the sessions, oldest first.
func (in *Inspector) Sessions() []audit.SessionInfo {
	var list []audit.SessionInfo
	for i := range in.shards {
		sh := &in.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			list = append(list, s.info())
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b audit.SessionInfo) int { return int(a.Number) - int(b.Number) })
	return list
}

func (s *session) info() audit.SessionInfo {
	i := audit.SessionInfo{
		Number: s.number, Client: s.key.Client, Server: s.key.Server, Rule: s.rule.Name, User: s.user,
		Began: s.began, LastSeen: s.lastSeen, Refused: s.refused,
	}
	if s.control != nil {
		i.Protection, i.Pinhole, i.PinholeUntil = s.control.Protection(), s.control.Pinhole(), s.pinholeUntil
	}
	return i
}

// event fills in what every event of a session has.
func (s *session) event(now time.Time, e audit.Event) audit.Event {
	e.Time, e.Session, e.Client = now, s.number, s.key.Client.Addr()
	if !e.To.IsValid() {
		e.From, e.To = s.key.Client, s.key.Server
	}
	return e
}

func (in *Inspector) event(e audit.Event) {
	if in.report != nil {
		in.report(e)
	}
}
