package inspect

import (
	"encoding/binary"
	"errors"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
)

// What is known of a session and must outlive this process is in the label of its conntrack entry: its phase. Of the label's
// first 64 bits, in network order, 63-60 are the format's number, and 59-58 the phase less one. The other bits are 0.
const (
	labelFormat = 1 // never 0: a label of which nothing was written is zero

	formatShift, formatMask = 60, 0xf
	phaseShift, phaseMask   = 58, 0x3
)

// ours are the bits that we write.
var ours = word(formatMask<<formatShift | phaseMask<<phaseShift)

func word(w uint64) (l conntrack.Label) {
	binary.BigEndian.PutUint64(l[:], w)
	return l
}

// encodeLabel makes the label of a phase. That of PhaseUnknown is as if nothing had been written.
func encodeLabel(p alg.Phase) conntrack.Label {
	if p == alg.PhaseUnknown {
		return conntrack.Label{}
	}
	return word(labelFormat<<formatShift | uint64(p-alg.PhaseClear)<<phaseShift)
}

// decodeLabel reads a label. One that we have not written, or in a format of another version, tells nothing.
func decodeLabel(l conntrack.Label) alg.Phase {
	w := binary.BigEndian.Uint64(l[:])
	if w>>formatShift&formatMask != labelFormat {
		return alg.PhaseUnknown
	}
	return alg.PhaseClear + alg.Phase(w>>phaseShift&phaseMask)
}

// keepPhase writes a session's phase if it has changed, before the packet goes on that has changed it. If it cannot be written,
// the session ends: after a restart it would be taken for what it is not. An entry without room for a label is no error: then a
// restart knows nothing of it.
func (in *Inspector) keepPhase(sh *shard, s *session, now time.Time, current *segment) {
	phase := s.control.Phase()
	if phase == s.written || s.refused {
		return
	}
	err := in.conntrack.SetLabel(s.key.tuple(), encodeLabel(phase), ours)
	if err == nil || errors.Is(err, conntrack.ErrNoLabelRoom) {
		s.written = phase
		return
	}
	in.event(s.event(now, audit.Event{Kind: audit.EventAudit, Reason: alg.LabelFailed, Err: err}))
	sh.fx = append(sh.fx[:0], alg.Effect{Kind: alg.End, Reason: alg.LabelFailed})
	in.carryOut(sh, s, now, current)
}
