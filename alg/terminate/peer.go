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
	// lingerTimeout and maxDrain bound what a peer can still say when its session is over.
	lingerTimeout = 3 * time.Second
	maxDrain      = 64 << 10
	// closeTimeout bounds the wait for the rest of a peer's close_notify.
	closeTimeout = 10 * time.Second
)

// transport is what a control connection's bytes travel in.
type transport uint8

const (
	inClear transport = iota
	inTLS
)

func transportOf(tls bool) transport {
	if tls {
		return inTLS
	}
	return inClear
}

// peer is one end of a control connection as we talk to it.
type peer struct {
	tcp     *net.TCPConn
	state   transport   // of what we send: only a handshake that succeeded makes it inTLS, only unsecure inClear again
	tls     *tls.Conn   // nil in clear text
	record  *recordConn // below tls
	leaving *tls.Conn   // what tls was before unsecure, until the peer speaks clear text as well
	in      lineReader
}

func (p *peer) conn() net.Conn {
	if p.state == inTLS {
		return p.tls
	}
	return p.tcp
}

// next gives the next line that the peer says.
func (p *peer) next(idle time.Time) (line, error) {
	if p.leaving != nil {
		if err := p.leave(idle); err != nil {
			return line{}, err
		}
	}
	return p.in.next(p.conn(), idle)
}

// errTransport says that a peer is not in TLS although it was said to be, or the other way round.
var errTransport = errors.New("the connection is not protected as it was agreed")

// send writes text to a peer that has to be protected as said: inTLS or inClear. It is the one way to write to a peer, so that
// nothing that is meant for TLS can go out in clear text.
func (p *peer) send(text []byte, said transport) error {
	if said != p.state {
		return errTransport
	}
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
	p.record = &recordConn{Conn: p.tcp}
	c := over(p.record)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	p.tls, p.state = c, inTLS
	return nil
}

// unsecure ends TLS, as CCC asks for (RFC 4217 section 12.3): what we send behind our close_notify is clear text. So is what
// the peer sends behind its own; some send none and go on in clear text at once, which next sees.
func (p *peer) unsecure() error {
	if err := p.tcp.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if err := p.tls.CloseWrite(); err != nil {
		return err
	}
	p.in.discard()
	p.state, p.tls, p.leaving = inClear, nil, p.tls
	return nil
}

// leave reads TLS records up to the peer's close_notify, if it sends any.
func (p *peer) leave(idle time.Time) error {
	if err := p.tcp.SetReadDeadline(idle); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(p.tcp, first[:]); err != nil {
		return err
	}
	if !beginsRecord(first[0]) {
		p.in.buf = append(p.in.buf, first[0])
		p.leaving = nil
		return nil
	}
	p.record.unread(first[0])
	if err := p.tcp.SetReadDeadline(time.Now().Add(closeTimeout)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(p.leaving, int64(p.in.limit))); err != nil {
		return fmt.Errorf("wait for close_notify: %w", err)
	}
	p.leaving = nil
	return nil
}

// certificate is the peer's own, or nil.
func (p *peer) certificate() *x509.Certificate {
	if p.state != inTLS {
		return nil
	}
	if shown := p.tls.ConnectionState().PeerCertificates; len(shown) > 0 {
		return shown[0]
	}
	return nil
}

// goodbye says that we are done, in TLS if there is any. The peer may still be speaking: see drain.
func (p *peer) goodbye() {
	if p.state == inTLS {
		_ = p.tls.CloseWrite() // here and below an error means that the peer is gone
	}
	_ = p.tcp.CloseWrite()
	_ = p.tcp.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// drain reads what the peer says behind our goodbye, and closes the connection. To close it with something unread would be
// a reset, which may overtake our last words and leaves conntrack in doubt.
func (p *peer) drain() {
	_, _ = io.Copy(io.Discard, io.LimitReader(p.tcp, maxDrain))
	_ = p.tcp.Close()
}
