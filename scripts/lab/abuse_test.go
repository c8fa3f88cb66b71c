package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
)

// policyWith is the lab's policy with some words replaced: pairs of old and new.
func policyWith(t *testing.T, oldnew ...string) string {
	t.Helper()
	text := Policy()
	for i := 0; i < len(oldnew); i += 2 {
		if strings.Count(text, oldnew[i]) != 1 {
			t.Fatalf("the policy does not have %q once", oldnew[i])
		}
		text = strings.Replace(text, oldnew[i], oldnew[i+1], 1)
	}
	return text
}

const denials = `    opaque-active: pinhole
    commands:
      deny: [SITE, STOR /private]
`

// opaque takes a scripted session behind its greeting into TLS, of which ftpalg sees records only.
func (e *ends) opaque(t *testing.T, version uint16) (client, server *tls.Conn) {
	t.Helper()
	return e.opaqueOver(t, version, e.server)
}

// opaqueOver is opaque with the server's TLS over something of the test's that wraps its connection.
func (e *ends) opaqueOver(t *testing.T, version uint16, wire net.Conn) (client, server *tls.Conn) {
	t.Helper()
	cert, key, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	e.tell(t, fromServer, "220 ready")
	e.tell(t, fromClient, "AUTH TLS")
	e.tell(t, fromServer, "234 go ahead")
	// The certificate is not what is tested here.
	client = tls.Client(e.client, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
	server = tls.Server(wire, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: version, MaxVersion: version})
	shaken := make(chan error, 1)
	for _, c := range []net.Conn{client, server} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	go func() { shaken <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	// What is asked before a login is over earns nothing.
	for range 2 {
		exchange(t, client, server)
	}
	return client, server
}

// pass sends a line over an open connection and waits until it has arrived.
func pass(from, to net.Conn, line string) error {
	if err := to.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(from, line+"\r\n"); err != nil {
		return err
	}
	got, err := hear(to, len(line)+2, patience)
	if err == nil && got != line+"\r\n" {
		err = fmt.Errorf("%q arrived as %q", line, got)
	}
	return err
}

// exchange is one request and its reply inside TLS: what earns a credit.
func exchange(t *testing.T, client, server net.Conn) {
	t.Helper()
	if err := pass(client, server, "NOOP"); err != nil {
		t.Fatal(err)
	}
	if err := pass(server, client, "200 ok"); err != nil {
		t.Fatal(err)
	}
}

// answered counts the answers to a SYN from a host to each target.
func answered(t *testing.T, l *Lab, from Host, targets []netip.AddrPort) int {
	t.Helper()
	result, err := l.Probe(from, targets)
	if err != nil {
		t.Fatal(err)
	}
	return len(result.Answered)
}

// A client inside TLS that scans the passive range gets one port for a request with its reply, and nothing for anything
// less; the requests before do not add up.
func TestScanGetsOnePortForACredit(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	server4 := Addr(Server, IPv4)
	scan := Targets(server4, NeverPassive)
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			if n := answered(t, l, Client, scan); n != 0 {
				t.Fatalf("without a session %d ports answered", n)
			}
			client, server := scripted(t, l, IPv4).opaque(t, version)
			if n := answered(t, l, Client, scan); n != 0 {
				t.Errorf("a handshake alone opened %d ports", n)
			}
			if err := pass(server, client, "220 unasked"); err != nil {
				t.Fatal(err)
			}
			if n := answered(t, l, Client, scan); n != 0 {
				t.Errorf("what the server said unasked opened %d ports", n)
			}
			if err := pass(client, server, "NOOP"); err != nil {
				t.Fatal(err)
			}
			if n := answered(t, l, Client, scan); n != 0 {
				t.Errorf("a request without a reply opened %d ports", n)
			}
			if err := pass(server, client, "200 ok"); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				exchange(t, client, server)
			}
			mark := d.Mark()
			if n := answered(t, l, Client2, scan); n != 0 {
				t.Errorf("another host reached %d ports by the client's credit", n)
			}
			if n := answered(t, l, Client, scan); n != 1 {
				t.Errorf("six exchanges opened %d ports, want 1", n)
			}
			if n := answered(t, l, Client, scan); n != 0 {
				t.Errorf("a second scan reached %d ports", n)
			}
			waitLog(t, d, mark, "audit", "no-credit")
			if n := count(d, mark, msgPinhole, ""); n != 1 {
				t.Errorf("%d pinholes in the log, want 1", n)
			}
			if n := answered(t, l, Client, []netip.AddrPort{netip.AddrPortFrom(server4, 22), netip.AddrPortFrom(server4, 3306)}); n != 0 {
				t.Errorf("%d ports outside the passive range answered", n)
			}
		})
	}
}

// In active mode inside TLS the server gets one of the client's ports for a credit, and no privileged one.
func TestActiveScanGetsOnePortForACredit(t *testing.T) {
	l := newLab(t)
	startFTPAlg(t, l, Policy())
	near := Addr(Client, IPv6)
	client, server := scripted(t, l, IPv6).opaque(t, tls.VersionTLS13)
	scan := Targets(near, NeverActive)
	if n := answered(t, l, Server, scan); n != 0 {
		t.Errorf("without a credit %d ports answered", n)
	}
	exchange(t, client, server)
	if n := answered(t, l, Server, Targets(near, Ports{1, 40})); n != 0 {
		t.Errorf("%d privileged ports answered", n)
	}
	if n := answered(t, l, Server2, scan); n != 0 {
		t.Errorf("another host reached %d ports by the server's credit", n)
	}
	if n := answered(t, l, Server, scan); n != 1 {
		t.Errorf("an exchange opened %d ports, want 1", n)
	}
	if n := answered(t, l, Server, scan); n != 0 {
		t.Errorf("a second scan reached %d ports", n)
	}
}

// A SYN that TCP repeats, because the first was lost behind the gateway, does not cost a second credit.
func TestRepeatedSYNIsFree(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	client, server := scripted(t, l, IPv4).opaque(t, tls.VersionTLS13)
	target := netip.AddrPortFrom(Addr(Server, IPv4), ServerPassive.First)
	listener := listen(t, l, Server, target)
	defer listener.Close()
	lossy := func(verb string) {
		t.Helper()
		if _, err := l.Run(t.Context(), Server, "iptables", "-w", verb, "INPUT", "-p", "tcp", "--dport",
			fmt.Sprint(target.Port()), "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
	}
	lossy("-I")
	exchange(t, client, server)
	mark := d.Mark()
	connected := make(chan error, 1)
	go func() {
		conn, err := l.tryDial(Client, target)
		if err == nil {
			conn.Close()
		}
		connected <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Wait(ctx, "two SYNs at the server", func() (bool, error) {
		out, err := l.Run(ctx, Server, "iptables", "-w", "-nvxL", "INPUT")
		lines := strings.Split(out, "\n")
		var packets int
		if len(lines) > 2 {
			_, err = fmt.Sscan(lines[2], &packets)
		}
		return packets >= 2, err
	})
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, client, server) // the credit that the third SYN must not take
	lossy("-D")
	if err := <-connected; err != nil {
		t.Fatalf("the repeated SYN did not get through: %v", err)
	}
	if n := count(d, mark, msgPinhole, ""); n != 1 {
		t.Errorf("%d pinholes for one connection", n)
	}
	if n := answered(t, l, Client, Targets(target.Addr(), NeverPassive)); n != 1 {
		t.Errorf("the credit behind it opened %d ports, want 1", n)
	}
}

// flood sends SYNs from a host to the passive range until ctx ends, and gives how many.
func flood(ctx context.Context, l *Lab, from Host) (int, error) {
	targets := Targets(Addr(Server, IPv4), NeverPassive)
	var all sync.WaitGroup
	var mu sync.Mutex
	var sent int
	var failed error
	for range 6 { // each waits for answers most of the time
		all.Go(func() {
			for ctx.Err() == nil {
				result, err := l.Probe(from, targets)
				mu.Lock()
				sent += result.Sent
				if err != nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return sent, failed
}

// A flood of SYNs at the passive range starves no session, and does not fill the log: neither that of a stranger, nor
// that of a client, which wastes its own credits only.
func TestSYNFlood(t *testing.T) {
	const auditRate = 20
	l := newLab(t)
	d := startFTPAlg(t, l, policyWith(t, "audit-rate: 10000", fmt.Sprintf("audit-rate: %d", auditRate)))
	plain := scripted(t, l, IPv4)
	plain.login(t)
	client, server := scripted(t, l, IPv4).opaque(t, tls.VersionTLS13)
	for _, from := range []Host{Client2, Client} {
		t.Run(string(from), func(t *testing.T) {
			mark, start := d.Mark(), time.Now()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			done := make(chan struct{})
			var sent int
			var failed error
			go func() {
				sent, failed = flood(ctx, l, from)
				close(done)
			}()
			waitLog(t, d, mark, "lines suppressed", "")
			var worst time.Duration
			for i := range 20 {
				began := time.Now()
				exchange(t, client, server)
				if from != Client {
					transfer(t, l, ServerPassive.First+uint16(2*i))
				}
				plain.tell(t, fromClient, "PASV")
				port := ServerPassive.First + uint16(2*i+1)
				plain.tell(t, fromServer, pasv(port))
				transfer(t, l, port)
				worst = max(worst, time.Since(began))
			}
			stop()
			<-done
			if failed != nil {
				t.Error(failed)
			}
			seconds := int(time.Since(start)/time.Second) + 2
			if n := count(d, mark, "audit", "") + count(d, mark, "deny", ""); n > auditRate*seconds {
				t.Errorf("%d lines in %d s for %d SYNs, want at most %d a second", n, seconds, sent, auditRate)
			}
			t.Logf("%d SYNs in %v; the slowest of 20 rounds took %v", sent, time.Since(start).Round(time.Millisecond), worst)
		})
	}
}

// transfer makes a data connection from the client to a port of the server's, and passes a line over it both ways.
func transfer(t *testing.T, l *Lab, port uint16) {
	t.Helper()
	listener := listen(t, l, Server, netip.AddrPortFrom(Addr(Server, IPv4), port))
	defer listener.Close()
	near := dial(t, l, Client, addrPort(listener.Addr()))
	defer near.Close()
	far, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	_ = far.SetLinger(0) // so that the port can be listened on again
	if err := pass(far, near, "data"); err != nil {
		t.Fatal(err)
	}
	if err := pass(near, far, "more data"); err != nil {
		t.Fatal(err)
	}
}

// A denied command reaches the server as a word that no server knows, of the same length, whole or in two segments. The
// server's refusal reaches the client, and the session goes on.
func TestDeniedCommand(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, policyWith(t, "    opaque-active: pinhole\n", denials))
	for line, reason := range map[string]string{
		"SITE\tCHMOD 777 x":           "bad-command",
		"SITE CHMOD 777 x":            "command-denied",
		"site exec id":                "command-denied",
		"STOR /private/a":             "path-denied",
		"STOR /public/../private/a":   "path-denied",
		"PORT 192,0,2,3,156,64":       "foreign-address",
		"PORT 192,0,2,2,0,22":         "privileged-port",
		"EPRT |1|203.0.113.9|40000|":  "foreign-address",
		"EPRT |2|2001:db8::9|40000|":  "foreign-address",
		"PORT 192,0,2,2,156,64,1":     "bad-host-port",
		"LPRT 4,4,192,0,2,2,2,156,64": "mode-denied",
	} {
		for _, at := range []int{0, 2, len(line) / 2, len(line), len(line) + 1} {
			t.Run(fmt.Sprintf("%s/%d", line, at), func(t *testing.T) {
				family := IPv4
				if at%2 == 1 && !strings.HasPrefix(line, "PORT") {
					family = IPv6
				}
				reason := reason
				if strings.HasPrefix(line, "EPRT") && strings.HasPrefix(line, "EPRT |1|") == (family == IPv6) {
					reason = "other-protocol"
				}
				e := scripted(t, l, family)
				e.login(t)
				mark := d.Mark()
				whole := line + "\r\n"
				for _, segment := range []string{whole[:at], whole[at:]} {
					if _, err := io.WriteString(e.client, segment); err != nil {
						t.Fatal(err)
					}
				}
				want := strings.Repeat("X", len(line)) + "\r\n"
				if heard, err := hear(e.server, len(whole), patience); err != nil || heard != want {
					t.Fatalf("the server got %q, %v; want %q", heard, err, want)
				}
				waitLog(t, d, mark, "deny", reason)
				e.tell(t, fromServer, "500 unknown command")
				e.tell(t, fromClient, "NOOP")
				e.tell(t, fromServer, "200 ok")
			})
		}
	}
}

// A reply that announces what must not be opened reaches the client as a refusal of the same length.
func TestDeniedReply(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	for line, reason := range map[string]string{
		"227 Entering Passive Mode (198,51,100,3,195,80).": "foreign-address",
		"227 Entering Passive Mode (192,0,2,2,195,80).":    "foreign-address",
		"227 Entering Passive Mode (198,51,100,2,0,22).":   "privileged-port",
		"227 Entering Passive Mode (198,51,100,2,195).":    "bad-host-port",
	} {
		for _, at := range []int{0, 3, len(line) / 2, len(line) + 1} {
			t.Run(fmt.Sprintf("%s/%d", line, at), func(t *testing.T) {
				e := scripted(t, l, IPv4)
				e.login(t)
				e.tell(t, fromClient, "PASV")
				mark := d.Mark()
				whole := line + "\r\n"
				for _, segment := range []string{whole[:at], whole[at:]} {
					if _, err := io.WriteString(e.server, segment); err != nil {
						t.Fatal(err)
					}
				}
				heard, err := hear(e.client, len(whole), patience)
				if err != nil || !strings.HasPrefix(heard, "425 ") || !strings.HasSuffix(heard, "\r\n") || strings.Contains(heard, ",") {
					t.Fatalf("the client got %q, %v", heard, err)
				}
				waitLog(t, d, mark, "deny", reason)
				e.tell(t, fromClient, "NOOP")
				e.tell(t, fromServer, "200 ok")
			})
		}
	}
}

// A session that ftpalg ends is reset at both ends, so that nobody waits for a time-out.
func TestEndedSessionIsReset(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, Policy())
	for _, c := range []struct {
		name, reason string
		from         side
		text         string
	}{
		{"commands in the segment of AUTH", "text-around-auth", fromClient, "AUTH TLS\r\nUSER x\r\n"},
		{"the server is no FTP server", "not-ftp", fromServer, "HTTP/1.1 400 Bad Request\r\n"},
		{"SSH", "not-ftp", fromServer, "SSH-2.0-OpenSSH_9.2p1\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := scripted(t, l, IPv4)
			if c.from == fromClient {
				e.tell(t, fromServer, "220 ready")
			}
			mark := d.Mark()
			speaker, listener := e.from(c.from)
			if _, err := io.WriteString(speaker, c.text); err != nil {
				t.Fatal(err)
			}
			// The listener learns of it by itself, the speaker when it repeats itself at the latest.
			wantReset(t, "who was to hear it", listener)
			wantReset(t, "who said it", speaker)
			waitLog(t, d, mark, "session ended", c.reason)
		})
	}
	t.Run("commands behind AUTH", func(t *testing.T) {
		e := scripted(t, l, IPv6)
		e.tell(t, fromServer, "220 ready")
		e.tell(t, fromClient, "AUTH TLS")
		if _, err := io.WriteString(e.client, "USER x\r\n"); err != nil {
			t.Fatal(err)
		}
		wantReset(t, "server", e.server)
		wantReset(t, "client", e.client)
	})
	t.Run("the server's text behind its 234", func(t *testing.T) {
		e := scripted(t, l, IPv4)
		e.tell(t, fromServer, "220 ready")
		e.tell(t, fromClient, "AUTH TLS")
		if _, err := io.WriteString(e.server, "234 go ahead\r\n230 in already\r\n"); err != nil {
			t.Fatal(err)
		}
		wantReset(t, "client", e.client)
		wantReset(t, "server", e.server)
	})
	t.Run("implicit without TLS", func(t *testing.T) {
		listener := listen(t, l, Server, netip.AddrPortFrom(Addr(Server, IPv4), ImplicitPort))
		defer listener.Close()
		near := dial(t, l, Client, addrPort(listener.Addr()))
		defer near.Close()
		far, err := listener.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		if _, err := io.WriteString(near, "USER x\r\n"); err != nil {
			t.Fatal(err)
		}
		wantReset(t, "server", far)
		wantReset(t, "client", near)
	})
}

// An open pinhole is for one host and one port: a second host is refused, and so is the right one elsewhere.
func TestStrangerAtAnOpenPinhole(t *testing.T) {
	l := newLab(t)
	startFTPAlg(t, l, Policy())
	for _, family := range []Family{IPv4, IPv6} {
		near, far := Addr(Client, family), Addr(Server, family)
		number := map[Family]int{IPv4: 1, IPv6: 2}[family] // RFC 2428 section 2
		for _, c := range []struct {
			name           string
			steps          []step
			to             netip.AddrPort
			from, stranger Host
		}{
			{"EPSV", []step{client("EPSV"), server("229 Extended (|||50000|)")}, netip.AddrPortFrom(far, 50000), Client, Client2},
			{"EPRT", []step{client(fmt.Sprintf("EPRT |%d|%s|40000|", number, near))}, netip.AddrPortFrom(near, 40000), Server, Server2},
		} {
			t.Run(c.name+"/"+family.String(), func(t *testing.T) {
				e := scripted(t, l, family)
				e.login(t)
				for _, s := range c.steps {
					if trouble := e.perform(t, s); trouble != "" {
						t.Fatal(trouble)
					}
				}
				at := []netip.AddrPort{c.to}
				beside := []netip.AddrPort{netip.AddrPortFrom(c.to.Addr(), c.to.Port()+1), netip.AddrPortFrom(c.to.Addr(), c.to.Port()-1)}
				if answered(t, l, c.stranger, at) != 0 {
					t.Errorf("%s reached %s", c.stranger, c.to)
				}
				if answered(t, l, c.from, beside) != 0 {
					t.Errorf("%s reached a port beside %s", c.from, c.to)
				}
				if answered(t, l, c.from, at) != 1 {
					t.Errorf("%s did not reach %s", c.from, c.to)
				}
				if answered(t, l, c.from, at) != 0 {
					t.Errorf("%s reached %s twice", c.from, c.to)
				}
			})
		}
	}
}

// A password never gets into the log, however malformed the line is that it comes in. startFTPAlg looks for it.
func TestPasswordIsNotLogged(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, policyWith(t, "    opaque-active: pinhole\n", "    opaque-active: pinhole\n    commands:\n      deny: [PASS, ACCT]\n"),
		"--log-level", "debug")
	for name, segments := range map[string][]string{
		"denied":           {"PASS " + Password + "\r\n"},
		"lower case":       {"pass " + Password + "\r\n"},
		"bare LF":          {"PASS " + Password + "\n"},
		"NUL before it":    {"\x00PASS " + Password + "\r\n"},
		"NUL in its name":  {"PA\x00SS " + Password + "\r\n"},
		"spaces before it": {"  PASS " + Password + "\r\n"},
		"a tab behind it":  {"PASS\t" + Password + "\r\n"},
		"Telnet before it": {"\xff\xf4\xff\xf2PASS " + Password + "\r\n"},
		"Telnet in it":     {"PA\xff\xf1SS " + Password + "\r\n"},
		"CR in its name":   {"PA\rSS " + Password + "\r\n"},
		"two segments":     {"PA", "SS " + Password + "\r\n"},
		"no command":       {"PASS" + Password + "\r\n"},
		"behind another":   {"NOOP\r\nPASS " + Password + "\r\n"},
		"account":          {"ACCT " + Password + "\r\n"},
		"too long":         {"PASS " + Password + strings.Repeat("x", 5000) + "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			e := scripted(t, l, IPv4)
			e.tell(t, fromServer, "220 ready")
			e.tell(t, fromClient, "USER "+User)
			e.tell(t, fromServer, "331 password, please")
			mark := d.Mark()
			for _, segment := range segments {
				if _, err := io.WriteString(e.client, segment); err != nil {
					t.Fatal(err)
				}
			}
			if event := waitLog(t, d, mark, "deny", ""); !strings.Contains(event.Line, "****") || strings.Contains(event.Line, Password) {
				t.Errorf("logged: %s", event.Line)
			}
		})
	}
}

// A command in the payload of the SYN (TCP Fast Open, RFC 7413) does not reach the server unread.
func TestCommandInSYN(t *testing.T) {
	t.Run("without NAT", func(t *testing.T) { commandInSYN(t, newLab(t), "auto", Addr(Client, IPv4)) })
	for _, helper := range []string{"auto", "sane", "ftpalg"} {
		// Such a SYN must not leave untranslated, whatever helper the connection has.
		t.Run("masquerade, helper "+helper, func(t *testing.T) {
			l := newLab(t)
			if err := l.translate(t.Context(), NAT{masks: true}); err != nil {
				t.Fatal(err)
			}
			commandInSYN(t, l, helper, insider.gw4)
		})
	}
}

func commandInSYN(t *testing.T, l *Lab, helper string, seen netip.Addr) {
	const line = "SITE EXEC id\r\n"
	if helper == "ftpalg" {
		if err := conntrack.RegisterOwnHelper(); errors.Is(err, conntrack.ErrNoSubsystem) {
			return // this kernel has none: scripts/kernels shows it where there is one
		}
	}
	d := startFTPAlg(t, l, policyWith(t, "    opaque-active: pinhole\n", denials)+"helper: "+helper+"\n")
	// 1 client, 4 client without a cookie; 2 server, 0x200 server without a cookie, 0x400 every listener.
	for host, bits := range map[Host]int{Client: 0x5, Server: 0x602} {
		if _, err := l.Run(t.Context(), host, "sysctl", "-q", "-w", fmt.Sprintf("net.ipv4.tcp_fastopen=%d", bits)); err != nil {
			t.Fatal(err)
		}
	}
	at := netip.AddrPortFrom(Addr(Server, IPv4), ExplicitPort)
	listener := listen(t, l, Server, at)
	defer listener.Close()
	var fd int
	err := l.InNS(Client, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte(line), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: ExplicitPort, Addr: at.Addr().As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	conn, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if from := addrPort(conn.RemoteAddr()).Addr(); from != seen {
		t.Errorf("the server sees %s, not %s", from, seen)
	}
	if _, err := io.WriteString(conn, "220 ready\r\n"); err != nil {
		t.Fatal(err)
	}
	heard, err := hear(conn, len(line), patience)
	if want := strings.Repeat("X", len(line)-2) + "\r\n"; err != nil || heard != want {
		t.Errorf("the server got %q, %v; want %q", heard, err, want)
	}
	waitLog(t, d, 0, "deny", "command-denied")
}
