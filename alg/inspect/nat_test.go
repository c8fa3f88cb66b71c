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
	entries []conntrack.Entry
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
	ct := &translator{entries: []conntrack.Entry{{
		Orig: key.tuple(), Reply: view.tuple().Reversed(), Opened: true, Live: true, Helper: helper, ID: 7,
	}}}
	w.view, w.in.conntrack, w.readAlong = view, ct, helper == conntrack.KernelFTP
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

// TestNATActive: the server is told the address at which it sees the client, by us where that has the same length and else
// by the kernel; where neither can be the command is refused.
func TestNATActive(t *testing.T) {
	for _, c := range []struct{ name, helper, view, command, heard string }{
		{"the same length", "sane", "203.0.113.3:1024", "PORT 192,0,2,200,195,80\r\n", ""},
		{"as long", "sane", "192.0.2.3:1024", "PORT 192,0,2,2,195,80\r\n", "PORT 192,0,2,3,195,80\r\n"},
		{"shorter", "sane", "192.0.2.3:1024", "PORT 192,0,2,2,195,080\r\n", "PORT 192,00,2,3,195,80\r\n"},
		{"as long, EPRT", "sane", "192.0.2.3:1024", "EPRT |1|192.0.2.2|50000|\r\n", "EPRT |1|192.0.2.3|50000|\r\n"},
		{"longer", "sane", "203.0.113.254:1024", "PORT 192,0,2,2,195,80\r\n", ""},
		{"longer, by the kernel", "ftp", "203.0.113.254:1024", "PORT 192,0,2,2,195,80\r\n", "PORT 192,0,2,2,195,80\r\n"},
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
	w, ct := underNAT(t, "ftp")
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	w.key.Client = netip.MustParseAddrPort("192.0.2.9:40000")
	w.view.Client = netip.AddrPortFrom(w.view.Client.Addr(), 1025)
	w.sent, w.receivers = [2]uint32{}, [2]receiver{{isn: w.isn[0], bytes: map[uint32]byte{}}, {isn: w.isn[1], bytes: map[uint32]byte{}}}
	ct.entries = append(ct.entries, conntrack.Entry{
		Orig: w.key.tuple(), Reply: w.view.tuple().Reversed(), Opened: true, Live: true, Helper: "ftp", ID: 8,
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

// TestNATShift: where the kernel makes a line longer, the receiver's acknowledgements count more bytes than were sent.
func TestNATShift(t *testing.T) {
	w, _ := underNAT(t, "ftp")
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

// TestNATShiftRefused: the kernel leaves a line that was refused as it is.
func TestNATShiftRefused(t *testing.T) {
	w, ct := underNAT(t, "ftp")
	w.greet()
	ct.Fail(errors.New("no room"))
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	s := w.in.shard(w.key.Client.Addr(), w.key.Server.Addr()).sessions[w.key]
	if st := &s.streams[alg.Client]; st.shifted != nil {
		t.Errorf("%+v", st.shifted)
	}
}

// TestNATOneSegment: the kernel's helper reads each segment by itself, so that a line which it has to rewrite, or may be waiting
// for the rest of, has one of its own.
func TestNATOneSegment(t *testing.T) {
	const port = "PORT 192,0,2,2,195,80\r\n"
	for _, c := range []struct {
		name  string
		from  alg.Side
		said  []string
		heard []string
		again string // what its sender has to repeat
	}{
		{"in two", alg.Client, []string{port[:10], port[10:]}, []string{port}, ""},
		{"by bytes", alg.Client, strings.Split("PASV\r\n", ""), []string{"PASV\r\n"}, ""},
		{"a reply by bytes", alg.Server, strings.Split("200 ok\r\n", ""), []string{"20", "0", " ", "o", "k", "\r", "\n"}, ""},
		{"the rest of the next", alg.Client, []string{port[:10], port[10:] + "RE", "TR x\r\n"}, []string{port + "RETR x\r\n"}, ""},
		{"many in any pieces", alg.Client, []string{"NOOP\r\nNO", "OP\r\nNO", "OP\r\n"}, []string{"NOOP\r\nNO", "OP\r\nNOOP\r\n"}, ""},
		{"behind another", alg.Client, []string{"TYPE I\r\n" + port}, []string{"TYPE I\r\n", port}, port},
		{"behind another, and again", alg.Client, []string{"TYPE I\r\n" + port}, []string{"TYPE I\r\n", "TYPE I\r\n"}, "TYPE I\r\n" + port},
		{"in front of another", alg.Client, []string{port + "RETR x\r\n"}, []string{port + "RETR x\r\n"}, ""},
		{"torn behind another", alg.Client, []string{"TYPE I\r\n" + port[:10], port[10:]}, []string{"TYPE I\r\n" + strings.Repeat("X", len(port)-2) + "\r\n"}, ""},
		{"in front of half a line", alg.Client, []string{"NOOP\r\n" + port + "NO", "OP\r\n"},
			[]string{"NOOP\r\n" + strings.Repeat("X", len(port)-2) + "\r\nNOOP\r\n"}, ""},
		{"without CR", alg.Client, []string{"PORT 192,0,2,2,195,80\n"}, []string{"XXXXXXXXXXXXXXXXXXXXX\n"}, ""},
		{"no PORT at all", alg.Client, []string{"PORTS 1\r\n"}, []string{"XXXXXXX\r\n"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, _ := underNAT(t, "ftp")
			w.greet()
			w.passed = nil
			for _, text := range c.said {
				w.say(c.from, []byte(text))
			}
			if c.again != "" {
				w.send(c.from, -len(c.again), []byte(c.again), nil)
			}
			if !slices.Equal(w.passed, c.heard) {
				t.Errorf("what goes on is %q, want %q", w.passed, c.heard)
			}
			w.settled()
		})
	}
}

// TestNATNumbers: what stands before the address of a 227 may keep the kernel's helper from finding it, which then drops the line.
func TestNATNumbers(t *testing.T) {
	for said, want := range map[string]string{
		"227 =198,51,100,2,195,80\r\n":        "227 =198,51,100,2,195,80\r\n",
		"227 IP4 (198,51,100,2,195,80)\r\n":   "227     (198,51,100,2,195,80)\r\n",
		"227 4 198,51,100,2,195,80\r\n":       "227 (198,51,100,2,195,80)\r\n",
		"227 4 198,51,100,002,195,80\r\n":     "227   (198,51,100,2,195,80)\r\n",
		"227 (198,51,100,002,195,80)\r\n":     "227 (198,51,100,002,195,80)\r\n",
		"227 -1 x(198,51,100,2,195,80) 7\r\n": "227       (198,51,100,2,195,80)\r\n",
	} {
		w, ct := underNAT(t, "ftp")
		w.key.Server = w.view.Server // clients see the server's own address
		ct.entries[0].Orig = w.key.tuple()
		w.greet()
		w.say(alg.Client, []byte("PASV\r\n"))
		w.passed = nil
		w.say(alg.Server, []byte(said))
		if !slices.Equal(w.passed, []string{want}) {
			t.Errorf("%q becomes %q, want %q", said, w.passed, want)
		}
	}
}

// TestNATSlowReply: a server whose 227 does not come to its end in time has refused PASV.
func TestNATSlowReply(t *testing.T) {
	for _, helper := range []string{"ftp", "sane"} {
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

// TestReadAlong: where the kernel's helper reads what goes on, no line may look like an announcement that is none: it would open
// a port to whoever made the server say it, in a listing for one.
func TestReadAlong(t *testing.T) {
	const forged = "227 (198,51,100,2,0,22)"
	for _, c := range []struct{ helper, said, heard string }{
		{"sane", "211-Status\r\n" + forged + "\r\n211 End\r\n", "211-Status\r\n" + forged + "\r\n211 End\r\n"},
		{"ftp", "211-Status\r\n" + forged + "\r\n211 End\r\n", "211-Status\r\n 27 (198,51,100,2,0,22)\r\n211 End\r\n"},
		{"ftp", "211-Status\r\n229 (|||22|)\r\n211 End\r\n", "211-Status\r\n 29 (|||22|)\r\n211 End\r\n"},
		{"ftp", "227 (198,51,100,2,195,80)\r\n", "425 Refused by the gatewa\r\n"},
		{"ftp", "227 Logout.\r\n", "221 Logout.\r\n"},
		{"sane", "227 Logout.\r\n", "227 Logout.\r\n"},
	} {
		w, ct := underNAT(t, c.helper)
		w.greet()
		w.say(alg.Client, []byte("STAT\r\n"))
		for _, half := range []string{c.said[:len(c.said)/2], c.said[len(c.said)/2:]} {
			w.say(alg.Server, []byte(half))
		}
		if got := string(w.receivers[alg.Server].stream()); got != c.heard {
			t.Errorf("%s: the client hears %q, want %q", c.helper, got, c.heard)
		}
		if open := ct.Open(); len(open) != 0 {
			t.Errorf("expectations %+v", open)
		}
	}
	w, _ := underNAT(t, "ftp")
	w.greet()
	w.say(alg.Client, []byte("STAT\r\n"))
	w.say(alg.Server, []byte("211-Status\r\n"+forged)) // and no end of the line
	if got := string(w.receivers[alg.Server].stream()); got != "" {
		t.Errorf("the client hears %q before the line's end", got)
	}
	w.in.Expire(clock.Add(releaseAfter))
	w.in.Expire(clock.Add(abandonAfter))
	if got := string(w.receivers[alg.Server].stream()); got != "211-Status\r\n 27 (198,51,100,2,0,22)" {
		t.Errorf("the client hears %q in the end", got)
	}
	w.settled()
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
