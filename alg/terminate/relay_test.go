package terminate

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// halfCloser is an end that can say that it has sent everything.
type halfCloser interface{ CloseWrite() error }

// tcpOf is the TCP connection of an end, which TLS may lie above.
func tcpOf(c net.Conn) *net.TCPConn {
	if t, ok := c.(*tls.Conn); ok {
		return t.NetConn().(*finConn).Conn.(*net.TCPConn)
	}
	return c.(*net.TCPConn)
}

// eachProtection runs a test with TLS on both sides of a relay, on one, and on none.
func eachProtection(t *testing.T, test func(t *testing.T, r *relay, client, server net.Conn)) {
	for _, clientTLS := range []bool{false, true} {
		for _, serverTLS := range []bool{false, true} {
			t.Run(fmt.Sprintf("client TLS %v, server TLS %v", clientTLS, serverTLS), func(t *testing.T) {
				r, client, server := newRelay(t, clientTLS, serverTLS)
				client.SetDeadline(time.Now().Add(testTimeout))
				server.SetDeadline(time.Now().Add(testTimeout))
				test(t, r, client, server)
			})
		}
	}
}

// finished ends an end's direction as it should be: with close_notify where there is TLS, and then FIN.
func finished(t *testing.T, c net.Conn) {
	t.Helper()
	if err := finish(c); err != nil {
		t.Fatal(err)
	}
}

func finish(c net.Conn) error {
	err := c.(halfCloser).CloseWrite()
	if _, ok := c.(*tls.Conn); ok {
		err = errors.Join(err, tcpOf(c).CloseWrite())
	}
	return err
}

// sendAll has an end send something and end its direction, beside the test, which does not end before.
func sendAll(t *testing.T, c net.Conn, b []byte) {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		sent <- errors.Join(err, finish(c))
	}()
	t.Cleanup(func() {
		if err := <-sent; err != nil {
			t.Errorf("sending: %v", err)
		}
	})
}

// What is sent arrives, in either direction, and so does its end; the other direction stays open (half-close).
func TestRelayMoves(t *testing.T) {
	eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
		done := make(chan error, 1)
		go func() { done <- r.pump() }()
		sent := make([]byte, 3<<20)
		_, _ = rand.Read(sent)
		for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
			sendAll(t, way[0], sent)
			got, err := io.ReadAll(way[1])
			if !complete(way[1]) {
				t.Error("what was sent to its end looks cut short")
			}
			if err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d of %d bytes arrived as they were: %v", len(got), len(sent), err)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// complete reads to the end and says whether it was one: close_notify where there is TLS, and FIN where there is none.
func complete(c net.Conn) bool {
	_, err := io.Copy(io.Discard, c)
	if t, ok := c.(*tls.Conn); ok {
		return err == nil && !t.NetConn().(*finConn).fin.Load()
	}
	return err == nil
}

// A transfer that was cut short never looks complete to the other side: whatever it sends before it is gone.
func TestRelayTruncates(t *testing.T) {
	cuts := map[string]func(c net.Conn){
		"FIN":   func(c net.Conn) { tcpOf(c).CloseWrite() }, // without close_notify
		"reset": func(c net.Conn) { reset(tcpOf(c)) },
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
				if _, secure := client.(*tls.Conn); !secure && name == "FIN" {
					return // a FIN is how a transfer without TLS ends
				}
				go r.pump()
				client.Write([]byte("half of it"))
				if _, err := io.ReadFull(server, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
				cut(client)
				if complete(server) {
					t.Error("what was cut short looks complete to the server")
				}
			})
		})
	}
}

// What one end broke off reaches the other as an error and not as an end, in either direction: with TLS too there are servers
// and clients to which an end without close_notify looks complete.
func TestRelayBreaksOff(t *testing.T) {
	for _, from := range []alg.Side{alg.Client, alg.Server} {
		eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
			go r.pump()
			ends := [2]net.Conn{alg.Client: client, alg.Server: server}
			broken, other := ends[from], ends[from.Other()]
			broken.Write([]byte("half of it"))
			if _, err := io.ReadFull(other, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			reset(tcpOf(broken))
			if _, err := io.Copy(io.Discard, other); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the %s got %v, not a reset", from.Other(), err)
			}
		})
	}
}

// A transfer over the limit ends with 552, and does not look complete to the server.
func TestRelayLimit(t *testing.T) {
	eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
		r.promise.session.rule.MaxSize = 1000
		done := make(chan error, 1)
		go func() { done <- r.pump() }()
		go func() { // it may be cut off at any time
			client.Write(make([]byte, 5000))
			client.(halfCloser).CloseWrite()
		}()
		if complete(server) {
			t.Error("what was cut short looks complete to the server")
		}
		server.Close()
		if err := <-done; !errors.Is(err, errTooLarge) {
			t.Errorf("the relay ended with %v", err)
		}
		if got := r.promise.instead; got != alg.TooLarge.Reply() {
			t.Errorf("the reply is %q", got)
		}
	})
}

// readSlowly reads a little at each tick, until the end, and gives what it read.
func readSlowly(t *testing.T, c net.Conn, tick time.Duration) (all []byte) {
	t.Helper()
	pace := time.NewTicker(tick)
	defer pace.Stop()
	for buf := make([]byte, 16<<10); ; <-pace.C {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Errorf("a slow reader got %d bytes, and then %v", len(all), err)
			return all
		}
	}
}

// A reader that is slow, but not so slow that nothing moves during the idle timeout, gets every byte and the end: however
// often the gateway could not write in the meantime.
func TestRelaySlowReader(t *testing.T) {
	eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
		t.Parallel()
		r.setIdle(2 * time.Second) // the whole takes longer, and no pause of a busy machine does
		for _, h := range r.halves {
			_ = h.tcp.SetWriteBuffer(32 << 10)
		}
		_ = tcpOf(client).SetReadBuffer(32 << 10)
		go r.pump()
		sent := make([]byte, 4<<20)
		_, _ = rand.Read(sent)
		sendAll(t, server, sent)
		if got := readSlowly(t, client, 10*time.Millisecond); !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes arrived as they were", len(got), len(sent))
		}
		if !complete(client) {
			t.Error("what was sent to its end looks cut short")
		}
	})
}

// A transfer that takes longer than the idle timeout goes on as long as something moves: the direction that is silent does
// not count. If nothing moves at all it is cut off, and does not look complete.
func TestRelayStalls(t *testing.T) {
	eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
		t.Parallel()
		const idle = time.Second
		r.setIdle(idle)
		done := make(chan error, 1)
		go func() { done <- r.pump() }()
		pace := time.NewTicker(idle / 4)
		defer pace.Stop()
		for i := range 12 {
			<-pace.C
			server.Write([]byte{byte(i)})
			var got [1]byte
			if _, err := io.ReadFull(client, got[:]); err != nil || got[0] != byte(i) {
				t.Fatalf("byte %d is %d, %v", i, got[0], err)
			}
		}
		start := time.Now()
		if complete(client) {
			t.Error("a transfer that stalled looks complete")
		}
		if took := time.Since(start); took > 5*idle {
			t.Errorf("a transfer that stalled was cut off after %v", took)
		}
		<-done
	})
}

// A transfer's reply waits for the end of its data, and not for that of the silent direction, which many clients end at once.
func TestRelaySettles(t *testing.T) {
	eachProtection(t, func(t *testing.T, r *relay, client, server net.Conn) {
		r.transfer.direction = alg.Download
		done := make(chan error, 1)
		go func() { done <- r.pump() }()
		finished(t, client)
		if _, err := io.ReadAll(server); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			server.Write([]byte{1})
			if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-r.promise.settled:
			t.Error("the reply may overtake its data")
		default:
		}
		finished(t, server)
		<-done
		<-r.promise.settled
	})
}

// TestReplacedEntry: the mark is set at every announcement, and a session whose entry is another than it began with ends.
func TestReplacedEntry(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Rules[0].Data = policy.DataRelay })
	server := w.accept()
	server.say("220 ready")
	w.client.hear("220 ")
	w.login(server)
	for range 2 {
		w.client.say("EPSV")
		server.hear("EPSV")
		server.say("229 here (|||50000|)")
		w.client.hear("229 ")
	}
	if marks := w.table.marked(); !slices.Equal(marks, []uint32{1, 1}) {
		t.Errorf("marks %v, want the relay's at each announcement", marks)
	}
	w.table.replace()
	w.client.say("EPSV")
	server.hear("EPSV")
	server.say("229 here (|||50000|)")
	w.client.hear("425 ")
	w.client.hearEnd()
	server.hearEnd()
	if open := w.table.Open(); len(open) != 0 {
		t.Errorf("expectations are left: %v", open)
	}
}

// Where several clients share an address, and one has the port that another announces, that one's pinhole is at a port of its
// own: the operator sees it where it is.
func TestPinholeAtAnotherPort(t *testing.T) {
	p := policy.AllowAll()
	conn := &table{}
	s := &session{
		policy: p, rule: &p.Rules[0], client: netip.MustParseAddrPort("192.0.2.2:1024"), seen: netip.MustParseAddr("198.51.100.1"),
		gateway: New(Options{Policy: p, Conntrack: conn, Report: func(audit.Event) {}}),
	}
	server := netip.MustParseAddrPort("198.51.100.2:20")
	hole := alg.Pinhole{Mode: policy.PORT, From: server, To: netip.AddrPortFrom(s.seen, 5000), Shared: true}
	if err := conn.Expect(conntrack.Expectation{From: hole.From, To: hole.To}); err != nil {
		t.Fatal(err)
	}
	at, why := s.open(hole)
	if why != alg.NoReason || at == hole.To {
		t.Fatalf("the pinhole is at %s (%s), where another client's is", at, why)
	}
	if got := s.Info().Pinhole.To; got != at {
		t.Errorf("the operator sees the pinhole at %s; it is at %s", got, at)
	}
	s.shut(hole, alg.NextDataCommand)
	if got := s.Info().Pinhole; !got.IsZero() {
		t.Errorf("the operator sees a pinhole that is closed: %v", got)
	}
}
