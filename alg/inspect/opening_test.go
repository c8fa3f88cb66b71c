package inspect

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"ftpalg/alg"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// restricted is a policy with one rule more than that everybody may do all.
func restricted(t testing.TB, more string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("test", []byte("version: 1\nservers: [{name: s, addresses: [198.51.100.2], passive: 50000-50100}]\n"+
		"rules: [{name: r, to: s, action: inspect, "+more+"}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// forged is a command that would not be read inside TLS.
var forged = append([]byte{23, 3, 1, 0x40, 0}, "\r\nMKD evil\r\n"...)

// TestSequenceNumbersGoOn: a connection between the ports of the last one, which was in TLS, takes nothing over from it, though its
// numbers go on where those ended, and the end of the old one was not told.
func TestSequenceNumbersGoOn(t *testing.T) {
	for name, ct := range map[string]Conntrack{"another entry": &later{}, "the same entry, renewed": &conntrack.Fake{}} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, restricted(t, "commands: {deny: [MKD]}"), clientAddr, serverAddr)
			w.greet()
			w.say(alg.Client, []byte("AUTH TLS\r\n"))
			w.say(alg.Server, []byte("234 go on\r\n"))
			w.say(alg.Client, []byte{22, 3, 1, 1, 0})
			if s := w.in.sessionAt(w.key); !s.opaque {
				t.Fatal("the first is not in TLS")
			}
			w.in.conntrack = ct
			w.isn[alg.Server] += 1 << 20
			w.handshake()
			w.say(alg.Client, forged)
			if got := w.receivers[alg.Client].stream(); bytes.Contains(got, []byte("MKD")) {
				t.Errorf("the server got %q", got)
			}
			if all := w.in.Sessions(); len(all) != 1 || all[0].Number != 2 {
				t.Errorf("sessions %+v", all)
			}
		})
	}
}

// TestSynAckAgain: one that the server repeats changes nothing, before the session is made and after.
func TestSynAckAgain(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.handshake()
	w.handshake()
	if n := w.in.books.Openings.Used(); n != 1 {
		t.Errorf("%d openings", n)
	}
	w.greet()
	sent := w.sent
	w.sent = [2]uint32{}
	w.handshake()
	w.sent = sent
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "pinhole none PASV 192.0.2.2:0 198.51.100.2:50000")
	if all := w.in.Sessions(); len(all) != 1 || all[0].Number != 1 || w.in.books.Openings.Used() != 0 {
		t.Errorf("sessions %+v", all)
	}
}

// TestBeginsAtItsNumbers: with the SYN/ACK seen, a first segment that is further on is no beginning.
func TestBeginsAtItsNumbers(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.send(alg.Client, 6, []byte("PORT 192,0,2,2,195,80\r\n"), nil)
	if n := len(w.receivers[alg.Client].bytes); n != 0 {
		t.Errorf("%d bytes went on", n)
	}
	w.in.End(clock, w.key, 0)
	w.settled()
}

// TestMetInTheMiddle: what comes without a SYN/ACK is resumed: nothing opens before a login is proved, the directory stays unknown,
// and nothing is guessed from the first bytes where the policy restricts anything.
func TestMetInTheMiddle(t *testing.T) {
	middle := func(t *testing.T, more string) *wire {
		w := newWire(t, restricted(t, more), clientAddr, serverAddr)
		w.shaken[w.key] = true // not here
		return w
	}
	t.Run("login", func(t *testing.T) {
		w := middle(t, "")
		w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
		w.expect(t, "deny not-logged-in")
		w.say(alg.Server, []byte("500 no\r\n"))
		w.say(alg.Client, []byte("TYPE I\r\n"))
		w.say(alg.Server, []byte("200 ok\r\n"))
		w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
		w.expect(t, "pinhole none PORT 198.51.100.2:0 192.0.2.2:50000")
	})
	t.Run("directory", func(t *testing.T) {
		w := middle(t, "commands: {deny: [RETR /secret]}")
		for _, line := range []string{"PWD\r\n", "257 \"/pub\"\r\n", "CWD /pub\r\n", "250 ok\r\n"} {
			from := alg.Client
			if line[0] < 'A' {
				from = alg.Server
			}
			w.say(from, []byte(line))
		}
		w.say(alg.Client, []byte("RETR a\r\n"))
		w.expect(t, "deny path-unknown")
		w.say(alg.Client, []byte("RETR /pub/a\r\n"))
		if got := string(w.receivers[alg.Client].stream()); !strings.HasSuffix(got, "RETR /pub/a\r\n") {
			t.Errorf("the server got %q", got)
		}
	})
	t.Run("no guess", func(t *testing.T) {
		w := middle(t, "commands: {deny: [MKD]}")
		w.say(alg.Client, forged)
		if got := w.receivers[alg.Client].stream(); bytes.Contains(got, []byte("MKD")) {
			t.Errorf("the server got %q", got)
		}
	})
	for _, more := range []string{"users: {allow: [a]}", "require: tls"} {
		t.Run(more, func(t *testing.T) {
			w := middle(t, more)
			w.say(alg.Client, []byte("NOOP\r\n"))
			w.expect(t, "deny session-unknown")
			if all := w.in.Sessions(); len(all) != 1 || !all[0].Refused {
				t.Errorf("sessions %+v", all)
			}
		})
	}
}

// TestBackwards: an entry that a server opened from its control port is no control connection.
func TestBackwards(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.shaken[w.key] = true
	w.in.conntrack = &backwards{}
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	w.expect(t, "deny no-connection")
}

// backwards is a conntrack table whose connections began at the other end.
type backwards struct{ conntrack.Fake }

func (b *backwards) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	return b.Fake.Lookup(t.Reversed())
}

// TestOpeningsAreBounded: handshakes that come to nothing cost a bounded memory, of which one client has a share, and no session.
func TestOpeningsAreBounded(t *testing.T) {
	p := policy.AllowAll()
	w := newWire(t, p, clientAddr, serverAddr)
	verdicts := 0
	handshake := func(client netip.AddrPort) {
		seg := nfq.Segment{Src: serverAddr, Dst: client, Flags: nfq.SYN | nfq.ACK}
		w.in.Packet(clock, Packet{Queue: accepts(func() { verdicts++ })}, &seg)
	}
	for i := range 2 * p.Limits.SessionsPerClient {
		handshake(netip.AddrPortFrom(clientAddr.Addr(), uint16(1024+i)))
	}
	if got := w.in.books.Openings.Used(); got != p.Limits.SessionsPerClient || verdicts != got {
		t.Errorf("%d openings of one client, %d SYN/ACKs went on", got, verdicts)
	}
	for i := range shardCount * maxOpenings * 2 {
		handshake(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1024))
	}
	if got := w.in.books.Openings.Used(); got > shardCount*maxOpenings || w.in.Count() != 0 {
		t.Errorf("%d openings, %d sessions", got, w.in.Count())
	}
	w.in.Sweep(clock.Add(openingFor+1), clock)
	if got := w.in.books.Openings.Used(); got != 0 {
		t.Errorf("%d openings are left", got)
	}
}

// accepts counts what may go on.
type accepts func()

func (a accepts) Verdict(_ uint32, v nfq.Verdict) error {
	if v.Accept {
		a()
	}
	return nil
}

// TestHandOverOpening: a connection whose SYN/ACK the old process saw begins in the new one.
func TestHandOverOpening(t *testing.T) {
	w := newWire(t, restricted(t, "users: {allow: [a]}"), clientAddr, serverAddr)
	w.handshake()
	w.handOver(t, conntrack.Untranslated(w.key.tuple()))
	w.greet()
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "pinhole none PASV 192.0.2.2:0 198.51.100.2:50000")
}

// label is what stands in a session's entry.
func (w *wire) label() alg.Phase {
	e, _ := w.ct.Lookup(w.key.tuple())
	return decodeLabel(e.Label)
}

// TestLabelFollows: the label says what a restart has to know, before the packet goes on that makes it so; and after a restart in
// each of these moments the session is what it was.
func TestLabelFollows(t *testing.T) {
	w := newWire(t, restricted(t, "commands: {deny: [MKD]}"), clientAddr, serverAddr)
	for _, step := range []struct {
		from alg.Side
		say  string
		want alg.Phase
	}{
		{alg.Server, "220 ready\r\n", alg.PhaseUnknown},
		{alg.Client, "USER a\r\n", alg.PhaseUnknown},
		{alg.Server, "230 in\r\n", alg.PhaseClear},
		{alg.Client, "NOOP\r\n", alg.PhaseClear},
		{alg.Server, "200 ok\r\n", alg.PhaseClear},
		{alg.Client, "AUTH TLS\r\n", alg.PhaseAUTH},
		{alg.Server, "500 no\r\n", alg.PhaseClear},
		{alg.Client, "AUTH TLS\r\n", alg.PhaseAUTH},
		{alg.Server, "234 go on\r\n", alg.PhaseTLS},
		{alg.Client, "\x16\x03\x01\x01\x00", alg.PhaseTLS},
	} {
		w.say(step.from, []byte(step.say))
		if got := w.label(); got != step.want {
			t.Errorf("after %q: %d, want %d", step.say, got, step.want)
		}
		next := New(Options{Policy: w.in.Policy(), Conntrack: w.ct})
		entry, _ := w.ct.Lookup(w.key.tuple())
		next.Resume(clock, entry, Memory{})
		if got := next.sessionAt(w.key).control.Phase(); got != step.want {
			t.Errorf("after %q and a restart: %d, want %d", step.say, got, step.want)
		}
	}
}

// TestLabelFails: what cannot be written ends the session, and the packet does not go on; without room for labels all goes on.
func TestLabelFails(t *testing.T) {
	for err, want := range map[error]string{errors.New("no buffer space"): "end label-failed", conntrack.ErrNoLabelRoom: ""} {
		w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
		w.greet()
		w.in.conntrack = &unlabelled{err: err}
		w.say(alg.Client, []byte("AUTH TLS\r\n"))
		passed := strings.HasSuffix(string(w.receivers[alg.Client].stream()), "AUTH TLS\r\n")
		if passed != (want == "") {
			t.Errorf("%v: AUTH went on: %v", err, passed)
		}
		if want != "" {
			w.expect(t, want)
		}
	}
}

// unlabelled is a conntrack table that takes no labels.
type unlabelled struct {
	conntrack.Fake
	err error
}

func (u *unlabelled) SetLabel(conntrack.Tuple, conntrack.Label, conntrack.Label) error { return u.err }

// FuzzLabel: every label is read, what we wrote comes back, and foreign bits are none of ours.
func FuzzLabel(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{0x1c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		var l conntrack.Label
		copy(l[:], b)
		p := decodeLabel(l)
		if p > alg.PhaseCleared {
			t.Fatalf("%x is phase %d", l, p)
		}
		written := encodeLabel(p)
		if decodeLabel(written) != p {
			t.Errorf("phase %d is written %x and read %d", p, written, decodeLabel(written))
		}
		for i := range written {
			if written[i]&^ours[i] != 0 || i > 0 && ours[i] != 0 {
				t.Errorf("%x has bits outside of %x", written, ours)
			}
			l[i] = l[i]&^ours[i] | written[i]
		}
		if decodeLabel(l) != p {
			t.Errorf("%x is read as %d, want %d", l, decodeLabel(l), p)
		}
	})
}
