package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// hosts is the cast of a test, in one address family.
type hosts struct{ client, other, server netip.Addr }

var families = map[string]hosts{
	"IPv4": {client4, other4, server4},
	"IPv6": {client6, other6, server6},
}

func (h hosts) expect(master Tuple) Expectation {
	return Expectation{
		Master:  master,
		From:    netip.AddrPortFrom(h.client, 0),
		To:      netip.AddrPortFrom(h.server, dataPort),
		Timeout: 30 * time.Second,
	}
}

// An expectation lets in the host that it names, at the port that it names, once, and nothing else.
func TestExpectation(t *testing.T) {
	l := newLab(t)
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			control, data, other := netip.AddrPortFrom(h.server, ftpPort), netip.AddrPortFrom(h.server, dataPort), netip.AddrPortFrom(h.server, otherPort)
			for _, a := range []netip.AddrPort{control, data, other} {
				l.serve(t, a)
			}
			master := l.control(t, h.client, control)
			l.refused(t, "before the expectation", h.client, data)
			x := h.expect(master)
			if err := l.conn.Expect(x); err != nil {
				t.Fatal(err)
			}
			list := l.table(t)
			if len(list) != 1 || list[0].Timeout > x.Timeout || list[0].Timeout < x.Timeout-5*time.Second {
				t.Fatalf("list: %+v", list)
			}
			if list[0].Timeout = x.Timeout; list[0] != x {
				t.Errorf("listed %+v\nwant   %+v", list[0], x)
			}
			l.refused(t, "a second host", h.other, data)
			l.refused(t, "another port", h.client, other)
			if _, err := l.dial(t, h.client, data); err != nil {
				t.Errorf("the expected connection: %v", err)
			}
			l.refused(t, "a second connection", h.client, data)
			if list := l.table(t); len(list) != 0 {
				t.Errorf("still there after use: %+v", list)
			}
			if err := l.conn.Withdraw(x); !errors.Is(err, ErrNotFound) {
				t.Errorf("withdrawal after use: %v, want ErrNotFound", err)
			}
		})
	}
}

func TestWithdrawAndTimeOut(t *testing.T) {
	l := newLab(t)
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			control, data := netip.AddrPortFrom(h.server, ftpPort), netip.AddrPortFrom(h.server, dataPort)
			l.serve(t, control)
			l.serve(t, data)
			x := h.expect(l.control(t, h.client, control))
			if err := errors.Join(l.conn.Expect(x), l.conn.Withdraw(x)); err != nil {
				t.Fatal(err)
			}
			l.refused(t, "after the withdrawal", h.client, data)
			x.Timeout = time.Second
			if err := l.conn.Expect(x); err != nil {
				t.Fatal(err)
			}
			await(t, "the expectation times out", func() bool { return len(l.table(t)) == 0 })
			l.refused(t, "after the timeout", h.client, data)
		})
	}
}

// With a source port given, only that port may connect.
func TestExactSourcePort(t *testing.T) {
	l := newLab(t)
	h := families["IPv4"]
	data := netip.AddrPortFrom(h.server, dataPort)
	l.serve(t, netip.AddrPortFrom(h.server, ftpPort))
	l.serve(t, data)
	x := h.expect(l.control(t, h.client, netip.AddrPortFrom(h.server, ftpPort)))
	x.From = netip.AddrPortFrom(h.client, 1025) // below the range that the kernel picks from
	if err := l.conn.Expect(x); err != nil {
		t.Fatal(err)
	}
	if list := l.table(t); len(list) != 1 || list[0].From != x.From {
		t.Errorf("list: %+v", list)
	}
	l.refused(t, "another source port", h.client, data)

	any := x
	any.From = netip.AddrPortFrom(h.client, 0)
	if err := l.conn.Expect(any); !errors.Is(err, ErrOverlap) {
		t.Errorf("any source port beside one: %v, want ErrOverlap", err)
	}
	if list := l.table(t); len(list) != 1 || list[0].From != x.From {
		t.Errorf("list after the refusal: %+v", list)
	}
}

// The later announcement counts: with its own timeout, and under its own master.
func TestReplace(t *testing.T) {
	l := newLab(t)
	h := families["IPv4"]
	control := netip.AddrPortFrom(h.server, ftpPort)
	l.serve(t, control)
	first, second := h.expect(l.control(t, h.client, control)), h.expect(l.control(t, h.client, control))
	longer := first
	longer.Timeout = time.Hour
	for _, x := range []Expectation{first, longer, second} {
		if err := l.conn.Expect(x); err != nil {
			t.Fatal(err)
		}
		list := l.table(t)
		if len(list) != 1 || list[0].Master != x.Master || list[0].Timeout > x.Timeout || list[0].Timeout < x.Timeout/2 {
			t.Errorf("installed %+v\nlisted %+v", x, list)
		}
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			plain := netip.AddrPortFrom(h.server, plainPort)
			l.serve(t, plain)
			x := h.expect(l.control(t, h.client, plain))
			if err := l.conn.Expect(x); !errors.Is(err, ErrNoHelper) {
				t.Errorf("master without helper: %v, want ErrNoHelper", err)
			}
			x.Master.Src = netip.AddrPortFrom(h.client, 1)
			if err := l.conn.Expect(x); !errors.Is(err, ErrNoMaster) {
				t.Errorf("no master: %v, want ErrNoMaster", err)
			}
			if err := l.conn.Withdraw(x); !errors.Is(err, ErrNotFound) {
				t.Errorf("withdraw what is not there: %v, want ErrNotFound", err)
			}
			if list := l.table(t); len(list) != 0 {
				t.Errorf("list: %+v", list)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	l := newLab(t)
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			control := netip.AddrPortFrom(h.server, ftpPort)
			l.serve(t, control)
			master := l.control(t, h.client, control)
			const assured = 1 << 2 // IPS_ASSURED
			for _, tuple := range []Tuple{master, {master.Dst, master.Src}} {
				var e Entry
				await(t, "the handshake is complete", func() (ok bool) {
					var err error
					if e, err = l.conn.Lookup(tuple); err != nil {
						t.Fatal(err)
					}
					return e.Status&assured != 0
				})
				if e.Orig != master || e.Reply != (Tuple{master.Dst, master.Src}) || e.Helper != "sane" || e.Mark != 0 || e.Timeout < time.Hour {
					t.Errorf("got %+v", e)
				}
			}
			master.Src = netip.AddrPortFrom(h.client, 1)
			if _, err := l.conn.Lookup(master); !errors.Is(err, ErrNotFound) {
				t.Errorf("no such connection: %v, want ErrNotFound", err)
			}
		})
	}
}

// A connection that was expected inherits the mark of its control connection, as it is then: both bits of it.
func TestMarkInherited(t *testing.T) {
	const theirs, ours = 0x1, 0x02000000
	l := newLab(t)
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			control, data := netip.AddrPortFrom(h.server, ftpPort), netip.AddrPortFrom(h.server, dataPort)
			l.serve(t, control)
			l.serve(t, data)
			master := l.control(t, h.client, control)
			x := h.expect(master)
			if err := errors.Join(
				l.conn.Expect(x),
				l.conn.SetMark(master, theirs, 0xffffffff),
				l.conn.SetMark(master, ours, ours)); err != nil {
				t.Fatal(err)
			}
			child, err := l.dial(t, h.client, data)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.conn.SetMark(Tuple{master.Dst, master.Src}, 0, ours); err != nil { // the reply's tuple will do
				t.Fatal(err)
			}
			for _, want := range []struct {
				tuple Tuple
				mark  uint32
			}{{child, theirs | ours}, {master, theirs}} {
				if e, err := l.conn.Lookup(want.tuple); err != nil || e.Mark != want.mark {
					t.Errorf("mark %#x of %v, want %#x; %v", e.Mark, want.tuple, want.mark, err)
				}
			}
			master.Src = netip.AddrPortFrom(h.client, 1)
			if err := l.conn.SetMark(master, ours, ours); !errors.Is(err, ErrNotFound) {
				t.Errorf("no such connection: %v, want ErrNotFound", err)
			}
		})
	}
}

// TestAdjustSequence: the kernel moves sequence numbers of a connection under NAT, and says so of one without as well.
func TestAdjustSequence(t *testing.T) {
	l := newLab(t)
	near, far := l.converse(t, families["IPv4"])
	plain := Tuple{near.LocalAddr().(*net.TCPAddr).AddrPort(), near.RemoteAddr().(*net.TCPAddr).AddrPort()}
	if err := l.conn.AdjustSequence(plain, false, Adjustment{After: 4}); !errors.Is(err, ErrNoAdjustment) {
		t.Errorf("without NAT: %v, want ErrNoAdjustment", err)
	}
	near.Close()
	far.Close()
	run(t, "ip netns exec "+string(l.gateway)+" iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE")
	near, _ = l.converse(t, families["IPv4"])
	masked := Tuple{near.LocalAddr().(*net.TCPAddr).AddrPort(), near.RemoteAddr().(*net.TCPAddr).AddrPort()}
	for _, reply := range []bool{false, true} {
		if err := l.conn.AdjustSequence(masked, reply, Adjustment{Position: 1, Before: -3, After: 4}); err != nil {
			t.Errorf("reply %v: %v", reply, err)
		}
	}
	want := Adjustment{Position: 1, Before: -3, After: 4}
	if e, err := l.conn.Lookup(masked); err != nil || e.Adjusted != [2]Adjustment{want, want} {
		t.Errorf("what the entry says is %+v, %v", e.Adjusted, err)
	}
	masked.Src = netip.AddrPortFrom(masked.Src.Addr(), 1)
	if err := l.conn.AdjustSequence(masked, false, Adjustment{After: 4}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such connection: %v, want ErrNotFound", err)
	}
}

// Queue threads call at the same time. Each has its own master, and nothing gets mixed up.
func TestConcurrent(t *testing.T) {
	const threads, rounds = 8, 100
	l := newLab(t)
	h := families["IPv4"]
	control := netip.AddrPortFrom(h.server, ftpPort)
	l.serve(t, control)
	var wg sync.WaitGroup
	for i := range threads {
		x := h.expect(l.control(t, h.client, control))
		x.To = netip.AddrPortFrom(h.server, uint16(dataPort+i))
		wg.Go(func() {
			for range rounds {
				if err := errors.Join(l.conn.Expect(x), l.conn.Withdraw(x)); err != nil {
					t.Error(err)
					return
				}
				if err := l.conn.Withdraw(x); !errors.Is(err, ErrNotFound) {
					t.Errorf("second withdrawal: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestNoAllocations(t *testing.T) {
	l := newLab(t)
	h := families["IPv4"]
	l.serve(t, netip.AddrPortFrom(h.server, ftpPort))
	x := h.expect(l.control(t, h.client, netip.AddrPortFrom(h.server, ftpPort)))
	if n := testing.AllocsPerRun(100, func() {
		if err := l.conn.Expect(x); err != nil {
			t.Fatal(err)
		}
		if err := l.conn.Withdraw(x); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("installing and withdrawing an expectation allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = l.conn.setMark(x.Master, markChange{1, 1}) }); n != 0 {
		t.Errorf("setting a mark allocates %v times", n)
	}
	l.labels(t)
	x.Master = l.control(t, h.client, netip.AddrPortFrom(h.server, ftpPort))
	if n := testing.AllocsPerRun(100, func() {
		if err := l.conn.SetLabel(x.Master, Label{1}, Label{1}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("setting a label allocates %v times", n)
	}
}

// labels has the entries that are made from now on have room for a label.
func (l *lab) labels(t *testing.T) {
	t.Helper()
	for _, rule := range []string{"-N LABELS", "-A LABELS -m connlabel --label 0"} {
		run(t, fmt.Sprintf("ip netns exec %s iptables -w -t mangle %s", l.gateway, rule))
	}
}

// A label's bits are changed within the mask alone. A connection that began before any rule used labels has none.
func TestLabel(t *testing.T) {
	l := newLab(t)
	for _, h := range families {
		l.serve(t, netip.AddrPortFrom(h.server, ftpPort))
	}
	h := families["IPv4"]
	early := l.control(t, h.client, netip.AddrPortFrom(h.server, ftpPort))
	l.labels(t)
	if err := l.conn.SetLabel(early, Label{1}, Label{1}); !errors.Is(err, ErrNoLabelRoom) {
		t.Errorf("a connection from before: %v, want ErrNoLabelRoom", err)
	}
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			master := l.control(t, h.client, netip.AddrPortFrom(h.server, ftpPort))
			for _, step := range []struct{ value, mask, want Label }{
				{Label{}, Label{0xf0}, Label{}},
				{Label{0x10, 15: 1}, Label{0xf0, 15: 3}, Label{0x10, 15: 1}},
				{Label{0x10}, Label{0xf0}, Label{0x10, 15: 1}},
				{Label{0x04}, Label{0x0c}, Label{0x14, 15: 1}},
				{Label{}, Label{0xf0, 15: 0xff}, Label{0x04}},
			} {
				if err := l.conn.SetLabel(master.Reversed(), step.value, step.mask); err != nil {
					t.Fatal(err)
				}
				if e, err := l.conn.Lookup(master); err != nil || e.Label != step.want {
					t.Errorf("%x/%x made it %x, want %x; %v", step.value, step.mask, e.Label, step.want, err)
				}
			}
			if list, err := l.conn.Connections(func(a netip.AddrPort) bool { return a == master.Dst }); err != nil ||
				!slices.ContainsFunc(list, func(e Entry) bool { return e.Orig == master && e.Label == Label{0x04} }) {
				t.Errorf("listed %+v, %v", list, err)
			}
			if err := l.conn.SetLabel(master, Label{2}, Label{1}); !errors.Is(err, ErrInvalid) {
				t.Errorf("a value outside its mask: %v, want ErrInvalid", err)
			}
			master.Src = netip.AddrPortFrom(h.client, 1)
			if err := l.conn.SetLabel(master, Label{1}, Label{1}); !errors.Is(err, ErrNotFound) {
				t.Errorf("no such connection: %v, want ErrNotFound", err)
			}
		})
	}
}

// The expectation table is bounded by a sysctl of the machine, and counted per namespace.
func TestExpectationTableFull(t *testing.T) {
	l := newLab(t)
	h := families["IPv4"]
	control := netip.AddrPortFrom(h.server, roomyPort)
	l.serve(t, control)
	room := sysctl(t, "nf_conntrack_expect_max")
	const perMaster = 8
	var x Expectation
	for i := range room {
		if i%perMaster == 0 {
			x = h.expect(l.control(t, h.client, control))
		}
		x.To = netip.AddrPortFrom(h.server, uint16(1024+i))
		if err := l.conn.Expect(x); err != nil {
			t.Fatalf("expectation %d of %d: %v", i+1, room, err)
		}
	}
	extra := h.expect(l.control(t, h.client, control))
	if err := l.conn.Expect(extra); !errors.Is(err, ErrFull) {
		t.Errorf("one more than %d: %v, want ErrFull", room, err)
	}
	if list := l.table(t); len(list) != room {
		t.Errorf("%d expectations listed, want %d", len(list), room)
	}
	if err := errors.Join(l.conn.Withdraw(x), l.conn.Expect(extra)); err != nil {
		t.Errorf("after one was withdrawn: %v", err)
	}
}

// When the table of connections is full, the kernel drops the SYN of every new connection, expected or not. Running
// control connections go on and expectations can be installed, so that transfers work again as soon as there is room.
// The bound is one of the machine and not of a namespace; so this runs only on a kernel of its own.
func TestConntrackTableFull(t *testing.T) {
	if os.Getenv("FTPALG_OWN_KERNEL") != "1" {
		t.Skip("NOT TESTED: this test changes nf_conntrack_max for the whole machine; run it through scripts/kernel")
	}
	l := newLab(t)
	h := families["IPv4"]
	control, data := netip.AddrPortFrom(h.server, ftpPort), netip.AddrPortFrom(h.server, dataPort)
	l.serve(t, control)
	l.serve(t, data)
	x := h.expect(l.control(t, h.client, control))
	const file = "/proc/sys/net/netfilter/nf_conntrack_max"
	before := strconv.Itoa(sysctl(t, "nf_conntrack_max"))
	restore := func() error { return os.WriteFile(file, []byte(before), 0) }
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	defer restore()
	if err := l.conn.Expect(x); err != nil {
		t.Errorf("expectation with a full table of connections: %v", err)
	}
	dialed := make(chan error, 1)
	go func() {
		_, err := l.dial(t, h.client, data)
		dialed <- err
	}()
	await(t, "a SYN is dropped", func() bool { return dropped(t, l) > 0 })
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if err := <-dialed; err != nil {
		t.Errorf("the retransmitted SYN, when there is room: %v", err)
	}
}

// dropped sums the column "drop" of the gateway's conntrack statistics.
func dropped(t *testing.T, l *lab) (sum uint64) {
	t.Helper()
	var stat []byte
	l.gateway.do(t, func() (err error) {
		stat, err = os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		return err
	})
	lines := strings.Split(strings.TrimSpace(string(stat)), "\n")
	column := slices.Index(strings.Fields(lines[0]), "drop")
	for _, line := range lines[1:] {
		n, err := strconv.ParseUint(strings.Fields(line)[column], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func sysctl(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// watch runs WatchDestroy in the gateway and returns once it listens.
func (l *lab) watch(t *testing.T, fn func(Tuple), lost func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended, listening := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(ended)
		l.gateway.do(t, func() error {
			return WatchDestroy(ctx, func(e Entry) { fn(e.Orig) }, func() { lost(); once.Do(func() { close(listening) }) })
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	select {
	case <-listening:
	case <-ended:
		t.Fatal("WatchDestroy ended at once")
	}
}

func (l *lab) netlink(t *testing.T) (nl *netlink.Conn) {
	t.Helper()
	l.gateway.do(t, func() (err error) {
		nl, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	t.Cleanup(func() { nl.Close() })
	return nl
}

// forget deletes conntrack entries in the gateway: one, or all where tuple is nil.
func forget(t *testing.T, nl *netlink.Conn, tuple *Tuple) {
	t.Helper()
	const msgCTDelete = 2 // IPCTNL_MSG_CT_DELETE
	var e encoder
	e.family(unix.AF_INET)
	if tuple != nil {
		e.b[0] = familyOf(tuple.Src.Addr())
		e.tuple(ctaTupleOrig, *tuple)
	}
	if _, err := execute(nl, unix.NFNL_SUBSYS_CTNETLINK, msgCTDelete, netlink.Acknowledge, e.b); err != nil {
		t.Fatal(err)
	}
}

// TestWatchExpectations: an event tells who made the expectation, another socket or the kernel's helper; those of this Conn bring
// none. What is told of can be removed.
func TestWatchExpectations(t *testing.T) {
	l := newLab(t)
	var other *Conn
	l.gateway.do(t, func() (err error) {
		other, err = Dial()
		return err
	})
	defer other.Close()
	come := make(chan Expected, 10)
	ctx, cancel := context.WithCancel(context.Background())
	ended, listening := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		l.gateway.do(t, func() error {
			return WatchExpectations(ctx, l.conn.Port(), func(e Expected) { come <- e }, sync.OnceFunc(func() { close(listening) }))
		})
	}()
	defer func() { cancel(); <-ended }()
	<-listening
	next := func(what string) (e Expected) {
		t.Helper()
		select {
		case e = <-come:
		case <-time.After(patience):
			t.Fatalf("no event: %s", what)
		}
		return e
	}
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			near, far := l.converse(t, h)
			master := Tuple{near.LocalAddr().(*net.TCPAddr).AddrPort(), near.RemoteAddr().(*net.TCPAddr).AddrPort()}
			x := h.expect(master)
			for _, conn := range []*Conn{l.conn, other} { // the next event is not of the first
				if err := conn.Expect(x); err != nil {
					t.Fatal(err)
				}
			}
			e := next("of another socket")
			x.Timeout = e.Timeout
			if e.Expectation != x || e.Writer != other.Port() || e.Writer == 0 || e.Helper != "sane" || e.Protocol != unix.IPPROTO_TCP {
				t.Errorf("port %d wrote %+v, and the event is %+v", other.Port(), x, e)
			}
			if err := l.conn.Remove(e); err != nil {
				t.Error(err)
			}
			if err := l.conn.Remove(e); !errors.Is(err, ErrNotFound) {
				t.Errorf("removed twice: %v", err)
			}
			// Requests of the helper's own protocol (nf_conntrack_sane); these rules do not keep them from it.
			for _, way := range []struct {
				from, to net.Conn
				text     string
			}{{far, near, "220 ready"}, {near, far, "\x00\x00\x00\x07abcd"}, {far, near, "\x00\x00\x00\x00\x00\x00\xc3\x50"}} {
				if _, err := io.WriteString(way.from, way.text); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(way.to, make([]byte, len(way.text))); err != nil {
					t.Fatal(err)
				}
			}
			e = next("the kernel's helper")
			if e.Writer != 0 || e.Master != master || e.To != netip.AddrPortFrom(h.server, dataPort) {
				t.Errorf("the kernel's helper made %+v", e)
			}
			if err := l.conn.Remove(e); err != nil {
				t.Error(err)
			}
			if list := l.table(t); len(list) > 0 {
				t.Errorf("left: %+v", list)
			}
		})
	}
}

// converse opens a control connection and gives both its ends.
func (l *lab) converse(t *testing.T, h hosts) (near, far net.Conn) {
	t.Helper()
	var listener net.Listener
	l.server.do(t, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(h.server, ftpPort).String())
		return err
	})
	defer listener.Close()
	l.client.do(t, func() (err error) {
		near, err = net.Dial("tcp", listener.Addr().String())
		return err
	})
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestWatchDestroy(t *testing.T) {
	l := newLab(t)
	nl := l.netlink(t)
	h4, h6 := families["IPv4"], families["IPv6"]
	for _, h := range families {
		l.serve(t, netip.AddrPortFrom(h.server, ftpPort))
	}
	early := l.control(t, h4.client, netip.AddrPortFrom(h4.server, ftpPort))
	gone, lost := make(chan Tuple, 10), make(chan struct{}, 10)
	l.watch(t, func(orig Tuple) { gone <- orig }, func() { lost <- struct{}{} })
	if len(lost) != 1 {
		t.Errorf("lost was called %d times before the first event, want once", len(lost))
	}
	late4 := l.control(t, h4.client, netip.AddrPortFrom(h4.server, ftpPort))
	late6 := l.control(t, h6.client, netip.AddrPortFrom(h6.server, ftpPort))
	for _, ended := range []Tuple{early, late4, late6} {
		forget(t, nl, &ended)
	}
	want := []Tuple{late4, late6}
	for len(want) > 0 {
		select {
		case got := <-gone:
			// The early one reports its end only if someone else listened on this machine when it began.
			if got != early && got != want[0] {
				t.Fatalf("got %v, want %v", got, want[0])
			}
			if got == want[0] {
				want = want[1:]
			}
		case <-time.After(patience):
			t.Fatalf("no event for %v", want)
		}
	}
}

// A reader that falls behind is told so, and goes on.
func TestWatchDestroyLost(t *testing.T) {
	l := newLab(t)
	nl := l.netlink(t)
	release, lost := make(chan struct{}), make(chan struct{}, 10)
	last := netip.AddrPortFrom(server4, 9)
	done := make(chan struct{})
	l.watch(t, func(orig Tuple) {
		<-release
		if orig.Dst == last {
			close(done)
		}
	}, func() { lost <- struct{}{} })
	<-lost
	const events = 40_000
	for i := range events {
		if err := l.inject(nl, Tuple{netip.AddrPortFrom(client4, uint16(1024+i)), netip.AddrPortFrom(server4, ftpPort)}); err != nil {
			t.Fatal(err)
		}
	}
	forget(t, nl, nil)
	close(release)
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatalf("%d events fit into the buffer of %d bytes", events, eventBuffer)
	}
	marker := Tuple{netip.AddrPortFrom(client4, 9), last}
	if err := l.inject(nl, marker); err != nil {
		t.Fatal(err)
	}
	forget(t, nl, &marker)
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("no event after the loss")
	}
}
