package inspect

import (
	"iter"
	"slices"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
)

// MemoryFormat is the number of what the fields of Memory, and of alg.Memory in it, mean. Who knows another number must not use
// them.
const MemoryFormat = 3

// Memory is what an inspector knows of a session and no packet tells again, for the one that goes on with it (Resume). It is
// there for encoding/gob. It has what was typed last, perhaps a password: it must not be written anywhere.
type Memory struct {
	Key          Key
	ID           uint32 // of its conntrack entry
	Number       uint64
	User         string
	Began        time.Time
	LastSeen     time.Time
	PinholeUntil time.Time
	Refused      bool
	Told         [2]bool
	Missed       *missed
	Granted      bool // its credit was spent, and the SYN may be repeated
	Streams      [2]place
	Opening      bool        // nothing was said: only its ID and the origins of its streams mean something
	Phase        alg.Phase   // also where Control is nil
	Pinhole      alg.Pinhole // only where Control is nil
	Control      *alg.Memory // nil in the middle of a line: then its bytes are read as those of a session that nobody knows
}

// place is where one direction of a session is.
type place struct {
	Synced, FIN, Known  bool
	Origin, Next, Acked uint32
	Kept                []byte
	Resized             *resized
}

// Remember gives the memory of each session, for when packets come here no more. What is held is not part of it: its senders
// repeat it.
func (in *Inspector) Remember() iter.Seq[Memory] {
	return func(yield func(Memory) bool) {
		for i := range in.shards {
			sh := &in.shards[i]
			sh.mu.Lock()
			for k, o := range sh.openings {
				if !yield(o.memory(k)) {
					sh.mu.Unlock()
					return
				}
			}
			for _, s := range sh.sessions {
				if s.control != nil && !yield(sh.remember(s)) {
					sh.mu.Unlock()
					return
				}
			}
			sh.mu.Unlock()
		}
	}
}

func (o opening) memory(k Key) Memory {
	m := Memory{Key: k, ID: o.entry.ID, Opening: true, Began: o.since}
	for from, seq := range o.origin {
		m.Streams[from].Origin = seq
	}
	return m
}

func (sh *shard) remember(s *session) Memory {
	m := Memory{
		Key: s.key, ID: s.id, Number: s.number, User: s.user, Began: s.began, LastSeen: s.lastSeen,
		PinholeUntil: s.pinholeUntil, Refused: s.refused, Told: s.told, Missed: s.missed,
		Phase: s.control.Phase(),
	}
	if p := sh.pairs[s.key.hosts()]; p != nil {
		m.Granted = slices.Contains(p.granted, s)
	}
	if s.control == nil {
		return m
	}
	if control, ok := s.control.Remember(); ok {
		m.Control = &control
		for from := range s.streams {
			m.Streams[from] = s.streams[from].place()
		}
	} else {
		m.Pinhole = s.control.Pinhole()
	}
	return m
}

func (st *stream) place() place {
	return place{
		Synced: st.synced, FIN: st.fin, Known: st.known, Origin: st.origin, Next: st.next, Acked: st.acked,
		Kept: st.kept, Resized: st.resized,
	}
}

func (p place) stream() stream {
	return stream{
		synced: p.Synced, fin: p.FIN, known: p.Known, origin: p.Origin, next: p.Next, acked: p.Acked,
		kept: p.Kept, resized: p.Resized,
	}
}

// Resume makes a session that was there before us, so that its first segments are not taken for a beginning. m is what was
// remembered of it, or the zero value.
func (in *Inspector) Resume(now time.Time, entry conntrack.Entry, m Memory) {
	if k := (Key{Client: entry.Orig.Src, Server: entry.Orig.Dst}); m.Key != k || m.ID != entry.ID {
		m = Memory{Key: k}
	}
	if m.Opening {
		in.reopen(entry, m)
		return
	}
	in.start(now, m.Key, entry, &m)
}

// reopen goes on with an opening.
func (in *Inspector) reopen(entry conntrack.Entry, m Memory) {
	sh := in.shard(m.Key.Client.Addr(), m.Key.Server.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in.keepOpening(sh, m.Key, opening{entry: entry, origin: [2]uint32{m.Streams[0].Origin, m.Streams[1].Origin}, since: m.Began})
}

// recall gives a session that has just been made what was remembered of it.
func (in *Inspector) recall(sh *shard, s *session, m *Memory, now time.Time) {
	s.user, s.began, s.lastSeen, s.refused, s.told = m.User, m.Began, m.LastSeen, m.Refused, m.Told
	if s.refused {
		return
	}
	s.pinholeUntil = m.PinholeUntil
	if m.Control == nil || !s.control.Recall(*m.Control) {
		s.control.Keep(m.Pinhole)
		in.recallPinhole(sh, s)
		return
	}
	for from := range s.streams {
		s.streams[from] = m.Streams[from].stream()
	}
	in.recallPinhole(sh, s)
	if s.missed = m.Missed; s.missed != nil {
		sh.missed[s.missed.door()] = s
	}
	if s.control.HasCredit(now) {
		sh.credit(s)
	}
	if m.Granted {
		p := sh.pair(s)
		p.granted = append(p.granted, s)
	}
}

// recallPinhole takes over the pinhole of a remembered session. One that a lower limit leaves no room for is withdrawn.
func (in *Inspector) recallPinhole(sh *shard, s *session) {
	p := s.control.Pinhole()
	switch {
	case p.IsZero():
	case in.books.Pinholes.Take(s.key.Client.Addr(), 1) != nil:
		_ = in.conntrack.Withdraw(s.expectation(p)) // it times out by itself
		s.control.Expire()
	default:
		d := ledger.Door{From: p.From, To: p.To}
		_ = in.books.Doors.Open(d, s, false, func() error { return nil }) // it stands, and nobody else has any yet
		sh.open[d] = s
	}
}
