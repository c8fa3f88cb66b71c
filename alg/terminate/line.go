package terminate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"ftpalg/alg/ftp"
)

const (
	// lineTimeout bounds the time from a line's first byte to its end: nobody types that slowly, but for drips.
	lineTimeout = 30 * time.Second
	// readAhead is how much is read at once. Commands and replies are short, and idle sessions are many.
	readAhead = 512
)

// line is one line of a control connection.
type line struct {
	ftp.Line
	wire []byte // as it came, terminator included; cut if it is too long
}

// lineReader cuts what it reads into lines. It never reads more from its source than one buffer, which is given up when
// it is empty.
type lineReader struct {
	lines ftp.Lines
	limit int    // bytes of a line's text
	wire  []byte // of the incomplete line
	buf   []byte // read and not taken yet
}

// next gives the next line. It waits until idle, and from the first byte on no longer than lineTimeout. What it gives is good
// until the next call.
func (r *lineReader) next(conn net.Conn, idle time.Time) (line, error) {
	r.wire = r.wire[:0]
	for deadline := idle; ; {
		if len(r.buf) == 0 {
			r.buf = nil
			if err := r.fill(conn, deadline); err != nil {
				if timedOut(err) && r.lines.Partial() > 0 {
					err = fmt.Errorf("%w: %w", errSlowLine, err)
				}
				return line{}, err
			}
		}
		l, n, whole := r.lines.Next(r.buf, r.limit)
		// A byte may be doubled on the wire (Telnet's IAC); what is longer still is too long.
		room := 2*r.limit + 2 - len(r.wire)
		r.wire = append(r.wire, r.buf[:min(n, max(room, 0))]...)
		r.buf = r.buf[n:]
		if whole {
			return line{Line: l, wire: r.wire}, nil
		}
		if line := time.Now().Add(lineTimeout); deadline.Equal(idle) && line.Before(idle) {
			deadline = line
		}
	}
}

// fill reads once.
func (r *lineReader) fill(conn net.Conn, deadline time.Time) error {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	buf := make([]byte, readAhead)
	n, err := conn.Read(buf)
	r.buf = buf[:n]
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// discard forgets what was read and not taken: TLS begins, and what came before it in clear text must not be taken for
// protected (injection; RFC 4217 section 4 knows nothing between AUTH and the handshake).
func (r *lineReader) discard() {
	r.buf, r.lines = nil, ftp.Lines{}
}

// errSlowLine says that a line was begun and not completed in time.
var errSlowLine = errors.New("a line was not completed in time")

func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// clone gives a line that outlives the reader's next.
func (l line) clone() line {
	l.Text, l.wire = bytes.Clone(l.Text), bytes.Clone(l.wire)
	return l
}
