package terminate

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// wire is a connection whose peer has sent some bytes, and which notes what is written and fails when it is told to.
type wire struct {
	net.Conn
	in     io.Reader
	writes []int // lengths
	fails  error
}

func (w *wire) Read(b []byte) (int, error) { return w.in.Read(b) }

func (w *wire) Write(b []byte) (int, error) {
	w.writes = append(w.writes, len(b))
	return len(b), w.fails
}

// A record counts as whole from its last byte on, and only at the beginning of one is there anything to tell.
func TestBulkWhole(t *testing.T) {
	record := append([]byte{23, 3, 3, 1, 0}, make([]byte, 256)...)
	sent := append(bytes.Repeat(record, 2), record[:len(record)-1]...)
	bulk := newBulkConn(&wire{in: bytes.NewReader(sent)})
	if bulk.whole() {
		t.Error("whole before anything was read")
	}
	c := &recordConn{Conn: bulk}
	for i, want := range []bool{true, false} {
		if _, err := io.ReadFull(c, make([]byte, len(record))); err != nil {
			t.Fatal(err)
		}
		if bulk.whole() != want {
			t.Errorf("behind record %d: whole is %v", i+1, !want)
		}
	}
	bulk = newBulkConn(&wire{in: bytes.NewReader(sent[:len(record)+recordHeader-1])})
	_, _ = io.ReadFull(&recordConn{Conn: bulk}, make([]byte, len(record)))
	if bulk.whole() {
		t.Error("whole with a part of its header")
	}
}

// What is held leaves with one write; what is not held leaves at once.
func TestBulkHolds(t *testing.T) {
	w := &wire{}
	bulk := newBulkConn(w)
	_, _ = bulk.Write(make([]byte, 5))
	bulk.hold()
	_, _ = bulk.Write(make([]byte, 10))
	_, _ = bulk.Write(make([]byte, 20))
	if len(w.writes) != 1 {
		t.Errorf("writes of %v bytes before release", w.writes)
	}
	if err := errors.Join(bulk.release(), bulk.release()); err != nil {
		t.Error(err)
	}
	if len(w.writes) != 2 || w.writes[1] != 30 {
		t.Errorf("writes of %v bytes, not of 5 and 30", w.writes)
	}
}

// Behind a record that may be cut off nothing is written.
func TestBulkBreaks(t *testing.T) {
	w := &wire{fails: io.ErrClosedPipe}
	bulk := newBulkConn(w)
	bulk.hold()
	_, _ = bulk.Write(make([]byte, 10))
	if err := bulk.release(); err != io.ErrClosedPipe {
		t.Errorf("release gave %v", err)
	}
	w.fails = nil
	if _, err := bulk.Write(make([]byte, 10)); err != io.ErrClosedPipe {
		t.Errorf("the next write gave %v", err)
	}
	if len(w.writes) != 1 {
		t.Errorf("writes of %v bytes", w.writes)
	}
}
