package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// theatre is a lab without a real server: both ends say what the test tells them to, and ftpalg terminates in between.
type theatre struct {
	*Stage
	t     *testing.T
	pair  tls.Certificate // the server's, which ftpalg shows as well
	ports uint16          // passive ports that were used
}

func newTheatre(t *testing.T, policy Termination) *theatre {
	t.Helper()
	return newTheatreUnder(t, policy.Policy)
}

func newTheatreUnder(t *testing.T, policy func(*FTPServer) string) *theatre {
	t.Helper()
	requireRoot(t)
	t.Parallel()
	l := newLab(t)
	s := &theatre{t: t, Stage: &Stage{Lab: l, Server: &FTPServer{CA: l.Path("cert.pem"), Key: l.Path("key.pem")}}}
	cert, key, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(s.Server.CA, cert, 0o644), os.WriteFile(s.Server.Key, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	if s.pair, err = tls.X509KeyPair(cert, key); err != nil {
		t.Fatal(err)
	}
	s.Daemon = startFTPAlg(t, l, policy(s.Server))
	return s
}

// meet connects a client to a port, and gives what the server got on another.
func (s *theatre) meet(to, at uint16) (client, server *control) {
	s.t.Helper()
	listener := listen(s.t, s.Lab, Server, netip.AddrPortFrom(Addr(Server, IPv4), at))
	defer listener.Close()
	client = newControl(dial(s.t, s.Lab, Client, netip.AddrPortFrom(Addr(Server, IPv4), to)))
	conn, err := acceptSoon(listener)
	if err != nil {
		s.t.Fatal(err)
	}
	if from := addrPort(conn.RemoteAddr()).Addr(); from != Addr(Client, IPv4) {
		s.t.Errorf("the server sees %s, not the client", from)
	}
	server = newControl(conn)
	for _, c := range []*control{client, server} {
		s.t.Cleanup(func() { c.conn.Close() })
		if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			s.t.Fatal(err)
		}
	}
	return client, server
}

// greet meets on the explicit port and passes the greeting.
func (s *theatre) greet() (client, server *control) {
	s.t.Helper()
	client, server = s.meet(ExplicitPort, ExplicitPort)
	s.pass(server, client, "220 ready")
	return client, server
}

// login brings a user in who needs no password: nothing opens before.
func (s *theatre) login(client, server *control) {
	s.t.Helper()
	s.pass(client, server, "USER a")
	s.pass(server, client, "230 in")
}

// pass has one end say a line that the other has to hear.
func (s *theatre) pass(from, to *control, line string) {
	s.t.Helper()
	if err := from.PrintfLine("%s", line); err != nil {
		s.t.Fatal(err)
	}
	s.hears(to, line)
}

// hears fails the test unless an end hears a line next. A line that ends in a star may go on as it likes.
func (s *theatre) hears(who *control, want string) {
	s.t.Helper()
	line, err := who.ReadLine()
	prefix, open := strings.CutSuffix(want, "*")
	if err != nil || line != want && !(open && strings.HasPrefix(line, prefix)) {
		s.t.Fatalf("heard %q, %v, want %q", line, err, want)
	}
}

// serverTLS has the server shake hands.
func (s *theatre) serverTLS(c *control) {
	s.t.Helper()
	conn := tls.Server(c.conn, &tls.Config{Certificates: []tls.Certificate{s.pair}})
	if err := conn.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	*c = *newControl(conn)
}

// clientTLS has the client shake hands.
func (s *theatre) clientTLS(c *control) {
	s.t.Helper()
	c.upgrade(s.clientConfig(s.t, explicitPASV))
	if err := c.conn.(*tls.Conn).Handshake(); err != nil {
		s.t.Fatal(err)
	}
}

// Outcome: a server that refuses AUTH is not spoken TLS to; its refusal is the client's, whose session goes on in clear text
// if the client wants that.
func TestAUTHRefused(t *testing.T) {
	s := newTheatre(t, Termination{})
	for refusal, names := range map[string][]string{
		"500 what?": {"AUTH TLS", "AUTH SSL"}, "504 not that": {"AUTH TLS", "AUTH SSL"},
		"431 not now": {"AUTH TLS"}, "534 policy": {"AUTH TLS"}, "421 no": {"AUTH TLS"},
	} {
		t.Run(refusal, func(t *testing.T) {
			mark := s.Daemon.Mark()
			client, server := s.greet()
			if err := client.PrintfLine("AUTH TLS"); err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				s.hears(server, name)
				if err := server.PrintfLine("%s", refusal); err != nil {
					t.Fatal(err)
				}
			}
			s.hears(client, refusal)
			waitLog(t, s.Daemon, mark, "audit", "auth-refused")
			if refusal[:3] != "421" {
				s.pass(client, server, "USER "+User)
				s.pass(server, client, "331 password")
			}
		})
	}
}

// Outcome: where the policy says so the client has TLS although its server refuses it, and the log says that.
func TestAUTHRefusedGoesOn(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"auth-refused: plain"}})
	mark := s.Daemon.Mark()
	client, server := s.greet()
	if err := client.PrintfLine("AUTH TLS"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"AUTH TLS", "AUTH SSL"} {
		s.hears(server, name)
		if err := server.PrintfLine("502 no"); err != nil {
			t.Fatal(err)
		}
	}
	s.hears(client, "234 *")
	s.clientTLS(client)
	waitLog(t, s.Daemon, mark, "audit", "auth-refused")
	s.pass(client, server, "USER "+User)
	s.pass(server, client, "331 password")
}

// Outcome: what a client sends in clear text behind AUTH, and a server behind 234, is not taken for something said in TLS
// (injection).
func TestInjection(t *testing.T) {
	s := newTheatre(t, Termination{})
	client, server := s.greet()
	if _, err := io.WriteString(client.conn, "AUTH TLS\r\nUSER injected\r\nPASS x\r\n"); err != nil {
		t.Fatal(err)
	}
	s.hears(server, "AUTH TLS")
	if _, err := io.WriteString(server.conn, "234 go ahead\r\n331 injected\r\n230 injected\r\n"); err != nil {
		t.Fatal(err)
	}
	s.serverTLS(server)
	s.hears(client, "234 *")
	s.clientTLS(client)
	s.pass(client, server, "NOOP")
	s.pass(server, client, "200 the first in TLS")
}

// Outcome: the same where the gateway speaks AUTH by itself.
func TestInjectionUpstream(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"control: explicit"}})
	client, server := s.meet(ExplicitPort, ExplicitPort)
	if err := server.PrintfLine("220 ready"); err != nil {
		t.Fatal(err)
	}
	s.hears(server, "AUTH TLS")
	if _, err := io.WriteString(server.conn, "234 go ahead\r\n200 injected\r\n200 injected\r\n"); err != nil {
		t.Fatal(err)
	}
	s.serverTLS(server)
	for _, command := range []string{"PBSZ 0", "PROT P"} {
		s.hears(server, command)
		if err := server.PrintfLine("200 ok"); err != nil {
			t.Fatal(err)
		}
	}
	s.hears(client, "220 ready")
	s.pass(client, server, "USER "+User)
	s.pass(server, client, "331 password")
}

// Outcome: a server whose certificate cannot be verified gets nothing of the session. The client is told in FTP where it can
// be, and by an alert elsewhere, and the log has it.
func TestCertificateMismatch(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"name: other.example"}})
	t.Run("explicit", func(t *testing.T) {
		mark := s.Daemon.Mark()
		client, server := s.greet()
		if err := client.PrintfLine("AUTH TLS"); err != nil {
			t.Fatal(err)
		}
		s.hears(server, "AUTH TLS")
		if err := server.PrintfLine("234 go ahead"); err != nil {
			t.Fatal(err)
		}
		s.refusesCertificate(t, server)
		s.hears(client, "421 *")
		waitLog(t, s.Daemon, mark, "audit", "upstream-tls")
	})
	t.Run("implicit", func(t *testing.T) {
		mark := s.Daemon.Mark()
		client, server := s.meet(ImplicitPort, ImplicitPort)
		shaken := make(chan error, 1)
		go func() {
			client.upgrade(s.clientConfig(t, implicitEPSV))
			shaken <- client.conn.(*tls.Conn).Handshake()
		}()
		s.refusesCertificate(t, server)
		if err := <-shaken; err == nil || !strings.Contains(err.Error(), "remote error: tls") {
			t.Errorf("the client got %v, want an alert", err)
		}
		waitLog(t, s.Daemon, mark, "session ended", "upstream-tls")
	})
}

// refusesCertificate has the server shake hands with one who refuses its certificate.
func (s *theatre) refusesCertificate(t *testing.T, c *control) {
	t.Helper()
	conn := tls.Server(c.conn, &tls.Config{Certificates: []tls.Certificate{s.pair}})
	heard, err := io.ReadAll(conn)
	var alert *net.OpError
	if !errors.As(err, &alert) || alert.Op != "remote error" || len(heard) > 0 {
		t.Errorf("the server heard %q, %v, want an alert", heard, err)
	}
}

// Outcome: clients without a certificate of the policy's CA do not get in where it asks for one; ftpalg shows its own to a
// server that asks.
func TestClientCertificates(t *testing.T) {
	cert, key, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	if err := errors.Join(os.WriteFile(certFile, cert, 0o644), os.WriteFile(keyFile, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := newTheatre(t, Termination{
		Upstream: []string{"certificate: " + certFile, "key: " + keyFile}, Rule: []string{"tls: {client-ca: " + certFile + "}"},
	})
	for name, shown := range map[string][]tls.Certificate{"with": {pair}, "without": nil, "another": {s.pair}} {
		t.Run(name, func(t *testing.T) {
			client, server := s.meet(ImplicitPort, ImplicitPort)
			config := s.clientConfig(t, implicitEPSV)
			config.Certificates = shown
			client.upgrade(config)
			conn := tls.Server(server.conn, &tls.Config{Certificates: []tls.Certificate{s.pair}, ClientAuth: tls.RequireAnyClientCert})
			go func() {
				if conn.Handshake() == nil {
					fmt.Fprint(conn, "220 ready\r\n")
				}
			}()
			line, err := client.ReadLine() // a client of TLS 1.3 learns only now what became of its certificate
			if (err == nil) != (name == "with") {
				t.Fatalf("the client got %q, %v", line, err)
			}
			if err != nil {
				return
			}
			if got := conn.ConnectionState().PeerCertificates; len(got) != 1 || !bytes.Equal(got[0].Raw, pair.Certificate[0]) {
				t.Error("the server was shown another certificate")
			}
		})
	}
}

// Outcome: ftpalg does not start with a key that others may read.
func TestKeyFilePermissions(t *testing.T) {
	s := newTheatre(t, Termination{})
	if err := os.Chmod(s.Server.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	policy := s.Lab.Path("policy.yaml")
	mark := s.Daemon.Mark()
	if err := s.Daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	event := waitLog(t, s.Daemon, mark, "policy not reloaded; the old one stays in force", "")
	if !strings.Contains(event.Line, s.Server.Key) {
		t.Errorf("the log does not name the file: %s", event.Line)
	}
	client, server := s.secured() // with the key that it has
	s.pass(client, server, "NOOP")
	s.pass(server, client, "200 ok")
	if err := s.Daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Lab.Run(t.Context(), Gateway, binary, "run", "--policy", policy, "--socket", s.Lab.Path("second.sock"))
	if err == nil || !strings.Contains(out, s.Server.Key) || !strings.Contains(out, "0644") {
		t.Errorf("ftpalg run: %v, %s", err, out)
	}
}

// auth has AUTH agreed on, and the server's side in TLS.
func (s *theatre) auth(client, server *control) {
	s.t.Helper()
	if err := client.PrintfLine("AUTH TLS"); err != nil {
		s.t.Fatal(err)
	}
	s.hears(server, "AUTH TLS")
	if err := server.PrintfLine("234 go ahead"); err != nil {
		s.t.Fatal(err)
	}
	s.serverTLS(server)
	s.hears(client, "234 *")
}

// secured meets on the explicit port, and both sides are in TLS then.
func (s *theatre) secured() (client, server *control) {
	s.t.Helper()
	client, server = s.greet()
	s.auth(client, server)
	s.clientTLS(client)
	return client, server
}

// Outcome: whoever drips, or says nothing where TLS is due, is cut off in time, and so is a handshake over the limit.
func TestSlowHandshakes(t *testing.T) {
	s := newTheatre(t, Termination{Limits: []string{"handshake-timeout: 1s", "handshakes: 3"}})
	hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}
	mark := s.Daemon.Mark()
	client, server := s.greet()
	s.auth(client, server)
	start := time.Now()
	for i := 0; ; i = (i + 1) % len(hello) {
		if _, err := client.conn.Write(hello[i : i+1]); err != nil {
			break // it is over
		}
		if line, err := hear(client.conn, 1, 100*time.Millisecond); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if line != "" {
			t.Fatalf("the dripping client heard %q", line)
		}
		if time.Since(start) > patience {
			t.Fatal("a client that drips is still there")
		}
	}
	waitLog(t, s.Daemon, mark, "session ended", "client-tls")
	if _, err := server.ReadLine(); err == nil {
		t.Error("its server is still spoken to")
	}
}

// Outcome: a data connection whose TLS fails ends with an error, and neither the session nor the TLS session that the server
// wants resumed is lost by that. (vsftpd and Pure-FTPd end the session themselves, gateway or not, and ProFTPD if it has sent
// something already.)
func TestFailedDataHandshake(t *testing.T) {
	s := opened(t, Servers[1], Termination{Rule: []string{"data: relay"}})
	s.write(t, "down.bin", contents)
	for name, speak := range map[string]func(net.Conn) error{
		"no TLS": func(raw net.Conn) error {
			_, err := io.WriteString(raw, "this is no TLS\r\n")
			return err
		},
		"closed": net.Conn.Close,
	} {
		c := s.connect(t, explicitPASV)
		if err := speak(c.openRaw("RETR down.bin")); err != nil {
			t.Fatal(err)
		}
		code, text, err := c.ReadResponse(0)
		if code == 150 {
			code, text, err = c.ReadResponse(0)
		}
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil || code < 400 {
			t.Errorf("%s: %d %s, %v", name, code, text, err)
		}
		// The gateway tells the client at once, and the server may end the session after that.
		if _, err := c.arrange(c.scenario); errors.Is(err, io.EOF) {
			continue
		} else if err != nil {
			t.Fatalf("%s, afterwards: %v", name, err)
		}
		if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
			t.Errorf("%s, afterwards: %d, %d bytes", name, code, len(got))
		}
	}
}

// Outcome: the same where the server does not notice: the client is told that the transfer failed.
func TestFailedDataHandshakeUnnoticed(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"control: plain"}})
	client, server := s.meet(ImplicitPort, ExplicitPort)
	client.upgrade(s.clientConfig(t, implicitEPSV))
	s.pass(server, client, "220 ready")
	s.login(client, server)
	at := netip.AddrPortFrom(Addr(Server, IPv4), PolicyPassive.First)
	listener := listen(t, s.Lab, Server, at)
	defer listener.Close()
	s.login(client, server)
	s.pass(client, server, "EPSV")
	s.pass(server, client, fmt.Sprintf("229 here (|||%d|)", at.Port()))
	s.pass(client, server, "RETR a")
	near := dial(t, s.Lab, Client, at)
	defer near.Close()
	far, err := acceptSoon(listener)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(far, "contents")
	if err := errors.Join(err, far.Close(), server.PrintfLine("150 here it comes\r\n226 done")); err != nil {
		t.Fatal(err)
	}
	s.hears(client, "150 here it comes")
	if _, err := io.WriteString(near, "this is no TLS\r\n"); err != nil {
		t.Fatal(err)
	}
	s.hears(client, "425 *")
	s.pass(client, server, "NOOP")
	s.pass(server, client, "200 ok")
}

// Outcome: an upload that is cut off, by an end of the connection without close_notify or by a reset, does not look complete
// to a server without TLS.
func TestTruncatedUpload(t *testing.T) {
	s := opened(t, Servers[0].with(Setup{NoTLS: true}), Termination{Upstream: []string{"control: plain"}})
	c := s.connect(t, explicitPASV)
	for name, cut := range map[string]func(*net.TCPConn) error{
		"FIN":   (*net.TCPConn).CloseWrite,
		"reset": func(raw *net.TCPConn) error { return errors.Join(raw.SetLinger(0), raw.Close()) },
	} {
		before := s.Server.transfers(NAT{}.seen(IPv4))
		raw := c.openRaw("STOR up.bin").(*net.TCPConn)
		if _, err := tls.Client(raw, c.config).Write(contents); err != nil {
			t.Fatal(err)
		}
		if err := cut(raw); err != nil {
			t.Fatal(err)
		}
		if code, text := c.final(); code < 400 {
			t.Errorf("%s: %d %s", name, code, text)
		}
		if n := s.Server.transfers(NAT{}.seen(IPv4)); n != before {
			t.Errorf("%s: the server takes it for complete", name)
		}
	}
	if code, err := c.put("STOR up.bin", contents); code != 226 || err != nil {
		t.Errorf("a whole one: %d, %v", code, err)
	}
}

// Outcome: an upload that is broken off by a reset does not look complete to a server that takes an end without close_notify
// for the end of the file.
func TestResetUpload(t *testing.T) {
	s := opened(t, Servers[2], Termination{Rule: []string{"data: relay"}})
	c := s.connect(t, explicitPASV)
	raw := c.openRaw("STOR up.bin").(*net.TCPConn)
	if _, err := tls.Client(raw, c.config).Write(contents); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(raw.SetLinger(0), raw.Close()); err != nil {
		t.Fatal(err)
	}
	if code, text := c.final(); code < 400 {
		t.Errorf("%d %s", code, text)
	}
}

// Outcome: when the daemon is killed in the middle of a transfer both ends see a reset, so that neither keeps a part of a file as
// the whole: most take the end of the connection for the end of the file.
func TestKilledTransfer(t *testing.T) {
	s := newTheatre(t, Termination{Rule: []string{"data: relay"}})
	near, far := s.transfer(s.greet())
	defer near.Close()
	defer far.Close()
	for _, way := range [][2]*net.TCPConn{{far, near}, {near, far}} {
		text := make([]byte, len("a part"))
		_, err := io.WriteString(way[0], "a part")
		if err = errors.Join(err, way[1].SetReadDeadline(time.Now().Add(patience))); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], text); err != nil {
			t.Fatal(err)
		}
	}
	kill(t, s.Daemon)
	for name, end := range map[string]*net.TCPConn{"client": near, "server": far} {
		if n, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the %s read %d bytes, %v, and no reset", name, n, err)
		}
	}
}

// frugal takes no more from the kernel than the TLS record that is asked for, as OpenSSL does.
type frugal struct {
	net.Conn
	record bytes.Buffer
}

func (f *frugal) Read(b []byte) (int, error) {
	if f.record.Len() == 0 {
		var header [5]byte
		if _, err := io.ReadFull(f.Conn, header[:]); err != nil {
			return 0, err
		}
		f.record.Write(header[:])
		if _, err := io.CopyN(&f.record, f.Conn, int64(binary.BigEndian.Uint16(header[3:]))); err != nil {
			return 0, err
		}
	}
	return f.record.Read(b)
}

// Outcome: an upload arrives whole whose client reads nothing, as Perl's Net::FTP does: what it had left unread when it
// closes would make a reset of the end.
func TestUploadReadsNothing(t *testing.T) {
	s := opened(t, Servers[2], Termination{Rule: []string{"data: relay"}})
	c := s.connect(t, explicitPASV)
	whole := bytes.Repeat(contents, 1+(1<<20)/len(contents))
	config := c.config.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // who keeps no sessions gets no tickets (RFC 8446 section 4.2.9)
	for range 10 {                                              // the reset is in time to harm only sometimes
		raw := c.openRaw("STOR up.bin").(*net.TCPConn)
		secure := tls.Client(&frugal{Conn: raw}, config)
		_, err := secure.Write(whole)
		if err = errors.Join(err, secure.CloseWrite(), raw.Close()); err != nil {
			t.Fatal(err)
		}
		if code, text := c.final(); code != 226 {
			t.Errorf("%d %s", code, text)
		}
		if err := sameSum("upload", s.Server.File("up.bin"), whole); err != nil {
			t.Error(err)
		}
	}
}

// Outcome: a server that has sent everything and says so before its data connection was even accepted here: the client gets
// all of it all the same.
func TestReplyBeforeData(t *testing.T) {
	s := newTheatre(t, Termination{Rule: []string{"data: relay"}})
	client, server := s.greet()
	s.login(client, server)
	for round := range 100 {
		port := NeverActive.Last + 1 + uint16(round) // none that the client's own connections may have
		at := netip.AddrPortFrom(Addr(Client, IPv4), port)
		s.pass(client, server, fmt.Sprintf("PORT 192,0,2,2,%d,%d", port>>8, port&0xff))
		s.pass(server, client, "200 ok")
		s.pass(client, server, "RETR a")
		listener := listen(t, s.Lab, Client, at)
		data := dial(t, s.Lab, Server, at)
		_, err := io.WriteString(data, "contents")
		if err := errors.Join(err, data.Close(), server.PrintfLine("150 here it comes\r\n226 done")); err != nil {
			t.Fatal(err)
		}
		got, err := acceptSoon(listener)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if text, err := io.ReadAll(got); err != nil || string(text) != "contents" {
			t.Fatalf("round %d: %q, %v", round, text, err)
		}
		s.hears(client, "150 here it comes")
		s.hears(client, "226 done")
		got.Close()
		listener.Close()
	}
}

// transfer has a client ask for something over EPSV, and gives both ends of the relayed data connection.
func (s *theatre) transfer(client, server *control) (near, far *net.TCPConn) {
	s.t.Helper()
	s.ports = (s.ports + 1) % (ServerPassive.Last - ServerPassive.First)
	at := netip.AddrPortFrom(Addr(Server, IPv4), ServerPassive.First+s.ports)
	listener := listen(s.t, s.Lab, Server, at)
	defer listener.Close()
	s.login(client, server)
	s.pass(client, server, "EPSV")
	s.pass(server, client, fmt.Sprintf("229 here (|||%d|)", at.Port()))
	s.pass(client, server, "RETR a")
	near = dial(s.t, s.Lab, Client, at)
	conn, err := acceptSoon(listener)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pass(server, client, "150 here it comes")
	return near, conn
}

// Outcome: a client that takes a byte each 100 ms and then the rest gets what was sent, in order and to the end; so does the
// client of a server that stalls in the middle; and meanwhile the others are served as ever.
func TestSlowEnds(t *testing.T) {
	const slow = 6 * time.Second // longer than a transfer's reply is held back
	s := newTheatre(t, Termination{Rule: []string{"data: relay"}})
	client, server := s.greet()
	near, far := s.transfer(client, server)
	defer near.Close()
	waiting, pausing := s.greet()
	half, stalls := s.transfer(waiting, pausing)
	defer half.Close()
	defer stalls.Close()
	if _, err := io.WriteString(stalls, "one half"); err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 32<<20/16)
	go func() {
		_, _ = far.Write(sent)
		_ = far.Close()
	}()
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	var got []byte
	for start := time.Now(); time.Since(start) < slow; <-pace.C {
		one := make([]byte, 1)
		if _, err := near.Read(one); err != nil {
			t.Fatalf("the slow reader got %d bytes, and then %v", len(got), err)
		}
		got = append(got, one...)
		other := time.Now()
		s.wholeSession()
		if took := time.Since(other); took > slow/2 {
			t.Fatalf("another session took %v meanwhile", took)
		}
	}
	rest, err := io.ReadAll(near)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("the slow reader got %d of %d bytes, and %v", len(got), len(sent), err)
	}
	_, err = io.WriteString(stalls, ", and the other")
	if err := errors.Join(err, stalls.Close()); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(half); err != nil || string(text) != "one half, and the other" {
		t.Errorf("the transfer that stalled gave %q, %v", text, err)
	}
	for _, ends := range [][2]*control{{client, server}, {waiting, pausing}} {
		s.pass(ends[1], ends[0], "226 done")
		s.pass(ends[0], ends[1], "NOOP")
	}
}

// Outcome: implicit clients that say nothing are cut off in time; while they fill the limit on handshakes another one is turned
// away at once, and when they are gone the next is served.
func TestHandshakesInFlight(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"control: plain"}, Limits: []string{"handshake-timeout: 2s", "handshakes: 3"}})
	mark := s.Daemon.Mark()
	start := time.Now()
	var silent []*control
	for range 3 {
		client, _ := s.meet(ImplicitPort, ExplicitPort)
		silent = append(silent, client)
	}
	over, _ := s.meet(ImplicitPort, ExplicitPort)
	if line, err := over.ReadLine(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a handshake over the limit: %q, %v", line, err)
	}
	waitLog(t, s.Daemon, mark, "session ended", "client-tls")
	if time.Since(start) >= 2*time.Second {
		t.Error("what is over the limit is not turned away at once")
	}
	for _, c := range silent {
		if line, err := c.ReadLine(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a silent client: %q, %v", line, err)
		}
	}
	client, server := s.meet(ImplicitPort, ExplicitPort)
	client.upgrade(s.clientConfig(t, implicitEPSV))
	s.pass(server, client, "220 ready")
}

// Outcome: sessions of all kinds, failures included, leave nothing in the daemon: no descriptor and no thread, and hardly any
// memory beyond what the first took until there was a garbage collection: that waits for 32 MiB, some hundred whole sessions.
func TestTerminatedLeavesNothing(t *testing.T) {
	s := newTheatre(t, Termination{Rule: []string{"data: relay"}, Limits: []string{"handshake-timeout: 2s"}})
	kinds := []func(){s.wholeSession, s.silentClient, s.brokenHandshake, s.refusedServer}
	rounds := func(n int) {
		for range n {
			for _, kind := range kinds {
				kind()
			}
		}
	}
	rounds(125)
	before := s.usage(t)
	rounds(500)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var after usage
	err := Wait(ctx, "the daemon to be as it was", func() (bool, error) {
		after = s.usage(t)
		return after.descriptors <= before.descriptors && after.sessions == 0, nil
	})
	// Its threads and its memory may grow a little with what happens at the same time, but not with the number of sessions.
	if err != nil || after.threads > before.threads+8 || after.resident > before.resident+16<<10 {
		t.Errorf("%v: %+v after 500 sessions, %+v after 2500", err, before, after)
	}
}

// usage is what the daemon holds.
type usage struct{ descriptors, threads, sessions, resident int } // resident in KiB

func (s *theatre) usage(t *testing.T) (u usage) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.Daemon.PID())
	open, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads) // the lines that it is not are passed over
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &u.resident)
	}
	u.descriptors, u.sessions = len(open), len(sessionList(t, s.Lab, s.Daemon))
	return u
}

// end resets both ends of a connection, so that 2000 of them leave no port in TIME_WAIT.
func end(conns ...*control) {
	for _, c := range conns {
		raw, ok := c.conn.(*net.TCPConn)
		if secured, isTLS := c.conn.(*tls.Conn); isTLS {
			raw, ok = secured.NetConn().(*net.TCPConn)
		}
		if ok {
			_ = raw.SetLinger(0) // the test is not about this
		}
		_ = raw.Close()
	}
}

// wholeSession has TLS, a login and a relayed transfer.
func (s *theatre) wholeSession() {
	client, server := s.secured()
	defer end(client, server)
	s.pass(client, server, "USER "+User)
	s.pass(server, client, "230 in")
	data, conn := s.transfer(client, server)
	near, far := newControl(data), newControl(conn)
	defer end(near, far)
	s.pass(far, near, "contents")
	end(far)
	if err := server.PrintfLine("226 done"); err != nil {
		s.t.Fatal(err)
	}
	s.hears(client, "226 *")
}

// silentClient connects and goes away.
func (s *theatre) silentClient() { end(s.meet(ImplicitPort, ImplicitPort)) }

// brokenHandshake says what is no TLS.
func (s *theatre) brokenHandshake() {
	client, server := s.greet()
	defer end(client, server)
	s.auth(client, server)
	if _, err := io.WriteString(client.conn, "this is no TLS\r\n"); err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.ReadAll(client.conn) // until it is cut off
}

// refusedServer is a client whose server is not there: nobody ever listens at this address. (A listener that was closed
// lives on for a moment in a child of ours that is about to become another program.)
func (s *theatre) refusedServer() {
	client := newControl(dial(s.t, s.Lab, Client, netip.AddrPortFrom(Addr(Server, IPv6), ExplicitPort)))
	defer end(client)
	s.hears(client, "421 *")
}
