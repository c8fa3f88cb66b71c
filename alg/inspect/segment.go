package inspect

import (
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/nfq"
)

// How long an incomplete line waits for its end before it is let go if nothing can restrict it, or given up; and how long
// segments wait behind a missing one. A sender repeats after 0.2, 0.6, 1.4 and 3 seconds or later.
const (
	releaseAfter = time.Second
	abandonAfter = 4 * time.Second
	gapAfter     = 10 * time.Second
)

// segment handles one segment of a session: order first, then the engine, then verdicts.
func (in *Inspector) segment(sh *shard, s *session, from alg.Side, now time.Time, p Packet, seg *nfq.Segment) {
	st, peer := &s.streams[from], &s.streams[from.Other()]
	if seg.Flags&nfq.SYN != 0 {
		if in.lossy && !st.synced { // a later one is no beginning, whatever it says
			st.sync(seg.Seq + 1)
		}
		in.beginning(now, p, seg)
		return
	}
	if peer.synced && seg.Flags&nfq.ACK != 0 {
		in.acknowledge(sh, s, from.Other(), now, seg.Ack)
	}
	st.fin = st.fin || seg.Flags&nfq.FIN != 0
	g := segment{Packet: p, seq: seg.Seq, data: seg.Packet, payload: seg.Payload}
	if seg.Flags&nfq.URG != 0 {
		in.clearUrgent(s, now, &g)
	}
	if len(g.payload) == 0 {
		in.accept(&g)
		return
	}
	if !st.synced {
		in.reconcile(s, from, now, &g)
		if s.plausibleStart(from, g.payload) {
			st.sync(g.seq)
		}
	}
	if st.synced && !peer.synced && seg.Flags&nfq.ACK != 0 {
		ack := peer.sent(seg.Ack)
		peer.sync(ack)
		peer.acked, peer.known = ack, true
		s.acknowledged(from.Other())
		in.afterGap(sh, s, from.Other(), now)
	}
	switch {
	case !st.synced, before(st.next, g.seq):
		in.early(sh, s, from, now, g)
	case s.strict(from) && st.unverified(&g):
		in.drop(s, now, g, alg.UnverifiedDropped)
	case before(g.end(), st.next) || g.end() == st.next:
		in.old(sh, s, from, now, g)
	default:
		in.fresh(sh, s, from, now, g)
		in.afterGap(sh, s, from, now)
		if from == alg.Server {
			in.answered(sh, s, now)
		}
	}
}

// answered feeds what has waited for the server's reply.
func (in *Inspector) answered(sh *shard, s *session, now time.Time) {
	st := &s.streams[alg.Client]
	if len(st.early) == 0 {
		return
	}
	st.heldSince = now // what still waits has just heard from the server
	in.afterGap(sh, s, alg.Client, now)
}

// clearUrgent makes urgent data ordinary. A receiver takes an urgent byte out of the stream or leaves it in, as it likes,
// so no reader in between could know what it reads; servers read ABOR in line as well (RFC 6093 section 6 asks for that).
func (in *Inspector) clearUrgent(s *session, now time.Time, g *segment) {
	in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.UrgentCleared}))
	nfq.ClearUrgent(g.data)
	g.changed = true
}

// beginning lets a control connection's SYN go on. One with data is dropped: the server may or may not take the data
// (RFC 7413), and a client whose SYN is lost repeats it without.
func (in *Inspector) beginning(now time.Time, p Packet, seg *nfq.Segment) {
	if len(seg.Payload) > 0 {
		in.event(audit.Event{Time: now, Kind: audit.EventAudit, Reason: alg.DataInSYN, From: seg.Src, To: seg.Dst})
	}
	in.verdict(p, nfq.Verdict{Accept: len(seg.Payload) == 0})
}

// strict says whether every byte of one direction has to be known: the client's, where it can be read. What a server
// repeats, or what is inside TLS, can open nothing.
func (s *session) strict(from alg.Side) bool {
	return from == alg.Client && !s.control.Opaque(from)
}

// acknowledge notes what the receiver of one direction has. Bytes that it has and we have not were lost on the way to a
// capture; on the packet path that cannot be, and nothing is believed of it.
func (in *Inspector) acknowledge(sh *shard, s *session, of alg.Side, now time.Time, ack uint32) {
	st := &s.streams[of]
	ack = st.sent(ack)
	if st.fin && ack == st.next+1 {
		ack--
	}
	for in.lossy && before(st.next, ack) && before(ack, st.next+window) {
		to := ack
		if len(st.early) > 0 && before(st.early[0].seq, ack) {
			to = st.early[0].seq // what waits behind the gap is not lost
		}
		in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.StreamGap}))
		s.control.Lose(of, int(to-st.next))
		in.letGo(s, of)
		st.next, st.acked, st.known, st.kept = to, to, true, nil
		in.afterGap(sh, s, of, now)
	}
	st.acknowledged(ack)
	s.acknowledged(of)
}

// acknowledged tells the engine where the server reads, once it has acknowledged something.
func (s *session) acknowledged(of alg.Side) {
	if st := &s.streams[of]; of == alg.Client && st.known {
		s.control.Acknowledged(uint64(st.acked - st.origin))
	}
}

// plausibleStart says whether a first payload can be the beginning of its direction: the SYN was not seen, and segments
// may come in any order. In clear text the server speaks first, with a reply code; in implicit TLS the client does.
func (s *session) plausibleStart(from alg.Side, b []byte) bool {
	if s.resumed || from == alg.Client {
		return true
	}
	for i := 0; i < len(b) && i < 4; i++ {
		digit := '0' <= b[i] && b[i] <= '9'
		if i < 3 && !digit || i == 3 && digit {
			return s.implicit
		}
	}
	return true
}

// early holds a segment that lies behind a gap, or whose direction has not been seen to begin.
func (in *Inspector) early(sh *shard, s *session, from alg.Side, now time.Time, g segment) {
	st := &s.streams[from]
	switch {
	case st.synced && !before(g.seq, st.next+window):
		in.drop(s, now, g, alg.OutOfWindow)
		return
	case len(st.early) >= maxEarly, st.earlyBytes()+len(g.payload) > s.policy.Limits.Gap, !in.mayHold(s):
		in.drop(s, now, g, alg.StreamGap)
		return
	}
	g.own()
	in.reconcile(s, from, now, &g)
	if st.insertEarly(g) {
		if len(st.early) == 1 {
			in.holds(sh, s, st, now)
		}
		return
	}
	in.holdsNoMore(s, 1)
	if st.synced && !before(st.next, st.early[0].seq) {
		in.verdict(g.Packet, nfq.Verdict{}) // a command waits for its turn, and TCP repeats it meanwhile
		return
	}
	in.drop(s, now, g, alg.Duplicate)
	if !st.synced {
		// The sender repeats what we took for a later segment, so it is the first one: the engine will say what it is.
		st.sync(st.early[0].seq)
		in.afterGap(sh, s, from, now)
	}
}

// reconcile makes a segment agree with the content that came first, and tells if it did not.
func (in *Inspector) reconcile(s *session, from alg.Side, now time.Time, g *segment) {
	if s.streams[from].reconcile(g) {
		in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.OverlapRewritten}))
	}
}

// old handles a segment that brings nothing new: a retransmission.
func (in *Inspector) old(sh *shard, s *session, from alg.Side, now time.Time, g segment) {
	st := &s.streams[from]
	if n := len(st.inHand); n > 0 && before(st.inHand[0].seq, g.end()) {
		in.verdict(g.Packet, nfq.Verdict{})
		return
	}
	in.reconcile(s, from, now, &g)
	in.goOn(st, &g)
}

// overdue decides on what a session has held for too long. It says whether something is still held.
func (in *Inspector) overdue(sh *shard, s *session, now time.Time) (held bool) {
	for _, from := range []alg.Side{alg.Client, alg.Server} {
		st := &s.streams[from]
		waited := now.Sub(st.heldSince)
		if len(st.inHand) > 0 && waited >= releaseAfter && s.control.Release(from) {
			in.letGo(s, from)
		}
		if len(st.inHand) > 0 && waited >= abandonAfter {
			in.abandon(sh, s, from, now, nil)
			in.letGo(s, from)
		}
		switch {
		case len(st.early) == 0:
		case before(st.next, st.early[0].seq):
			if waited >= gapAfter {
				in.dropEarly(s, st, now)
			}
		default:
			in.waits(sh, s, from, now, waited)
		}
		held = held || len(st.inHand)+len(st.early) > 0
	}
	return held
}

// waits lets the engine decide on a command that has waited long enough for the replies before it.
func (in *Inspector) waits(sh *shard, s *session, from alg.Side, now time.Time, waited time.Duration) {
	if patience := s.control.Patience(); patience == 0 || waited < patience {
		return
	}
	sh.fx = s.control.GoOn(sh.fx[:0])
	in.carryOut(sh, s, now, nil)
	s.streams[from].heldSince = now
	in.afterGap(sh, s, from, now)
}

// dropEarly gives up what waits behind a gap; its sender will repeat it behind what is missing.
func (in *Inspector) dropEarly(s *session, st *stream, now time.Time) {
	in.holdsNoMore(s, len(st.early))
	for _, g := range st.early {
		in.drop(s, now, g, alg.StreamGap)
	}
	st.early = nil
}

// fresh feeds a segment's new bytes to the engine, carries out what it asks for, and gives verdicts. Where commands go in step
// the segment may end before the first that has to wait: its sender repeats the rest.
func (in *Inspector) fresh(sh *shard, s *session, from alg.Side, now time.Time, g segment) {
	st := &s.streams[from]
	in.reconcile(s, from, now, &g)
	fresh := g.payload[st.next-g.seq:]
	if n := in.turn(s, from, fresh); n == 0 {
		in.early(sh, s, from, now, g)
		return
	} else if n < len(fresh) {
		if !g.cut(st.next + uint32(n)) {
			in.drop(s, now, g, alg.InternalError)
			return
		}
		fresh = g.payload[st.next-g.seq:]
	}
	if !st.keep(fresh, s.strict(from)) {
		in.drop(s, now, g, alg.StreamGap)
		return
	}
	undelivered := st.next
	if len(st.inHand) > 0 {
		undelivered = st.inHand[0].seq
	}
	st.next = g.end()
	sh.fx = s.control.Feed(now, from, fresh, sh.fx[:0])
	in.carryOut(sh, s, now, &g)
	in.keepPhase(sh, s, now, &g)
	if s.refused {
		in.reset(s, from, &g, undelivered)
		return
	}
	if s.control.HasCredit(now) && from == alg.Server {
		sh.credit(s)
	}
	in.release(sh, s, from, now, g)
}

// turn returns how many of a side's next bytes may be fed now. A capture shows what went on long ago, and nothing of it waits.
func (in *Inspector) turn(s *session, from alg.Side, fresh []byte) int {
	if in.lossy {
		return len(fresh)
	}
	return s.control.Ready(from, fresh)
}

// release gives the verdicts that are due: on everything in hand and on g, except for segments with a part of an
// incomplete line.
func (in *Inspector) release(sh *shard, s *session, from alg.Side, now time.Time, g segment) {
	st := &s.streams[from]
	hold := s.control.Hold(from)
	if hold == 0 && len(st.inHand) == 0 {
		in.goOn(st, &g)
		return
	}
	if hold == 0 {
		in.forward(st, append(st.inHand, g))
		in.holdsNoMore(s, len(st.inHand))
		st.inHand = nil
		return
	}
	if len(st.inHand) >= maxInHand || !in.mayHold(s) {
		// Better to refuse one line than to let a part of it go on that cannot be taken back.
		if !s.control.Release(from) {
			in.abandon(sh, s, from, now, &g)
		}
		in.letGo(s, from)
		in.goOn(st, &g)
		return
	}
	g.own()
	st.inHand = append(st.inHand, g)
	line := st.next - uint32(hold)
	done := 0
	for done < len(st.inHand) && !before(line, st.inHand[done].end()) {
		done++
	}
	in.forward(st, st.inHand[:done])
	in.holdsNoMore(s, done)
	st.inHand = append(st.inHand[:0], st.inHand[done:]...)
	if done > 0 || len(st.inHand) == 1 {
		in.holds(sh, s, st, now)
	}
}

// goOn lets a segment of a stream go on as it has to be, or has its sender repeat it.
func (in *Inspector) goOn(st *stream, g *segment) {
	if !st.replace(g) {
		in.verdict(g.Packet, nfq.Verdict{})
		return
	}
	in.accept(g)
}

// forward lets segments go on that follow one another.
func (in *Inspector) forward(st *stream, list []segment) {
	for i := range list {
		in.goOn(st, &list[i])
	}
}

// holds notes that a direction begins to wait now.
func (in *Inspector) holds(sh *shard, s *session, st *stream, now time.Time) {
	st.heldSince = now
	sh.holding[s] = struct{}{}
}

// abandon refuses the incomplete line of one side, of which current is the last segment unless that is in hand.
func (in *Inspector) abandon(sh *shard, s *session, from alg.Side, now time.Time, current *segment) {
	sh.fx = s.control.Abandon(from, sh.fx[:0])
	in.carryOut(sh, s, now, current)
}

// letGo accepts everything in hand.
func (in *Inspector) letGo(s *session, from alg.Side) {
	st := &s.streams[from]
	in.forward(st, st.inHand)
	in.holdsNoMore(s, len(st.inHand))
	st.inHand = nil
}

// afterGap feeds what waited behind a gap that is filled now, or for its turn.
func (in *Inspector) afterGap(sh *shard, s *session, from alg.Side, now time.Time) {
	st := &s.streams[from]
	for len(st.early) > 0 && !before(st.next, st.early[0].seq) {
		g := st.early[0]
		if fresh := g.payload[min(int(st.next-g.seq), len(g.payload)):]; !s.refused && len(fresh) > 0 && in.turn(s, from, fresh) == 0 {
			return
		}
		st.early = st.early[1:]
		in.holdsNoMore(s, 1)
		switch {
		case s.refused:
			in.refuse(&g)
		case !before(st.next, g.end()):
			in.old(sh, s, from, now, g)
		default:
			in.fresh(sh, s, from, now, g)
		}
	}
	if len(st.early) == 0 {
		st.early = nil
	}
}

// giveUpHeld gives verdicts on everything that a session holds.
func (in *Inspector) giveUpHeld(s *session, verdict func(*segment)) {
	for i := range s.streams {
		st := &s.streams[i]
		for _, g := range append(st.inHand, st.early...) {
			verdict(&g)
			in.holdsNoMore(s, 1)
		}
		st.inHand, st.early, st.kept = nil, nil, nil
	}
}

// mayHold counts one more packet without a verdict, if there may be one.
func (in *Inspector) mayHold(s *session) bool {
	return in.books.Held.Take(s.key.Client.Addr(), 1) == nil
}

// holdsNoMore takes so many packets off the count.
func (in *Inspector) holdsNoMore(s *session, packets int) {
	in.books.Held.Release(s.key.Client.Addr(), packets)
}
