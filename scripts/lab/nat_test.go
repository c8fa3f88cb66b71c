package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNATMatrix runs cells of the NAT matrix, so chosen that every two of NAT, control, mode, client and server meet, as far
// as they can; `scripts/demo -nat` runs all of them. `-run TestNATMatrix/dnat/ftpalg` runs those behind DNAT.
func TestNATMatrix(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	config := Config{ServersDir: serversDir, Binary: binary}
	var order []string
	lanes := make(map[string][]Cell)
	for _, c := range Pairwise(Cells()) {
		if lanes[c.Lane()] == nil {
			order = append(order, c.Lane())
		}
		lanes[c.Lane()] = append(lanes[c.Lane()], c)
	}
	for _, lane := range order {
		t.Run(lane, func(t *testing.T) {
			t.Parallel()
			stage, err := NewNATStage(t.Context(), lanes[lane][0], config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stage.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, c := range lanes[lane] {
				if r := stage.RunCell(t.Context(), c); r.Err != nil {
					t.Errorf("%s: %v", c, r.Err)
					for _, e := range r.Log {
						t.Log("ftpalg:", e.Line)
					}
				}
			}
		})
	}
}

// TestNATComesLate: a firewall that is loaded behind ftpalg brings source NAT, and clients announce addresses that have to be
// rewritten.
func TestNATComesLate(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(Cells(), func(c Cell) bool { return c.String() == "snat/ftpalg/vsftpd/ftplib/plain/PORT/v4" })
	c := Cells()[i]
	stage, err := newNATStage(t.Context(), c, Config{ServersDir: serversDir, Binary: binary}, func(s *Stage, ctx context.Context) error {
		if err := c.Guard.install(ctx, s); err != nil {
			return err
		}
		mark := s.Daemon.Mark()
		if err := s.Lab.translate(ctx, c.NAT); err != nil {
			return err
		}
		if !slices.ContainsFunc(s.Daemon.Since(0), func(e Event) bool { return e.Msg == msgReady && strings.Contains(e.Line, `"helper":"ftpalg"`) }) {
			return nil // it has the helper already that it has under NAT
		}
		ctx, cancel := context.WithTimeout(ctx, patient(30*time.Second))
		defer cancel()
		_, err := s.Daemon.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == "helper" })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := stage.RunCell(t.Context(), c); r.Err != nil {
		t.Error(r.Err)
	}
	if err := stage.Close(); err != nil {
		t.Error(err)
	}
}

// An exposure is read from what conntrack prints.
func TestWindows(t *testing.T) {
	w := &watch{proc: &Proc{}}
	tuple := "src=192.0.2.2 dst=203.0.113.2 sport=0 dport=50006 mask-src=255.255.255.255 mask-dst=255.255.255.255 sport=0 dport=65535 " +
		"master-src=192.0.2.2 master-dst=203.0.113.2 sport=40000 dport=21 class=0 helper=ftp"
	_, _ = fmt.Fprintf(&w.proc.log, "[1795560301.100000]\t    [NEW] 300 proto=6 %s\n", tuple) // a buffer does not fail
	if all := w.since(0); len(all) != 1 || !all[0].Closed.IsZero() {
		t.Errorf("one that stands: %v", all)
	}
	_, _ = fmt.Fprintf(&w.proc.log, "[1795560301.600000]\t[DESTROY] 300 proto=6 %s\n", tuple)
	all := w.since(0)
	if len(all) != 1 || all[0].PortSeconds() != 0.5 || !all[0].From.IsSingleIP() || all[0].To.String() != "203.0.113.2:50006" {
		t.Errorf("got %v", all)
	}
}

// Outcome: NAT of IPv6 is NAT. A client behind masquerade reaches a server behind DNAT with EPSV and with EPRT, in clear text,
// where the kernel puts the gateway's address into EPRT, and inside TLS with EPSV.
func TestNATOfIPv6(t *testing.T) {
	l := newLab(t)
	const public = "2001:db8:3::2"
	own := Addr(Server, IPv6)
	err := l.each(t.Context(), Gateway,
		"ip -6 addr add "+public+"/128 dev lo", "ip6tables -w -A INPUT -p tcp -j DROP",
		fmt.Sprintf("ip6tables -w -t nat -A PREROUTING -d %s -p tcp --dport 21 -j DNAT --to-destination [%s]:21", public, own),
		"ip6tables -w -t nat -A POSTROUTING -s 2001:db8:1::/64 -o server -j MASQUERADE")
	if err != nil {
		t.Fatal(err)
	}
	startFTPAlg(t, l, policyWith(t, "    passive:", "    public: [{addresses: [\""+public+"\"]}]\n    passive:"))
	reached := netip.AddrPortFrom(netip.MustParseAddr(public), ExplicitPort)

	e := connectTo(t, l, netip.AddrPortFrom(own, ExplicitPort), reached)
	e.login(t)
	e.tell(t, fromClient, "EPSV")
	e.tell(t, fromServer, "229 Extended (|||50050|)")
	port := netip.AddrPortFrom(reached.Addr(), 50050)
	if n := answered(t, l, Client2, []netip.AddrPort{port}); n != 0 {
		t.Error("another host reaches the announced port")
	}
	if n := answered(t, l, Client, []netip.AddrPort{port}); n != 1 {
		t.Error("the announced port is closed")
	}
	client := addrPort(e.client.LocalAddr())
	listener := listen(t, l, Client, netip.AddrPortFrom(client.Addr(), 0))
	defer listener.Close()
	command := fmt.Sprintf("EPRT |2|%s|%d|\r\n", client.Addr(), addrPort(listener.Addr()).Port())
	if _, err := e.client.Write([]byte(command)); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("EPRT |2|%s|%d|\r\n", addrPort(e.server.RemoteAddr()).Addr(), addrPort(listener.Addr()).Port())
	if heard, err := hear(e.server, len(want), patience); heard != want {
		t.Fatalf("the server heard %q, %v, and not %q", heard, err, want)
	}
	seen := netip.AddrPortFrom(addrPort(e.server.RemoteAddr()).Addr(), addrPort(listener.Addr()).Port())
	if n := answered(t, l, Server, []netip.AddrPort{seen}); n != 1 {
		t.Error("the server does not reach the client")
	}

	inside, server := connectTo(t, l, netip.AddrPortFrom(own, ExplicitPort), reached).opaque(t, tls.VersionTLS13)
	exchange(t, inside, server)
	if n := answered(t, l, Client, Targets(reached.Addr(), NeverPassive)); n != 1 {
		t.Errorf("an exchange inside TLS opened %d ports, want 1", n)
	}
}
