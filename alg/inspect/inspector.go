// Package inspect is the front end that reads control connections from the packets of a queue: it puts each direction
// in order, feeds the engine (package alg), installs what the engine asks for and only then lets the packet go.
package inspect

import (
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// Queue takes the verdict on a packet. nfq.Queue is one.
type Queue interface {
	Verdict(id uint32, v nfq.Verdict) error
}

// Conntrack holds the pinholes. conntrack.Conn is one.
type Conntrack interface {
	Expect(conntrack.Expectation) error
	Withdraw(conntrack.Expectation) error
	Lookup(conntrack.Tuple) (conntrack.Entry, error)
	SetLabel(t conntrack.Tuple, value, mask conntrack.Label) error
	AdjustSequence(master conntrack.Tuple, reply bool, a conntrack.Adjustment) error
}

// Bounds of the whole inspector; those of one session are in the policy.
const (
	// shardCount divides the sessions, so that several queues seldom wait for each other.
	shardCount = 64
	// sweepClosingEvery bounds how often a client at its limit has its sessions looked up.
	sweepClosingEvery = time.Second
	// endedFor is how long the memory of a session that we ended refuses its stragglers.
	endedFor = 2 * time.Minute
)

// Options are what an Inspector works with.
type Options struct {
	Policy    *policy.Policy
	Conntrack Conntrack
	Books     *ledger.Books     // nil for books of its own
	Report    func(audit.Event) // called in order for each session, with a lock held: it must not call back
	Lossy     bool              // packets may be missing that the receiver had, as in a capture
	Number    func() uint64     // gives the next session's number; nil counts from 1
	Refused   uint32            // mark bit for packets that the rules answer with a reset; 0 without such a rule
}

// Inspector follows all control connections. It is safe for concurrent use.
type Inspector struct {
	policy    atomic.Pointer[policy.Policy]
	conntrack Conntrack
	report    func(audit.Event)
	refused   uint32
	lossy     bool

	views  views
	seed   maphash.Seed
	shards [shardCount]shard
	books  *ledger.Books
	count  atomic.Int64  // sessions that are followed
	number func() uint64 // gives the next session's number
}

// shard holds every session between some pairs of hosts: a data connection has its control connection's hosts.
type shard struct {
	mu       sync.Mutex
	sessions map[Key]*session
	pairs    map[hosts]*pair
	open     map[ledger.Door]*session // pinholes that stand
	missed   map[ledger.Door]*session // by the ends of a SYN that did not use its pinhole
	holding  map[*session]struct{}    // sessions that may have packets without a verdict
	openings map[Key]opening
	fx       []alg.Effect
	swept    time.Time // when sessions that are closing were looked for last
}

// Key names a control connection.
type Key struct{ Client, Server netip.AddrPort }

type hosts struct{ client, server netip.Addr }

// New gives an inspector without sessions.
func New(o Options) *Inspector {
	in := &Inspector{conntrack: o.Conntrack, report: o.Report, refused: o.Refused, lossy: o.Lossy, seed: maphash.MakeSeed()}
	in.policy.Store(o.Policy)
	if in.number = o.Number; in.number == nil {
		var last atomic.Uint64
		in.number = func() uint64 { return last.Add(1) }
	}
	if in.books = o.Books; in.books == nil {
		in.books = ledger.NewBooks(func() *policy.Limits { return &in.Policy().Limits })
	}
	in.views = views{keys: map[Key]Key{}, hosts: map[hosts]map[hosts]int{}}
	for i := range in.shards {
		in.shards[i].sessions = map[Key]*session{}
		in.shards[i].pairs = map[hosts]*pair{}
		in.shards[i].open = map[ledger.Door]*session{}
		in.shards[i].missed = map[ledger.Door]*session{}
		in.shards[i].holding = map[*session]struct{}{}
		in.shards[i].openings = map[Key]opening{}
	}
	return in
}

// SetPolicy puts another policy in force for the sessions that begin from now on; the others keep theirs.
func (in *Inspector) SetPolicy(p *policy.Policy) { in.policy.Store(p) }

// Policy is the policy in force.
func (in *Inspector) Policy() *policy.Policy { return in.policy.Load() }

// Count is the number of sessions that are followed.
func (in *Inspector) Count() int { return int(in.count.Load()) }

// shard gives the shard of two hosts, in either order.
func (in *Inspector) shard(a, b netip.Addr) *shard {
	if b.Less(a) {
		a, b = b, a
	}
	return &in.shards[maphash.Comparable(in.seed, hosts{a, b})%shardCount]
}

// Packet decides on one packet: a segment of a control connection, or the SYN of a data connection. The verdict is given
// to p.Queue now or, for a held packet, later. seg's slices may be changed.
func (in *Inspector) Packet(now time.Time, p Packet, seg *nfq.Segment) {
	in.views.translate(seg)
	if isSYN(seg) && in.activeSYN(now, p, seg) {
		return
	}
	if in.packet(now, p, seg) {
		in.packet(now, p, seg)
	}
}

// packet decides on a packet that has the addresses that its client sees. If it says that NAT was found out just now, the
// segment has them at last, and belongs to another shard.
func (in *Inspector) packet(now time.Time, p Packet, seg *nfq.Segment) (translated bool) {
	sh := in.shard(seg.Src.Addr(), seg.Dst.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var s *session
	defer func() {
		if mistake := recover(); mistake != nil {
			in.rescue(sh, s, now, p, mistake)
		}
	}()
	if isSYNACK(seg) && !in.lossy && in.policy.Load().IsControlPort(seg.Src) {
		return in.opens(sh, now, p, seg)
	}
	ends := Key{seg.Src, seg.Dst}
	s, from, why := in.find(sh, now, p, seg)
	if s != nil && in.replaced(s, &s.streams[from], seg) {
		in.forget(sh, s, now, alg.ConnectionClosed)
		s, from, why = in.find(sh, now, p, seg)
	}
	switch {
	case ends != Key{seg.Src, seg.Dst}:
		return true
	case s != nil && s.refused:
		s.lastSeen = now
		in.reset(s, from, &segment{Packet: p, data: seg.Packet, payload: seg.Payload}, seg.Seq)
	case s != nil:
		s.lastSeen = now
		in.segment(sh, s, from, now, p, seg)
	case why == alg.NoReason:
		in.syn(sh, now, p, seg)
	case len(seg.Payload) == 0:
		// The handshake and the end of a connection, where the rules in force queue them too: they say nothing, and whether
		// there may be a connection is for the filter table to say.
		in.verdict(p, nfq.Verdict{Accept: true})
	default:
		e := audit.Event{Time: now, Kind: audit.EventDeny, Reason: why, From: seg.Src, To: seg.Dst}
		if from == alg.Server {
			e.From, e.To = e.To, e.From
		}
		in.event(e)
		in.refuse(&segment{Packet: p, data: seg.Packet, payload: seg.Payload})
	}
	return false
}

// find returns the session of a segment and the side that sent it. A segment of a control connection that is not known yet begins
// a session, or resumes one if its SYN/ACK was not seen; if that must not be, the reason says why. Without session and reason it
// is a SYN to decide on, or a server's segment that got its client's view of the addresses just now.
func (in *Inspector) find(sh *shard, now time.Time, packet Packet, seg *nfq.Segment) (*session, alg.Side, alg.Reason) {
	if s, from := sh.session(seg); s != nil {
		return s, from, alg.NoReason
	}
	p := in.policy.Load()
	k, from := Key{seg.Src, seg.Dst}, alg.Client
	switch {
	case p.IsControlPort(seg.Dst):
	case p.IsControlPort(seg.Src):
		k, from = Key{seg.Dst, seg.Src}, alg.Server
	case isSYN(seg):
		return nil, from, alg.NoReason
	default:
		return nil, from, alg.PolicyDenied
	}
	o, seen := sh.openings[k]
	if seen && o.continues(from, seg) {
		s, why := in.beginAfter(sh, now, k, o)
		return s, from, why
	}
	// A forged packet must not cost a session, nor a forged SYN with one behind it. The SYN of a real connection is not in
	// conntrack yet, and nobody says anything before the handshake is over.
	entry, err := in.entry(packet, k, from)
	switch {
	case isSYN(seg) && (!in.lossy || err != nil || !entry.Opened):
		return nil, from, alg.NoReason
	case err != nil, !entry.Opened:
		return nil, from, alg.NoConnection
	case from == alg.Server && natted(entry) && entry.Orig != k.tuple():
		seg.Src, seg.Dst = entry.Orig.Dst, entry.Orig.Src
		return nil, from, alg.NoReason
	case entry.Orig != k.tuple():
		return nil, from, alg.NoConnection // the server opened it, from its control port
	}
	if in.lossy {
		s, why := in.begin(sh, now, k, entry, nil)
		return s, from, why
	}
	if seen && o.entry.ID == entry.ID {
		s, why := in.beginAfter(sh, now, k, o)
		return s, from, why
	}
	in.dropOpening(sh, k)
	s, why := in.begin(sh, now, k, entry, &Memory{Key: k})
	return s, from, why
}

// beginAfter makes the session of a connection that says something for the first time after its handshake was seen.
func (in *Inspector) beginAfter(sh *shard, now time.Time, k Key, o opening) (*session, alg.Reason) {
	in.dropOpening(sh, k)
	s, why := in.begin(sh, now, k, o.entry, nil)
	if s != nil {
		s.streams[alg.Client].sync(o.origin[alg.Client])
		s.streams[alg.Server].sync(o.origin[alg.Server])
	}
	return s, why
}

// entry gives the conntrack entry of a packet that comes from one side of k, from the packet itself if it brought it.
func (in *Inspector) entry(p Packet, k Key, from alg.Side) (conntrack.Entry, error) {
	if p.Conntrack != nil {
		return conntrack.Decode(p.Conntrack)
	}
	entry, err := in.conntrack.Lookup(k.tuple())
	if err != nil && from == alg.Server {
		return in.conntrack.Lookup(k.tuple().Reversed()) // under NAT a server's packet shows the reply's tuple
	}
	return entry, err
}

// session looks a segment's session up. The lower port is nearly always the server's, so that one look is enough.
func (sh *shard) session(seg *nfq.Segment) (*session, alg.Side) {
	forward, backward := Key{seg.Src, seg.Dst}, Key{seg.Dst, seg.Src}
	if seg.Src.Port() < seg.Dst.Port() {
		if s := sh.sessions[backward]; s != nil {
			return s, alg.Server
		}
		return sh.sessions[forward], alg.Client
	}
	if s := sh.sessions[forward]; s != nil {
		return s, alg.Client
	}
	return sh.sessions[backward], alg.Server
}

// replaced says whether a segment that is far from its stream belongs to a later connection between the same ports: the
// event of the old one's end may come after the new one's first packets.
func (in *Inspector) replaced(s *session, st *stream, seg *nfq.Segment) bool {
	const far = 1 << 16
	if distance := int32(seg.Seq - st.next); !st.synced || -far < distance && distance < far {
		return false
	}
	entry, err := in.conntrack.Lookup(s.key.tuple())
	return err == nil && entry.ID != s.id
}

func isSYN(seg *nfq.Segment) bool {
	return seg.Flags&(nfq.SYN|nfq.ACK|nfq.RST|nfq.FIN) == nfq.SYN
}

// End is to be called when a control connection's conntrack entry, which had the given id, is gone.
func (in *Inspector) End(now time.Time, k Key, id uint32) {
	sh := in.shard(k.Client.Addr(), k.Server.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.openings[k].entry.ID == id {
		in.dropOpening(sh, k)
	}
	if s := sh.sessions[k]; s != nil && s.id == id {
		in.guard(sh, s, now, func() { in.forget(sh, s, now, alg.ConnectionClosed) })
	}
}

// forget removes a session with all it has.
func (in *Inspector) forget(sh *shard, s *session, now time.Time, why alg.Reason) {
	if s.control != nil {
		sh.fx = s.control.Close(sh.fx[:0])
		sh.noteOpaque(s)
		in.carryOut(sh, s, now, nil)
	}
	if !s.refused {
		in.giveUpHeld(s, func(g *segment) { in.verdict(g.Packet, nfq.Verdict{}) })
		in.event(s.event(now, audit.Event{Kind: audit.EventEnd, Reason: why}))
	}
	sh.dropPair(s)
	sh.dropMissed(s)
	delete(sh.holding, s)
	delete(sh.sessions, s.key)
	if s.view != nil {
		in.views.drop(*s.view, s.key)
	}
	in.countOut(s)
}

// Expire decides on packets that have waited too long, forgets pinholes that the kernel let lapse, and withdraws those
// whose control connection is closing: the packets that close it have no payload and do not come here. Call it every
// second.
func (in *Inspector) Expire(now time.Time) {
	for i := range in.shards {
		sh := &in.shards[i]
		sh.mu.Lock()
		for s := range sh.holding {
			held := false
			in.guard(sh, s, now, func() { held = !s.refused && in.overdue(sh, s, now) })
			if !held {
				delete(sh.holding, s)
			}
		}
		for _, s := range sh.open {
			in.guard(sh, s, now, func() { in.expirePinhole(sh, s, now) })
		}
		sh.mu.Unlock()
	}
}

// expirePinhole forgets the pinhole of a session if it lapsed, or if the session is closing.
func (in *Inspector) expirePinhole(sh *shard, s *session, now time.Time) {
	why := alg.SessionOver
	if now.After(s.pinholeUntil) {
		why = alg.TimedOut
	} else if in.live(s) {
		return
	}
	in.closed(sh, s, now, s.control.Pinhole(), why)
	s.control.Expire()
}

// Sweep ends the sessions that were idle since before and whose conntrack entry is gone, for the case that its destroy
// event was lost, and forgets those that were refused.
func (in *Inspector) Sweep(now time.Time, before time.Time) {
	for i := range in.shards {
		sh := &in.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			in.guard(sh, s, now, func() { in.sweep(sh, s, now, before) })
		}
		in.sweepOpenings(sh, now)
		sh.mu.Unlock()
	}
}

// sweep is Sweep for one session.
func (in *Inspector) sweep(sh *shard, s *session, now, before time.Time) {
	switch {
	case s.refused && now.Sub(s.lastSeen) > endedFor:
		in.forget(sh, s, now, alg.SessionOver)
	case !s.refused && s.lastSeen.Before(before) && in.gone(s):
		in.forget(sh, s, now, alg.ConnectionClosed)
	}
}

// live says whether neither side of a session's connection has begun to close it. In doubt one has.
func (in *Inspector) live(s *session) bool {
	entry, err := in.conntrack.Lookup(s.key.tuple())
	return err == nil && entry.Live && entry.ID == s.id
}

// gone says whether conntrack has forgotten a session's connection. In doubt it has not.
func (in *Inspector) gone(s *session) bool {
	entry, err := in.conntrack.Lookup(s.key.tuple())
	return errors.Is(err, conntrack.ErrNotFound) || err == nil && entry.ID != s.id
}

// tuple is the control connection as conntrack knows it.
func (k Key) tuple() conntrack.Tuple { return conntrack.Tuple{Src: k.Client, Dst: k.Server} }
