package terminate

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"ftpalg/alg"
)

// bufferSize is eight TLS records: one system call moves them all.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// half is one end of a relayed data connection.
type half struct {
	tcp *net.TCPConn
	raw *finConn
	// In clear text these are nil.
	bulk *bulkConn
	tls  *tls.Conn
}

// newHalf gives a half whose peer has to take something of what is sent within the patience.
func newHalf(c *net.TCPConn, patience time.Duration) *half {
	return &half{tcp: c, raw: &finConn{Conn: c, patience: patience}}
}

func (h *half) secure(timeout time.Duration, over func(net.Conn) *tls.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h.bulk = newBulkConn(h.raw)
	c := over(&recordConn{Conn: h.bulk})
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	h.tls = c
	return nil
}

// closeWrite says that everything has been sent.
func (h *half) closeWrite() error {
	if h.tls != nil {
		if err := h.tls.CloseWrite(); err != nil {
			return err
		}
	}
	return h.tcp.CloseWrite()
}

// truncate passes on that TLS ended without close_notify (RFC 8446 section 6.1): the same where there is TLS, and a reset
// where there is none.
func (h *half) truncate() {
	if h.tls != nil {
		_ = h.tcp.CloseWrite()
		return
	}
	reset(h.tcp)
}

// relay is one data connection between its two halves.
type relay struct {
	promise *promise
	halves  [2]*half
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
	if r.promise.transfer == alg.Listing {
		limit = 0
	}
	var up, down error
	var both sync.WaitGroup
	both.Go(func() { up = r.move(alg.Client, limit) })
	both.Go(func() { down = r.move(alg.Server, limit) })
	both.Wait()
	return errors.Join(up, down)
}

// errTooLarge says that a transfer was longer than the policy allows.
var errTooLarge = errors.New("the transfer is over the policy's max-size")

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
	if r.promise.transfer == alg.Upload {
		return alg.Client
	}
	return alg.Server
}

// atEnd waits for the end of a stream that must not go on: io.EOF, or errTooLarge if it does. What comes is not passed on.
func (h *half) atEnd() error {
	var more [1]byte
	n, err := h.reader().Read(more[:])
	if n > 0 {
		return errTooLarge
	}
	return err
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
	r.promise.fail(alg.TooLarge.Reply())
	client, server := r.halves[alg.Client], r.halves[alg.Server]
	if from == alg.Server {
		reset(server.tcp)
		_ = client.tcp.CloseWrite()
		return errTooLarge
	}
	reset(server.tcp)
	r.promise.settle()
	_ = client.closeWrite() // it may be gone
	_ = client.tcp.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.Copy(io.Discard, client.reader())
	return errTooLarge
}

// read reads what has arrived.
func (h *half) read(b []byte) (n int, err error) {
	n, err = h.reader().Read(b)
	if h.tls != nil {
		h.bulk.widen() // something comes this way
	}
	for err == nil && n < len(b) && h.tls != nil && h.bulk.whole() {
		var more int
		more, err = h.tls.Read(b[n:])
		n += more
	}
	return n, err
}

// write writes all of b. Its records leave together.
func (h *half) write(b []byte) error {
	if h.tls == nil {
		_, err := h.raw.Write(b)
		return err
	}
	h.bulk.hold()
	_, err := h.tls.Write(b)
	return errors.Join(err, h.bulk.release())
}

func (h *half) reader() io.Reader {
	if h.tls != nil {
		return h.tls
	}
	return h.tcp
}
