package terminate

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
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

// newHalf gives a half whose peer has to take something of what is sent within the patience. Until its end is sent (finish), it is
// reset by whatever closes it, and if that is the end of this process (kill -9): most servers and clients take a FIN for the end of
// the file, and would keep a part of one as the whole.
func newHalf(c *net.TCPConn, patience time.Duration) *half {
	abortive(c)
	return &half{tcp: c, raw: &finConn{Conn: c, patience: patience}}
}

func (h *half) secure(timeout time.Duration, over func(net.Conn) *tls.Conn) error {
	if err := h.tcp.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	h.bulk = newBulkConn(h.raw)
	c := over(&recordConn{Conn: h.bulk})
	// A context would take a goroutine. Writes have a deadline of their own: see finConn.
	if err := c.Handshake(); err != nil {
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
	return h.finish()
}

// finish sends the end of the TCP stream. What is closed later is no reset.
func (h *half) finish() error {
	_ = h.tcp.SetLinger(-1) // if it fails the connection is gone already
	return h.tcp.CloseWrite()
}

// truncate passes on that TLS ended without close_notify (RFC 8446 section 6.1): the same where there is TLS, and a reset
// where there is none.
func (h *half) truncate() {
	if h.tls != nil {
		_ = h.finish()
		return
	}
	reset(h.tcp)
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

// read reads what has arrived.
func (h *half) read(b []byte) (n int, err error) {
	n, err = h.reader().Read(b)
	for err == nil && n < len(b) && h.tls != nil && h.bulk.whole() {
		var more int
		more, err = h.tls.Read(b[n:])
		n += more
	}
	return n, err
}

// widen has many records read at once from now on, where there are any.
func (h *half) widen() {
	if h.tls != nil {
		h.bulk.widen()
	}
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
