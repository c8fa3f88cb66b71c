package terminate

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/policy"
)

// benchChunk is what one operation of BenchmarkRelay moves.
const benchChunk = 8 << 20

// newRelay gives a relay between two ends, which are given as well, with TLS on the sides that have it.
func newRelay(t testing.TB, clientTLS, serverTLS bool) (r *relay, client, server net.Conn) {
	t.Helper()
	var near, far *net.TCPConn
	client, near = pipe(t)
	server, far = pipe(t)
	p := policy.AllowAll()
	p.Limits.IdleTimeout = time.Minute
	s := &session{policy: p, rule: &p.Rules[0]}
	n := s.newPromise(alg.Pinhole{}, true)
	r = &relay{promise: n, transfer: &transfer{}, halves: [2]*half{newHalf(near, time.Minute), newHalf(far, time.Minute)}}
	certs := newCertificates(t)
	asServer := func(c net.Conn) *tls.Conn { return tls.Server(c, certs.base) }
	if clientTLS {
		client = shake(t, client, tlsClient, r.halves[alg.Client], asServer)
	}
	if serverTLS {
		server = shake(t, server, asServer, r.halves[alg.Server], tlsClient)
	}
	return r, client, server
}

// shake brings TLS between an end and a relay's half.
func shake(t testing.TB, end net.Conn, as func(net.Conn) *tls.Conn, h *half, over func(net.Conn) *tls.Conn) net.Conn {
	t.Helper()
	c, done := as(&finConn{Conn: end, patience: testTimeout}), make(chan error, 1)
	go func() { done <- c.Handshake() }()
	if err := errors.Join(h.secure(testTimeout, over), <-done); err != nil {
		t.Fatal(err)
	}
	return c
}

// pipe gives the two ends of a TCP connection.
func pipe(b testing.TB) (net.Conn, *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(); d.Close() })
	return c, d.(*net.TCPConn)
}

// BenchmarkRelay has both ends in the same process, so its figures are for comparison with one another only.
func BenchmarkRelay(b *testing.B) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			r, client, server := newRelay(b, secure, secure)
			go r.pump()
			go func() {
				buf := make([]byte, 256<<10)
				for {
					if _, err := server.Write(buf); err != nil {
						return
					}
				}
			}()
			b.SetBytes(benchChunk)
			buf := make([]byte, 256<<10)
			for b.Loop() {
				for range benchChunk / len(buf) {
					if _, err := io.ReadFull(client, buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func (r *relay) setIdle(d time.Duration) {
	r.promise.session.policy.Limits.IdleTimeout = d
	for _, h := range r.halves {
		h.raw.patience = d
	}
}
