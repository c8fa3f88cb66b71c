package rules

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/internal/lab"
	"ftpalg/policy"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience bounds every wait for what must happen. It is long because an emulated machine is slow.
const patience = 20 * time.Second

var noise = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// saved is everything that both tools of a variant have, without counters and dates, and all rules and routes of policy
// routing.
func saved(t testing.TB, v Variant) string {
	t.Helper()
	var all string
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, table := range tables {
			// Not what it says to standard error, which would come between parts of a long table: that the other variant has one, too.
			out, err := exec.Command(v.command(tool, "save"), "-t", table.Name).Output()
			if err != nil {
				t.Fatalf("%s: %v\n%s", tool, err, out)
			}
			all += noise.ReplaceAllString(string(out), "")
		}
	}
	for _, ip := range []string{"ip -4 rule show", "ip -4 route show table all", "ip -6 rule show", "ip -6 route show table all"} {
		words := strings.Fields(ip)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", ip, err, out)
		}
		all += string(out)
	}
	return all
}

func TestInstallAndRemove(t *testing.T) {
	lab.NeedRoot(t)
	for _, v := range []Variant{Legacy, NFT} {
		t.Run(string(v), func(t *testing.T) { installAndRemove(t, v, config(t)) })
		t.Run(string(v)+" terminating", func(t *testing.T) { installAndRemove(t, v, terminating(t)) })
	}
}

func installAndRemove(t *testing.T, v Variant, cfg Config) {
	ctx := t.Context()
	for _, rule := range []string{
		"-t raw -A PREROUTING -p udp --dport 53 -j NOTRACK", "-t mangle -A PREROUTING -j MARK --set-mark 7",
		"-t filter -N theirs", "-t filter -A FORWARD -j theirs", "-t filter -A theirs -p tcp --dport 22 -j ACCEPT",
	} {
		lab.Run(t, v.command("iptables", "")+" -w "+rule)
		lab.Run(t, v.command("ip6tables", "")+" -w "+rule)
	}
	for _, ip := range []string{"ip -4", "ip -6"} {
		lab.Run(t, ip+" rule add pref 50 fwmark 0x1/0x1 lookup 100")
		lab.Run(t, ip+" route add local default dev lo table 100")
		t.Cleanup(func() { lab.Run(t, ip+" rule del pref 50"); lab.Run(t, ip+" route flush table 100") })
	}
	before := saved(t, v)
	cfg.Variant = v
	set := IPTables(cfg)
	if missing, err := Present(ctx, set); err != nil || len(missing) == 0 {
		t.Errorf("before Install: %v, %v", missing, err)
	}
	install := func() string {
		t.Helper()
		if err := Install(ctx, set); err != nil {
			t.Fatal(err)
		}
		if missing, err := Present(ctx, set); err != nil || len(missing) > 0 {
			t.Errorf("after Install: %v, %v", missing, err)
		}
		return saved(t, v)
	}
	first := install()
	if again := install(); again != first {
		t.Errorf("a second Install changes the rules:\n%s\nto\n%s", first, again)
	}
	// What a daemon with another policy left when it was killed.
	lab.Run(t, v.command("iptables", "")+" -w -N FTPALG-SERVER7")
	lab.Run(t, v.command("iptables", "")+" -w -A FTPALG-SERVER7 -j DROP")
	lab.Run(t, v.command("iptables", "")+" -w -A FTPALG-DATA -g FTPALG-SERVER7")
	lab.Run(t, v.command("iptables", "")+" -w -A FORWARD -j FTPALG-SERVER7")
	lab.Run(t, "ip -6 rule add pref 21 fwmark 0x400/0x400 lookup 2100 protocol 21")
	lab.Run(t, "ip -6 route add local default dev lo table 2100 proto 21")
	if missing, err := Present(ctx, set); err != nil || len(missing) != 1 {
		t.Errorf("with a foreign rule in our chain: %v, %v", missing, err)
	}
	if again := install(); again != first {
		t.Errorf("Install does not replace what was left:\n%s\nis now\n%s", first, again)
	}
	for range 2 { // the second time nothing is there
		if err := v.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if after := saved(t, v); after != before {
			t.Errorf("before Install:\n%s\nafter Remove:\n%s", before, after)
		}
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, table := range tables {
			lab.Run(t, v.command(tool, "")+" -w -t "+table.Name+" -F")
			lab.Run(t, v.command(tool, "")+" -w -t "+table.Name+" -X")
		}
	}
}

// TestScript runs what is printed, twice, and expects what Install makes.
func TestScript(t *testing.T) {
	lab.NeedRoot(t)
	t.Run("inspecting", func(t *testing.T) { runScript(t, config(t)) })
	t.Run("terminating", func(t *testing.T) { runScript(t, terminating(t)) })
}

func runScript(t *testing.T, cfg Config) {
	set := IPTables(cfg)
	if err := Install(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(context.Background()) })
	want := saved(t, Default)
	if err := Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command("sh")
		cmd.Stdin = strings.NewReader(set.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := saved(t, Default); got != want {
			t.Errorf("the script makes\n%s\nInstall makes\n%s", got, want)
		}
	}
}

func TestInstallNamesTheRule(t *testing.T) {
	lab.NeedRoot(t)
	cfg := config(t)
	cfg.Helper = "nosuchhelper"
	err := Install(t.Context(), IPTables(cfg))
	if err == nil || !strings.Contains(err.Error(), "nosuchhelper") || !strings.Contains(err.Error(), "iptables-restore") {
		t.Errorf("got %v", err)
	}
	if err := Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// underTest is the back end whose rules meet real packets. Those of nft need a kernel that not every machine has
// (nft_kernel_test.go).
var underTest = BackendIPTables

// install builds the lab and puts the rules for a helper in force on a gateway that forwards nothing else.
func install(t testing.TB, change func(*Config)) {
	t.Helper()
	lab.Build(t)
	if underTest == BackendNFT {
		theirFirewall(t, "forward")
	} else {
		for _, tool := range []string{"iptables", "ip6tables"} {
			lab.Run(t, tool+" -w -P FORWARD DROP")
			t.Cleanup(func() { lab.Run(t, tool+" -w -P FORWARD ACCEPT") })
		}
	}
	cfg := config(t)
	cfg.Queues, cfg.Helper = [2]uint16{21, 21}, "ftp"
	if change != nil {
		change(&cfg)
	}
	if err := Install(t.Context(), underTest.Rules(cfg)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// crafted makes an IP packet from client to server port 21, with a header of its own making. extra are IPv4 options, or
// IPv6 extension headers beginning with a hop-by-hop header.
func crafted(v6 bool, flags byte, extra, options, payload []byte) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 21)
	tcp[12], tcp[13] = byte((20+len(options))/4)<<4, flags
	body := append(append(tcp, options...), payload...)
	var packet []byte
	if v6 {
		packet = make([]byte, 40)
		packet[0], packet[6], packet[7] = 0x60, 6, 64
		if len(extra) > 0 {
			packet[6] = 0
		}
		binary.BigEndian.PutUint16(packet[4:], uint16(len(extra)+len(body)))
		copy(packet[8:], netip.MustParseAddr("2001:db8:1::2").AsSlice())
		copy(packet[24:], netip.MustParseAddr("2001:db8:2::2").AsSlice())
	} else {
		packet = make([]byte, 20)
		packet[0], packet[8], packet[9] = 0x40|byte((20+len(extra))/4), 64, 6
		binary.BigEndian.PutUint16(packet[2:], uint16(20+len(extra)+len(body)))
		copy(packet[12:], []byte{192, 0, 2, 2, 198, 51, 100, 2})
	}
	packet = append(append(packet, extra...), body...)
	if err := nfq.FixChecksums(packet); err != nil {
		panic(err)
	}
	return packet
}

// TestPayloadReachesQueue has the kernel run the payload program on packets that come in on a wire. What is inspected meets
// the queue in the same way where other clients of the same server are terminated.
func TestPayloadReachesQueue(t *testing.T) {
	t.Run("all inspected", func(t *testing.T) { payloadReachesQueue(t, nil) })
	t.Run("others terminated", func(t *testing.T) {
		payloadReachesQueue(t, func(c *Config) {
			c.Policy = terminating(t).Policy
			c.Policy.Rules[1].Action, c.Policy.Rules[2].Action = policy.Terminate, policy.Inspect
		})
	})
}

func payloadReachesQueue(t *testing.T, change func(*Config)) {
	const (
		fin, syn, ack, urg = 1, 2, 16, 32
	)
	var (
		ipOption   = []byte{148, 4, 0, 0}
		timestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1}
		hopByHop   = []byte{6, 0, 1, 4, 0, 0, 0, 0}
		routing    = []byte{43, 0, 1, 4, 0, 0, 0, 0, 6, 0, 4, 0, 0, 0, 0, 0}
		one        = []byte("x")
	)
	install(t, change)
	neverPickUp(t)
	for _, c := range []struct {
		name   string
		v6     bool
		packet []byte
		want   bool
	}{
		{"v4 pure ACK", false, crafted(false, ack, nil, nil, nil), false},
		{"v4 pure ACK with timestamps", false, crafted(false, ack, nil, timestamps, nil), false},
		{"v4 pure ACK with IP options", false, crafted(false, ack, ipOption, nil, nil), false},
		{"v4 SYN", false, crafted(false, syn, nil, timestamps, nil), false},
		{"v4 FIN", false, crafted(false, fin|ack, nil, nil, nil), false},
		{"v4 one byte", false, crafted(false, ack, nil, nil, one), true},
		{"v4 one byte, zero", false, crafted(false, ack, nil, nil, []byte{0}), true},
		{"v4 one byte, timestamps", false, crafted(false, ack, nil, timestamps, one), true},
		{"v4 one byte, IP options, timestamps", false, crafted(false, ack, ipOption, timestamps, one), true},
		{"v4 FIN with a byte", false, crafted(false, fin|ack, nil, nil, one), true},
		{"v4 urgent byte", false, crafted(false, urg|ack, nil, nil, one), true},
		{"v4 SYN with a byte", false, crafted(false, syn, nil, nil, one), true},
		{"v6 pure ACK", true, crafted(true, ack, nil, timestamps, nil), false},
		{"v6 SYN", true, crafted(true, syn, nil, timestamps, nil), false},
		{"v6 FIN", true, crafted(true, fin|ack, nil, nil, nil), false},
		{"v6 one byte", true, crafted(true, ack, nil, timestamps, one), true},
		{"v6 hop-by-hop, one byte", true, crafted(true, ack, hopByHop, timestamps, one), true},
		{"v6 hop-by-hop and routing, one byte", true, crafted(true, ack, routing, nil, one), true},
		{"v4 urgent, no payload", false, crafted(false, urg|ack, nil, nil, nil), true},
		{"v6 urgent, no payload", true, crafted(true, urg|ack, nil, nil, nil), true},
		{"v6 hop-by-hop, pure ACK: iptables reads it, for want of an offset", true, crafted(true, ack, hopByHop, nil, nil), underTest == BackendIPTables},
	} {
		t.Run(c.name, func(t *testing.T) {
			queued := make(chan string, 16)
			q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) { queued <- string(p.Data) })
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			marker := crafted(c.v6, ack, nil, nil, []byte("marker"))
			lab.Inside(t, "client", func() { err = send(c.v6, c.packet, marker) })
			if err != nil {
				t.Fatal(err)
			}
			var got bool
			for end := time.After(patience); ; {
				select {
				case data := <-queued:
					if strings.HasSuffix(data, "marker") { // it was sent last
						if got != c.want {
							t.Errorf("reached the queue: %v, want %v", got, c.want)
						}
						return
					}
					got = true
				case <-end:
					t.Fatal("the marker did not reach the queue")
				}
			}
		})
	}
}

// TestCarrierGuard: what the helper "sane" would act on does not get to it, from whatever client and with whatever headers. That it
// would act on it is shown with the rules of the guard taken out.
func TestCarrierGuard(t *testing.T) {
	lab.NeedRoot(t)
	install(t, func(c *Config) { c.Queues, c.Helper = [2]uint16{23, 23}, "sane" })
	var q *nfq.Queue
	ready := make(chan struct{})
	q, err := nfq.Open(t.Context(), 23, nfq.Options{}, func(p *nfq.Packet) { <-ready; _ = q.Verdict(p.ID, nfq.Verdict{Accept: true}) })
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	t.Cleanup(func() { q.Close() })
	for _, c := range []struct {
		name           string
		client, server string
		level, option  int
		header         string
	}{
		{name: "IPv4", client: "192.0.2.2", server: "198.51.100.2"},
		{name: "IPv4 with options", client: "192.0.2.2", server: "198.51.100.2", level: unix.IPPROTO_IP, option: unix.IP_OPTIONS, header: "\x94\x04\x00\x00"},
		{name: "IPv6", client: "2001:db8:1::2", server: "2001:db8:2::2"},
		{name: "IPv6 with a hop-by-hop header", client: "2001:db8:1::2", server: "2001:db8:2::2", level: unix.IPPROTO_IPV6, option: unix.IPV6_HOPOPTS, header: "\x00\x00\x01\x04\x00\x00\x00\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := askSANE(t, c.client, c.server, c.level, c.option, c.header); got != 0 {
				t.Errorf("%d expectations", got)
			}
		})
	}
	if underTest == BackendNFT {
		return
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		lab.Run(t, tool+" -w -t mangle -F "+carrierChain)
	}
	if got := askSANE(t, "192.0.2.2", "198.51.100.2", 0, 0, ""); got != 1 {
		t.Errorf("%d expectations without the guard: this test shows nothing", got)
	}
}

// askSANE has a client send what asks for a port, and the server what names one, and gives the number of expectations then.
func askSANE(t *testing.T, client, server string, level, option int, header string) int {
	l := listen(t, "server", net.JoinHostPort(server, "21"))
	defer l.Close()
	near, err := dial(t, "client", client, net.JoinHostPort(server, "21"), patience)
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // a reset ends it at both ends at once
		_ = near.(*net.TCPConn).SetLinger(0)
		near.Close()
		far.Close()
	}()
	hear := func(from, to net.Conn, text string) {
		fmt.Fprint(from, text)
		_ = to.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.ReadFull(to, make([]byte, len(text))); err != nil {
			t.Fatalf("%q: %d bytes, %v", text, n, err)
		}
	}
	hear(far, near, "220 ready\r\n")
	hear(near, far, "NOOP\r\n")
	if header != "" {
		raw, err := near.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = errors.Join(err, raw.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), level, option, header) }))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprint(near, "\x00\x00\x00\x07abcd")
	_ = far.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := far.Read(make([]byte, 8))
	t.Logf("the server got %d bytes, %v", n, err)
	hear(far, near, "\x00\x00\x00\x00\x00\x00\x00\x16 port 22\r\n")
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	all, err := ct.Expectations()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestForgedServer: what claims to come from a server is read if it comes from where the server is, and dropped if not.
func TestForgedServer(t *testing.T) {
	install(t, nil)
	neverPickUp(t)
	for _, c := range []struct {
		from string
		v6   bool
		want bool
	}{{"server", false, true}, {"client", false, false}, {"server", true, true}, {"client", true, false}} {
		t.Run(fmt.Sprintf("from %s, IPv6 %v", c.from, c.v6), func(t *testing.T) {
			queued := make(chan string, 16)
			q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) { queued <- string(p.Data) })
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			reply := reversed(crafted(c.v6, 16, nil, nil, []byte("reply")), c.v6)
			lab.Inside(t, c.from, func() { err = send(c.v6, reply) })
			if err != nil {
				t.Fatal(err)
			}
			lab.Inside(t, "client", func() { err = send(c.v6, crafted(c.v6, 16, nil, nil, []byte("marker"))) })
			if err != nil {
				t.Fatal(err)
			}
			var got bool
			for end := time.After(patience); ; {
				select {
				case data := <-queued:
					got = got || strings.HasSuffix(data, "reply")
					if !strings.HasSuffix(data, "marker") {
						continue
					}
				case <-end:
					t.Fatal("the marker did not reach the queue")
				}
				break
			}
			if got != c.want {
				t.Errorf("reached the queue: %v, want %v", got, c.want)
			}
		})
	}
}

// neverPickUp has conntrack call INVALID what it would pick up otherwise, and our rules would drop: for tests of the rules after.
func neverPickUp(t *testing.T) {
	t.Helper()
	loose(t, "0")
	t.Cleanup(func() { loose(t, "1") })
}

func loose(t *testing.T, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// TestPickup: what is no SYN begins no control connection, whoever sends it. It is dropped before the queue, and leaves no entry.
func TestPickup(t *testing.T) {
	install(t, func(c *Config) {
		c.Policy = terminating(t).Policy
		c.Policy.Rules[1].Action, c.Policy.Rules[2].Action = policy.Terminate, policy.Inspect
	})
	for _, host := range []string{"203.0.113.9", "2001:db8:9::9"} { // see reversed
		lab.Run(t, "ip route add "+host+" dev client")
		t.Cleanup(func() { lab.Run(t, "ip route del "+host+" dev client") })
	}
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	for _, c := range []struct {
		from string
		v6   bool
		back bool
	}{{"client", false, false}, {"server", false, true}, {"client", true, false}, {"server", true, true}, {"gateway", false, true}, {"gateway", true, true}} {
		t.Run(fmt.Sprintf("from %s, IPv6 %v", c.from, c.v6), func(t *testing.T) {
			lab.Run(t, "conntrack -F")
			queued := make(chan string, 16)
			q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) { queued <- string(p.Data) })
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			packet := crafted(c.v6, 16, nil, nil, []byte("midway"))
			if c.back {
				packet = reversed(packet, c.v6)
			}
			if c.from == "gateway" {
				if err = send(c.v6, packet); errors.Is(err, unix.EPERM) { // dropped in OUTPUT
					err = nil
				}
			} else {
				lab.Inside(t, c.from, func() { err = send(c.v6, packet) })
			}
			if err != nil {
				t.Fatal(err)
			}
			// A SYN with data is read, and was sent last.
			lab.Inside(t, "client", func() { err = send(c.v6, crafted(c.v6, 2, nil, nil, []byte("marker"))) })
			if err != nil {
				t.Fatal(err)
			}
			select {
			case data := <-queued:
				if !strings.HasSuffix(data, "marker") {
					t.Error("it reached the queue")
				}
			case <-time.After(patience):
				t.Fatal("the marker did not reach the queue")
			}
			if list, err := ct.Connections(func(netip.AddrPort) bool { return true }); err != nil || len(list) != 0 {
				t.Errorf("conntrack has %+v, %v", list, err)
			}
		})
	}
}

// letThrough does something while a queue accepts everything, as a control connection's SYN/ACK needs.
func letThrough(t testing.TB, do func()) {
	t.Helper()
	var q *nfq.Queue
	ready := make(chan struct{})
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
		<-ready
		_ = q.Verdict(p.ID, nfq.Verdict{Accept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	defer q.Close()
	do()
}

// TestSynAckReachesQueue: the server's SYN/ACK is read, and neither the client's SYN nor a SYN/ACK of somebody else.
func TestSynAckReachesQueue(t *testing.T) {
	install(t, nil)
	listen(t, "server", ":21")
	var q *nfq.Queue
	var seen []nfq.Flags
	decoder, ready := nfq.NewDecoder(), make(chan struct{})
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
		<-ready
		var seg nfq.Segment
		if err := decoder.Decode(p.Data, &seg); err == nil {
			seen = append(seen, seg.Flags)
		}
		_ = q.Verdict(p.ID, nfq.Verdict{Accept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	for _, to := range []struct{ from, to string }{{"192.0.2.2", "198.51.100.2:21"}, {"2001:db8:1::2", "[2001:db8:2::2]:21"}} {
		if _, err := dial(t, "client", to.from, to.to, patience); err != nil {
			t.Fatal(err)
		}
	}
	q.Close()
	if want := []nfq.Flags{nfq.SYN | nfq.ACK, nfq.SYN | nfq.ACK}; !slices.Equal(seen, want) {
		t.Errorf("flags of what was queued: %#x, want %#x", seen, want)
	}
}

// TestLabelRoom: connections have room for a label while our rules are in force, and always while they are replaced.
func TestLabelRoom(t *testing.T) {
	for _, none := range []bool{false, true} {
		t.Run(fmt.Sprint("NoLabels=", none), func(t *testing.T) {
			install(t, func(c *Config) { c.NoLabels, c.FailOpen = none, true })
			ct, err := conntrack.Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer ct.Close()
			_, near := pair(t) // without a queue, as the rules fail open
			tuple := conntrack.Tuple{Src: near.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: near.RemoteAddr().(*net.TCPAddr).AddrPort()}
			if err := ct.SetLabel(tuple, conntrack.Label{1}, conntrack.Label{1}); errors.Is(err, conntrack.ErrNoLabelRoom) != none || err != nil != none {
				t.Errorf("set a label: %v", err)
			}
		})
	}
}

// reversed is a crafted packet without extra headers as a reply of the server, to a host that both sides have a route to.
func reversed(packet []byte, v6 bool) []byte {
	source, header, server, host := 12, 20, "198.51.100.2", "203.0.113.9"
	if v6 {
		source, header, server, host = 8, 40, "2001:db8:2::2", "2001:db8:9::9"
	}
	copy(packet[source:], append(netip.MustParseAddr(server).AsSlice(), netip.MustParseAddr(host).AsSlice()...))
	ports := packet[header:]
	ports[0], ports[1], ports[2], ports[3] = ports[2], ports[3], ports[0], ports[1]
	if err := nfq.FixChecksums(packet); err != nil {
		panic(err)
	}
	return packet
}

// send puts whole IP packets on the wire.
func send(v6 bool, packets ...[]byte) error {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, p := range packets {
		to := unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
		if v6 {
			to = &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}
		}
		if err := unix.Sendto(fd, p, 0, to); err != nil {
			return err
		}
	}
	return nil
}

// listen listens in a namespace of the lab.
func listen(t testing.TB, name, address string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	lab.Inside(t, name, func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects out of a namespace of the lab, from an address of it.
func dial(t testing.TB, name, from, to string, wait time.Duration) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
	lab.Inside(t, name, func() { c, err = (&net.Dialer{LocalAddr: local, Timeout: wait}).Dial("tcp", to) })
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// TestDataConnections opens data connections, in both directions, that the kernel's ftp helper expects, through a
// gateway that forwards nothing but what our rules accept.
func TestDataConnections(t *testing.T) {
	install(t, nil)
	for _, c := range []struct{ name, client, server, command, reply string }{
		{"IPv4 passive", "192.0.2.2", "198.51.100.2", "PASV", "227 Entering Passive Mode (198,51,100,2,117,48)"},
		{"IPv6 passive", "2001:db8:1::2", "2001:db8:2::2", "EPSV", "229 Entering Extended Passive Mode (|||30000|)"},
		{"IPv4 active", "192.0.2.2", "198.51.100.2", "PORT 192,0,2,2,117,48", "200 OK"},
		{"IPv6 active", "2001:db8:1::2", "2001:db8:2::2", "EPRT |2|2001:db8:1::2|30000|", "200 OK"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dataConnection(t, c.client, c.server, c.command, c.reply, true)
		})
	}
	t.Run("of a server that is not in the policy", func(t *testing.T) {
		// The operator helps and accepts that server's control connections; its data is not ours to let through.
		lab.Run(t, "ip -n server addr add 198.51.100.3/24 dev eth0")
		t.Cleanup(func() { lab.Run(t, "ip -n server addr del 198.51.100.3/24 dev eth0") })
		theirs := []string{
			"-t raw %s PREROUTING -d 198.51.100.3 -p tcp --dport 21 -j CT --helper ftp",
			"-t filter %s FORWARD -d 198.51.100.3 -p tcp --dport 21 -j ACCEPT",
			"-t filter %s FORWARD -s 198.51.100.3 -p tcp --sport 21 -j ACCEPT",
		}
		if underTest == BackendNFT {
			theyAccept(t, "198.51.100.3")
			theirs = nil
		}
		for _, rule := range theirs {
			lab.Run(t, "iptables -w "+fmt.Sprintf(rule, "-A"))
			t.Cleanup(func() { lab.Run(t, "iptables -w "+fmt.Sprintf(rule, "-D")) })
		}
		dataConnection(t, "192.0.2.2", "198.51.100.3", "PASV", "227 Entering Passive Mode (198,51,100,3,117,48)", false)
	})
}

// devices are those of the flowtable in dataConnection.
var devices []string

// dataConnection holds a dialogue for which the kernel's helper expects a data connection to port 30000, and wants our
// rules to let that through, or not.
func dataConnection(t *testing.T, client, server, command, reply string, allowed bool) {
	// The queue of this test accepts all: what is tested is what conntrack and the rules make of it.
	var q *nfq.Queue
	ready := make(chan struct{})
	q, err := nfq.Open(t.Context(), 22, nfq.Options{}, func(p *nfq.Packet) { <-ready; _ = q.Verdict(p.ID, nfq.Verdict{Accept: true}) })
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	t.Cleanup(func() { q.Close() })
	cfg := config(t)
	cfg.Queues, cfg.Helper, cfg.Flowtable = [2]uint16{22, 22}, "ftp", devices
	if err := Install(t.Context(), underTest.Rules(cfg)); err != nil {
		t.Fatal(err)
	}
	l := listen(t, "server", net.JoinHostPort(server, "21"))
	control, err := dial(t, "client", client, net.JoinHostPort(server, "21"), patience)
	if err != nil {
		t.Fatalf("control connection: %v", err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for _, step := range []struct {
		from, to net.Conn
		line     string
	}{{far, control, "220 Ready"}, {control, far, "USER x"}, // from these the kernel learns where lines begin
		{far, control, "230 In"}, {control, far, command}, {far, control, reply}} {
		fmt.Fprintf(step.from, "%s\r\n", step.line)
		_ = step.to.SetReadDeadline(time.Now().Add(patience))
		if got, err := bufio.NewReader(step.to).ReadString('\n'); err != nil {
			t.Fatalf("%q arrived as %q: %v", step.line, got, err)
		}
	}
	near, from, at, to := "client", client, "server", server
	if strings.HasPrefix(reply, "200") {
		near, from, at, to = "server", server, "client", client
	}
	data := listen(t, at, net.JoinHostPort(to, "30000"))
	if _, err := dial(t, near, from, net.JoinHostPort(to, "30001"), 300*time.Millisecond); err == nil || !os.IsTimeout(err) {
		t.Errorf("the next port: %v, want silence", err)
	}
	if !allowed {
		if _, err := dial(t, near, from, net.JoinHostPort(to, "30000"), 300*time.Millisecond); err == nil || !os.IsTimeout(err) {
			t.Errorf("the expected data connection: %v, want silence", err)
		}
		return
	}
	c, err := dial(t, near, from, net.JoinHostPort(to, "30000"), patience)
	if err != nil {
		t.Fatalf("the expected data connection: %v", err)
	}
	peer, err := data.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	for _, way := range [][2]net.Conn{{c, peer}, {peer, c}} {
		fmt.Fprint(way[0], "data")
		_ = way[1].SetReadDeadline(time.Now().Add(patience))
		if n, err := way[1].Read(make([]byte, 9)); n != 4 {
			t.Errorf("data connection: %d bytes, %v", n, err)
		}
	}
	if len(devices) > 0 {
		offloaded(t, c)
	}
}

// TestJustInTime: a SYN into the passive range is held before conntrack looks for an expectation, so that one made now is
// there in time; one that nobody is owed is dropped.
func TestJustInTime(t *testing.T) {
	helper, err := conntrack.DetectHelper("auto", false) // ftpalg's own, where the kernel lets it have one
	if err != nil {
		t.Fatal(err)
	}
	install(t, func(c *Config) { c.Helper = helper.Name })
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	for family, h := range casts {
		t.Run(family, func(t *testing.T) { justInTime(t, ct, h) })
	}
}

func justInTime(t *testing.T, ct *conntrack.Conn, h hosts) {
	listen(t, "server", port(h.server, 21))
	var control net.Conn
	letThrough(t, func() { control = reach(t, "client", h.client, port(h.server, 21)) })
	master := conntrack.Tuple{Src: addrPort(control.LocalAddr()), Dst: netip.AddrPortFrom(h.server, 21)}
	var q *nfq.Queue
	var owed atomic.Bool
	var syns atomic.Int32
	ready := make(chan struct{})
	decoder := nfq.NewDecoder()
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
		<-ready
		var seg nfq.Segment
		if err := decoder.Decode(p.Data, &seg); err != nil {
			t.Error(err)
		}
		syns.Add(1)
		if owed.CompareAndSwap(true, false) {
			x := conntrack.Expectation{Master: master, From: seg.Src, To: seg.Dst, Timeout: time.Minute}
			if err := ct.Expect(x); err != nil {
				t.Error(err)
			}
		}
		_ = q.Verdict(p.ID, nfq.Verdict{Accept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	defer q.Close()
	for _, way := range []struct {
		name, near, far string
		from, to        netip.Addr
		port            uint16
	}{{"passive", "client", "server", h.client, h.server, 50007}, {"active", "server", "client", h.server, h.client, 40007}} {
		l := listen(t, way.far, port(way.to, way.port))
		owed.Store(true)
		before := syns.Load()
		talk(t, reach(t, way.near, way.from, port(way.to, way.port)), accept(t, l))
		if n := syns.Load() - before; n != 1 {
			t.Errorf("%s: %d packets of the connection in the queue, want its SYN alone", way.name, n)
		}
		if _, err := dial(t, way.near, way.from.String(), port(way.to, way.port), 300*time.Millisecond); !os.IsTimeout(err) {
			t.Errorf("%s, not owed: %v, want silence", way.name, err)
		}
		if syns.Load()-before < 2 {
			t.Errorf("%s: the SYN that is not owed did not reach the queue", way.name)
		}
	}
}

// TestControlConnections: who may open one is decided at the SYN, in the policy's order.
func TestControlConnections(t *testing.T) {
	install(t, nil)
	for _, address := range []string{"192.0.2.66/24", "203.0.113.200/32"} {
		lab.Run(t, "ip -n client addr add "+address+" dev eth0")
		t.Cleanup(func() { lab.Run(t, "ip -n client addr del "+address+" dev eth0") })
	}
	lab.Run(t, "ip route add 203.0.113.200/32 dev client")
	t.Cleanup(func() { lab.Run(t, "ip route del 203.0.113.200/32") })
	listen(t, "server", ":21")
	listen(t, "server", ":22")
	const refused = "connection refused"
	for _, c := range []struct{ name, from, to, want string }{
		{"allowed", "192.0.2.2", "198.51.100.2:21", ""},
		{"allowed, IPv6", "2001:db8:1::2", "[2001:db8:2::2]:21", ""},
		{"denied by an earlier rule", "192.0.2.66", "198.51.100.2:21", refused},
		{"matched by no rule", "203.0.113.200", "198.51.100.2:21", refused},
		{"not a control port", "192.0.2.2", "198.51.100.2:22", "i/o timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wait := patience
			if c.want == "i/o timeout" {
				wait = 300 * time.Millisecond
			}
			var err error
			letThrough(t, func() { _, err = dial(t, "client", c.from, c.to, wait) })
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestFailAndRefuse: without a daemon payload is dropped, or passes where the policy fails open; and the verdict's mark
// resets a connection.
func TestFailAndRefuse(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		t.Run(fmt.Sprint("failOpen=", failOpen), func(t *testing.T) {
			install(t, func(c *Config) { c.FailOpen = failOpen })
			var far, near net.Conn
			letThrough(t, func() { far, near = pair(t) })
			fmt.Fprint(near, "x")
			_ = far.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			if n, err := far.Read(make([]byte, 1)); (n == 1) != failOpen {
				t.Errorf("payload without a daemon: %d bytes, %v", n, err)
			}
		})
	}
	t.Run("mark", func(t *testing.T) {
		install(t, nil)
		var q *nfq.Queue
		var packets atomic.Int32
		ready := make(chan struct{})
		q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
			<-ready
			last := p.Data[len(p.Data)-1] == 'x'
			if last {
				packets.Add(1)
			}
			_ = q.Verdict(p.ID, nfq.Verdict{Accept: true, SetMark: last, Mark: p.Mark | DefaultMark})
		})
		if err != nil {
			t.Fatal(err)
		}
		close(ready)
		t.Cleanup(func() { q.Close() })
		_, near := pair(t)
		fmt.Fprint(near, "x")
		_ = near.SetReadDeadline(time.Now().Add(patience))
		if _, err := near.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("got %v, want a reset", err)
		}
		if packets.Load() != 1 {
			t.Errorf("%d packets with payload in the queue, want 1", packets.Load())
		}
	})
}

// translate has the operator lead a public address with two control ports to the lab's server, and hide clients from it.
func translate(t *testing.T) {
	t.Helper()
	if underTest == BackendNFT {
		loadNFT(t, `table ip theirnat {
	chain in {
		type nat hook prerouting priority dstnat;
		ip daddr 203.0.113.1 tcp dport 2121 dnat to 198.51.100.2:21
		ip daddr 203.0.113.3 tcp dport 9990 dnat to 198.51.100.2:990
	}
	chain out {
		type nat hook postrouting priority srcnat;
		oifname "server" masquerade
	}
}
`)
		t.Cleanup(func() { lab.Run(t, "nft delete table ip theirnat") })
		return
	}
	for _, rule := range []string{
		"PREROUTING -d 203.0.113.1 -p tcp --dport 2121 -j DNAT --to-destination 198.51.100.2:21",
		"PREROUTING -d 203.0.113.3 -p tcp --dport 9990 -j DNAT --to-destination 198.51.100.2:990",
		"POSTROUTING -o server -j MASQUERADE",
	} {
		lab.Run(t, "iptables -w -t nat -A "+rule)
		t.Cleanup(func() { lab.Run(t, "iptables -w -t nat -D "+rule) })
	}
}

// TestPublicAddress: behind DNAT and masquerade, with another port outside than inside, control connections are read and
// data connections get their pinholes; and what is terminated does not get to DNAT.
func TestPublicAddress(t *testing.T) {
	install(t, func(c *Config) { *c = public(t) })
	translate(t)
	ct, err := conntrack.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	h := casts["IPv4"]
	server := listen(t, "server", port(h.server, 21))
	outside := netip.MustParseAddr("203.0.113.1")
	var q *nfq.Queue
	var master atomic.Pointer[conntrack.Tuple]
	var read atomic.Int32
	ready := make(chan struct{})
	decoder := nfq.NewDecoder()
	q, err = nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
		<-ready
		var seg nfq.Segment
		if err := decoder.Decode(p.Data, &seg); err != nil {
			t.Error(err)
		}
		read.Add(1)
		if seg.Dst == netip.AddrPortFrom(outside, 50007) {
			if err := ct.Expect(conntrack.Expectation{Master: *master.Load(), From: seg.Src, To: seg.Dst, Timeout: time.Minute,
				Real: netip.AddrPortFrom(h.server, 50007)}); err != nil {
				t.Error(err)
			}
		}
		_ = q.Verdict(p.ID, nfq.Verdict{Accept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	close(ready)
	near := reach(t, "client", h.client, port(outside, 2121))
	master.Store(&conntrack.Tuple{Src: addrPort(near.LocalAddr()), Dst: netip.AddrPortFrom(outside, 2121)})
	far := accept(t, server)
	if from := addrPort(far.RemoteAddr()).Addr().String(); from != "198.51.100.1" {
		t.Errorf("the server sees %s, want the gateway", from)
	}
	talk(t, near, far)
	if read.Load() < 2 {
		t.Errorf("%d packets of the control connection in the queue", read.Load())
	}
	passive := listen(t, "server", port(h.server, 50007))
	talk(t, reach(t, "client", h.client, port(outside, 50007)), accept(t, passive))

	p := newProxy(t, h)
	near = reach(t, "client", h.client, "203.0.113.3:9990")
	talk(t, near, p.accept(t, near.LocalAddr().String(), "203.0.113.3:9990"))
}

// TestInstallUnderTraffic: a control connection goes on while the rules are replaced under it.
func TestInstallUnderTraffic(t *testing.T) {
	install(t, nil)
	var q *nfq.Queue
	ready := make(chan struct{})
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) { <-ready; _ = q.Verdict(p.ID, nfq.Verdict{Accept: true}) })
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	defer q.Close()
	far, near := pair(t)
	installed := make(chan error)
	go func() {
		var err error
		for range 8 {
			cfg := config(t)
			cfg.Queues, cfg.Helper = [2]uint16{21, 21}, "ftp"
			if err = Install(t.Context(), underTest.Rules(cfg)); err != nil {
				break
			}
		}
		installed <- err
	}()
	for {
		talk(t, near, far)
		select {
		case err := <-installed:
			if err != nil {
				t.Error(err)
			}
			talk(t, far, near)
			return
		default:
		}
	}
}

// pair opens a control connection and returns both of its ends.
func pair(t testing.TB) (far, near net.Conn) {
	t.Helper()
	l := listen(t, "server", "198.51.100.2:21")
	near, err := dial(t, "client", "192.0.2.2", "198.51.100.2:21", patience)
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return far, near
}
