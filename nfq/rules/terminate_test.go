package rules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq/internal/lab"
)

// hosts is the cast of a test, in one address family. All but the server are addresses of the lab's client.
type hosts struct{ listener, client, guest, trusted, stranger, server netip.Addr }

var casts = map[string]hosts{
	"IPv4": {
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.66"),
		netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("198.51.100.2"),
	},
	"IPv6": {
		netip.MustParseAddr("::1"), netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr("2001:db8:1::66"),
		netip.MustParseAddr("2001:db8:1::77"), netip.MustParseAddr("2001:db8:3::1"), netip.MustParseAddr("2001:db8:2::2"),
	},
}

// port is an address with a port, as net takes it.
func port(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// closeGateway puts the rules in force on a gateway that accepts nothing else: nothing for itself, nothing from itself, and
// nothing to forward. IPv6 needs its neighbours.
func closeGateway(t *testing.T, v Variant, cfg Config) {
	t.Helper()
	lab.Build(t)
	cfg.Variant = v
	if underTest == BackendNFT {
		theirFirewall(t, "forward", "input", "output")
	} else {
		acceptNothing(t, v)
	}
	if err := Install(t.Context(), underTest.Rules(cfg)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func acceptNothing(t *testing.T, v Variant) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		tool = v.command(tool, "") + " -w "
		for _, chain := range []string{"INPUT", "OUTPUT", "FORWARD"} {
			lab.Run(t, tool+"-P "+chain+" DROP")
			t.Cleanup(func() { lab.Run(t, tool+"-P "+chain+" ACCEPT") })
		}
	}
	for _, chain := range []string{"INPUT", "OUTPUT"} {
		rule := chain + " -p icmpv6 -j ACCEPT"
		lab.Run(t, v.command("ip6tables", "")+" -w -A "+rule)
		t.Cleanup(func() { lab.Run(t, v.command("ip6tables", "")+" -w -D "+rule) })
	}
}

// people gives the lab's client its further addresses.
func people(t *testing.T) {
	t.Helper()
	lab.Build(t)
	for _, c := range casts {
		for _, a := range []netip.Addr{c.guest, c.trusted, c.stranger} {
			bits := fmt.Sprint("/", a.BitLen())
			lab.Run(t, "ip -n client addr add "+a.String()+bits+" dev eth0 nodad")
			t.Cleanup(func() { lab.Run(t, "ip -n client addr del "+a.String()+bits+" dev eth0") })
		}
		lab.Run(t, "ip route add "+c.stranger.String()+" dev client")
		t.Cleanup(func() { lab.Run(t, "ip route del "+c.stranger.String()+" dev client") })
	}
}

// transparent makes a socket what ftpalg's are: it may have foreign addresses, and what it sends bears our mark.
func transparent(network, _ string, raw syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var err error
	if control := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), level, option, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(DefaultTerminate.Own)))
	}); control != nil {
		return control
	}
	return err
}

// proxy stands for ftpalg: it listens on the gateway for what the rules bring.
type proxy struct{ *net.TCPListener }

func newProxy(t *testing.T, h hosts) proxy {
	t.Helper()
	l, err := (&net.ListenConfig{Control: transparent}).Listen(t.Context(), "tcp", port(h.listener, DefaultTerminate.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return proxy{l.(*net.TCPListener)}
}

// accept waits for a connection, and wants it to have the addresses that the one who dialed sees.
func (p proxy) accept(t *testing.T, from, to string) net.Conn {
	t.Helper()
	c := accept(t, p)
	if c.RemoteAddr().String() != from || c.LocalAddr().String() != to {
		t.Fatalf("a connection from %s to %s, want %s to %s", c.RemoteAddr(), c.LocalAddr(), from, to)
	}
	return c
}

// accept waits for a connection.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	_ = l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialAs connects from the gateway with the address of somebody else.
func dialAs(t *testing.T, from netip.Addr, to string) net.Conn {
	t.Helper()
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	c, err := (&net.Dialer{LocalAddr: local, Timeout: patience, Control: transparent}).Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// reach dials out of a namespace, and fails the test if that does.
func reach(t *testing.T, name string, from netip.Addr, to string) net.Conn {
	t.Helper()
	c, err := dial(t, name, from.String(), to, patience)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// talk sends a line each way, longer than one segment.
func talk(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		message := strings.Repeat("x", 8000)
		fmt.Fprint(way[0], message)
		_ = way[1].SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, len(message))
		for n := 0; n < len(got); {
			m, err := way[1].Read(got[n:])
			if err != nil {
				t.Fatalf("%d of %d bytes from %s to %s: %v", n, len(got), way[0].LocalAddr(), way[0].RemoteAddr(), err)
			}
			n += m
		}
	}
}

// TestTerminate proves the way of terminated connections through a gateway that accepts nothing else.
func TestTerminate(t *testing.T) {
	people(t)
	variants := []Variant{Legacy, NFT}
	if underTest == BackendNFT {
		variants = []Variant{Default}
	}
	for _, v := range variants {
		for family, h := range casts {
			t.Run(fmt.Sprintf("%s %s", v, family), func(t *testing.T) {
				closeGateway(t, v, terminating(t))
				p := newProxy(t, h)
				server := listen(t, "server", port(h.server, 21))
				t.Run("both sides", func(t *testing.T) { bothSides(t, h, p, server) })
				t.Run("order of rules", func(t *testing.T) { ruleOrder(t, v, h, p, server) })
				t.Run("data", func(t *testing.T) { dataPaths(t, h, p, server) })
				t.Run("port used again", func(t *testing.T) { portAgain(t, h, p) })
				t.Run("SYN cookies", func(t *testing.T) { synCookies(t, h, p) })
				t.Run("lost socket", func(t *testing.T) { lostSocket(t, h, p) })
				t.Run("nobody listens", func(t *testing.T) { nobodyListens(t, h, p, server) })
			})
		}
	}
}

// terminated opens a control connection that the proxy holds.
func terminated(t *testing.T, h hosts, p proxy) (near, held net.Conn) {
	t.Helper()
	to := port(h.server, 21)
	near = reach(t, "client", h.client, to)
	return near, p.accept(t, near.LocalAddr().String(), to)
}

// bothSides: each side sees the other's address, and neither the queue nor FORWARD sees anything.
func bothSides(t *testing.T, h hosts, p proxy, server net.Listener) {
	near, held := terminated(t, h, p)
	talk(t, near, held)
	up := dialAs(t, h.client, port(h.server, 21))
	far := accept(t, server)
	if addrPort(far.RemoteAddr()).Addr() != h.client {
		t.Errorf("the server sees %s, want the client %s", far.RemoteAddr(), h.client)
	}
	talk(t, up, far)
}

// ruleOrder: deny before terminate, inspect before terminate, and who is in no rule.
func ruleOrder(t *testing.T, v Variant, h hosts, p proxy, server net.Listener) {
	to := port(h.server, 21)
	// The reset of a refusal is the gateway's own and has no socket: its OUTPUT chain is the operator's.
	if underTest == BackendNFT {
		lab.Run(t, "nft add rule inet theirs output_more tcp flags & rst == rst accept")
		defer lab.Run(t, "nft flush chain inet theirs output_more")
	} else {
		tool := v.command(Family{V6: h.server.Is6()}.tool(), "") + " -w "
		const resets = " OUTPUT -p tcp --tcp-flags RST RST -j ACCEPT"
		lab.Run(t, tool+"-A"+resets)
		defer lab.Run(t, tool+"-D"+resets)
	}
	for name, from := range map[string]netip.Addr{"guest": h.guest, "stranger": h.stranger} {
		if _, err := dial(t, "client", from.String(), to, patience); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want a reset", name, err)
		}
	}
	var near net.Conn
	letThrough(t, func() { near = reach(t, "client", h.trusted, to) })
	if far := accept(t, server); far.RemoteAddr().String() != near.LocalAddr().String() {
		t.Errorf("the server sees %s, want the inspected client's own %s", far.RemoteAddr(), near.LocalAddr())
	}
	terminated(t, h, p) // and nothing came to the proxy before this
}

// dataPaths: data connections go to whoever the connmark of their control connection says, in both directions.
func dataPaths(t *testing.T, h hosts, p proxy, server net.Listener) {
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	near, _ := terminated(t, h, p)
	master := conntrack.Tuple{Src: addrPort(near.LocalAddr()), Dst: netip.AddrPortFrom(h.server, 21)}
	if e, err := ct.Lookup(master); err != nil || e.Mark != DefaultTerminate.Control || e.Helper != "sane" {
		t.Fatalf("the control connection's entry: %+v, %v", e, err)
	}
	passive := listen(t, "server", port(h.server, 30000))
	active := listen(t, "client", port(h.client, 30000))
	for _, way := range []struct {
		name, near string
		from, to   netip.Addr
		l          net.Listener
	}{{"passive", "client", h.client, h.server, passive}, {"active", "server", h.server, h.client, active}} {
		x := conntrack.Expectation{Master: master, From: netip.AddrPortFrom(way.from, 0), To: netip.AddrPortFrom(way.to, 30000), Timeout: time.Minute}
		open := func() net.Conn {
			if err := ct.Expect(x); err != nil {
				t.Fatal(err)
			}
			return reach(t, way.near, way.from, x.To.String())
		}
		if err := ct.SetMark(master, 0, DefaultTerminate.Relay); err != nil {
			t.Fatal(err)
		}
		talk(t, open(), accept(t, way.l)) // direct
		if err := ct.SetMark(master, DefaultTerminate.Relay, DefaultTerminate.Relay); err != nil {
			t.Fatal(err)
		}
		c := open()
		held := p.accept(t, c.LocalAddr().String(), x.To.String())
		talk(t, c, held)
		talk(t, dialAs(t, way.from, x.To.String()), accept(t, way.l)) // the relay's other side
		if _, err := dial(t, way.near, way.from.String(), x.To.String(), 300*time.Millisecond); !os.IsTimeout(err) {
			t.Errorf("%s: a data connection that is not expected: %v, want silence", way.name, err)
		}
		// Direct again, between the very ports: the relay's socket waits for stragglers, and must not get these packets.
		// (With early demultiplexing the kernel finds it before all rules, and drops what it would forward.)
		noEarlyDemux(t)
		held.Close()
		if err := errors.Join(ct.SetMark(master, 0, DefaultTerminate.Relay), ct.Expect(x)); err != nil {
			t.Fatal(err)
		}
		talk(t, reachAgain(t, way.near, c, x.To.String()), accept(t, way.l))
	}
}

// noEarlyDemux has the kernel look for sockets behind the rules only.
func noEarlyDemux(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_early_demux", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reachAgain closes a connection whose peer has closed it first, and dials from its port again.
func reachAgain(t *testing.T, name string, before net.Conn, to string) net.Conn {
	t.Helper()
	_ = before.SetReadDeadline(time.Now().Add(patience))
	if _, err := before.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection is not over")
	}
	local := before.LocalAddr()
	before.Close()
	for end := time.Now().Add(patience); ; {
		var again net.Conn
		var err error
		lab.Inside(t, name, func() {
			again, err = (&net.Dialer{LocalAddr: local, Timeout: patience}).Dial("tcp", to)
		})
		switch {
		case err == nil:
			t.Cleanup(func() { again.Close() })
			return again
		case !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end): // its own FIN is not acknowledged yet
			t.Fatal(err)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// portAgain: a client may use its port again at once, though the gateway's socket waits for stragglers (TIME-WAIT). Its
// first SYN must reach the listener.
func portAgain(t *testing.T, h hosts, p proxy) {
	near, held := terminated(t, h, p)
	held.Close() // the gateway closes first
	again := reachAgain(t, "client", near, port(h.server, 21))
	talk(t, again, p.accept(t, near.LocalAddr().String(), port(h.server, 21)))
	raw, err := again.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if control := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); control != nil || err != nil {
		t.Fatal(control, err)
	}
	if info.Total_retrans > 0 {
		t.Errorf("%d retransmissions: the first SYN went astray", info.Total_retrans)
	}
}

// synCookies: with SYN cookies there is no socket between SYN and ACK.
func synCookies(t *testing.T, h hosts, p proxy) {
	const file = "/proc/sys/net/ipv4/tcp_syncookies" // for IPv6 as well
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const always = "2"
	if err := os.WriteFile(file, []byte(always), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(file, before, 0)
	near, held := terminated(t, h, p)
	talk(t, near, held)
}

// lostSocket: what a killed daemon held is reset, and not forwarded to a server that knows nothing of it.
func lostSocket(t *testing.T, h hosts, p proxy) {
	near, held := terminated(t, h, p)
	raw, err := held.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// A socket that is under repair goes without a word to its peer.
	if control := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1) }); control != nil || err != nil {
		t.Fatal(control, err)
	}
	held.Close()
	fmt.Fprint(near, "x")
	_ = near.SetReadDeadline(time.Now().Add(patience))
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// nobodyListens: without a daemon the policy still holds.
func nobodyListens(t *testing.T, h hosts, p proxy, server net.Listener) {
	p.Close()
	if _, err := dial(t, "client", h.client.String(), port(h.server, 21), 300*time.Millisecond); !os.IsTimeout(err) {
		t.Errorf("without a listener: %v, want silence", err)
	}
	var near net.Conn
	letThrough(t, func() { near = reach(t, "client", h.trusted, port(h.server, 21)) })
	if far := accept(t, server); far.RemoteAddr().String() != near.LocalAddr().String() {
		t.Errorf("the server sees %s, want only the inspected client %s", far.RemoteAddr(), near.LocalAddr())
	}
}

// TestRoutingOfOthers: a table or mark of somebody else's is not touched.
func TestRoutingOfOthers(t *testing.T) {
	lab.NeedRoot(t)
	for _, ip := range []string{"ip -4", "ip -6"} {
		for name, theirs := range map[string]string{
			"route": "route add unreachable default table 21021",
			"table": "rule add pref 77 from all lookup 21021",
			"mark":  "rule add pref 77 fwmark 0x10000000/0xf0000000 lookup 77",
			"value": "rule add pref 77 fwmark 0x1000ca6c lookup 77",
			"same":  "rule add pref 21 fwmark 0x10000000/0x10000000 lookup 21021",
		} {
			t.Run(ip+" "+name, func(t *testing.T) {
				lab.Run(t, ip+" "+theirs)
				defer lab.Run(t, ip+" "+strings.Replace(theirs, "add", "del", 1))
				before := saved(t, Default)
				err := Install(t.Context(), IPTables(terminating(t)))
				if err == nil || !strings.Contains(err.Error(), "somebody else") || !strings.Contains(err.Error(), "--route-table") {
					t.Errorf("got %v", err)
				}
				if err := Remove(t.Context()); err != nil {
					t.Error(err)
				}
				if after := saved(t, Default); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
		}
	}
}

// TestRoutingMissing: what is gone of the routing is found, and put back.
func TestRoutingMissing(t *testing.T) {
	lab.NeedRoot(t)
	set := IPTables(terminating(t))
	if err := Install(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(context.Background()) })
	lab.Run(t, "ip -4 rule del pref 21")
	lab.Run(t, "ip -6 route flush table 21021")
	missing, err := Present(t.Context(), set)
	if err != nil || len(missing) != 2 {
		t.Errorf("%q, %v", missing, err)
	}
	for _, line := range missing { // each has the command that mends it
		_, command, _ := strings.Cut(line, ": ")
		lab.Run(t, command)
	}
	if missing, err := Present(t.Context(), set); err != nil || len(missing) > 0 {
		t.Errorf("mended: %q, %v", missing, err)
	}
}

// TestTryTerminate: this kernel can, and nothing is left of the trial.
func TestTryTerminate(t *testing.T) {
	lab.NeedRoot(t)
	before := saved(t, Default)
	if err := TryTerminate(t.Context(), BackendIPTables); err != nil {
		t.Error(err)
	}
	if after := saved(t, Default); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	t.Setenv("PATH", t.TempDir())
	if err := TryTerminate(t.Context(), BackendIPTables); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("without ip and iptables: %v", err)
	}
}
