package terminate

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// recordHeader is the length of a TLS record's header (RFC 8446 section 5.1).
const recordHeader = 5

// recordConn never reads past the end of a TLS record, so that clear text behind the last one (CCC) stays in the socket
// and crypto/tls cannot swallow it.
type recordConn struct {
	net.Conn
	header [recordHeader]byte
	have   int  // bytes of the header that have been read
	left   int  // bytes of the record that have not
	again  bool // the header's first byte is to be read again
}

func (c *recordConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if c.again {
		b[0], c.again = c.header[0], false
		return 1, nil
	}
	if c.left > 0 {
		n, err := c.Conn.Read(b[:min(len(b), c.left)])
		c.left -= n
		return n, err
	}
	n, err := c.Conn.Read(b[:min(len(b), recordHeader-c.have)])
	copy(c.header[c.have:], b[:n])
	if c.have += n; c.have == recordHeader {
		c.have, c.left = 0, int(binary.BigEndian.Uint16(c.header[3:]))
	}
	return n, err
}

// unread puts back the first byte of a record, which was read past it.
func (c *recordConn) unread(b byte) { c.header[0], c.have, c.again = b, 1, true }

// beginsRecord says whether a byte is a record's type (RFC 8446 section 5.1) and not the first of a line of FTP.
func beginsRecord(b byte) bool { return 20 <= b && b <= 24 }

// finConn notes whether its peer closed the TCP connection. crypto/tls says io.EOF for that as well as for close_notify
// (RFC 8446 section 6.1), and only the latter says that nothing is missing.
type finConn struct {
	net.Conn
	patience time.Duration // how long its peer may take nothing of what is sent
	taken    atomic.Int64  // when it took something last, in nanoseconds
	fin      atomic.Bool
}

func (c *finConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		c.fin.Store(true)
	}
	return n, err
}

// Write writes all of b to a peer that may be slow. What is told crypto/tls about time does not matter: its records go on
// whole, and close_notify too.
func (c *finConn) Write(b []byte) (sent int, err error) {
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
			return sent, err
		}
		n, err := c.Conn.Write(b[sent:])
		if n > 0 {
			c.taken.Store(time.Now().UnixNano())
		}
		if sent += n; !timedOut(err) || n == 0 {
			return sent, err
		}
	}
}

// bulkConn reads and writes several TLS records with one system call. It is read through a recordConn, so that it knows
// where a record begins.
type bulkConn struct {
	net.Conn
	in *bufio.Reader

	mu     sync.Mutex
	holds  bool // what is written waits
	out    []byte
	broken error // of a write: a record may be cut off, so nothing can follow
}

// maxRecord is the length of the longest TLS record (RFC 5246 section 6.2.3; RFC 8446 section 5.2 has less).
const maxRecord = recordHeader + 1<<14 + 2048

func newBulkConn(c net.Conn) *bulkConn { return &bulkConn{Conn: c, in: bufio.NewReader(c)} }

// widen has many records read at once from now on.
func (c *bulkConn) widen() { c.in = bufio.NewReaderSize(c.in, bufferSize+maxRecord) }

func (c *bulkConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// whole says whether a whole record is here already, so that reading it does not wait. It may hold no data, but then it is
// one of those that follow a handshake at once, or rare.
func (c *bulkConn) whole() bool {
	if c.in.Buffered() < recordHeader {
		return false
	}
	header, err := c.in.Peek(recordHeader)
	return err == nil && c.in.Buffered() >= recordHeader+int(binary.BigEndian.Uint16(header[3:]))
}

// hold has what is written wait for release.
func (c *bulkConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds = true
}

// release writes what has waited.
func (c *bulkConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.write(c.out)
	c.holds, c.out = false, c.out[:0]
	return err
}

func (c *bulkConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds {
		c.out = append(c.out, b...)
		return len(b), nil
	}
	return len(b), c.write(b)
}

func (c *bulkConn) write(b []byte) error {
	if c.broken == nil && len(b) > 0 {
		_, c.broken = c.Conn.Write(b)
	}
	return c.broken
}
