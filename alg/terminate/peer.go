package terminate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// writeTimeout bounds the wait for a peer that does not read.
	writeTimeout = 30 * time.Second
	// closeTimeout bounds the wait for a peer's close_notify.
	closeTimeout = 10 * time.Second
)

// peer is one end of a control connection as we talk to it.
type peer struct {
	tcp *net.TCPConn
	tls *tls.Conn // nil in clear text
	in  lineReader
}

func (p *peer) conn() net.Conn {
	if p.tls != nil {
		return p.tls
	}
	return p.tcp
}

// next gives the next line that the peer says.
func (p *peer) next(idle time.Time) (line, error) { return p.in.next(p.conn(), idle) }

func (p *peer) send(text []byte) error {
	if err := p.tcp.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := p.conn().Write(text)
	return err
}

// secure begins TLS. What the peer said in clear text before and nobody read is forgotten. The handshake has to be over by
// the deadline.
func (p *peer) secure(deadline time.Time, over func(net.Conn) *tls.Conn) error {
	p.in.discard()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if err := p.tcp.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c := over(&recordConn{Conn: p.tcp})
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	p.tls = c
	return nil
}

// unsecure ends TLS on both sides, as CCC asks for (RFC 4217 section 12.3): clear text goes on behind close_notify.
func (p *peer) unsecure() error {
	deadline := time.Now().Add(closeTimeout)
	if err := errors.Join(p.tcp.SetDeadline(deadline), p.tls.CloseWrite()); err != nil {
		return err
	}
	// CloseWrite leaves an expired deadline for writing.
	if err := p.tcp.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(p.tls, int64(p.in.limit))); err != nil {
		return fmt.Errorf("wait for close_notify: %w", err)
	}
	p.in.discard()
	p.tls = nil
	return p.tcp.SetDeadline(time.Time{})
}

// certificate is the peer's own, or nil.
func (p *peer) certificate() *x509.Certificate {
	if p.tls == nil {
		return nil
	}
	if shown := p.tls.ConnectionState().PeerCertificates; len(shown) > 0 {
		return shown[0]
	}
	return nil
}

// close says goodbye in TLS, if there is any, and closes the connection.
func (p *peer) close() {
	if p.tls != nil {
		_ = p.tls.Close() // closes tcp; an error means that the peer is gone
		return
	}
	_ = p.tcp.Close()
}
