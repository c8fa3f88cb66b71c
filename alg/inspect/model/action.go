package model

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ftp"
	"ftpalg/nfq"
)

// Action is one step of a dialogue. A dialogue is a list of them, and any part of one is one too.
type Action struct {
	Do   Do
	N    int
	Text string
}

// Do is what an action does.
type Do string

// What a client does, a server, and the kernel or the operator between them.
const (
	Say       Do = "say"       // the client sends Text as one segment
	Cut       Do = "cut"       // in segments of N bytes
	Backwards Do = "backwards" // in segments of N bytes, the last one first
	Again     Do = "again"     // it sends its last N bytes again, with Text in their place as far as that goes
	Ahead     Do = "ahead"     // it sends Text as if N bytes had been sent before it
	Urgent    Do = "urgent"    // it sends Text as urgent data
	KeepAlive Do = "keepalive" // it sends the last byte again
	Data      Do = "data"      // it connects to the server's port N above 50000
	Drain     Do = "drain"     // it has read a transfer's data
	Reset     Do = "reset"     // it resets the connection and makes another between the same ports that goes on N bytes further

	Reply   Do = "reply"   // the server sends its next reply, in segments of N bytes if N is not 0
	Replies Do = "replies" // all that wait, in one segment
	Part    Do = "part"    // the first N bytes of what waits
	Leave   Do = "leave"   // it leaves its next reply out
	Repeat  Do = "repeat"  // it sends its next reply twice
	Resend  Do = "resend"  // it sends its last N bytes again

	Wait     Do = "wait"     // N milliseconds pass
	Forget   Do = "forget"   // conntrack forgets the connection
	Tell     Do = "tell"     // the event of an entry's end is handled
	Kill     Do = "kill"     // ftpalg is killed and started
	HandOver Do = "handover" // another ftpalg takes over
	Reload   Do = "reload"   // the policy is read again
)

func (a Action) String() string { return fmt.Sprintf("%-9s %5d %q", a.Do, a.N, a.Text) }

// maxSent bounds what a side keeps to send again.
const maxSent = 256

// Apply does one action.
func (w *World) Apply(a Action) {
	switch a.Do {
	case Say:
		w.say(alg.Client, []byte(a.Text), max(len(a.Text), 1), false)
	case Cut:
		w.say(alg.Client, []byte(a.Text), max(a.N, 1), false)
	case Backwards:
		w.say(alg.Client, []byte(a.Text), max(a.N, 1), true)
	case Again:
		e := &w.ends[alg.Client]
		n := min(a.N, len(e.sent))
		b := append([]byte(nil), e.sent[len(e.sent)-n:]...)
		copy(b, a.Text)
		w.note(b)
		w.segment(alg.Client, e.next-uint32(n), b, false)
	case Ahead:
		w.note([]byte(a.Text))
		w.segment(alg.Client, w.ends[alg.Client].next+uint32(a.N), []byte(a.Text), false)
	case Urgent:
		w.note([]byte(a.Text))
		w.segment(alg.Client, w.ends[alg.Client].next, []byte(a.Text), true)
		w.sent(alg.Client, []byte(a.Text))
	case KeepAlive:
		e := &w.ends[alg.Client]
		if n := len(e.sent); n > 0 {
			w.segment(alg.Client, e.next-1, e.sent[n-1:], false)
		}
	case Data:
		w.data(uint16(50000 + a.N))
	case Drain:
		w.server.drained()
	case Reset:
		w.connect(w.ends[alg.Client].next + uint32(a.N) - 1)
	case Resend:
		e := &w.ends[alg.Server]
		n := min(a.N, len(e.sent))
		w.segment(alg.Server, e.next-uint32(n), e.sent[len(e.sent)-n:], false)
	case Wait:
		w.tick(time.Duration(a.N) * time.Millisecond)
	case Forget:
		if w.kernel.there {
			w.before = append(w.before, w.kernel.entry.ID)
		}
		w.kernel.forget()
	case Tell:
		if len(w.before) > 0 {
			w.in.End(w.now, key, w.before[0])
			w.before = w.before[1:]
			w.deliver()
		}
	case Kill:
		w.restart(false)
	case HandOver:
		w.restart(true)
	case Reload:
		w.in.SetPolicy(w.Policy)
	default:
		w.answer(a)
	}
}

// answer does what a server does with its replies.
func (w *World) answer(a Action) {
	s := w.server
	if len(s.outbox) == 0 || s.outbox[0].begun && (a.Do == Leave || a.Do == Repeat) {
		return
	}
	switch first := s.outbox[0]; a.Do {
	case Leave:
		s.outbox = s.outbox[1:]
	case Repeat:
		first.port = 0
		s.outbox = append([]reply{s.outbox[0]}, append([]reply{first}, s.outbox[1:]...)...)
		w.emit(2, 0)
	case Replies:
		w.emit(len(s.outbox), 0)
	case Part:
		n := min(a.N, len(first.text)-1)
		if n > 0 {
			s.outbox[0].text, s.outbox[0].begun = first.text[n:], true
			w.say(alg.Server, []byte(first.text[:n]), n, false)
		}
	default:
		w.emit(1, a.N)
	}
}

// emit sends the next n replies, in segments of cut bytes.
func (w *World) emit(n, cut int) {
	s := w.server
	var text string
	for _, r := range s.outbox[:n] {
		text += r.text
		if s.announced < s.asked && r.port != 0 {
			s.announced++
			s.ports[r.port] = true
		}
	}
	s.outbox = s.outbox[n:]
	if cut == 0 {
		cut = len(text)
	}
	w.say(alg.Server, []byte(text), cut, false)
}

// say sends bytes that are new, in segments of n bytes.
func (w *World) say(from alg.Side, b []byte, n int, backwards bool) {
	if w.ends[from].reset {
		return
	}
	if from == alg.Client {
		w.note(b)
	}
	start := w.ends[from].next
	w.sent(from, b)
	last := (len(b) - 1) / max(n, 1)
	for i := 0; i <= last; i++ {
		at := i * n
		if backwards {
			at = (last - i) * n
		}
		w.segment(from, start+uint32(at), b[at:min(at+n, len(b))], false)
	}
}

func (w *World) segment(from alg.Side, seq uint32, b []byte, urgent bool) {
	if len(b) == 0 || w.ends[from].reset {
		return
	}
	const most = 1400
	for ; len(b) > most; b, seq = b[most:], seq+most {
		w.packet(from, seq, b[:most], nfq.ACK, false)
	}
	w.packet(from, seq, b, nfq.ACK, urgent)
}

// sent notes what a side has sent last.
func (w *World) sent(from alg.Side, b []byte) {
	e := &w.ends[from]
	e.next += uint32(len(b))
	e.sent = append(e.sent, b...)
	if over := len(e.sent) - maxSent; over > 0 {
		e.sent = append(e.sent[:0:0], e.sent[over:]...)
	}
}

var announcesActive = regexp.MustCompile(`(?i)(PORT|EPRT) ([0-9,]+|\|1\|[0-9.]+\|[0-9]+\|)`)

// note notes the ports that the client says it listens at.
func (w *World) note(b []byte) {
	if bytes.IndexByte(b, ',') < 0 && bytes.IndexByte(b, '|') < 0 {
		return
	}
	for _, m := range announcesActive.FindAllSubmatch(b, -1) {
		to, err := ftp.ParsePort(m[2])
		if err != nil {
			to, err = ftp.ParseEPRT(m[2])
		}
		if err == nil {
			w.active[to.Port()] = true
		}
	}
}

// data is the SYN of a data connection.
func (w *World) data(port uint16) {
	from := netip.AddrPortFrom(client.Addr(), uint16(41000)+port%100)
	w.queue(build(from, netip.AddrPortFrom(server.Addr(), port), uint32(port), 0, nil, nfq.SYN, false))
}

// Run plays a dialogue and returns the first fault, after how many actions it came, and what was seen.
func Run(s Setup, dialogue []Action) (fault string, after int, seen Seen) {
	w := NewWorld(s)
	for i, a := range dialogue {
		w.Apply(a)
		w.judgePinholes()
		if len(w.faults) > 0 {
			return w.faults[0], i + 1, w.seen
		}
	}
	return "", len(dialogue), w.seen
}

// Shrink takes actions out of a dialogue as long as it ends in the same kind of fault.
func Shrink(s Setup, dialogue []Action) []Action {
	fault, n, _ := Run(s, dialogue)
	want := kindOf(fault)
	dialogue = append([]Action(nil), dialogue[:n]...)
	for size := len(dialogue) / 2; size > 0; {
		taken := false
		for at := 0; at+size <= len(dialogue); {
			less := append(append([]Action(nil), dialogue[:at]...), dialogue[at+size:]...)
			if fault, n, _ := Run(s, less); fault != "" && kindOf(fault) == want {
				dialogue, taken = less[:n], true
				continue
			}
			at++
		}
		if !taken {
			size /= 2
		}
	}
	return dialogue
}

// kindOf is a fault without its particulars: paths, ports and the rest of a line.
func kindOf(fault string) string { return particulars.ReplaceAllString(fault, "#") }

var particulars = regexp.MustCompile(`"[^ ]*"?| of /.*|\d.*? `)
