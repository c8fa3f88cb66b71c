package inspect

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// translator is a conntrack table with connections under NAT.
type translator struct {
	conntrack.Fake
	entries     []conntrack.Entry
	adjustments map[bool]conntrack.Adjustment // of what servers say, and of what clients say
	stiff       bool                          // moves no sequence numbers
}

func (t *translator) AdjustSequence(_ conntrack.Tuple, reply bool, a conntrack.Adjustment) error {
	if t.stiff {
		return conntrack.ErrNoAdjustment
	}
	t.adjustments[reply] = a
	return nil
}

// moved is by how much the kernel moves a sequence number (nf_ct_seq_adjust).
func (t *translator) moved(reply bool, seq uint32) uint32 {
	a := t.adjustments[reply]
	if before(a.Position, seq) {
		return uint32(a.After)
	}
	return uint32(a.Before)
}

func (t *translator) Lookup(tuple conntrack.Tuple) (conntrack.Entry, error) {
	for _, e := range t.entries {
		if tuple == e.Orig || tuple == e.Reply {
			return e, nil
		}
	}
	return conntrack.Entry{}, conntrack.ErrNotFound
}

const natPolicy = `
version: 1
servers:
  - name: files
    addresses: [198.51.100.2]
    passive: 50000-50100
    public: [{addresses: [203.0.113.1, 203.0.113.2], explicit: [2121]}]
rules: [{name: all, action: inspect, opaque-active: pinhole}]
`

// underNAT is a wire whose client sees the server at a public address, and whose server sees the client at the gateway's.
func underNAT(t *testing.T, helper string) (*wire, *translator) {
	p, err := policy.Parse("nat.yaml", []byte(natPolicy))
	if err != nil {
		t.Fatal(err)
	}
	key := Key{Client: netip.MustParseAddrPort("192.0.2.2:40000"), Server: netip.MustParseAddrPort("203.0.113.1:2121")}
	view := Key{Client: netip.MustParseAddrPort("203.0.113.254:1024"), Server: netip.MustParseAddrPort("198.51.100.2:21")}
	w := newWire(t, p, key.Client, key.Server)
	ct := &translator{adjustments: map[bool]conntrack.Adjustment{}, entries: []conntrack.Entry{{
		Orig: key.tuple(), Reply: view.tuple().Reversed(), Opened: true, Live: true, Helper: helper, ID: 7,
	}}}
	w.view, w.in.conntrack, w.adjusts = view, ct, ct
	return w, ct
}

func TestNATPassive(t *testing.T) {
	for _, c := range []struct{ name, reply, heard string }{
		{"its own address", "227 Entering Passive Mode (198,51,100,2,195,80).\r\n", "227 Entering Passive Mode   (203,0,113,1,195,80)\r\n"},
		{"the public address", "227 Entering Passive Mode (203,0,113,1,195,80).\r\n", "227 Entering Passive Mode (203,0,113,1,195,80).\r\n"},
		{"another public address", "227 Entering Passive Mode (203,0,113,2,195,80).\r\n", "227 Entering Passive Mode  (203,0,113,1,195,80)\r\n"},
		{"no address", "227 Entering Passive Mode (0,0,0,0,195,80).\r\n", "227 Passive Mode       (203,0,113,1,195,80)\r\n"},
		{"EPSV", "229 Entering Extended Passive Mode (|||50000|)\r\n", "229 Entering Extended Passive Mode (|||50000|)\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, ct := underNAT(t, "sane")
			w.greet()
			w.say(alg.Client, []byte(map[bool]string{false: "PASV\r\n", true: "EPSV\r\n"}[c.name == "EPSV"]))
			w.say(alg.Server, []byte(c.reply))
			if got := string(w.receivers[alg.Server].stream()); got != c.heard {
				t.Errorf("the client hears %q, want %q", got, c.heard)
			}
			open := ct.Open()
			if len(open) != 1 || open[0].To.String() != "203.0.113.1:50000" || open[0].Real.String() != "198.51.100.2:50000" ||
				open[0].From.String() != "192.0.2.2:0" || open[0].Master != w.key.tuple() || open[0].Exclusive {
				t.Errorf("expectations %+v", open)
			}
		})
	}
}

// TestNATPublicInside: a server that announces its public address does so to clients that reach it without NAT as well.
func TestNATPublicInside(t *testing.T) {
	p, err := policy.Parse("nat.yaml", []byte(natPolicy))
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, p, netip.MustParseAddrPort("192.0.2.2:40000"), netip.MustParseAddrPort("198.51.100.2:21"))
	w.greet()
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 Entering Passive Mode (203,0,113,1,195,80).\r\n"))
	const want = "227 Entering Passive Mode (198,51,100,2,195,80)\r\n"
	if got := string(w.receivers[alg.Server].stream()); got != want {
		t.Errorf("the client hears %q, want %q", got, want)
	}
	if open := w.ct.Open(); len(open) != 1 || open[0].To.String() != "198.51.100.2:50000" {
		t.Errorf("expectations %+v", open)
	}
}

// TestNATForeign: a third address is a bounce, under NAT as well.
func TestNATForeign(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.greet()
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 Entering Passive Mode (203,0,113,7,195,80).\r\n"))
	w.say(alg.Client, []byte("PORT 203,0,113,7,195,80\r\n"))
	w.expect(t, "deny foreign-address")
	if open := ct.Open(); len(open) != 0 {
		t.Errorf("expectations %+v", open)
	}
}

// TestNATActive: the server is told the address at which it sees the client, whether its length stays or not; where conntrack does
// not follow that the command is refused.
func TestNATActive(t *testing.T) {
	for _, c := range []struct{ name, helper, view, command, heard string }{
		{"another host's address", "sane", "203.0.113.3:1024", "PORT 192,0,2,200,195,80\r\n", ""},
		{"as long", "sane", "192.0.2.3:1024", "PORT 192,0,2,2,195,80\r\n", "PORT 192,0,2,3,195,80\r\n"},
		{"shorter", "sane", "192.0.2.3:1024", "PORT 192,0,2,2,195,080\r\n", "PORT 192,0,2,3,195,80\r\n"},
		{"shorter, with our own helper", "ftpalg", "192.0.2.3:1024", "PORT 192,0,2,2,195,080\r\n", "PORT 192,00,2,3,195,80\r\n"},
		{"as long, EPRT", "sane", "192.0.2.3:1024", "EPRT |1|192.0.2.2|50000|\r\n", "EPRT |1|192.0.2.3|50000|\r\n"},
		{"longer", "sane", "203.0.113.254:1024", "PORT 192,0,2,2,195,80\r\n", "PORT 203,0,113,254,195,80\r\n"},
		{"longer, EPRT", "sane", "203.0.113.254:1024", "EPRT |1|192.0.2.2|50000|\r\n", "EPRT |1|203.0.113.254|50000|\r\n"},
		{"longer, with our own helper", "ftpalg", "203.0.113.254:1024", "PORT 192,0,2,2,195,80\r\n", ""},
		{"the public address", "sane", "203.0.113.254:1024", "PORT 203,0,113,254,195,80\r\n", "PORT 203,0,113,254,195,80\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, ct := underNAT(t, c.helper)
			w.view.Client = netip.MustParseAddrPort(c.view)
			ct.entries[0].Reply = w.view.tuple().Reversed()
			w.greet()
			w.say(alg.Client, []byte(c.command))
			if c.heard == "" {
				if len(ct.Open()) != 0 || len(w.events) == 0 {
					t.Errorf("expectations %+v, events %v", ct.Open(), w.events)
				}
				return
			}
			if got := string(w.receivers[alg.Client].stream()); got != c.heard {
				t.Errorf("the server hears %q, want %q", got, c.heard)
			}
			open := ct.Open()
			to := netip.AddrPortFrom(w.view.Client.Addr(), 50000)
			if len(open) != 1 || open[0].To != to || open[0].Real.String() != "192.0.2.2:50000" ||
				open[0].From.String() != "198.51.100.2:0" || !open[0].Exclusive {
				t.Errorf("expectations %+v", open)
			}
		})
	}
}

// TestNATSharedPort: a client cannot take the data connection of another one behind the same address.
func TestNATSharedPort(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	w.key.Client = netip.MustParseAddrPort("192.0.2.9:40000")
	w.view.Client = netip.AddrPortFrom(w.view.Client.Addr(), 1025)
	w.sent, w.receivers = [2]uint32{}, [2]receiver{{isn: w.isn[0], bytes: map[uint32]byte{}}, {isn: w.isn[1], bytes: map[uint32]byte{}}}
	ct.entries = append(ct.entries, conntrack.Entry{
		Orig: w.key.tuple(), Reply: w.view.tuple().Reversed(), Opened: true, Live: true, Helper: "sane", ID: 8,
	})
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,9,195,80\r\n"))
	open := ct.Open()
	if len(open) != 1 || open[0].Real.String() != "192.0.2.2:50000" {
		t.Errorf("expectations %+v", open)
	}
	if got := string(w.receivers[alg.Client].stream()); strings.HasPrefix(got, "PORT") {
		t.Errorf("the server hears %q", got)
	}
}

// TestNATSamePort: two sessions of a client that has one port for its data connections. Where these are not queued, a pinhole that was
// used is known to be so when the next is announced; each is taken off the books once.
func TestNATSamePort(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.greet()
	announce := func() {
		w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
		w.say(alg.Server, []byte("200 ok\r\n"))
	}
	announce()
	first := *w
	w.key.Client, w.view.Client = netip.AddrPortFrom(w.key.Client.Addr(), 40009), netip.AddrPortFrom(w.view.Client.Addr(), 1025)
	w.sent, w.receivers = [2]uint32{}, [2]receiver{{isn: w.isn[0], bytes: map[uint32]byte{}}, {isn: w.isn[1], bytes: map[uint32]byte{}}}
	ct.entries = append(ct.entries, conntrack.Entry{
		Orig: w.key.tuple(), Reply: w.view.tuple().Reversed(), Opened: true, Live: true, Helper: "sane", ID: 8,
	})
	w.greet()
	ct.Use(netip.MustParseAddrPort("198.51.100.2:20"), netip.AddrPortFrom(w.view.Client.Addr(), 50000))
	announce()
	if n, open := w.in.books.Pinholes.Used(), ct.Open(); n != 1 || len(open) != 1 || open[0].Master != w.key.tuple() {
		t.Errorf("%d pinholes on the books, of %+v", n, open)
	}
	w.in.End(clock, first.key, ct.entries[0].ID)
	if n, open := w.in.books.Pinholes.Used(), ct.Open(); n != 1 || len(open) != 1 {
		t.Errorf("after the first session %d pinholes on the books, of %+v", n, open)
	}
	w.in.End(clock, w.key, 8)
	if n, open := w.in.books.Pinholes.Used(), ct.Open(); n != 0 || len(open) != 0 {
		t.Errorf("at the end %d pinholes on the books, of %+v", n, open)
	}
}

// TestNATShift: where a line became longer, the receiver's acknowledgements count more bytes than were sent.
func TestNATShift(t *testing.T) {
	w, _ := underNAT(t, "sane")
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	const grows = uint32(len("203,0,113,254") - len("192,0,2,2"))
	s := w.in.shard(w.key.Client.Addr(), w.key.Server.Addr()).sessions[w.key]
	answer := func(text string) {
		w.send(alg.Server, 0, []byte(text), func(tcp *layers.TCP) { tcp.Ack += grows })
		w.sent[alg.Server] += uint32(len(text))
	}
	for range 3000 { // far more than is kept of what is not acknowledged
		answer("200 ok\r\n")
		w.say(alg.Client, []byte("NOOP\r\n"))
	}
	answer("200 ok\r\n")
	if n := len(s.streams[alg.Client].kept); n != 0 {
		t.Errorf("%d bytes are kept that the server has", n)
	}
	if len(w.events) != 1 { // the pinhole
		t.Errorf("events %v", w.events)
	}
}

// TestNATShiftResumed: of a session that nothing is remembered of, conntrack's entry tells how its numbers move.
func TestNATShiftResumed(t *testing.T) {
	const grows = 4
	w, ct := underNAT(t, "sane")
	ct.entries[0].Adjusted[alg.Client] = conntrack.Adjustment{Position: w.isn[alg.Client] - 100, After: grows}
	w.in.Resume(clock, ct.entries[0], Memory{})
	for range 3 {
		w.say(alg.Client, []byte("NOOP\r\n"))
		w.send(alg.Server, 0, []byte("200 ok\r\n"), func(tcp *layers.TCP) { tcp.Ack += grows })
		w.sent[alg.Server] += uint32(len("200 ok\r\n"))
	}
	s := w.in.shard(w.key.Client.Addr(), w.key.Server.Addr()).sessions[w.key]
	if n := len(s.streams[alg.Client].kept); n != 0 {
		t.Errorf("%d bytes are kept that the server has", n)
	}
	w.settled()
}

// TestNATShiftRefused: a line that was refused keeps its length, and nothing stands.
func TestNATShiftRefused(t *testing.T) {
	for name, refuse := range map[string]func(*translator){
		"no expectation": func(ct *translator) { ct.Fail(errors.New("no room")) },
		"no adjustment":  func(ct *translator) { ct.stiff = true },
	} {
		w, ct := underNAT(t, "sane")
		w.greet()
		refuse(ct)
		w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
		s := w.in.shard(w.key.Client.Addr(), w.key.Server.Addr()).sessions[w.key]
		if st := &s.streams[alg.Client]; st.resized != nil || len(ct.adjustments) > 0 || len(ct.Open()) > 0 {
			t.Errorf("%s: %+v, %v, %v", name, st.resized, ct.adjustments, ct.Open())
		}
		if got := string(w.receivers[alg.Client].stream()); got != "XXXXXXXXXXXXXXXXXXXXX\r\n" {
			t.Errorf("%s: the server hears %q", name, got)
		}
	}
}

// TestNATSegments: a line of another length is whole in one segment, however its sender cuts it, and whatever the sender repeats the
// server hears the same.
func TestNATSegments(t *testing.T) {
	const port, longer = "PORT 192,0,2,2,195,80\r\n", "PORT 203,0,113,254,195,80\r\n"
	for _, c := range []struct {
		name  string
		said  []string
		again []string // what its sender repeats, by the number of bytes from the end, and the text
		heard string
	}{
		{"alone", []string{port}, nil, longer},
		{"repeated", []string{port}, []string{port, port}, longer},
		{"in two", []string{port[:10], port[10:]}, []string{port[len(port)-2:]}, longer},
		{"in two, and each again", []string{port[:10], port[10:]}, []string{port, port[10:], port[len(port)-2:]}, longer},
		{"behind another", []string{"TYPE I\r\n" + port}, []string{"TYPE I\r\n" + port, port}, "TYPE I\r\n" + longer},
		{"in front of another", []string{port + "RETR x\r\n"}, []string{port + "RETR x\r\n", "RETR x\r\n"}, longer + "RETR x\r\n"},
		{"before the next", []string{port, "RETR x\r\n"}, []string{"RETR x\r\n", port + "RETR x\r\n"}, longer + "RETR x\r\n"},
		{"by bytes", strings.Split(port, ""), []string{"\r\n"}, longer},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, ct := underNAT(t, "sane")
			w.greet()
			for _, text := range c.said {
				w.say(alg.Client, []byte(text))
			}
			for _, text := range c.again {
				w.send(alg.Client, -len(text), []byte(text), nil)
			}
			if got := string(w.receivers[alg.Client].stream()); got != c.heard {
				t.Errorf("the server hears %q, want %q", got, c.heard)
			}
			if len(ct.Open()) != 1 {
				t.Errorf("expectations %+v", ct.Open())
			}
			w.settled()
		})
	}
}

// TestNATOneAtATime: conntrack knows one place where numbers change, so that the server must have one such line before the next.
func TestNATOneAtATime(t *testing.T) {
	const port = "PORT 192,0,2,2,195,80\r\n"
	w, ct := underNAT(t, "sane")
	w.greet()
	w.say(alg.Client, []byte(port))
	w.say(alg.Client, []byte(port))
	want := "PORT 203,0,113,254,195,80\r\nXXXXXXXXXXXXXXXXXXXXX\r\n"
	if got := string(w.receivers[alg.Client].stream()); got != want {
		t.Errorf("the server hears %q, want %q", got, want)
	}
	for i := range 3 {
		const grows = uint32(len("203,0,113,254") - len("192,0,2,2"))
		w.send(alg.Server, 0, []byte("200 ok\r\n"), func(tcp *layers.TCP) { tcp.Ack += uint32(i+1) * grows })
		w.sent[alg.Server] += uint32(len("200 ok\r\n"))
		w.say(alg.Client, []byte(port))
		want += "PORT 203,0,113,254,195,80\r\n"
	}
	if got := string(w.receivers[alg.Client].stream()); got != want || len(ct.Open()) != 1 {
		t.Errorf("the server hears %q, want %q; expectations %+v", got, want, ct.Open())
	}
	w.settled()
}

// TestNATReplyGrows: a 227 without room for the address is made longer.
func TestNATReplyGrows(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.greet()
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 198,51,100,2,195,80\r\n"))
	w.say(alg.Client, []byte("NOOP\r\n"))
	w.say(alg.Server, []byte("200 ok\r\n"))
	const want = "227 Entering Passive Mode (203,0,113,1,195,80).\r\n200 ok\r\n"
	if got := string(w.receivers[alg.Server].stream()); got != want {
		t.Errorf("the client hears %q, want %q", got, want)
	}
	if open := ct.Open(); len(open) != 1 || open[0].To.String() != "203.0.113.1:50000" {
		t.Errorf("expectations %+v", open)
	}
	w.settled()
}

// TestNATSlowReply: a server whose 227 does not come to its end in time has refused PASV.
func TestNATSlowReply(t *testing.T) {
	for _, helper := range []string{"ftpalg", "sane"} {
		w, ct := underNAT(t, helper)
		w.greet()
		w.say(alg.Client, []byte("PASV\r\n"))
		w.say(alg.Server, []byte("227 Entering"))
		w.in.Expire(clock.Add(releaseAfter))
		w.in.Expire(clock.Add(abandonAfter))
		w.say(alg.Server, []byte(" Passive Mode (198,51,100,2,195,80).\r\n"))
		const want = "427 Entering Passive Mode (198,51,100,2,195,80).\r\n"
		if got := string(w.receivers[alg.Server].stream()); got != want {
			t.Errorf("%s: the client hears %q, want %q", helper, got, want)
		}
		w.say(alg.Client, []byte("EPSV\r\n"))
		w.say(alg.Server, []byte("229 (|||50000|)\r\n"))
		if open := ct.Open(); len(open) != 1 {
			t.Errorf("%s: expectations %+v", helper, open)
		}
		w.settled()
	}
}

// TestNATJustInTime: the SYN of a data connection is known by what its own sender sees, in both directions.
func TestNATJustInTime(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.in.Resume(clock, ct.entries[0], Memory{})
	credit := func() {
		w.say(alg.Client, record(30))
		w.say(alg.Server, record(30))
	}
	credit()
	w.syn("192.0.2.2:41000", "203.0.113.1:50001")
	credit()
	w.syn("198.51.100.2:20", "203.0.113.254:50002")
	calls := slices.DeleteFunc(ct.Calls(), func(c conntrack.Call) bool { return c.Verb == "withdraw" })
	if len(ct.Open()) != 0 || len(calls) != 2 || calls[0].To.String() != "203.0.113.1:50001" || calls[0].Real.String() != "198.51.100.2:50001" ||
		calls[1].From.String() != "198.51.100.2:20" || calls[1].To.String() != "203.0.113.254:50002" || calls[1].Real.String() != "192.0.2.2:50002" {
		t.Errorf("calls %+v", calls)
	}
	w.settled()
}

// TestNATLeavesNothing: with a session goes what led to it.
func TestNATLeavesNothing(t *testing.T) {
	w, _ := underNAT(t, "sane")
	w.greet()
	w.in.End(clock, w.key, 7)
	if n := len(w.in.views.keys) + len(w.in.views.hosts) + w.in.books.Sessions.Used(); n != 0 {
		t.Errorf("%d leftovers: %+v", n, w.in.views.keys)
	}
}

// TestNATElsewhere: DNAT that leads to a host which is not the server's is no business of the policy's.
func TestNATElsewhere(t *testing.T) {
	w, ct := underNAT(t, "sane")
	ct.entries[0].Reply.Src = netip.MustParseAddrPort("198.51.100.9:21")
	w.say(alg.Client, []byte("USER anna\r\n"))
	w.expect(t, "deny policy-denied")
}

// TestNATOfClientsAlone: where only the client's address is translated the server's first words are read as well.
func TestNATOfClientsAlone(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.key.Server = w.view.Server
	ct.entries[0].Orig = w.key.tuple()
	w.greet()
	if sessions := w.in.Sessions(); len(sessions) != 1 || sessions[0].Client != w.key.Client || sessions[0].Server != w.key.Server {
		t.Fatalf("sessions %+v", sessions)
	}
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 Entering Passive Mode (198,51,100,2,195,80).\r\n"))
	if open := ct.Open(); len(open) != 1 || open[0].To != open[0].Real || open[0].Real.String() != "198.51.100.2:50000" {
		t.Errorf("expectations %+v", open)
	}
}

// mistaken is a conntrack table with a mistake in it.
type mistaken struct{ translator }

func (*mistaken) Lookup(conntrack.Tuple) (conntrack.Entry, error) { panic("a mistake") }

// TestNATMistake: a mistake on the way of an active data connection's SYN drops that packet and nothing else.
func TestNATMistake(t *testing.T) {
	w, ct := underNAT(t, "sane")
	w.in.Resume(clock, ct.entries[0], Memory{})
	w.say(alg.Client, record(30))
	w.say(alg.Server, record(30))
	var told []audit.Event
	w.in.report = func(e audit.Event) { told = append(told, e) }
	w.in.conntrack = &mistaken{}
	src, dst := netip.MustParseAddrPort("198.51.100.2:20"), netip.MustParseAddrPort("203.0.113.254:50002")
	packet := build(t, src.Addr(), dst.Addr(), &layers.TCP{SrcPort: 20, DstPort: 50002, SYN: true, Seq: 1}, nil)
	w.nextID++
	w.packets[w.nextID] = packet
	var seg nfq.Segment
	if err := nfq.NewDecoder().Decode(packet, &seg); err != nil {
		t.Fatal(err)
	}
	w.in.Packet(clock, Packet{ID: w.nextID, Queue: w}, &seg)
	if v, ok := w.verdicts[w.nextID]; !ok || v.Accept || len(told) != 1 || told[0].Reason != alg.InternalError {
		t.Errorf("verdict %+v (%v), told %+v", v, ok, told)
	}
	w.in.conntrack = ct
	w.say(alg.Client, record(30)) // and no lock is held
}
