package inspect

import (
	"bytes"
	"slices"

	"ftpalg/alg"
	"ftpalg/conntrack"
	"ftpalg/nfq"
)

// Under NAT a line may have to name an address that is longer or shorter than the one in it. Then its segment goes on with another
// length, and conntrack moves the sequence numbers of what follows, and of what the receiver acknowledges (nf_ct_seqadj). It
// does so behind us: here each side counts as it does itself. Conntrack knows one such place in each direction, so that the
// receiver must have the last such line before there may be another.

// maxResized bounds the payload of a segment that becomes longer: every path can take it (RFC 8200 section 5, less headers and
// options).
const maxResized = 1200

// resized is the line of a direction that went on with another length last. It is a part of Memory.
type resized struct {
	From, At      uint32 // the sender's numbers of the line's first byte, and of the first from which on Since holds
	Before, Since int32  // how far the receiver's numbers are from the sender's, before the line and from its end on
	New           []byte // what goes on in its place
}

// mayResize reports whether the line of an effect can go on with another length: not while the last one is under way.
func (st *stream) mayResize(e alg.Effect, current *segment) bool {
	if last := st.resized; last != nil && !(st.known && !before(st.acked, last.At)) {
		return false
	}
	start := st.seqAt(e.Start)
	for _, g := range st.withCurrent(current) {
		if !before(start, g.seq) && before(start, g.end()) {
			return len(g.payload)+max(len(e.New)-e.Len, 0)+e.Len <= maxResized
		}
	}
	return false
}

// withCurrent gives the segments without a verdict: those in hand, and the one at work unless it is among them.
func (st *stream) withCurrent(current *segment) []segment {
	if current == nil {
		return st.inHand
	}
	return append(st.inHand[:len(st.inHand):len(st.inHand)], *current)
}

// resize has a line go on with another length, from now on whenever it comes. The error says that conntrack cannot do its part.
func (in *Inspector) resize(s *session, e alg.Effect) error {
	st := &s.streams[e.Side]
	next := resized{From: st.seqAt(e.Start), New: bytes.Clone(e.New)}
	next.At = next.From + uint32(e.Len)
	if st.resized != nil {
		next.Before = st.resized.Since
	}
	next.Since = next.Before + int32(len(e.New)-e.Len)
	err := in.conntrack.AdjustSequence(s.key.tuple(), e.Side == alg.Server,
		conntrack.Adjustment{Position: next.From, Before: next.Before, After: next.Since})
	if err == nil {
		st.resized = &next
	}
	return err
}

// recallAdjusted takes over from conntrack how it moves sequence numbers of a session that nothing is remembered of. What stands in
// place of the last line is not known any more: its receiver has it, or it is repeated as it was sent.
func (s *session) recallAdjusted(entry conntrack.Entry) {
	for from, a := range entry.Adjusted {
		if st := &s.streams[from]; st.resized == nil && a != (conntrack.Adjustment{}) {
			st.resized = &resized{From: a.Position, At: a.Position + 1, Before: a.Before, Since: a.After}
		}
	}
}

// replace gives a segment what goes on in place of a line that it has, and says whether it may go on. One that ends within the line
// takes all of the line along, and one that begins there has to be repeated from the line's end on: its sender will be told
// that the receiver has the line.
func (st *stream) replace(g *segment) bool {
	r := st.resized
	switch {
	case r == nil || r.New == nil || !before(g.seq, r.At) || !before(r.From, g.end()):
		return true
	case before(r.From, g.seq):
		return false
	}
	front := g.payload[:r.From-g.seq]
	var behind []byte
	if before(r.At, g.end()) {
		behind = g.payload[r.At-g.seq:]
	}
	payload := slices.Concat(front, r.New, behind)
	if len(payload) > maxResized {
		if payload = payload[:maxResized]; len(front) > 0 {
			payload = front
		}
	}
	return g.carry(payload)
}

// sent gives the sender's number for one of the receiver's.
func (st *stream) sent(ack uint32) uint32 {
	if st.resized == nil {
		return ack
	}
	if since := ack - uint32(st.resized.Since); !before(since, st.resized.At) {
		return since
	}
	return ack - uint32(st.resized.Before)
}

// cut ends a segment before a byte of it, and reports whether it can. Its FIN comes again with the rest.
func (g *segment) cut(seq uint32) bool {
	if !g.carry(g.payload[:seq-g.seq]) {
		return false
	}
	nfq.ClearFIN(g.data)
	return true
}

// carry has a segment carry another payload, and says whether it can.
func (g *segment) carry(payload []byte) bool {
	data, err := nfq.WithPayload(g.data, payload)
	if err != nil {
		return false
	}
	g.data, g.payload, g.changed = data, data[len(data)-len(payload):], true
	return true
}

// saneRequest is how a segment of eight bytes begins that the helper "sane" takes for a request of its own protocol, and so for a
// reason to open a port (nf_conntrack_sane). The rules drop what gets as far as that helper (package rules, carrierGuard).
var saneRequest = []byte{0, 0, 0, 7}

// cutRequest makes a segment that would be such a request shorter by a byte, which its sender repeats.
func (g *segment) cutRequest() {
	if len(g.payload) == 8 && bytes.HasPrefix(g.payload, saneRequest) {
		g.carry(g.payload[:7])
	}
}
