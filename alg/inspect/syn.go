package inspect

import (
	"net/netip"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/nfq"
)

// syn decides on the first packet of a data connection that nothing announced in clear text. It always goes on: with an
// expectation it is RELATED, without one the operator's own rules decide.
func (in *Inspector) syn(sh *shard, now time.Time, p Packet, seg *nfq.Segment) {
	if in.policy.Load().IsControlPort(seg.Dst) {
		in.beginning(now, p, seg)
		return
	}
	if in.promised(sh, now, p, seg) {
		return
	}
	s, why := in.justInTime(sh, now, hosts{seg.Src.Addr(), seg.Dst.Addr()}, seg)
	if why == alg.NoSession {
		s, why = in.justInTime(sh, now, hosts{seg.Dst.Addr(), seg.Src.Addr()}, seg)
	}
	if why != alg.CreditSpent && why != alg.SYNRepeated {
		in.event(audit.Event{Time: now, Kind: audit.EventAudit, Reason: why, From: seg.Src, To: seg.Dst})
	}
	in.pass(sh, s, now, p, seg)
}

// promised lets a SYN go on for which a pinhole stands, as it was announced in clear text, or which is one again that has not
// used its own.
func (in *Inspector) promised(sh *shard, now time.Time, p Packet, seg *nfq.Segment) bool {
	if s := sh.open[ledger.Door{From: netip.AddrPortFrom(seg.Src.Addr(), 0), To: seg.Dst}]; s != nil {
		in.pass(sh, s, now, p, seg)
		return true
	}
	return in.again(sh, now, p, seg)
}

// activeSYN decides on the SYN of an active data connection under NAT, and says whether it is one: it has the addresses that
// the server sees, and its session is found by those that clients see.
func (in *Inspector) activeSYN(now time.Time, p Packet, seg *nfq.Segment) bool {
	for _, h := range in.views.origins(hosts{seg.Dst.Addr(), seg.Src.Addr()}) {
		if in.activeBetween(h, now, p, seg) {
			return true
		}
	}
	return false
}

// activeBetween is activeSYN for one pair of hosts.
func (in *Inspector) activeBetween(h hosts, now time.Time, p Packet, seg *nfq.Segment) (decided bool) {
	sh := in.shard(h.client, h.server)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer func() {
		if mistake := recover(); mistake != nil {
			in.rescue(sh, nil, now, p, mistake)
			decided = true
		}
	}()
	if in.promised(sh, now, p, seg) {
		return true
	}
	s, why := in.justInTime(sh, now, h, seg)
	if why != alg.CreditSpent && why != alg.SYNRepeated {
		return false
	}
	in.pass(sh, s, now, p, seg)
	return true
}

// justInTime spends a credit between two hosts on a SYN. With CreditSpent it gives the session whose pinhole it opened.
func (in *Inspector) justInTime(sh *shard, now time.Time, h hosts, seg *nfq.Segment) (*session, alg.Reason) {
	p := sh.pairs[h]
	if p == nil || p.opaque == 0 {
		return nil, alg.NoSession
	}
	for _, s := range p.granted {
		if s.control.Repeated(now, seg.Src, seg.Dst, seg.Seq) {
			return nil, alg.SYNRepeated
		}
	}
	for n := len(p.credited); n > 0; n = len(p.credited) {
		s := p.credited[n-1]
		if !in.live(s) {
			p.credited, s.credited = p.credited[:n-1], false
			continue
		}
		var why alg.Reason
		why, sh.fx = s.control.SYN(now, seg.Src, seg.Dst, seg.Seq, sh.fx[:0])
		if why == alg.OutsideRange || why == alg.NoCredit && s.control.HasCredit(now) {
			return nil, why // the credit stays, for a SYN that may have it
		}
		p.credited, s.credited = p.credited[:n-1], false
		if why != alg.CreditSpent {
			continue
		}
		p.granted = append(p.granted[max(0, len(p.granted)-maxGranted+1):], s)
		in.carryOut(sh, s, now, nil)
		if s.control.Pinhole().IsZero() {
			return nil, alg.ExpectationFailed
		}
		return s, why
	}
	return nil, alg.NoCredit
}

// pass lets a SYN go on, and closes the pinhole of s that it uses, if s is not nil.
func (in *Inspector) pass(sh *shard, s *session, now time.Time, p Packet, seg *nfq.Segment) {
	in.verdict(p, nfq.Verdict{Accept: true, AtOnce: s != nil})
	if s != nil {
		in.used(sh, s, now, s.control.Pinhole(), seg)
		s.control.Expire()
	}
}

// missed is a SYN that did not use its pinhole.
type missed struct {
	From, To netip.AddrPort
	ISN      uint32
	Pinhole  alg.Pinhole
	Until    time.Time
}

func (m *missed) door() ledger.Door { return ledger.Door{From: m.From, To: m.To} }

// used closes the pinhole of a SYN that has gone on. It has been through conntrack, and the expectation is gone, but in two cases:
// conntrack may take a SYN between the ports of a connection that was reset for a part of that one; and the kernel drops all that
// waits in queues when somebody takes away a chain of nft's that has a hook, or a rule that gives out a helper, so that a verdict
// may come too late. Then the SYN comes again.
func (in *Inspector) used(sh *shard, s *session, now time.Time, p alg.Pinhole, seg *nfq.Segment) {
	if stood := in.closed(sh, s, now, p, alg.Used); stood && !in.lossy {
		s.missed = &missed{From: seg.Src, To: seg.Dst, ISN: seg.Seq, Pinhole: p, Until: now.Add(s.policy.PinholeTimeout)}
		sh.missed[s.missed.door()] = s
	}
}

// again opens a pinhole once more for the SYN that has not used it, and says whether this is one.
func (in *Inspector) again(sh *shard, now time.Time, p Packet, seg *nfq.Segment) bool {
	s := sh.missed[ledger.Door{From: seg.Src, To: seg.Dst}]
	if s == nil || s.refused || s.missed.ISN != seg.Seq || now.After(s.missed.Until) {
		return false
	}
	pinhole := s.missed.Pinhole
	if in.open(sh, s, now, pinhole) != alg.NoReason {
		return false
	}
	in.verdict(p, nfq.Verdict{Accept: true, AtOnce: true})
	in.used(sh, s, now, pinhole, seg)
	return true
}

// dropMissed forgets the SYN of a session that has not used its pinhole.
func (sh *shard) dropMissed(s *session) {
	if s.missed != nil {
		delete(sh.missed, s.missed.door())
		s.missed = nil
	}
}
