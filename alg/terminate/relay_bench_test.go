package terminate

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/policy"
)

// benchChunk is what one operation of BenchmarkRelay moves.
const benchChunk = 8 << 20

// newRelay gives a relay between two ends, which are given as well. TLS is on both sides or on none.
func newRelay(b testing.TB, secure bool) (r *relay, client, server net.Conn) {
	var near, far *net.TCPConn
	client, near = pipe(b)
	server, far = pipe(b)
	p := policy.AllowAll()
	p.Limits.IdleTimeout = time.Minute
	s := &session{policy: p, rule: &p.Rules[0]}
	n := s.newPromise(alg.Pinhole{}, true)
	r = &relay{promise: n, halves: [2]*half{newHalf(near), newHalf(far)}}
	if secure {
		certs := newCertificates(b)
		c, s := tlsClient(client), tls.Server(server, certs.base)
		go c.Handshake()
		go s.Handshake()
		for side, over := range []func(net.Conn) *tls.Conn{
			func(c net.Conn) *tls.Conn { return tls.Server(c, certs.base) }, tlsClient,
		} {
			if err := r.halves[side].secure(testTimeout, over); err != nil {
				b.Fatal(err)
			}
		}
		client, server = c, s
	}
	return r, client, server
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
			r, client, server := newRelay(b, secure)
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
