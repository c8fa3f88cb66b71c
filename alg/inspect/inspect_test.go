package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

var (
	clientAddr = netip.MustParseAddrPort("192.0.2.2:40000")
	serverAddr = netip.MustParseAddrPort("198.51.100.2:21")
)

func plainWire(t testing.TB) *wire {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.say(alg.Client, []byte("USER a\r\n"))
	w.say(alg.Server, []byte("230 in\r\n"))
	return w
}

// TestRefusedByKernel: what announces a pinhole that the kernel does not take must not go on (design rule 2).
func TestRefusedByKernel(t *testing.T) {
	w := plainWire(t)
	w.ct.Fail(errors.New("table full"))
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 Entering Passive Mode (198,51,100,2,195,80).\r\n"))
	w.say(alg.Client, []byte("PORT 192,0,2,2,156,65\r\n"))
	w.say(alg.Server, []byte("500 what?\r\n"))
	w.say(alg.Client, []byte("NOOP\r\n"))
	if got := string(w.receivers[alg.Server].stream()); !strings.Contains(got, "\r\n425 Refused by the gateway: expectation-failed") || strings.Contains(got, "227") {
		t.Errorf("the client got %q", got)
	}
	if got := string(w.receivers[alg.Client].stream()); strings.Contains(got, "PORT") || !strings.HasSuffix(got, "XX\r\nNOOP\r\n") {
		t.Errorf("the server got %q", got)
	}
	if n := w.in.books.Pinholes.Used(); n != 0 {
		t.Errorf("%d pinholes are counted", n)
	}
}

// TestDoorOfAnother: a pinhole that a terminated session holds is not replaced, as its data would go past that session's limits, nor
// withdrawn by the session that had the same ends before.
func TestDoorOfAnother(t *testing.T) {
	w := plainWire(t)
	x := conntrack.Expectation{
		Master: conntrack.Tuple{Src: netip.MustParseAddrPort("192.0.2.2:40001"), Dst: serverAddr}, Exclusive: true,
		From: netip.MustParseAddrPort("192.0.2.2:0"), To: netip.MustParseAddrPort("198.51.100.2:50000"),
	}
	at, terminated := ledger.Door{From: x.From, To: x.To}, "a promise of a terminated session"
	hold := func() {
		t.Helper()
		if err := w.in.books.Doors.Open(at, terminated, true, func() error { return w.ct.Expect(x) }); err != nil {
			t.Fatal(err)
		}
	}
	stands := func(master netip.AddrPort) {
		t.Helper()
		if open := w.ct.Open(); len(open) != 1 || open[0].Master.Src != master {
			t.Errorf("the kernel expects %v, want what %s asked for", open, master)
		}
	}
	announce := func() string {
		before := len(w.receivers[alg.Server].stream())
		w.say(alg.Client, []byte("PASV\r\n"))
		w.say(alg.Server, []byte("227 Entering Passive Mode (198,51,100,2,195,80).\r\n"))
		return string(w.receivers[alg.Server].stream()[before:])
	}
	hold()
	if got := announce(); !strings.HasPrefix(got, "425 ") {
		t.Errorf("the client got %q", got)
	}
	stands(x.Master.Src)
	_ = w.ct.Withdraw(x)
	w.in.books.Doors.Release(at, terminated)
	if got := announce(); !strings.HasPrefix(got, "227 ") {
		t.Errorf("the client got %q", got)
	}
	stands(clientAddr)
	w.ct.Use(x.From, x.To)
	hold()
	w.say(alg.Client, []byte("RETR a\r\n"))
	w.say(alg.Server, []byte("150 here\r\n226 done\r\n"))
	stands(x.Master.Src)
	if n := w.in.books.Pinholes.Used(); n != 0 {
		t.Errorf("%d pinholes are counted", n)
	}
}

// TestPartialLine: an incomplete line waits; in time it is let go if nothing can restrict it, or given up.
func TestPartialLine(t *testing.T) {
	for _, test := range []struct {
		first, rest string
		after       time.Duration
		arrives     string
	}{
		{"NO", "OP\r\n", releaseAfter, "NOOP\r\n"},
		{"RETR a", "b\r\n", releaseAfter, "RETR ab\r\n"},
		{"POR", "T 192,0,2,2,156,65\r\n", abandonAfter, "XXXXXXXXXXXXXXXXXXXXX\r\n"},
		{"\x00\x00\x00\x07abcd", "\r\n", abandonAfter, "XXXXXXXX\r\n"},
		{"NO\rOP", "\r\n", abandonAfter, "XXXXX\r\n"},
	} {
		w := plainWire(t)
		before := len(w.receivers[alg.Client].stream())
		w.send(alg.Client, 0, []byte(test.first), nil)
		w.in.Expire(clock.Add(test.after - 1))
		if got := w.receivers[alg.Client].stream()[before:]; len(got) != 0 {
			t.Errorf("%q: the server got %q before the time", test.first, got)
		}
		w.in.Expire(clock.Add(test.after))
		if got := w.receivers[alg.Client].stream()[before:]; len(got) != len(test.first) {
			t.Errorf("%q: the server got %q before the rest", test.first, got)
		}
		w.send(alg.Client, len(test.first), []byte(test.rest), nil)
		if got := string(w.receivers[alg.Client].stream()[before:]); got != test.arrives {
			t.Errorf("%q: the server got %q, want %q", test.first, got, test.arrives)
		}
		w.settled()
	}
}

// TestNoRequestToTheCarrier: inside TLS a segment that the helper "sane" would take for a request goes on without its last byte,
// which the client repeats by itself.
func TestNoRequestToTheCarrier(t *testing.T) {
	w := plainWire(t)
	w.say(alg.Client, []byte("AUTH TLS\r\n"))
	w.say(alg.Server, []byte("234 go on\r\n"))
	w.say(alg.Client, []byte{22, 3, 1, 1, 0, 1})
	for range 2 {
		w.send(alg.Client, 0, []byte("\x00\x00\x00\x07abcd"), nil)
		if got := w.passed[len(w.passed)-1]; got != "\x00\x00\x00\x07abc" {
			t.Errorf("%q goes on", got)
		}
	}
	w.send(alg.Client, 7, []byte("d"), nil)
	if got := w.passed[len(w.passed)-1]; got != "d" || !bytes.HasSuffix(w.receivers[alg.Client].stream(), []byte("\x00\x00\x00\x07abcd")) {
		t.Errorf("%q goes on behind it", got)
	}
	w.settled()
}

// TestHeldIsBounded: a line in very many segments is given up, and what waits behind a gap is dropped in time.
func TestHeldIsBounded(t *testing.T) {
	w := plainWire(t)
	line := []byte("PORT " + strings.Repeat("1", maxInHand))
	for i := range maxInHand + 1 {
		w.send(alg.Client, i, line[i:i+1], nil)
	}
	w.expect(t, "deny partial-line")
	w.settled()
	w.sent[alg.Client] += maxInHand + 1
	w.say(alg.Client, []byte("PPP\r\nNOOP\r\n"))
	if got := string(w.receivers[alg.Client].stream()); !strings.HasSuffix(got, "XXX\r\nNOOP\r\n") {
		t.Errorf("the server got %q", got)
	}
	w.send(alg.Client, 100, []byte("NOOP\r\n"), nil)
	w.in.Expire(clock.Add(gapAfter))
	w.settled()
}

// TestUrgent: urgent data goes on as ordinary data, so that the receiver reads what was inspected (RFC 6093).
func TestUrgent(t *testing.T) {
	w := plainWire(t)
	w.send(alg.Client, 0, []byte("\xff\xf4\xff\xf2ABOR\r\n"), func(tcp *layers.TCP) { tcp.URG, tcp.Urgent = true, 4 })
	id := w.send(alg.Client, 10, nil, func(tcp *layers.TCP) { tcp.URG, tcp.Urgent = true, 3 })
	for id := id - 1; id <= w.nextID; id++ {
		var seg nfq.Segment
		if err := nfq.NewDecoder().Decode(w.verdicts[id].Payload, &seg); err != nil || seg.Flags&nfq.URG != 0 {
			t.Errorf("packet %d goes on with flags %b, %v", id, seg.Flags, err)
		}
	}
	if got := string(w.receivers[alg.Client].stream()); !strings.HasSuffix(got, "\xff\xf4\xff\xf2ABOR\r\n") {
		t.Errorf("the server got %q", got)
	}
}

// TestSameDoor: two sessions of one client that announce the same port have one pinhole, and the books agree.
func TestSameDoor(t *testing.T) {
	w := plainWire(t)
	second := Key{netip.AddrPortFrom(clientAddr.Addr(), 40001), serverAddr}
	first := w.key
	w.say(alg.Client, []byte("PORT 192,0,2,2,156,65\r\n"))
	w.key = second
	w.sent = [2]uint32{}
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,2,156,65\r\n"))
	if n := w.in.books.Pinholes.Used(); n != 1 || len(w.ct.Open()) != 1 {
		t.Errorf("%d pinholes are counted, %d stand", n, len(w.ct.Open()))
	}
	w.in.End(clock, first, 0)
	if n := w.in.books.Pinholes.Used(); n != 1 || len(w.ct.Open()) != 1 {
		t.Errorf("after the first session's end: %d pinholes are counted, %d stand", n, len(w.ct.Open()))
	}
	w.in.End(clock, second, 0)
	if n := w.in.books.Pinholes.Used(); n != 0 || len(w.ct.Open()) != 0 {
		t.Errorf("after the second's: %d pinholes are counted, %d stand", n, len(w.ct.Open()))
	}
}

// gone is a conntrack table without any connection.
type gone struct{ conntrack.Fake }

func (*gone) Lookup(conntrack.Tuple) (conntrack.Entry, error) {
	return conntrack.Entry{}, conntrack.ErrNotFound
}

// TestForged: a packet of no connection costs no session.
func TestForged(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.in.conntrack = &gone{}
	w.send(alg.Client, 0, []byte("USER a\r\n"), nil)
	w.expect(t, "deny no-connection")
	if n := len(w.in.Sessions()); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// later is a conntrack table whose connections all are later ones.
type later struct{ conntrack.Fake }

func (*later) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	e := conntrack.Untranslated(t)
	e.ID, e.Opened, e.Live = 2, true, true
	return e, nil
}

// TestSamePortsAgain: a new connection between the ports of one whose end was not told yet is a new session, and the late
// event of the old one's end does not end it.
func TestSamePortsAgain(t *testing.T) {
	w := plainWire(t)
	w.in.conntrack = &later{}
	w.sent = [2]uint32{1 << 20, 1 << 20}
	w.handshake()
	w.greet()
	w.in.End(clock, w.key, 0)
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "pinhole none PASV 192.0.2.2:0 198.51.100.2:50000")
	if all := w.in.Sessions(); len(all) != 1 || all[0].Number != 2 {
		t.Errorf("sessions %+v", all)
	}
}

// half is a conntrack table whose connections have only sent a SYN.
type half struct{ conntrack.Fake }

func (*half) Lookup(conntrack.Tuple) (conntrack.Entry, error) { return conntrack.Entry{}, nil }

// TestForgedSYN: nor does one after a forged SYN, of which conntrack made an entry. Who forges does not get the server's SYN/ACK, and
// cannot acknowledge it.
func TestForgedSYN(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.in.conntrack = &half{}
	w.send(alg.Client, 0, []byte("USER a\r\n"), func(tcp *layers.TCP) { tcp.Ack -= 1 << 20 })
	w.expect(t, "deny no-connection")
}

// TestMistake: a mistake of ours ends the session that it befell, and no other.
func TestMistake(t *testing.T) {
	w := plainWire(t)
	var told []audit.Event
	w.in.report = func(e audit.Event) { told = append(told, e) }
	good := w.in.sessionAt(w.key).control
	w.in.sessionAt(w.key).control = nil
	id := w.send(alg.Client, 0, []byte("NOOP\r\n"), nil)
	if v := w.verdicts[id]; v.Accept || len(told) != 1 || told[0].Reason != alg.InternalError {
		t.Errorf("verdict %+v, events %+v", v, told)
	}
	w.in.sessionAt(w.key).control = good
	if !w.in.sessionAt(w.key).refused {
		t.Error("the session goes on")
	}
}

// faulty is a conntrack table whose every call is a mistake.
type faulty struct{ conntrack.Fake }

func (*faulty) Lookup(conntrack.Tuple) (conntrack.Entry, error) { panic("a mistake") }
func (*faulty) Withdraw(conntrack.Expectation) error            { panic("a mistake") }

// TestMistakeWithoutPacket: the same where the clock or the kernel's events bring the work about. It is told once.
func TestMistakeWithoutPacket(t *testing.T) {
	for name, work := range map[string]func(w *wire){
		"a pinhole that lapses": func(w *wire) { w.in.Expire(clock.Add(time.Hour)) },
		"the connection's end":  func(w *wire) { w.in.End(clock, w.key, 0) },
		"an entry that is gone": func(w *wire) { w.in.Sweep(clock.Add(time.Hour), clock.Add(time.Hour)) },
		"a line that is held": func(w *wire) {
			w.send(alg.Client, 0, []byte("PORT 1"), nil)
			w.in.sessionAt(w.key).control = nil
			w.in.Expire(clock.Add(time.Minute))
		},
	} {
		w := plainWire(t)
		w.say(alg.Client, []byte("EPSV\r\n"))
		w.say(alg.Server, []byte("229 ok (|||50000|)\r\n"))
		var told []audit.Event
		w.in.report = func(e audit.Event) {
			if e.Reason == alg.InternalError {
				told = append(told, e)
			}
		}
		w.in.conntrack = &faulty{}
		work(w)
		if s := w.in.sessionAt(w.key); s == nil || !s.refused {
			t.Errorf("%s: the session goes on, or is unknown", name)
		}
		var fault *audit.Fault
		if len(told) != 1 || !errors.As(told[0].Err, &fault) || len(fault.Stack) == 0 {
			t.Errorf("%s: told %+v", name, told)
		}
		if n := w.in.books.Pinholes.Used() + w.in.books.Held.Used(); n != 0 {
			t.Errorf("%s: %d pinholes and packets are counted", name, n)
		}
		w.in.Sweep(clock.Add(2*time.Hour), clock.Add(time.Hour)) // forgets it without another mistake
		if len(told) != 1 || w.in.Count() != 0 {
			t.Errorf("%s: afterwards told %+v, %d sessions", name, told, w.in.Count())
		}
	}
}

// sessionAt looks a session up.
func (in *Inspector) sessionAt(k Key) *session {
	return in.shard(k.Client.Addr(), k.Server.Addr()).sessions[k]
}

// expect checks the last event.
func (w *wire) expect(t *testing.T, want string) {
	t.Helper()
	if len(w.events) == 0 || w.events[len(w.events)-1] != want {
		t.Errorf("events %q, want %q as the last", w.events, want)
	}
}

// TestBeforeOrigin: what lies before the beginning that we know of is not let pass uninspected, and a SYN in the middle
// moves no beginning.
func TestBeforeOrigin(t *testing.T) {
	w := plainWire(t)
	before := len(w.receivers[alg.Client].stream())
	w.send(alg.Client, 1000, nil, func(tcp *layers.TCP) { tcp.SYN, tcp.ACK = true, false })
	w.say(alg.Client, []byte("PORT 203,0,113,9,4,1\r\n"))
	w.expect(t, "deny foreign-address")
	if got := string(w.receivers[alg.Client].stream()[before:]); strings.Contains(got, "PORT") {
		t.Errorf("the server got %q", got)
	}

	w = newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.send(alg.Client, 1000, nil, func(tcp *layers.TCP) { tcp.SYN, tcp.ACK = true, false })
	w.send(alg.Client, 0, []byte("PORT 203,0,113,9,4,1\r\n"), nil)
	if got := string(w.receivers[alg.Client].stream()); strings.Contains(got, "PORT") {
		t.Errorf("the server got %q", got)
	}
}

// TestFarBeginning: a client's first segment from far away does not make what it sends later count as acknowledged.
func TestFarBeginning(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.send(alg.Client, 1<<30+1_000_000, []byte("NOOP\r\n"), nil)
	w.say(alg.Server, []byte("220 ready\r\n"))
	before := len(w.receivers[alg.Client].stream())
	w.say(alg.Client, []byte("PORT 203,0,113,9,4,1\r\n"))
	if got := string(w.receivers[alg.Client].stream()[before:]); strings.Contains(got, "PORT") {
		t.Errorf("the server got %q", got)
	}
}

// TestStaleRepetition: what the server has acknowledged may be repeated, whatever it was.
func TestStaleRepetition(t *testing.T) {
	w := plainWire(t)
	w.say(alg.Client, []byte("NOOP\r\n"))
	w.say(alg.Server, []byte("200 ok\r\n"))
	w.sent[alg.Client] -= 6
	id := w.send(alg.Client, 0, []byte("NOOP\r\n"), nil)
	keepalive := w.send(alg.Client, 5, []byte{0}, nil) // RFC 9293 section 3.8.4: one byte of garbage before the next
	for _, id := range []uint32{id, keepalive} {
		if v := w.verdicts[id]; !v.Accept {
			t.Errorf("packet %d: verdict %+v", id, v)
		}
	}
}

// TestNotFTP: a first payload that is no greeting is taken for a later segment once, and for what it is when it is
// repeated.
func TestNotFTP(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	for range 2 {
		w.send(alg.Server, 0, []byte("SSH-2.0-OpenSSH_9.2\r\n"), nil)
	}
	w.expect(t, "end not-ftp")
	w.settled()
}

// TestResetBothSides: when ftpalg ends a session, the receiver of the offending segment is sent a reset at the byte that it
// waits for, and the sender's repetition is answered with one.
func TestResetBothSides(t *testing.T) {
	w := plainWire(t)
	w.say(alg.Client, []byte("AUTH TLS\r\n"))
	waitsFor := w.isn[alg.Client] + w.sent[alg.Client]
	w.send(alg.Client, 0, []byte("PORT 192,0,2,2,156,65\r\n"), nil)
	if w.resets[alg.Client] != waitsFor {
		t.Errorf("the server was sent a reset at %d, and waits for %d", w.resets[alg.Client], waitsFor)
	}
	again := w.send(alg.Client, 0, []byte("PORT 192,0,2,2,156,65\r\n"), nil)
	if v := w.verdicts[again]; !v.Accept || !v.SetMark || v.Mark != 1<<29 {
		t.Errorf("the client's repetition got %+v, want the mark that is answered with a reset", v)
	}
}

// TestLimits: sessions in all and per client.
func TestLimits(t *testing.T) {
	p := policy.AllowAll()
	p.Limits.SessionsPerClient = 1
	w := newWire(t, p, clientAddr, serverAddr)
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.key.Client = netip.AddrPortFrom(clientAddr.Addr(), 40001)
	id := w.send(alg.Server, 0, []byte("220 ready\r\n"), nil)
	w.expect(t, "deny session-limit")
	if w.resets[alg.Server] != w.isn[alg.Server]+w.sent[alg.Server] {
		t.Errorf("verdict %+v, want a reset for the client", w.verdicts[id])
	}
	w.in.End(clock, w.key, 0)
	w.in.End(clock, Key{clientAddr, serverAddr}, 0)
	if n := w.in.books.Sessions.Used(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if n := w.in.books.Sessions.Use().Clients; n != 0 {
		t.Errorf("%d clients are left", n)
	}
	for i := range w.in.shards {
		if sh := &w.in.shards[i]; len(sh.sessions)+len(sh.pairs)+len(sh.open) != 0 {
			t.Errorf("shard %d is not empty: %+v", i, sh)
		}
	}
}

// One client that sends segments behind a gap uses up its share of held packets; another's line in two segments is read as a
// whole and goes on.
func TestHeldPacketsAreShares(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	greedy := func(port int) {
		w.key.Client = netip.AddrPortFrom(clientAddr.Addr(), uint16(port))
		w.sent = [2]uint32{}
		w.say(alg.Server, []byte("220 ready\r\n"))
		for i := range maxEarly {
			w.send(alg.Client, 10+2*i, []byte("A"), nil)
		}
	}
	for i := range 40 {
		greedy(41000 + i)
	}
	use := w.in.books.Held.Use()
	if use.TopUsed != use.Client || use.Used != use.Client || use.Client*2 > use.Total {
		t.Errorf("one client holds %+v", use)
	}
	other := newWire(t, policy.AllowAll(), netip.MustParseAddrPort("192.0.2.9:40000"), serverAddr)
	other.in = w.in
	other.greet()
	other.say(alg.Client, []byte("PORT 192,0,"))
	other.say(alg.Client, []byte("2,9,200,1\r\n"))
	if got := other.receivers[alg.Client].stream(); string(got) != "PORT 192,0,2,9,200,1\r\n" {
		t.Errorf("the other client's server got %q", got)
	}
}

// One client's pinholes leave room for another's.
func TestPinholesAreShares(t *testing.T) {
	p := policy.AllowAll()
	p.Limits.Pinholes, p.Limits.PinholesPerClient = 3, 2
	in := newWire(t, p, clientAddr, serverAddr).in
	announce := func(client string) (replies string) {
		w := newWire(t, p, netip.MustParseAddrPort(client), serverAddr)
		w.in = in
		w.greet()
		w.say(alg.Client, []byte("EPSV\r\n"))
		w.say(alg.Server, fmt.Appendf(nil, "229 ok (|||%d|)\r\n", 50000+w.key.Client.Port()))
		return string(w.receivers[alg.Server].stream())
	}
	for _, client := range []string{"192.0.2.3:1025", "192.0.2.3:1026"} {
		if got := announce(client); !strings.Contains(got, "229 ") {
			t.Errorf("%s got %q", client, got)
		}
	}
	if got := announce("192.0.2.3:1027"); strings.Contains(got, "229 ") {
		t.Errorf("beyond the share: %q", got)
	}
	if got := announce("192.0.2.4:1025"); !strings.Contains(got, "229 ") {
		t.Errorf("the other client got %q", got)
	}
}

// closing is a conntrack table whose connections are all in TIME_WAIT.
type closing struct{ conntrack.Fake }

func (*closing) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	e := conntrack.Untranslated(t)
	e.Opened = true
	return e, nil
}

// TestLimitOfLiving: a client's sessions that are over do not count against its limit.
func TestLimitOfLiving(t *testing.T) {
	p := policy.AllowAll()
	p.Limits.SessionsPerClient = 1
	w := newWire(t, p, clientAddr, serverAddr)
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.in.conntrack = &closing{}
	w.key.Client = netip.AddrPortFrom(clientAddr.Addr(), 40001)
	w.send(alg.Server, 0, []byte("220 ready\r\n"), nil)
	w.expect(t, "end connection-closed")
	if all := w.in.Sessions(); len(all) != 1 || all[0].Refused || all[0].Client.Port() != 40001 {
		t.Errorf("sessions %+v", all)
	}
}

// TestExpire: a pinhole that nobody used is gone from the books with its time.
func TestExpire(t *testing.T) {
	w := plainWire(t)
	w.say(alg.Client, []byte("EPSV\r\n"))
	w.say(alg.Server, []byte("229 ok (|||50000|)\r\n"))
	w.in.Expire(clock.Add(policy.AllowAll().PinholeTimeout))
	if n := w.in.books.Pinholes.Used(); n != 1 {
		t.Errorf("%d pinholes before the time", n)
	}
	w.in.Expire(clock.Add(policy.AllowAll().PinholeTimeout + 1))
	w.expect(t, "pinhole-closed timed-out EPSV 192.0.2.2:0 198.51.100.2:50000")
	if n := w.in.books.Pinholes.Used(); n != 0 {
		t.Errorf("%d pinholes after the time", n)
	}
}

// TestResume: a session that was there before us goes on, in clear text or inside TLS.
func TestResume(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.in.Resume(clock, conntrack.Untranslated(w.key.tuple()), Memory{})
	w.say(alg.Server, []byte(" end of a long reply\r\n211 End\r\n"))
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "pinhole none PASV 192.0.2.2:0 198.51.100.2:50000")

	w = newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.in.Resume(clock, conntrack.Untranslated(w.key.tuple()), Memory{})
	w.say(alg.Client, record(30))
	w.say(alg.Server, record(40))
	w.syn("192.0.2.2:41000", "198.51.100.2:50000")
	w.expect(t, "pinhole-closed used JIT 192.0.2.2:41000 198.51.100.2:50000")
	if v := w.verdicts[w.nextID]; !v.AtOnce {
		t.Errorf("the SYN got %+v: its pinhole is closed before the kernel has seen it", v)
	}
}

// TestMissed: a SYN that the kernel drops behind our back, with the queue that it waits in, has its pinhole when it comes again;
// in another process as well, once more if need be, and not when it was used.
func TestMissed(t *testing.T) {
	const from, to = "192.0.2.2:41000", "198.51.100.2:50000"
	for name, announce := range map[string]func(w *wire){
		"clear text": func(w *wire) {
			w.say(alg.Client, []byte("PASV\r\n"))
			w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
		},
		"TLS": func(w *wire) {
			w.say(alg.Client, record(30))
			w.say(alg.Server, record(40))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
			entry := conntrack.Untranslated(w.key.tuple())
			w.in.Resume(clock, entry, Memory{})
			announce(w)
			opened := func() (n int) {
				for _, e := range w.events {
					if strings.HasPrefix(e, "pinhole none") {
						n++
					}
				}
				return n
			}
			for want := 1; want <= 2; want++ {
				w.loses = true
				w.syn(from, to)
				w.loses = false
				if n := opened(); n != want {
					t.Fatalf("%d pinholes, want %d: %q", n, want, w.events)
				}
			}
			w.handOver(t, entry)
			w.syn("192.0.2.2:41001", to) // another one gets nothing
			w.syn(from, to)
			if n := opened(); n != 3 {
				t.Errorf("%d pinholes, want 3: %q", n, w.events)
			}
			w.syn(from, to) // it was used
			if n, open := opened(), w.ct.Open(); n != 3 || len(open) != 0 {
				t.Errorf("%d pinholes, want 3, and %v stand: %q", n, open, w.events)
			}
		})
	}
}

// record is a TLS record of application data.
func record(n int) []byte {
	return append([]byte{23, 3, 3, 0, byte(n)}, make([]byte, n)...)
}

// syn sends the first packet of a data connection.
func (w *wire) syn(from, to string) {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), SYN: true, Seq: 1}
	packet := build(w.t, src.Addr(), dst.Addr(), tcp, nil)
	w.nextID++
	w.packets[w.nextID] = packet
	var seg nfq.Segment
	if err := nfq.NewDecoder().Decode(packet, &seg); err != nil {
		w.t.Fatal(err)
	}
	w.in.Packet(clock, Packet{ID: w.nextID, Queue: w}, &seg)
	if v := w.verdicts[w.nextID]; !v.Accept || v.SetMark {
		w.t.Errorf("a SYN got %+v; it goes on whatever we think of it", v)
	}
}

// TestScan: a client inside TLS that tries a whole range gets one port for one request and reply.
func TestScan(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.in.Resume(clock, conntrack.Untranslated(w.key.tuple()), Memory{})
	scan := func() (got int) {
		before := len(w.events)
		for port := 50000; port < 50100; port++ {
			w.syn("192.0.2.2:41000", fmt.Sprintf("198.51.100.2:%d", port))
		}
		for _, e := range w.events[before:] {
			if strings.HasPrefix(e, "pinhole none JIT") {
				got++
			}
		}
		return got
	}
	for round := range 5 {
		if n := scan(); n != 0 {
			t.Errorf("round %d: %d pinholes without a request and its reply", round, n)
		}
		w.say(alg.Client, record(30))
		w.say(alg.Server, record(40))
		w.say(alg.Server, record(40))
		if n := scan(); n != 1 {
			t.Errorf("round %d: %d pinholes for one credit", round, n)
		}
	}
	if n := w.in.books.Pinholes.Used(); n != 0 {
		t.Errorf("%d pinholes are on the books, all were used", n)
	}
	w.syn("192.0.2.3:41000", "198.51.100.2:50000")
	if slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, "192.0.2.3") && strings.HasPrefix(e, "pinhole") }) {
		t.Error("a second host got a pinhole")
	}
}

// TestPolicyDenied: a segment between hosts that the policy does not know, or whose connections it terminates, is
// answered with a reset.
func TestPolicyDenied(t *testing.T) {
	p, err := policy.Load("../../testdata/policies/restricted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"203.0.113.1:21", "198.51.100.3:21", "198.51.100.3:990"} {
		w := newWire(t, p, clientAddr, netip.MustParseAddrPort(server))
		id := w.send(alg.Server, 0, []byte("220 ready\r\n"), nil)
		if v := w.verdicts[id]; !v.Accept || !v.SetMark {
			t.Errorf("%s: verdict %+v, want one that is answered with a reset", server, v)
		}
	}
}

// TestSweep: sessions whose end was not told are found.
func TestSweep(t *testing.T) {
	w := plainWire(t)
	w.in.Sweep(clock.Add(time.Hour), clock.Add(time.Minute))
	if n := len(w.in.Sessions()); n != 1 {
		t.Errorf("%d sessions, the one that lives is swept", n)
	}
	w.in.conntrack = &gone{}
	w.in.Sweep(clock.Add(time.Hour), clock.Add(time.Minute))
	w.expect(t, "end connection-closed")
	if n := len(w.in.Sessions()); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// TestSecrets: no password reaches an event, however its line is malformed.
func TestSecrets(t *testing.T) {
	const secret = "s3cret"
	for _, line := range []string{
		"PASS " + secret, "pass " + secret + "\x00", " PASS " + secret, "PASS\t" + secret, "\xff\xf1PASS " + secret + "\x00",
		"\x00\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfePASS", "\xe9\xe9\xe9\xe9\xe9\xe9 PASS " + secret,
		"ACCT " + secret + "\x00", "ADAT " + secret + "\r\x00", "PASS" + secret + strings.Repeat("x", 5000),
	} {
		w := plainWire(t)
		var told []audit.Event
		w.in.report = func(e audit.Event) { told = append(told, e) }
		w.say(alg.Client, []byte(line+"\r\n"))
		w.say(alg.Server, []byte("530 no "+line+"\r\n"))
		if strings.Contains(fmt.Sprint(told), secret) {
			t.Errorf("%q: told %+v", line, told)
		}
	}
}

// TestNoAllocations: the usual packets cost none of ours.
func TestNoAllocations(t *testing.T) {
	for _, dialogue := range [][2]string{
		{"NOOP\r\n", "200 ok\r\n"},
		{"RETR file\r\n", "226 done\r\n"},
		{"TYPE I\r\n", "200 ok\r\n"},
		{"PASV\r\n", "227 Entering Passive Mode (198,51,100,2,195,80).\r\n"},
		{"EPSV\r\n", "229 Entering Extended Passive Mode (|||50000|)\r\n"},
		{"PORT 192,0,2,0,156,65\r\n", "200 ok\r\n"},
	} {
		l := newLoop(t, 1)
		if n := testing.AllocsPerRun(200, func() { l.exchange(0, dialogue[0], dialogue[1]) }); n != 0 {
			t.Errorf("%q: %v allocations", dialogue[0], n)
		}
	}
}
