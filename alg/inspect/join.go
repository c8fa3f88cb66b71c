package inspect

import (
	"bytes"
	"slices"

	"ftpalg/alg"
	"ftpalg/nfq"
)

// The kernel's own helper reads each segment by itself: a line that does not begin one it does not see, and one that a segment
// ends within it drops for good, if that may become an announcement. So where it reads along, segments are cut and joined for
// it, as TCP leaves everybody free to do (RFC 9293 section 3.8).

// maxJoined bounds what joined segments carry: every path can take it (RFC 8200 section 5, less headers and options).
const maxJoined = 1200

// forward lets segments go on that follow one another.
func (in *Inspector) forward(s *session, list []segment) {
	for len(list) > 0 {
		n := 1
		if s.readAlong {
			n = list[0].join(list[1:]) + 1
		}
		in.accept(&list[0])
		for _, g := range list[1:n] {
			in.verdict(g.Packet, nfq.Verdict{})
		}
		list = list[n:]
	}
}

// torn says whether segments end within the line that begins them, of which the rest is in front of a later one.
func torn(list []segment, later uint32) bool {
	ends := func(g segment) bool { return bytes.IndexByte(g.payload, '\n') >= 0 }
	return len(list) > 0 && list[len(list)-1].end() != later && !slices.ContainsFunc(list, ends)
}

// join makes those that follow a part of a segment, as many as there is room for, and says how many that are.
func (g *segment) join(behind []segment) (n int) {
	payload := g.payload
	for ; n < len(behind); n++ {
		next := &behind[n]
		fresh := next.payload[g.seq+uint32(len(payload))-next.seq:]
		if len(payload)+len(fresh) > maxJoined {
			break
		}
		payload = append(payload[:len(payload):len(payload)], fresh...)
	}
	if n == 0 || !g.carry(payload) {
		return 0
	}
	return n
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

// leave says whether a line can be left to the kernel, which has to find it at the beginning of a segment. It does if the line
// begins what is in hand. The segment at work may be cut before it: what is behind comes again, from the line's beginning on.
func (st *stream) leave(e alg.Effect, current *segment) bool {
	start := st.seqAt(e.Start)
	if len(st.inHand) > 0 {
		return start == st.inHand[0].seq
	}
	whole := current.payload[len(current.payload)-1] == '\n'
	cutAlready := st.shifted != nil && current.holds(st.shifted.From)
	return start == current.seq || whole && !cutAlready
}

// holds says whether a segment begins before a byte and ends behind it.
func (g *segment) holds(seq uint32) bool { return before(g.seq, seq) && before(seq, g.end()) }

// cutShort ends a segment before the line that was left to the kernel last.
func (st *stream) cutShort(g *segment) {
	if st.shifted != nil && g.holds(st.shifted.From) {
		g.carry(g.payload[:st.shifted.From-g.seq])
	}
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
