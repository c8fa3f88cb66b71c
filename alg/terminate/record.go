package terminate

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
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
	fin atomic.Bool
}

func (c *finConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		c.fin.Store(true)
	}
	return n, err
}
