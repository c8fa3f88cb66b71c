package inspect

import (
	"time"
)

// Bounds of one direction of one session.
const (
	// maxKept bounds what is kept of the client's bytes until the server acknowledges them, to compare retransmissions
	// with. Commands wait for replies, so this is several dozen long command lines.
	maxKept = 16 << 10
	// maxKeptReplies is the same for replies, which may be long, and for TLS: older bytes are given up, because nothing
	// that is said again there can open anything.
	maxKeptReplies = 1 << 10
	// maxInHand bounds the segments of one incomplete line.
	maxInHand = 64
	// maxEarly bounds the segments that wait behind a missing one.
	maxEarly = 64
	// keepCapacity is the largest buffer that an idle session goes on holding.
	keepCapacity = 256
	// window is how far from the stream a segment may begin; TCP's largest window (RFC 7323 section 2.3).
	window = 1 << 30
)

// stream is one direction of a control connection, put in order. The engine has been fed everything before next.
type stream struct {
	synced    bool
	fin       bool      // its FIN was seen, which takes a sequence number of its own
	origin    uint32    // sequence number of the engine's byte 0
	next      uint32    // of the byte that the engine wants next
	acked     uint32    // the peer has everything before this; means something only with known
	known     bool      // the peer has acknowledged something
	kept      []byte    // the bytes up to next as they went on, as far back as the peer has not acknowledged
	inHand    []segment // fed, without a verdict: they have part of an incomplete line
	early     []segment // not fed, in order of sequence numbers: they lie behind a gap, or wait for a reply to what is before
	heldSince time.Time // when something of it began to wait
	resized   *resized  // the line that went on with another length last; nil for none
}

// segment is a packet with payload.
type segment struct {
	Packet
	seq     uint32
	data    []byte // the whole IP packet
	payload []byte // part of data
	changed bool
}

func (g *segment) end() uint32 { return g.seq + uint32(len(g.payload)) }

// own makes g independent of the queue's buffer, so that it can be held.
func (g *segment) own() {
	offset := len(g.data) - len(g.payload)
	g.data = append([]byte(nil), g.data...)
	g.Conntrack = nil
	g.payload = g.data[offset:]
}

// before compares sequence numbers (RFC 9293 section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }

// sync sets where a direction begins. What lies before was never seen.
func (st *stream) sync(seq uint32) {
	st.synced, st.origin, st.next = true, seq, seq
}

// seqAt gives the sequence number of one of the offsets that the engine counts in.
func (st *stream) seqAt(offset uint64) uint32 { return st.origin + uint32(offset) }

// acknowledged notes that the peer has everything before ack, and gives up what was kept of it.
func (st *stream) acknowledged(ack uint32) {
	if st.known && before(ack, st.acked) || before(st.next, ack) || before(ack, st.origin) {
		return
	}
	st.acked, st.known = ack, true
	from := st.keptFrom()
	if len(st.kept) == 0 || !before(from, ack) {
		return
	}
	n := copy(st.kept, st.kept[ack-from:])
	st.kept = st.kept[:n]
	if n == 0 && cap(st.kept) > keepCapacity {
		st.kept = nil
	}
}

// keptFrom is the sequence number of the first byte that is kept.
func (st *stream) keptFrom() uint32 { return st.next - uint32(len(st.kept)) }

// unverified says whether a segment repeats bytes that are not kept any more, or were never seen, and that the receiver
// may still be waiting for: what they are cannot be compared.
func (st *stream) unverified(g *segment) bool {
	end := g.end()
	if from := st.keptFrom(); before(from, end) {
		end = from
	}
	return before(g.seq, end) && !(st.known && !before(st.acked, end))
}

// keep adds fresh bytes behind next. If strict it says no when there is no room, otherwise the oldest go.
func (st *stream) keep(fresh []byte, strict bool) bool {
	limit := maxKeptReplies
	if strict {
		limit = maxKept
	}
	over := len(st.kept) + len(fresh) - limit
	switch {
	case over <= 0:
	case strict:
		return false
	case over >= len(st.kept):
		st.kept, fresh = st.kept[:0], fresh[max(0, len(fresh)-limit):]
	default:
		st.kept = st.kept[:copy(st.kept, st.kept[over:])]
	}
	st.kept = append(st.kept, fresh...)
	return true
}

// reconcile makes a segment agree with what came before it: where it overlaps bytes that went on already, or that came
// earlier and wait, the first content wins. It says whether anything differed.
func (st *stream) reconcile(g *segment) (differed bool) {
	differed = g.copyOver(st.keptFrom(), st.kept)
	for i := range st.early {
		e := &st.early[i]
		differed = g.copyOver(e.seq, e.payload) || differed
	}
	g.changed = g.changed || differed
	return differed
}

// copyOver writes bytes that begin at seq over the part of the segment that they overlap.
func (g *segment) copyOver(seq uint32, bytes []byte) (differed bool) {
	from, to := int(int32(seq-g.seq)), int(int32(seq-g.seq))+len(bytes)
	for i := max(from, 0); i < min(to, len(g.payload)); i++ {
		if g.payload[i] != bytes[i-from] {
			g.payload[i], differed = bytes[i-from], true
		}
	}
	return differed
}

// overwrite puts new bytes into everything that is still ours: segments in hand, the one at work, and what is kept to
// compare with.
func (st *stream) overwrite(seq uint32, bytes []byte, current *segment) {
	for i := range st.inHand {
		g := &st.inHand[i]
		g.changed = g.copyOver(seq, bytes) || g.changed
	}
	if current != nil {
		current.changed = current.copyOver(seq, bytes) || current.changed
	}
	kept := segment{seq: st.keptFrom(), payload: st.kept}
	kept.copyOver(seq, bytes)
}

// insertEarly puts a segment among those that wait, in order. It says no if the same is there already.
func (st *stream) insertEarly(g segment) bool {
	at := len(st.early)
	for i := range st.early {
		e := &st.early[i]
		if e.seq == g.seq && len(e.payload) >= len(g.payload) {
			return false
		}
		if before(g.seq, e.seq) {
			at = i
			break
		}
	}
	st.early = append(st.early, segment{})
	copy(st.early[at+1:], st.early[at:])
	st.early[at] = g
	return true
}

func (st *stream) earlyBytes() (n int) {
	for i := range st.early {
		n += len(st.early[i].payload)
	}
	return n
}
