package inspect

import (
	"errors"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/nfq"
)

// A session begins with its connection. The rules queue the server's SYN/ACK, which has both sides' first sequence numbers: what
// comes next between these ports belongs to that connection, and nothing of an earlier one is believed of it. The session itself
// is made with the first payload, since a handshake may be one of a flood. A connection whose SYN/ACK we have not seen is resumed
// and not begun: it was there before us, its packets passed while nobody read the queue and the policy fails open, or somebody
// else wrote its entry into the connection table (conntrackd).

// Bounds of what is remembered of handshakes.
const (
	// maxOpenings bounds the openings of a shard. Beyond it any of them goes: in a flood of forged SYNs. Who was forgotten is
	// resumed.
	maxOpenings = 1024
	// openingFor is longer than servers take to greet.
	openingFor = 2 * time.Minute
)

// opening is a connection of which the handshake was seen and nothing that was said.
type opening struct {
	entry  conntrack.Entry
	origin [2]uint32 // each side's first byte's sequence number
	since  time.Time
}

func isSYNACK(seg *nfq.Segment) bool {
	return seg.Flags&(nfq.SYN|nfq.ACK|nfq.RST|nfq.FIN) == nfq.SYN|nfq.ACK
}

// opens takes the SYN/ACK of a control connection. Its result is packet's.
func (in *Inspector) opens(sh *shard, now time.Time, p Packet, seg *nfq.Segment) (translated bool) {
	k := Key{Client: seg.Dst, Server: seg.Src}
	entry, err := in.entry(p, k, alg.Server)
	switch {
	case errors.Is(err, conntrack.ErrNotFound):
		// Of no connection. It says nothing, and whether it may go on is for the filter table to say.
		in.verdict(p, nfq.Verdict{Accept: len(seg.Payload) == 0})
		return false
	case err != nil:
		in.event(audit.Event{Time: now, Kind: audit.EventAudit, Reason: alg.NoConnection, From: seg.Src, To: seg.Dst, Err: err})
		in.verdict(p, nfq.Verdict{}) // it comes again
		return false
	case natted(entry) && entry.Orig != k.tuple():
		seg.Src, seg.Dst = entry.Orig.Dst, entry.Orig.Src
		return true
	}
	o := opening{entry: entry, origin: [2]uint32{alg.Client: seg.Ack, alg.Server: seg.Seq + 1}, since: now}
	if s := sh.sessions[k]; s != nil && !s.beganWith(o) {
		in.forget(sh, s, now, alg.ConnectionClosed)
	}
	if sh.sessions[k] == nil && !in.keepOpening(sh, k, o) {
		in.event(audit.Event{Time: now, Kind: audit.EventDeny, Reason: alg.SessionLimit, From: k.Client, To: k.Server})
		in.verdict(p, nfq.Verdict{})
		return false
	}
	in.beginning(now, p, seg)
	return false
}

// beganWith reports whether a session began with a handshake: this SYN/ACK is one that the server repeats.
func (s *session) beganWith(o opening) bool {
	return s.id == o.entry.ID && s.streams[alg.Client].origin == o.origin[alg.Client] && s.streams[alg.Server].origin == o.origin[alg.Server]
}

// keepOpening keeps an opening, unless its client has its share of them.
func (in *Inspector) keepOpening(sh *shard, k Key, o opening) bool {
	in.dropOpening(sh, k)
	if in.books.Openings.Take(k.Client.Addr(), 1) != nil {
		return false
	}
	for any := range sh.openings {
		if len(sh.openings) < maxOpenings {
			break
		}
		in.dropOpening(sh, any)
	}
	sh.openings[k] = o
	return true
}

// dropOpening forgets an opening, if there is one.
func (in *Inspector) dropOpening(sh *shard, k Key) {
	if _, there := sh.openings[k]; there {
		delete(sh.openings, k)
		in.books.Openings.Release(k.Client.Addr(), 1)
	}
}

// sweepOpenings forgets those that have come to nothing.
func (in *Inspector) sweepOpenings(sh *shard, now time.Time) {
	for k, o := range sh.openings {
		if now.Sub(o.since) > openingFor {
			in.dropOpening(sh, k)
		}
	}
}

// continues reports whether a segment is the first that one side sends after the handshake: that has been completed then, in the
// connection whose SYN/ACK was seen.
func (o opening) continues(from alg.Side, seg *nfq.Segment) bool {
	return seg.Flags&(nfq.SYN|nfq.ACK) == nfq.ACK && seg.Seq == o.origin[from] && !before(seg.Ack, o.origin[from.Other()])
}
