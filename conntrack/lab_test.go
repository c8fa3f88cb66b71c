package conntrack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where things are in the lab: two hosts behind a gateway that drops what it forwards, but for the control ports and
// what conntrack calls ESTABLISHED or RELATED. The second host is a second address of the client's namespace.
var (
	client4 = netip.MustParseAddr("192.0.2.2")
	other4  = netip.MustParseAddr("192.0.2.3")
	server4 = netip.MustParseAddr("198.51.100.2")
	client6 = netip.MustParseAddr("2001:db8:1::2")
	other6  = netip.MustParseAddr("2001:db8:1::3")
	server6 = netip.MustParseAddr("2001:db8:2::2")
)

const (
	ftpPort   = 21   // control connections with a helper that takes one expectation each
	roomyPort = 6667 // control connections with a helper that takes eight each (IPv4 only)
	plainPort = 2121 // control connections without a helper
	dataPort  = 50000
	otherPort = 50001
)

// patience bounds every wait for what must happen. It is long because an emulated machine is slow.
const patience = 20 * time.Second

// needRoot skips without root, and fails where a skip would hide that nothing was tested.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "NOT TESTED: this test needs root, for network namespaces of its own"
	if os.Getenv("CI") == "true" || os.Getenv("FTPALG_ROOT_TESTS") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// netns is a network namespace made by `ip netns add`.
type netns string

// do runs f in the namespace, on a thread that ends with it, so that no other goroutine ever runs there.
func (n netns) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+string(n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in namespace %s: %v", n, err)
	}
}

type lab struct {
	client, gateway, server netns
	conn                    *Conn
}

var labs atomic.Int32

// newLab builds the namespaces, the rules, and a Conn in the gateway. All of it goes away with the test.
func newLab(t testing.TB) *lab {
	t.Helper()
	needRoot(t)
	id := fmt.Sprintf("ftpalgct%d-%d-", os.Getpid(), labs.Add(1))
	l := &lab{client: netns(id + "c"), gateway: netns(id + "g"), server: netns(id + "s")}
	for _, n := range []netns{l.client, l.gateway, l.server} {
		run(t, "ip netns add "+string(n))
		t.Cleanup(func() { run(t, "ip netns del "+string(n)) })
		run(t, fmt.Sprintf("ip -n %s link set lo up", n))
		// Links are ours alone: looking for duplicate addresses would only take time.
		n.do(t, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0) })
	}
	l.wire(t)
	l.rules(t)
	l.gateway.do(t, func() (err error) {
		l.conn, err = Dial()
		return err
	})
	t.Cleanup(func() { l.conn.Close() })
	return l
}

func (l *lab) wire(t testing.TB) {
	t.Helper()
	script := `link add c0 netns C type veth peer name g0 netns G
link add s0 netns S type veth peer name g1 netns G
-n C addr add 192.0.2.2/24 dev c0
-n C addr add 192.0.2.3/24 dev c0
-n G addr add 192.0.2.1/24 dev g0
-n G addr add 198.51.100.1/24 dev g1
-n S addr add 198.51.100.2/24 dev s0
-n C addr add 2001:db8:1::2/64 dev c0 nodad
-n C addr add 2001:db8:1::3/64 dev c0 nodad
-n G addr add 2001:db8:1::1/64 dev g0 nodad
-n G addr add 2001:db8:2::1/64 dev g1 nodad
-n S addr add 2001:db8:2::2/64 dev s0 nodad
-n C link set c0 up
-n G link set g0 up
-n G link set g1 up
-n S link set s0 up
-n C route add default via 192.0.2.1
-n S route add default via 198.51.100.1
-n C -6 route add default via 2001:db8:1::1
-n S -6 route add default via 2001:db8:2::1`
	names := strings.NewReplacer(" C ", " "+string(l.client)+" ", " G ", " "+string(l.gateway)+" ", " S ", " "+string(l.server)+" ")
	for line := range strings.Lines(script) {
		// A trailing G or S ends a line; the replacer wants a blank after it.
		line = names.Replace(strings.TrimSpace(line) + " ")
		run(t, "ip "+line)
	}
	l.gateway.do(t, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			// A refusal that the rate limit swallows would cost a second each.
			os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
}

func (l *lab) rules(t testing.TB) {
	t.Helper()
	for _, table := range []struct{ command, reject, roomy string }{
		{"iptables", "icmp-admin-prohibited", "-t raw -A PREROUTING -p tcp --dport 6667 -j CT --helper irc"},
		{"ip6tables", "icmp6-adm-prohibited", ""},
	} {
		for _, rule := range []string{
			"-P FORWARD DROP",
			"-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper sane",
			table.roomy,
			"-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
			"-A FORWARD -p tcp -m multiport --dports 21,2121,6667 -m conntrack --ctstate NEW -j ACCEPT",
			// What is not let through is refused with a message that no end host sends, so that a test need not wait.
			"-A FORWARD -p tcp -j REJECT --reject-with " + table.reject,
		} {
			if rule != "" {
				run(t, fmt.Sprintf("ip netns exec %s %s -w %s", l.gateway, table.command, rule))
			}
		}
	}
}

func run(t testing.TB, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// serve accepts connections at addr in the server's namespace and keeps them until the test ends.
func (l *lab) serve(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	l.server.do(t, func() (err error) {
		listener, err = net.Listen("tcp", addr.String())
		return err
	})
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(io.Discard, c) // until the client closes
				c.Close()
			}()
		}
	}()
}

// dial connects from a host of the client's namespace and gives the connection's original tuple.
func (l *lab) dial(t testing.TB, from netip.Addr, to netip.AddrPort) (Tuple, error) {
	t.Helper()
	var c net.Conn
	var dialErr error
	l.client.do(t, func() error {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		c, dialErr = d.Dial("tcp", to.String())
		return nil
	})
	if dialErr != nil {
		return Tuple{}, dialErr
	}
	t.Cleanup(func() { c.Close() })
	return Tuple{c.LocalAddr().(*net.TCPAddr).AddrPort(), to}, nil
}

// control opens a control connection.
func (l *lab) control(t testing.TB, from netip.Addr, to netip.AddrPort) Tuple {
	t.Helper()
	master, err := l.dial(t, from, to)
	if err != nil {
		t.Fatalf("control connection: %v", err)
	}
	return master
}

// refused asserts that the gateway does not let a connection through.
func (l *lab) refused(t testing.TB, what string, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	_, err := l.dial(t, from, to)
	if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
		t.Errorf("%s: %s to %s: got %v, want the gateway's refusal", what, from, to, err)
	}
}

// table lists the expectations in the gateway.
func (l *lab) table(t testing.TB) []Expectation {
	t.Helper()
	list, err := l.conn.Expectations()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// inject makes a conntrack entry in the gateway without any packet.
func (l *lab) inject(nl *netlink.Conn, t Tuple) error {
	var e encoder
	e.family(familyOf(t.Src.Addr()))
	e.tuple(ctaTupleOrig, t)
	e.tuple(ctaTupleReply, Tuple{t.Dst, t.Src})
	e.uint32(ctaTimeout, 600)
	_, err := execute(nl, unix.NFNL_SUBSYS_CTNETLINK, msgCTNew, netlink.Create|netlink.Excl|netlink.Acknowledge, e.b)
	return err
}

// await waits until ok, or fails the test.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
