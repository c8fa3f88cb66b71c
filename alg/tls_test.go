package alg

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"ftpalg/policy"
)

// tap is a TLS connection in memory whose bytes pass through an engine, in the order in which they are written.
type tap struct {
	mu      sync.Mutex
	control *Control
	effects []Effect
	now     time.Time
	before  func() // each write; nil for nothing
}

// tapped is one side's socket: what is written is fed to the engine first.
type tapped struct {
	net.Conn
	tap  *tap
	from Side
}

func (s tapped) Write(b []byte) (int, error) {
	s.tap.mu.Lock()
	if s.tap.before != nil {
		s.tap.before()
	}
	s.tap.effects = s.tap.control.Feed(s.tap.now, s.from, b, s.tap.effects)
	s.tap.mu.Unlock()
	return s.Conn.Write(b)
}

var (
	tlsClientAddr = netip.MustParseAddrPort("192.0.2.2:40000")
	tlsServerAddr = netip.MustParseAddrPort("198.51.100.2:21")
)

func newTap(t *testing.T, port uint16) (*tap, tapped, tapped) {
	p := policy.AllowAll()
	server := netip.AddrPortFrom(tlsServerAddr.Addr(), port)
	x := &tap{control: New(p, p.Decide(tlsClientAddr.Addr(), server), tlsClientAddr, server), now: now}
	client, serverConn := loopback(t)
	deadline := time.Now().Add(10 * time.Second)
	client.SetDeadline(deadline)
	serverConn.SetDeadline(deadline)
	return x, tapped{client, x, Client}, tapped{serverConn, x, Server}
}

// loopback gives two ends of a TCP connection: TLS needs its buffers.
func loopback(t *testing.T) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// certificate makes one for both sides.
func certificate(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// shake brings both sides through the handshake.
func shake(t *testing.T, client, server tapped, cc, sc *tls.Config) (*tls.Conn, *tls.Conn) {
	c, s := tls.Client(client, cc), tls.Server(server, sc)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		t.Fatal("client:", err)
	}
	if err := <-done; err != nil {
		t.Fatal("server:", err)
	}
	return c, s
}

// exchange sends a line and reads it at the other end.
func exchange(t *testing.T, from, to io.ReadWriter, line string) {
	t.Helper()
	got := make(chan error, 1)
	buf := make([]byte, len(line))
	go func() {
		_, err := io.ReadFull(to, buf)
		got <- err
	}()
	if _, err := from.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestCredit: one is earned by a request and its reply as application data after the handshake, whatever the version,
// the suite, client certificates and resumption make of the handshake's records.
func TestCredit(t *testing.T) {
	cert := certificate(t)
	cache := tls.NewLRUClientSessionCache(4)
	base := &tls.Config{Certificates: []tls.Certificate{cert}}
	for _, test := range []struct {
		name   string
		client *tls.Config
		server *tls.Config
	}{
		{"TLS 1.3", &tls.Config{}, base},
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, base},
		{"TLS 1.3, no tickets", &tls.Config{}, &tls.Config{Certificates: base.Certificates, SessionTicketsDisabled: true}},
		{"TLS 1.3, client certificate", &tls.Config{Certificates: base.Certificates},
			&tls.Config{Certificates: base.Certificates, ClientAuth: tls.RequireAnyClientCert}},
		{"TLS 1.3, asked for a certificate and has none", &tls.Config{},
			&tls.Config{Certificates: base.Certificates, ClientAuth: tls.RequestClientCert}},
		{"TLS 1.2, client certificate", &tls.Config{Certificates: base.Certificates, MaxVersion: tls.VersionTLS12},
			&tls.Config{Certificates: base.Certificates, ClientAuth: tls.RequireAnyClientCert}},
		{"TLS 1.3, to be resumed", &tls.Config{ClientSessionCache: cache}, base},
		{"TLS 1.3, resumed", &tls.Config{ClientSessionCache: cache}, base},
		{"TLS 1.3, retry of the hello", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP384}},
			&tls.Config{Certificates: base.Certificates, CurvePreferences: []tls.CurveID{tls.CurveP384}}},
	} {
		testCredit := func(t *testing.T, handsOver bool) {
			x, client, server := newTap(t, 990)
			if handsOver {
				x.before = func() { x.control = handOver(t, x.control) }
			}
			test.client.InsecureSkipVerify, test.client.ServerName = true, "server"
			c, s := shake(t, client, server, test.client, test.server)
			x.expectCredit(t, "after the handshake", false)
			exchange(t, s, c, "220 ready\r\n") // the client reads the tickets as well
			x.expectCredit(t, "after the greeting", false)
			x.login(t, c, s)
			x.expectCredit(t, "after the login", false)
			exchange(t, c, s, "PASV\r\n")
			x.expectCredit(t, "after a request", false)
			exchange(t, s, c, "227 ok\r\n")
			x.expectCredit(t, "after its reply", true)
			x.spend(t)
			exchange(t, s, c, "226 more\r\n")
			x.expectCredit(t, "after a reply without a request", false)
			exchange(t, c, s, "NOOP\r\n")
			exchange(t, c, s, "NOOP\r\n")
			exchange(t, s, c, "200 ok\r\n200 ok\r\n")
			x.expectCredit(t, "after two requests", true)
			x.spend(t)
			x.expectCredit(t, "credits do not add up", false)
		}
		t.Run(test.name, func(t *testing.T) { testCredit(t, false) })
		t.Run(test.name+", handed over", func(t *testing.T) { testCredit(t, true) })
	}
}

// login plays one inside TLS, which earns nothing.
func (x *tap) login(t *testing.T, c, s io.ReadWriter) {
	t.Helper()
	exchange(t, c, s, "USER a\r\n")
	exchange(t, s, c, "331 more\r\n")
	exchange(t, c, s, "PASS b\r\n")
	exchange(t, s, c, "230 in\r\n")
}

// TestCreditRate: a scan gets ports for as long as it makes exchanges, but not fast.
func TestCreditRate(t *testing.T) {
	x, client, server := newTap(t, 21)
	c, s := x.explicit(t, client, server, tls.VersionTLS13)
	x.login(t, c, s)
	spent := 0
	for port := range uint16(3 * creditBurst) {
		exchange(t, c, s, "NOOP\r\n")
		exchange(t, s, c, "200 ok\r\n")
		from, to := netip.AddrPortFrom(tlsClientAddr.Addr(), 41000+port), netip.AddrPortFrom(tlsServerAddr.Addr(), 50000+port)
		if why, _ := x.control.SYN(x.now, from, to, 1, nil); why == CreditSpent {
			spent++
		}
	}
	if spent != creditBurst {
		t.Errorf("%d ports at once, want %d", spent, creditBurst)
	}
	from, to := netip.AddrPortFrom(tlsClientAddr.Addr(), 42000), netip.AddrPortFrom(tlsServerAddr.Addr(), 50000)
	if why, _ := x.control.SYN(x.now.Add(creditEvery), from, to, 1, nil); why != CreditSpent {
		t.Errorf("a credit that was too fast: %v, a moment later", why)
	}
}

func (x *tap) expectCredit(t *testing.T, when string, want bool) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if got := x.control.HasCredit(x.now); got != want {
		t.Errorf("%s: credit %v, want %v", when, got, want)
	}
	if x.control.Ended() {
		t.Fatalf("%s: the session was ended: %+v", when, x.effects)
	}
}

var sourcePort uint16 = 50000

// spend opens a just-in-time pinhole, and checks that the SYN's repetition costs nothing and another SYN gets nothing.
func (x *tap) spend(t *testing.T) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	const isn = 1000
	sourcePort++
	from, to := netip.AddrPortFrom(tlsClientAddr.Addr(), sourcePort), netip.AddrPortFrom(tlsServerAddr.Addr(), 50001)
	if why, _ := x.control.SYN(x.now.Add(policy.AllowAll().CreditLifetime), from, to, isn, nil); why != NoCredit {
		t.Errorf("a credit at its end: %v", why)
	}
	foreign := netip.MustParseAddrPort("203.0.113.1:50001")
	if why, _ := x.control.SYN(x.now, foreign, to, isn, nil); why != OutsideRange {
		t.Errorf("a SYN from a stranger: %v", why)
	}
	if why, _ := x.control.SYN(x.now, to, from, isn, nil); why != OutsideRange {
		t.Errorf("a SYN from the server without opaque-active: %v", why)
	}
	why, fx := x.control.SYN(x.now, from, to, isn, nil)
	open := fx[len(fx)-1]
	if why != CreditSpent || open.Kind != OpenPinhole || open.Pinhole.From != from || open.Pinhole.To != to {
		t.Fatalf("the SYN: %v %+v", why, fx)
	}
	if why, fx := x.control.SYN(x.now, from, to, isn, nil); why != SYNRepeated || len(fx) != 0 {
		t.Errorf("the SYN again: %v %+v", why, fx)
	}
	if why, fx := x.control.SYN(x.now, from, to, isn+1, nil); why != NoCredit || len(fx) != 0 {
		t.Errorf("another SYN between the same ports: %v %+v", why, fx)
	}
	to = netip.AddrPortFrom(to.Addr(), 50002)
	if why, fx := x.control.SYN(x.now, from, to, isn, nil); why != NoCredit || len(fx) != 0 {
		t.Errorf("a SYN to the next port: %v %+v", why, fx)
	}
}

// TestSamePortsAgain: a data connection between the ports of the one before, which is likely in active mode, is another one
// and gets a pinhole for its own credit.
func TestSamePortsAgain(t *testing.T) {
	x, client, server := newTap(t, 21)
	c, s := x.explicit(t, client, server, tls.VersionTLS13)
	x.login(t, c, s)
	from, to := netip.MustParseAddrPort("192.0.2.2:41000"), netip.AddrPortFrom(tlsServerAddr.Addr(), 50001)
	for isn := range uint32(3) {
		exchange(t, c, s, "PASV\r\n")
		exchange(t, s, c, "227 ok\r\n")
		x.mu.Lock()
		if why, _ := x.control.SYN(x.now, from, to, isn, nil); why != CreditSpent {
			t.Errorf("connection %d: %v", isn, why)
		}
		if why, _ := x.control.SYN(x.now, from, to, isn, nil); why != SYNRepeated {
			t.Errorf("connection %d, its SYN again: %v", isn, why)
		}
		x.mu.Unlock()
	}
}

// TestCCC: after close_notify clear text is inspected again (RFC 4217 section 12.3), also when only the server sent one; the
// client's own says nothing about the server.
func TestCCC(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, from := range [][]Side{{Server, Client}, {Client, Server}, {Server}, {Client}} {
			testCCC(t, version, from, false)
			testCCC(t, version, from, true)
		}
	}
}

func testCCC(t *testing.T, version uint16, from []Side, handsOver bool) {
	x, client, server := newTap(t, 21)
	if handsOver {
		x.before = func() { x.control = handOver(t, x.control) }
	}
	c, s := x.explicit(t, client, server, version)
	exchange(t, c, s, "CCC\r\n")
	exchange(t, s, c, "200 clear it is\r\n")
	for _, side := range from {
		if side == Server {
			closeNotify(t, s, c)
		} else {
			closeNotify(t, c, s)
		}
	}
	exchange(t, client, server, "PASV\r\n")
	exchange(t, server, client, "227 (198,51,100,2,195,80)\r\n")
	if slices.Equal(from, []Side{Client}) {
		if !x.control.Ended() {
			t.Errorf("TLS %#x: the server's clear text goes on without a close_notify of its own", version)
		}
		return
	}
	if p := x.control.Pinhole(); p.Mode != policy.PASV || p.To.Port() != 50000 {
		t.Errorf("TLS %#x: after close_notify from %v: pinhole %+v, effects %q", version, from, p, describeAll(x.effects))
	}
	x.control.rule.RequireTLS = true
	exchange(t, client, server, "USER a\r\n")
	if got := describeAll(x.effects); !slices.Contains(got, "deny tls-required") {
		t.Errorf("TLS %#x: a login after CCC where TLS is required: %q", version, got)
	}
}

// TestClearWithoutClose: clear text behind no close_notify at all is not read as commands.
func TestClearWithoutClose(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		x, client, server := newTap(t, 21)
		c, s := x.explicit(t, client, server, version)
		exchange(t, c, s, "CCC\r\n")
		exchange(t, s, c, "200 clear it is\r\n")
		exchange(t, client, server, "PASV\r\n")
		if !x.control.Ended() {
			t.Errorf("TLS %#x: clear text went on inside TLS: %q", version, describeAll(x.effects))
		}
	}
}

// explicit speaks up to the end of AUTH TLS's handshake.
func (x *tap) explicit(t *testing.T, client, server tapped, version uint16) (c, s *tls.Conn) {
	t.Helper()
	exchange(t, server, client, "220 ready\r\n")
	exchange(t, client, server, "AUTH TLS\r\n")
	exchange(t, server, client, "234 go on\r\n")
	return shake(t, client, server,
		&tls.Config{InsecureSkipVerify: true, MaxVersion: version}, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
}

// closeNotify sends one and lets the peer read it.
func closeNotify(t *testing.T, from, to *tls.Conn) {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		_, err := to.Read(make([]byte, 1))
		got <- err
	}()
	if err := from.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != io.EOF {
		t.Fatalf("the peer read %v, not close_notify", err)
	}
	from.NetConn().SetDeadline(time.Now().Add(10 * time.Second)) // CloseWrite leaves an expired one
}
