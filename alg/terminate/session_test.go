package terminate

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 30 * time.Second

// shortIdle is an idle timeout that a test waits for, and that a busy machine does not let pass between two steps.
const shortIdle = 500 * time.Millisecond

// certificates shows one certificate to everybody, and trusts every server.
type certificates struct{ base *tls.Config }

func (c certificates) Downstream(*policy.Server, *policy.Rule, netip.Addr, *x509.Certificate) (*tls.Config, error) {
	return c.base, nil
}

func (c certificates) Upstream(*policy.Server, netip.Addr) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "server"}
}

func (c certificates) HasCertificate(*policy.Server) bool { return true }

func newCertificates(t testing.TB) certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	base := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }}
	base.SetSessionTicketKeys([][32]byte{{1}})
	return certificates{base}
}

// table is a conntrack in memory that knows the connections to the gateway and no others, so that every source port is free.
type table struct {
	conntrack.Fake
	front netip.AddrPort
	mu    sync.Mutex
	marks []uint32
	id    uint32 // of every entry
}

func (c *table) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	if t.Dst != c.front {
		return conntrack.Entry{}, conntrack.ErrNotFound
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return conntrack.Entry{ID: c.id}, nil
}

// marked returns the marks that were set, in order.
func (c *table) marked() []uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.marks)
}

// replace has conntrack forget every connection, and know it by another entry.
func (c *table) replace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id++
}

func (c *table) SetMark(_ conntrack.Tuple, mark, _ uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marks = append(c.marks, mark)
	return nil
}

// end is one end of a control connection in a test.
type end struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func newEnd(t *testing.T, c net.Conn) *end {
	c.SetDeadline(time.Now().Add(testTimeout))
	t.Cleanup(func() { c.Close() })
	return &end{t, c, bufio.NewReader(c)}
}

func (e *end) say(lines ...string) {
	e.t.Helper()
	if _, err := io.WriteString(e.c, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		e.t.Fatalf("say %q: %v", lines, err)
	}
}

func (e *end) hear(want string) {
	e.t.Helper()
	got, err := e.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(got, want) {
		e.t.Fatalf("heard %q (%v), want %q", got, err, want)
	}
}

func (e *end) hearEnd() {
	e.t.Helper()
	if got, err := e.r.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		e.t.Fatalf("heard %q (%v), want the end", got, err)
	}
}

func (e *end) secure(as func(net.Conn) *tls.Conn) *tls.Conn {
	e.t.Helper()
	c := as(e.c)
	if err := c.Handshake(); err != nil {
		e.t.Fatal(err)
	}
	e.c, e.r = c, bufio.NewReader(c)
	return c
}

// world is a gateway between a client and a server of the test's own, over loopback: the client connects to the server's
// own address, as TPROXY would have it look.
type world struct {
	t       *testing.T
	certs   certificates
	faulty  *faulty // conntrack and the certificates
	table   *table
	gateway *Gateway
	client  *end
	front   net.Listener
	back    net.Listener
	events  chan audit.Event
	ctx     context.Context // the gateway's
	stop    func()          // ends it
}

const worldPolicy = `
version: 1
servers:
  - name: server
    addresses: [127.0.0.1]
    explicit: [%d]
    implicit: [%d]
rules:
  - name: all
    action: inspect
`

// newWorld begins a session. change may change the policy before.
func newWorld(t *testing.T, implicit bool, change func(*policy.Policy)) *world {
	t.Helper()
	requireRoot(t)
	front, back := listen(t), listen(t)
	explicit, other := portOf(front), uint16(1)
	if implicit {
		explicit, other = other, explicit
	}
	p, err := policy.Parse("test", fmt.Appendf(nil, worldPolicy, explicit, other))
	if err != nil {
		t.Fatal(err)
	}
	p.Rules[0].Action = policy.Terminate
	p.Servers[0].Upstream.Port = portOf(back)
	if change != nil {
		change(p)
	}
	certs := newCertificates(t)
	made := &faulty{certificates: certs}
	made.front = front.Addr().(*net.TCPAddr).AddrPort()
	w := &world{t: t, certs: certs, faulty: made, table: &made.table, front: front, back: back, events: make(chan audit.Event, 4000)}
	w.gateway = New(Options{
		Policy: p, Certificates: w.faulty, Conntrack: w.faulty, RelayMark: 1, OwnMark: 2,
		Number: func() uint64 { return 1 },
		Report: func(e audit.Event) { w.events <- e },
	})
	ctx, cancel := context.WithCancel(context.Background())
	w.ctx, w.stop = ctx, cancel
	served := make(chan error, 1)
	go func() {
		err := w.gateway.Accept(ctx, front.(*net.TCPListener))
		w.gateway.Serve(ctx)
		served <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		front.Close()
	})
	w.client = newEnd(t, dial(t, front))
	t.Cleanup(func() {
		if t.Failed() {
			w.tell()
		}
	})
	return w
}

// login brings a user in who needs no password: nothing opens before.
func (w *world) login(server *end) {
	w.t.Helper()
	w.client.say("USER a")
	server.hear("USER a")
	server.say("230 in")
	w.client.hear("230 ")
}

// tell logs what the gateway reported.
func (w *world) tell() {
	for {
		select {
		case e := <-w.events:
			w.t.Logf("%v %v %q %v", e.Kind, e.Reason, e.Text, e.Err)
		default:
			return
		}
	}
}

// accept gives the server its end.
func (w *world) accept() *end {
	w.t.Helper()
	w.back.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout))
	c, err := w.back.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return newEnd(w.t, c)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func portOf(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" || os.Getenv("FTPALG_ROOT_TESTS") == "1" {
		t.Fatal("this test needs root, and CI or FTPALG_ROOT_TESTS=1 demands that it runs")
	}
	t.Skip("NOT TESTED: transparent sockets need root")
}

func tlsClient(c net.Conn) *tls.Conn {
	return tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "server"})
}

func (w *world) tlsServer(c net.Conn) *tls.Conn { return tls.Server(c, w.certs.base) }

func TestPlainSession(t *testing.T) {
	w := newWorld(t, false, nil)
	s, c := w.accept(), w.client
	s.say("220-hello", "220 ready")
	c.hear("220-hello")
	c.hear("220 ready")
	c.say("USER lab")
	s.hear("USER lab")
	s.say("331 more")
	c.hear("331 more")
	c.say("PASS secret", "NOOP", "SYST")
	s.hear("PASS secret")
	s.say("230 in")
	c.hear("230 in")
	s.hear("NOOP")
	s.say("200 ok")
	c.hear("200 ok")
	s.hear("SYST")
	s.say("215 UNIX")
	c.hear("215 UNIX")
	c.say("QUIT")
	s.hear("QUIT")
	s.say("221 bye")
	c.hear("221 bye")
	c.hearEnd()
	s.hearEnd()
}

// TestStopWithStalledClient: a client that does not read, or does not shake hands, does not delay the end of the gateway until it
// is given up.
func TestStopWithStalledClient(t *testing.T) {
	for name, stall := range map[string]func(w *world, server *end){
		"reads nothing": func(w *world, server *end) {
			w.client.c.(*net.TCPConn).SetReadBuffer(4 << 10)
			w.client.say("HELP")
			server.hear("HELP")
			server.say("214-")
			help := strings.Repeat(strings.Repeat(" help", 200)+"\r\n", 100)
			for err := error(nil); !errors.Is(err, os.ErrDeadlineExceeded); { // until the gateway does not read any more
				server.c.SetWriteDeadline(time.Now().Add(shortIdle))
				_, err = io.WriteString(server.c, help)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					w.t.Fatal(err)
				}
			}
		},
		"does not shake hands": func(w *world, server *end) {
			w.client.say("AUTH TLS")
			server.hear("AUTH TLS")
			server.say("234 go on")
			server.secure(w.tlsServer)
			w.client.hear("234 ")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, false, func(p *policy.Policy) { p.Limits.HandshakeTimeout = testTimeout })
			server := w.accept()
			server.say("220 ready")
			w.client.hear("220 ")
			stall(w, server)
			began := time.Now()
			w.stop()
			w.gateway.running.Wait()
			if took := time.Since(began); took > writeTimeout/2 {
				t.Errorf("the gateway took %v to end", took)
			}
		})
	}
}

func TestExplicit(t *testing.T) {
	for _, mechanism := range []string{"TLS", "ssl", "TLS-C", "tls-p"} {
		w := newWorld(t, false, nil)
		s, c := w.accept(), w.client
		s.say("220 ready")
		c.hear("220 ready")
		c.say("AUTH "+mechanism, "USER injected")
		s.hear("AUTH TLS")
		s.say("234 go on", "230 injected")
		s.secure(w.tlsServer)
		c.hear("234 ")
		c.secure(tlsClient) // and nothing injected comes first
		c.say("USER lab")
		s.hear("USER lab") // nor here
		s.say("331 more")
		c.hear("331 more")
		c.say("PBSZ 0")
		s.hear("PBSZ 0")
		s.say("200 PBSZ=0")
		c.hear("200 PBSZ=0")
		c.say("PROT P")
		s.hear("PROT P")
		s.say("200 private")
		c.hear("200 private")
		c.say("AUTH TLS")
		c.hear("503 ")
		c.say("QUIT")
		s.hear("QUIT")
		s.say("221 bye")
		c.hear("221 bye")
	}
}

// A client that closes its direction behind its last command still reads the replies.
func TestHalfClosedClient(t *testing.T) {
	w := newWorld(t, false, nil)
	s, c := w.accept(), w.client
	s.say("220 ready")
	c.hear("220 ready")
	c.say("NOOP", "SYST")
	if err := c.c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.hear("NOOP")
	s.say("200 ok")
	c.hear("200 ok")
	s.hear("SYST")
	s.say("215 UNIX")
	c.hear("215 UNIX")
	c.hearEnd()
	s.hearEnd()
}

// drip sends a byte at a time until the other end has had enough, and says how long that took.
func (e *end) drip(b string) time.Duration {
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := 0; time.Since(start) < testTimeout; i++ {
		if _, err := io.WriteString(e.c, b[i%len(b):i%len(b)+1]); err != nil {
			return time.Since(start)
		}
		<-tick.C
	}
	e.t.Fatal("a drip was listened to for ever")
	return 0
}

// Whoever drips is cut off, however often a byte comes: a server within its greeting, a client within its handshake or a
// command.
func TestDrips(t *testing.T) {
	brief := func(p *policy.Policy) {
		p.Limits.IdleTimeout, p.Limits.HandshakeTimeout = shortIdle, shortIdle
	}
	t.Run("greeting", func(t *testing.T) {
		w := newWorld(t, false, brief)
		w.accept().drip("220-slow\r\n")
		w.client.hear("220-") // what came is passed on
	})
	t.Run("command", func(t *testing.T) {
		w := newWorld(t, false, brief)
		w.accept().say("220 ready")
		w.client.drip("N")
	})
	t.Run("handshake", func(t *testing.T) {
		w := newWorld(t, false, brief)
		s := w.accept()
		s.say("220 ready")
		w.client.hear("220 ready")
		w.client.say("AUTH TLS")
		s.hear("AUTH TLS")
		s.say("234 go on")
		s.secure(w.tlsServer)
		w.client.hear("234 ")
		w.client.drip("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00")
	})
	t.Run("server's handshake", func(t *testing.T) {
		w := newWorld(t, true, brief)
		w.accept().drip("\x16\x03\x03\x02\x00\x02\x00\x01\xfc\x03\x03\x00")
		w.client.hearEnd()
	})
}

// As many handshakes as the policy allows are under way at a time; the next is refused.
func TestHandshakesInFlight(t *testing.T) {
	w := newWorld(t, true, func(p *policy.Policy) { p.Limits.Handshakes = 1 })
	w.accept() // and says nothing: the handshake with the server is under way
	second := newEnd(t, dial(t, w.front))
	w.accept()
	second.hearEnd()
}

// A client that has used up its share of handshakes is refused, and leaves room for others.
func TestHandshakesAreShares(t *testing.T) {
	w := newWorld(t, true, func(p *policy.Policy) { p.Limits.Handshakes, p.Limits.HandshakesPerClient = 2, 1 })
	w.accept() // and says nothing: the handshake with the server is under way
	for w.gateway.Books.Handshakes.Used() != 1 {
		runtime.Gosched()
	}
	second := newEnd(t, dial(t, w.front))
	w.accept()
	second.hearEnd()
	if err := w.gateway.handshake(netip.MustParseAddr("192.0.2.9"), func() error { return nil }); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// A client that does not begin its handshake is not waited for.
func TestImplicitHandshakeTimeout(t *testing.T) {
	w := newWorld(t, true, func(p *policy.Policy) { p.Limits.HandshakeTimeout = shortIdle })
	w.acceptTLS()
	w.client.hearEnd()
}

func TestIdleTimeout(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Limits.IdleTimeout = shortIdle })
	s, c := w.accept(), w.client
	s.say("220 ready")
	c.hear("220 ready")
	c.hear("421 ")
	c.hearEnd()
	s.hearEnd()
}

// A command that the server takes longer for than an idle session may last, and its client's silence, end nothing. Once it is
// answered the client is idle.
func TestSlowCommand(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Limits.IdleTimeout = shortIdle })
	s, c := w.loggedIn(), w.client
	c.say("HASH large.iso")
	s.hear("HASH large.iso")
	<-time.After(3 * shortIdle) // what is tested is that nothing happens
	s.say("213 SHA-256 0-49 49f6 large.iso")
	c.hear("213 ")
	c.hear("421 ")
}

// A NOOP that is not answered does not keep the next command waiting for ever. The next command's reply tells that none will come.
func TestUnansweredNOOP(t *testing.T) {
	w := newWorld(t, false, nil)
	s, c := w.loggedIn(), w.client
	c.say("NOOP", "SYST")
	s.hear("NOOP")
	s.hear("SYST")
	s.say("215 UNIX")
	c.hear("215 ")
	c.say("AUTH TLS")
	s.hear("AUTH TLS")
}

// settles reports whether a session holds a transfer's reply back until its data has gone on.
func (w *world) settles() bool {
	w.gateway.mu.Lock()
	defer w.gateway.mu.Unlock()
	for s := range w.gateway.sessions {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.dialogue.settling {
			return true
		}
	}
	return false
}

// A client may say NOOP while it reads data that the server has sent long since, and is answered.
func TestNOOPBesideData(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data, p.Rules[0].MaxSize = policy.DataRelay, 1<<40 })
	s := w.loggedIn()
	l := listen(t)
	w.gateway.running.Go(w.retrieve(s, l))
	far, err := l.Accept() // the other half, which the gateway makes
	if err != nil {
		t.Fatal(err)
	}
	s.say("150 here")
	w.client.hear("150 ")
	s.say("226 done") // before the data has ended
	for !w.settles() {
		runtime.Gosched()
	}
	w.client.say("NOOP")
	w.client.hear("200 ")
	far.Close()
	w.client.hear("226 ")
	w.client.say("NOOP")
	s.hear("NOOP")
}

// acceptTLS gives a server that speaks TLS first its end.
func (w *world) acceptTLS() *end {
	s := w.accept()
	s.secure(w.tlsServer)
	return s
}

func TestImplicit(t *testing.T) {
	w := newWorld(t, true, nil)
	secured := make(chan struct{})
	go func() {
		w.client.secure(tlsClient)
		close(secured)
	}()
	s := w.acceptTLS()
	<-secured
	c := w.client
	s.say("220 ready")
	c.hear("220 ready")
	c.say("PBSZ 0")
	s.hear("PBSZ 0") // assumed already, and yet servers are that want it before PROT
	s.say("200 PBSZ=0")
	c.hear("200 PBSZ=0")
	c.say("PBSZ 0")
	c.hear("200 ")
	c.say("PROT C")
	s.hear("PROT C")
	s.say("200 clear")
	c.hear("200 clear")
	c.say("AUTH TLS")
	c.hear("503 ")
}

// TestPROTWhereThePolicyDemands: where the policy wants TLS with the server, the client's PROT C is no matter of the server's.
func TestPROTWhereThePolicyDemands(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Servers[0].Upstream.Control = policy.Explicit })
	s, c := w.accept(), w.client
	s.say("220 ready")
	s.hear("AUTH TLS")
	s.say("234 go on")
	s.secure(w.tlsServer)
	for _, command := range []string{"PBSZ 0", "PROT P"} {
		s.hear(command)
		s.say("200 ok")
	}
	c.hear("220 ")
	c.say("AUTH TLS")
	c.hear("234 ")
	c.secure(tlsClient)
	for _, command := range []string{"PBSZ 0", "PROT C"} {
		c.say(command)
		c.hear("200 ")
	}
	c.say("SYST")
	s.hear("SYST")
}

// A server that cannot be reached: the client reads why, in clear text or as an alert.
func TestUnreachableServer(t *testing.T) {
	for _, implicit := range []bool{false, true} {
		w := newWorld(t, implicit, func(p *policy.Policy) { p.Servers[0].Upstream.Port = 1 })
		if !implicit {
			w.client.hear("421 ")
			continue
		}
		var remote *net.OpError
		if err := tlsClient(w.client.c).Handshake(); !errors.As(err, &remote) || remote.Op != "remote error" {
			t.Errorf("the handshake ended with %v, not with an alert", err)
		}
	}
}

// TLS on the server's side alone, begun before the client hears the greeting.
func TestNegotiatedServer(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Servers[0].Upstream.Control = policy.Explicit })
	s, c := w.accept(), w.client
	s.say("220-hello", "220 ready")
	s.hear("AUTH TLS")
	s.say("500 what?")
	s.hear("AUTH SSL")
	s.say("234 go on")
	s.secure(w.tlsServer)
	s.hear("PBSZ 0")
	s.say("200 ok")
	s.hear("PROT P")
	s.say("200 ok")
	c.hear("220-hello")
	c.hear("220 ready")
	c.say("USER lab")
	s.hear("USER lab")
}

// CCC, with clients that send close_notify and with those that go on in clear text at once.
func TestCCC(t *testing.T) {
	for _, notify := range []bool{true, false} {
		w := newWorld(t, false, nil)
		s, c := w.accept(), w.client
		s.say("220 ready")
		c.hear("220 ready")
		raw := w.auth(s)
		s = w.ccc(s, raw, notify)
		c = w.client
		c.say("NOOP")
		s.hear("NOOP")
		s.say("200 ok")
		c.hear("200 ok")
	}
}

// A data connection whose handshake is under way, as the client says nothing in it, keeps the TLS of its own time: after CCC the
// session may begin another. (What both touch without a lock the race detector sees.)
func TestDataHandshakeBesideAUTH(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data = policy.DataRelay })
	server, client := w.accept(), w.client
	server.say("220 ready")
	client.hear("220 ")
	raw := w.auth(server)
	w.login(server)
	for _, command := range []string{"PBSZ 0", "PROT P"} {
		client.say(command)
		server.hear(command)
		server.say("200 ok")
		client.hear("200 ")
	}
	l := listen(t)
	w.gateway.running.Go(w.retrieve(server, l))
	far, err := l.Accept() // the other half, which the gateway makes
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the gateway's handshake on the data connection: %v", err)
	}
	server.say("426 cut")
	client.hear("426 ")
	w.auth(w.ccc(server, raw, true))
}

// auth has both sides begin TLS, and gives the connections below it: of client and server.
func (w *world) auth(server *end) (raw [2]net.Conn) {
	w.t.Helper()
	w.client.say("AUTH TLS")
	server.hear("AUTH TLS")
	server.say("234 go on")
	raw = [2]net.Conn{w.client.c, server.c}
	server.secure(func(n net.Conn) *tls.Conn { return w.tlsServer(&recordConn{Conn: n}) })
	w.client.hear("234 ")
	w.client.secure(func(n net.Conn) *tls.Conn { return tlsClient(&recordConn{Conn: n}) })
	return raw
}

// ccc has both sides return to clear text, with a close_notify of their own or without.
func (w *world) ccc(server *end, raw [2]net.Conn, notify bool) (clear *end) {
	w.t.Helper()
	w.client.say("CCC")
	server.hear("CCC")
	server.say("200 clear")
	w.client.hear("200 clear")
	for _, e := range []*end{w.client, server} {
		over := e.c.(*tls.Conn)
		if n, err := over.Read(make([]byte, 1)); err != io.EOF {
			w.t.Fatalf("read %d, %v, want close_notify", n, err)
		}
		if notify {
			over.CloseWrite()
		}
	}
	w.client = newEnd(w.t, raw[0])
	return newEnd(w.t, raw[1])
}

// A server that is slow to shake hands, with a pinhole that lapses meanwhile, does not keep the rest of the gateway waiting.
func TestExpireBesideHandshake(t *testing.T) {
	w := newWorld(t, false, nil)
	server := w.accept()
	server.say("220 ready")
	w.client.hear("220 ")
	w.login(server)
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say("229 here (|||50000|)")
	w.client.hear("229 ")
	w.client.say("AUTH TLS")
	server.hear("AUTH TLS")
	server.say("234 go ahead")
	for w.gateway.Books.Handshakes.Used() != 1 { // with the server, which says nothing
		runtime.Gosched()
	}
	expired := make(chan struct{})
	go func() {
		w.gateway.Expire(time.Now().Add(time.Hour))
		close(expired)
	}()
	select {
	case <-expired:
	case <-time.After(testTimeout / 10):
		t.Error("the gateway waits for one session's handshake")
	}
	server.c.Close()
	<-expired
}

// retrieve is transfer for a download, whose client's end the test does not need.
func (w *world) retrieve(server *end, l net.Listener) (hand func()) {
	w.t.Helper()
	_, hand = w.transfer(server, l, "RETR a")
	return hand
}

// transfer has the server announce a listener, a transfer asked for, and the client connect as it would. It returns the client's end
// and the function that hands the connection to the gateway, as TPROXY would.
func (w *world) transfer(server *end, l net.Listener, command string) (data net.Conn, hand func()) {
	w.t.Helper()
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say(fmt.Sprintf("229 here (|||%d|)", portOf(l)))
	w.client.hear("229 ")
	w.client.say(command)
	server.hear(command)
	data = dial(w.t, l)
	w.t.Cleanup(func() { data.Close() })
	near, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	c := near.(*net.TCPConn)
	client, to := endpoints(c)
	return data, func() { w.gateway.data(w.ctx, c, door{client.Addr(), to}) }
}

// A client that leaves one data connection after another behind, each without an end, cannot have ever more of them.
func TestRelaysAreBounded(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data = policy.DataRelay })
	server := w.accept()
	server.say("220 ready")
	w.client.hear("220 ")
	w.login(server)
	for range maxRelays {
		l := listen(t)
		w.gateway.running.Go(w.retrieve(server, l))
		far, err := l.Accept() // the other half, which the gateway makes
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		server.say("150 here", "426 cut")
		w.client.hear("150 ")
		w.client.hear("426 ")
	}
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say("229 here (|||50000|)")
	w.client.hear("425 ")
}

// The reply that stands in the place of one transfer's is not that of the next, which has no data connection of its own.
func TestReplyOfOneTransfer(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data = policy.DataRelay })
	server := w.accept()
	server.say("220 ready")
	w.client.hear("220 ")
	w.login(server)
	l := listen(t)
	hand := w.retrieve(server, l)
	l.Close() // the other half cannot be made
	hand()
	w.client.hear("425 ") // at once, whatever the server does
	server.say("226 done")
	w.client.say("RETR b")
	server.hear("RETR b")
	server.say("226 nothing to send")
	w.client.hear("226 ")
}

// A server with which the policy wants TLS says 220 before AUTH, or nothing of the session goes on: no word of the client's may
// reach it in clear text.
func TestGreetingsWithoutTLS(t *testing.T) {
	for _, greeting := range []string{"230 in", "200 ok", "331 password", "332 account", "234 go on", "334 more", "421 too many", "530 no", "120 soon\r\n230 in"} {
		for _, implicit := range []bool{false, true} {
			w := newWorld(t, implicit, func(p *policy.Policy) { p.Servers[0].Upstream.Control = policy.Explicit })
			s := w.accept()
			s.say(greeting)
			if implicit {
				if err := tlsClient(w.client.c).Handshake(); err == nil {
					t.Errorf("%q: TLS began with the client", greeting)
				}
			} else {
				w.client.hear("421 ")
				w.client.hearEnd()
			}
			s.hearEnd() // and not a word before
			w.client.c.Close()
		}
	}
}

// Only 234 begins TLS, and a server that refuses PBSZ or PROT is not spoken to.
func TestServersThatRefuseTLS(t *testing.T) {
	for name, replies := range map[string][]string{
		"AUTH is done":    {"200 ok"},
		"AUTH logs in":    {"230 in"},
		"AUTH wants more": {"334 more"},
		"AUTH refused":    {"534 no"},
		"AUTH unknown":    {"500 what?", "500 what?"},
		"no PBSZ":         {"234 go on", "503 no"},
		"no PROT":         {"234 go on", "200 ok", "536 no"},
	} {
		w := newWorld(t, false, func(p *policy.Policy) { p.Servers[0].Upstream.Control = policy.Explicit })
		s := w.accept()
		s.say("220 ready")
		for _, reply := range replies {
			if _, err := s.r.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			s.say(reply)
			if strings.HasPrefix(reply, "234") {
				s.secure(w.tlsServer)
			}
		}
		w.client.hear("421 ")
		w.client.hearEnd()
		s.hearEnd()
		w.client.c.Close()
	}
}

// What is said to be in TLS and is not cannot be written to.
func TestTransportHasToBeAsAgreed(t *testing.T) {
	l := listen(t)
	far := dial(t, l)
	defer far.Close()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	p := &peer{tcp: near.(*net.TCPConn)}
	if err := p.send([]byte("PASS secret\r\n"), inTLS); !errors.Is(err, errTransport) {
		t.Errorf("in TLS, to a peer in clear text: %v", err)
	}
	if err := p.send([]byte("220 ready\r\n"), inClear); err != nil {
		t.Error(err)
	}
	p.state = inTLS
	if err := p.send([]byte("220 ready\r\n"), inClear); !errors.Is(err, errTransport) {
		t.Errorf("in clear text, to a peer in TLS: %v", err)
	}
	if got, err := bufio.NewReader(far).ReadString('\n'); got != "220 ready\r\n" {
		t.Errorf("the peer read %q (%v)", got, err)
	}
}

// Lines without a code before a greeting go on, as clients skip them, and open nothing.
func TestGreetingWithoutCode(t *testing.T) {
	for _, control := range []policy.Channel{policy.Plain, policy.Explicit} {
		w := newWorld(t, false, func(p *policy.Policy) { p.Servers[0].Upstream.Control = control })
		s := w.accept()
		s.say("test disclaimer", "220 ready")
		if control == policy.Explicit {
			s.hear("AUTH TLS")
			s.say("234 go on")
			s.secure(w.tlsServer)
			s.hear("PBSZ 0")
			s.say("200 ok")
			s.hear("PROT P")
			s.say("200 ok")
		}
		w.client.hear("test disclaimer")
		w.client.hear("220 ready")
		w.login(s)
		w.client.c.Close()
	}
}

// A server that leaves out the hyphens of FEAT's reply: the session lives, and says nothing of TLS that ftpalg does not.
func TestFeaturesWithoutHyphen(t *testing.T) {
	w := newWorld(t, false, nil)
	s, c := w.loggedIn(), w.client
	c.say("FEAT")
	s.hear("FEAT")
	s.say("211 Extensions supported:", " MLSD", " AUTH SSL", "PROT", " SIZE", "211 End.")
	c.hear("211-Features:")
	c.hear(" AUTH TLS")
	c.hear(" PBSZ")
	c.hear(" PROT")
	c.hear("211 Extensions supported:")
	c.hear(" MLSD")
	c.hear(" SIZE")
	c.hear("211 End.")
	c.say("PWD")
	s.hear("PWD")
	s.say(`257 "/"`)
	c.hear("257 ")
}

// What is not FTP at all ends the session: another protocol, and lines without a code that never end.
func TestNoReplies(t *testing.T) {
	for name, lines := range map[string][]string{
		"another protocol": {"SSH-2.0-OpenSSH_9.2"},
		"no end":           slices.Repeat([]string{"no code"}, 2000),
	} {
		w := newWorld(t, false, nil)
		s := w.loggedIn()
		s.say(lines...)
		for got := "no code"; !strings.HasPrefix(got, "421 "); {
			var err error
			if got, err = w.client.r.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		w.client.hearEnd()
	}
}

// Where bytes are counted, modes and structures that hide how many there are never reach the server, and modes are not announced.
func TestModeWhereBytesAreCounted(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].MaxSize = 1000 })
	s, c := w.loggedIn(), w.client
	for _, command := range []string{"MODE B", "MODE C", "MODE Z", "STRU P", "STRU R"} {
		c.say(command)
		c.hear("504 Refused by the gateway: transfer-mode")
	}
	c.say("FEAT")
	s.hear("FEAT")
	s.say("211-Features:", " MODE Z", " SIZE", "211 End")
	c.hear("211-Features:")
	c.hear(" SIZE")
	c.hear(" AUTH TLS")
	c.hear(" PBSZ")
	c.hear(" PROT")
	c.hear("211 End")
	c.say("MODE S")
	s.hear("MODE S")
	s.say("200 ok")
	c.hear("200 ok")
}

// The connection to the server is ftpalg's own, and so are the ends of its lines.
func TestBareLineFeed(t *testing.T) {
	w := newWorld(t, false, nil)
	s := w.loggedIn()
	if _, err := io.WriteString(w.client.c, "SYST\n"); err != nil {
		t.Fatal(err)
	}
	s.hear("SYST\r\n")
	s.say("215 UNIX")
	w.client.hear("215 ")
}
