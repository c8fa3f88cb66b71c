package terminate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// relay is one data connection between its two halves.
type relay struct {
	promise  *promise
	halves   [2]*half
	secured  bool      // both halves have the protection that transfer asks for
	transfer *transfer // the one that was asked for last
}

// prepare protects both halves and waits until the server accepts a transfer; it reports whether there is one. The handshakes
// do not wait for the server's answer, as a server may send it after them. Bytes do: which may move, and how many, is what
// the accepted transfer says. One that the server refuses is forgotten, and the next may follow.
func (r *relay) prepare(ctx context.Context) (accepted bool, err error) {
	for !accepted {
		t := r.promise.awaitAsked(ctx)
		if t == nil {
			return false, nil
		}
		if err := r.secure(t); err != nil {
			return false, err
		}
		if accepted, err = r.promise.awaitAnswer(ctx, t, r.idle()); err != nil {
			return false, err
		}
	}
	return true, nil
}

// secure brings both halves to the protection of a transfer. The two handshakes run side by side, as neither end waits for the
// other. They begin when the server is ready to send or receive, which may take it long, so they have the time that an idle
// session has; as there is one a session they do not count as handshakes in flight.
func (r *relay) secure(t *transfer) error {
	last := r.transfer
	r.transfer = t
	if r.secured && !t.sameProtection(last) {
		return errProtection
	}
	if r.secured || t.levels == [2]alg.Level{alg.Clear, alg.Clear} {
		return nil
	}
	r.secured = true
	var server error
	var beside sync.WaitGroup
	if t.levels[alg.Server] == alg.TLS {
		beside.Go(func() {
			defer r.rescue()
			server = r.shake(alg.Server, asClient(t.configs[alg.Server]))
		})
	}
	var client error
	if t.levels[alg.Client] == alg.TLS {
		config := t.configs[alg.Client]
		if t.direction == alg.Upload {
			config = withoutNewTickets(config)
		}
		client = r.shake(alg.Client, asServer(config))
	}
	beside.Wait()
	if err := errors.Join(server, client); err != nil {
		return err
	}
	return r.checkClient(t)
}

func asServer(config *tls.Config) func(net.Conn) *tls.Conn {
	return func(c net.Conn) *tls.Conn { return tls.Server(c, config) }
}

func asClient(config *tls.Config) func(net.Conn) *tls.Conn {
	return func(c net.Conn) *tls.Conn { return tls.Client(c, config) }
}

// shake makes the handshake with one side.
func (r *relay) shake(side alg.Side, over func(net.Conn) *tls.Conn) error {
	if err := r.halves[side].secure(r.idle(), over); err != nil {
		r.cut() // so that the other handshake need not wait
		return fmt.Errorf("TLS with the %s: %w", side, err)
	}
	return nil
}

// checkClient compares the client's TLS with its control connection's, as far as the policy asks for that.
func (r *relay) checkClient(t *transfer) error {
	if t.levels[alg.Client] != alg.TLS {
		return nil // if the policy asked for anything the transfer would have been refused
	}
	state := r.halves[alg.Client].tls.ConnectionState()
	switch {
	case r.promise.session.rule.TLS.RequireReuse && !state.DidResume:
		return errNoReuse
	case t.shown != nil && (leafOf(state) == nil || !sameHolder(t.shown, leafOf(state))):
		return errCertificate
	}
	return nil
}

// rescue is to be deferred by every goroutine that a relay begins: see session.rescue.
func (r *relay) rescue() {
	if mistake := recover(); mistake != nil {
		r.cut()
		r.promise.session.failed(audit.NewFault(mistake))
	}
}

// cut breaks both halves off. What one end broke off reaches the other as a reset, in TLS as well: most servers take a FIN
// without close_notify for the end of the file, and would keep a part of one as the whole.
func (r *relay) cut() {
	for _, h := range r.halves {
		reset(h.tcp)
	}
}

func (r *relay) close() {
	for _, h := range r.halves {
		_ = h.tcp.Close()
	}
}

// pump moves bytes both ways until both ends have said that they are done, or one is gone.
func (r *relay) pump() error {
	limit := r.promise.session.rule.MaxSize
	if r.transfer.direction == alg.Listing {
		limit = 0
	}
	var down error
	var beside sync.WaitGroup
	beside.Go(func() {
		defer r.rescue()
		down = r.move(alg.Server, limit)
	})
	up := r.move(alg.Client, limit)
	beside.Wait()
	return errors.Join(up, down)
}

// move moves what one side sends to the other, up to limit bytes if that is not 0.
func (r *relay) move(from alg.Side, limit int64) error {
	if from == r.source() {
		defer r.promise.settle()
	}
	src, dst := r.halves[from], r.halves[from.Other()]
	c, err := newCarrier(src, dst)
	if err != nil {
		return nil // closed by the other direction
	}
	defer c.free()
	for left := limit; ; {
		n, err := r.load(c, src, limit > 0, left)
		if n > 0 {
			left -= n
			if err := c.unload(); err != nil {
				r.cut()
				return nil
			}
		}
		switch {
		case errors.Is(err, errTooLarge):
			return r.tooLarge(from)
		case errors.Is(err, io.EOF):
			r.ended(src, dst)
			return nil
		case err != nil && !(timedOut(err) && r.moves()):
			r.cut()
			return nil
		}
	}
}

// load takes what has arrived, up to the bytes that are left, or sees that nothing more comes where none are.
func (r *relay) load(c carrier, src *half, limited bool, left int64) (int64, error) {
	if err := src.tcp.SetReadDeadline(time.Now().Add(r.idle())); err != nil {
		return 0, err
	}
	switch {
	case !limited:
		return c.load(pipeSize)
	case left == 0:
		return 0, src.atEnd()
	}
	return c.load(min(pipeSize, left))
}

func (r *relay) idle() time.Duration { return r.promise.session.policy.Limits.IdleTimeout }

// moves says whether something moved lately. One direction of a transfer is silent all the time.
func (r *relay) moves() bool {
	last := max(r.halves[alg.Client].raw.taken.Load(), r.halves[alg.Server].raw.taken.Load())
	return time.Now().UnixNano()-last < int64(r.idle())
}

// source is the side that sends in this transfer.
func (r *relay) source() alg.Side {
	if r.transfer.direction == alg.Upload {
		return alg.Client
	}
	return alg.Server
}

// ended passes the end of a stream on, as what it is.
func (r *relay) ended(src, dst *half) {
	if src.tls != nil && src.raw.fin.Load() {
		dst.truncate()
		return
	}
	_ = dst.closeWrite() // an error means that nobody listens there any more
}

// drainTimeout bounds the wait for a client that sends more than it may, so that it can read why.
const drainTimeout = 5 * time.Second

// tooLarge breaks a transfer off that is over the limit. The reply tells the client; the server has to see that what it got
// is not the whole.
func (r *relay) tooLarge(from alg.Side) error {
	r.promise.fail(alg.TooLarge)
	client, server := r.halves[alg.Client], r.halves[alg.Server]
	if from == alg.Server {
		reset(server.tcp)
		_ = client.finish()
		return errTooLarge
	}
	reset(server.tcp)
	r.promise.settle()
	_ = client.closeWrite() // it may be gone
	_ = client.tcp.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.Copy(io.Discard, client.reader())
	return errTooLarge
}
