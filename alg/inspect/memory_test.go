package inspect

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// handOver puts another inspector in the place of the one at work, as a successor process does: what the old one held is
// dropped with its queue.
func (w *wire) handOver(t *testing.T, entry conntrack.Entry) {
	t.Helper()
	var b bytes.Buffer
	enc, dec := gob.NewEncoder(&b), gob.NewDecoder(&b)
	before := w.in
	w.in = New(Options{Policy: before.Policy(), Conntrack: before.conntrack, Refused: before.refused, Report: before.report})
	var m Memory
	for remembered := range before.Remember() {
		if err := enc.Encode(remembered); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
	}
	w.in.Resume(clock, entry, m)
	for id := range w.packets {
		if _, decided := w.verdicts[id]; !decided {
			delete(w.packets, id)
		}
	}
}

// TestHandOver: sessions go on in another process as they would have in this one, wherever the change falls: pinholes open and
// close, credits are spent, repeated segments are known, and what was refused stays so.
func TestHandOver(t *testing.T) {
	type step func(w *wire)
	say := func(from alg.Side, text string) step { return func(w *wire) { w.say(from, []byte(text)) } }
	again := func(from alg.Side, text string) step { // the same bytes once more, as TCP does
		return func(w *wire) { w.send(from, -len(text), []byte(text), nil) }
	}
	tls := func(from alg.Side, n int) step { return func(w *wire) { w.say(from, record(n)) } }
	syn := func(from, to string) step { return func(w *wire) { w.syn(from, to) } }
	const pasv, reply, port = "PASV\r\n", "227 (198,51,100,2,195,80)\r\n", "PORT 192,0,2,2,195,80\r\n"
	greeting := say(alg.Server, "220 ready\r\n")
	for name, steps := range map[string][]step{
		"passive": {greeting, say(alg.Client, pasv), say(alg.Server, reply), say(alg.Client, "LIST\r\n"),
			say(alg.Server, "150 here\r\n"), say(alg.Server, "226 done\r\n")},
		"repeated command": {greeting, say(alg.Client, pasv), again(alg.Client, pasv), say(alg.Server, reply),
			say(alg.Server, reply)},
		"repeated reply": {greeting, say(alg.Client, pasv), say(alg.Server, reply), say(alg.Client, "LIST\r\n"),
			say(alg.Server, "226 done\r\n"), again(alg.Server, "226 done\r\n"), say(alg.Client, pasv), say(alg.Server, reply)},
		"another content": {greeting, say(alg.Client, "NOOP\r\n"), again(alg.Client, "PASV\r\n"), say(alg.Server, reply)},
		"active":          {greeting, say(alg.Client, port), say(alg.Server, "500 no\r\n"), say(alg.Client, port)},
		"the data connection": {greeting, say(alg.Client, pasv), say(alg.Server, reply),
			syn("192.0.2.2:41000", "198.51.100.2:50000"), say(alg.Client, pasv)},
		"several lines": {greeting, say(alg.Client, "FEAT\r\n"), say(alg.Server, "211-Features\r\n"), say(alg.Server, "227 (198,51,100,2,195,80)\r\n"),
			say(alg.Server, "211 End\r\n"), say(alg.Client, pasv), say(alg.Server, reply)},
		"no TLS": {greeting, say(alg.Client, "AUTH TLS\r\n"), say(alg.Server, "234 go\r\n"), tls(alg.Client, 30), tls(alg.Server, 40)},
		"injection": {greeting, say(alg.Client, "AUTH TLS\r\n"), say(alg.Client, pasv), say(alg.Server, "234 go\r\n"),
			say(alg.Server, reply)},
	} {
		run := func(at int) *wire {
			w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
			for i, do := range steps {
				if i == at {
					w.handOver(t, conntrack.Untranslated(w.key.tuple()))
				}
				do(w)
			}
			return w
		}
		want := run(-1)
		for at := 1; at < len(steps); at++ {
			w := run(at)
			if !slices.Equal(w.events, want.events) {
				t.Errorf("%s: handed over before step %d\n got %q\nwant %q", name, at, w.events, want.events)
			}
			for from := range w.receivers {
				if got, want := w.receivers[from].stream(), want.receivers[from].stream(); !bytes.Equal(got, want) {
					t.Errorf("%s: handed over before step %d: the receiver gets %q, want %q", name, at, got, want)
				}
			}
			if got, want := w.in.books.Pinholes.Used(), want.in.books.Pinholes.Used(); got != want {
				t.Errorf("%s: handed over before step %d: %d pinholes are counted, want %d", name, at, got, want)
			}
		}
	}
}

// TestHandOverCredit: an encrypted session's credit is spent once, by whichever process sees the SYN.
func TestHandOverCredit(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	entry := conntrack.Untranslated(w.key.tuple())
	w.in.Resume(clock, entry, Memory{})
	w.say(alg.Client, record(30))
	w.handOver(t, entry)
	w.say(alg.Server, record(40))
	w.handOver(t, entry)
	w.syn("192.0.2.2:41000", "198.51.100.2:50000")
	w.expect(t, "pinhole-closed used JIT 192.0.2.2:41000 198.51.100.2:50000")
	w.handOver(t, entry)
	w.syn("192.0.2.2:41000", "198.51.100.2:50000")
	w.syn("192.0.2.2:41001", "198.51.100.2:50000")
	if n := len(w.events); n != 2 {
		t.Errorf("events %q", w.events)
	}
}

// TestHandOverHeld: what waits for its end is not gone on with: its sender repeats it, and it is read anew.
func TestHandOverHeld(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.send(alg.Client, 0, []byte("PA"), nil)
	w.handOver(t, conntrack.Untranslated(w.key.tuple()))
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "pinhole none PASV 192.0.2.2:0 198.51.100.2:50000")
	w.settled()
}

// TestHandOverPinhole: in the middle of a line the pinhole that stands is still known. It goes with the next data command, and with
// the session.
func TestHandOverPinhole(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.greet()
	w.say(alg.Client, []byte("PASV\r\n"))
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.say(alg.Client, []byte("NOOP\r\n"))
	w.say(alg.Server, []byte("200 o"))
	w.handOver(t, conntrack.Untranslated(w.key.tuple()))
	w.say(alg.Client, []byte("PASV\r\n"))
	if open := w.ct.Open(); len(open) != 0 {
		t.Errorf("after the next data command there stand %v", open)
	}
}

// TestHandOverShift: sequence numbers that the kernel moves go on being translated, under NAT.
func TestHandOverShift(t *testing.T) {
	w, ct := underNAT(t, "ftp")
	w.greet()
	w.say(alg.Client, []byte("PORT 192,0,2,2,195,80\r\n"))
	w.handOver(t, ct.entries[0])
	const grows = uint32(len("203,0,113,254") - len("192,0,2,2"))
	for range 100 {
		w.send(alg.Server, 0, []byte("200 ok\r\n"), func(tcp *layers.TCP) { tcp.Ack += grows })
		w.sent[alg.Server] += uint32(len("200 ok\r\n"))
		w.say(alg.Client, []byte("NOOP\r\n"))
	}
	s := w.in.shard(w.key.Client.Addr(), w.key.Server.Addr()).sessions[w.key]
	if n := len(s.streams[alg.Client].kept); n > len("NOOP\r\n") {
		t.Errorf("%d bytes are kept that the server has", n)
	}
}

// TestAnotherConnection: what is remembered of a connection is not another's between the same ports.
func TestAnotherConnection(t *testing.T) {
	w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
	w.say(alg.Server, []byte("220 ready\r\n"))
	w.say(alg.Client, []byte("PASV\r\n"))
	entry := conntrack.Untranslated(w.key.tuple())
	entry.ID++
	w.handOver(t, entry)
	w.say(alg.Server, []byte("227 (198,51,100,2,195,80)\r\n"))
	w.expect(t, "deny unsolicited-reply")
}

// TestMemoryFormat fails when the memory's shape changes: then MemoryFormat has to be another number, so that processes of two
// versions do not misread each other. (What the numbers in it mean cannot be seen here: the order of alg's kinds, for one.)
func TestMemoryFormat(t *testing.T) {
	const want = 3
	var b strings.Builder
	writeShape(&b, reflect.TypeFor[Memory]())
	if got := b.String(); MemoryFormat != want || got != memoryShape {
		t.Errorf("format %d has the shape\n%s", MemoryFormat, got)
	}
}

const memoryShape = `{Key {Client netip.AddrPort; Server netip.AddrPort; }; ID uint32; Number uint64; User string; Began time.Time; ` +
	`LastSeen time.Time; PinholeUntil time.Time; Refused bool; Told array bool; Missed ptr {From netip.AddrPort; To netip.AddrPort; ` +
	`ISN uint32; Pinhole {Mode uint8; Shared bool; From netip.AddrPort; To netip.AddrPort; Real netip.AddrPort; }; Until time.Time; }; ` +
	`Granted bool; Streams array {Synced bool; FIN bool; ` +
	`Known bool; Origin uint32; Next uint32; Acked uint32; Kept slice uint8; Resized ptr {From uint32; At uint32; Before int32; ` +
	`Since int32; New slice uint8; }; }; Opening bool; Phase uint8; ` +
	`Pinhole {Mode uint8; Shared bool; From netip.AddrPort; To netip.AddrPort; Real netip.AddrPort; }; Control ptr {Phase uint8; Login uint8; EPSVAll bool; Secured bool; Resumed bool; Unread bool; StartUnknown bool; Guess bool; Cleared bool; DataLevel uint8; ` +
	`Outstanding slice {Kind uint8; N uint16; }; Fed array uint64; Replies {Code uint16; }; Pinhole {Mode uint8; Shared bool; ` +
	`From netip.AddrPort; To netip.AddrPort; Real netip.AddrPort; }; TLS ptr {Side array {Header array uint8; Have uint8; ` +
	`Started bool; Secret bool; Closing bool; Left int; }; Hello slice uint8; Version uint16; FinLen int; State uint8; Request bool; ` +
	`Cleared array bool; Adrift int; Shown bool; Failed bool; Early int; }; Credit {Login uint8; Next time.Time; Until time.Time; From netip.AddrPort; To netip.AddrPort; ISN uint32; Spent time.Time; }; ` +
	`Directory {Path string; Before string; Next string; Changes int; Lost bool; Moved bool; }; Running bool; Excused uint16; Rests bool; Followed bool; Doubt bool; Bad uint8; }; }`

// writeShape writes what gob transfers of a type.
func writeShape(b *strings.Builder, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		fmt.Fprint(b, t.Kind(), " ")
		writeShape(b, t.Elem())
	case reflect.Struct:
		if t.PkgPath() == "time" || t.PkgPath() == "net/netip" {
			fmt.Fprint(b, t)
			return
		}
		b.WriteString("{")
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() {
				fmt.Fprint(b, f.Name, " ")
				writeShape(b, f.Type)
				b.WriteString("; ")
			}
		}
		b.WriteString("}")
	default:
		fmt.Fprint(b, t.Kind())
	}
}
