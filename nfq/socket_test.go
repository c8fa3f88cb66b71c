package nfq

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestSocketAnswer: packets that come before the answer to a request or with it are kept for the queue's reader, and a Receive
// without a request is that reader.
func TestSocketAnswer(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	kernel := pair[1]
	defer unix.Close(kernel)
	served := false
	s := newSocket(pair[0], DefaultBatch, func() error { served = true; return errEnded })
	defer s.Close()
	packet := queued(t, unix.AF_INET, 1, 0, []byte("early"))
	ack := appendHeader(nil, unix.NLMSG_ERROR, 0)
	ack = append(ack, make([]byte, 20)...)
	binary.NativeEndian.PutUint32(ack, uint32(len(ack)))
	for _, message := range [][]byte{packet, ack, packet} {
		if _, err := unix.Write(kernel, message); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(netlink.Message{Header: netlink.Header{Length: headerLen}}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Receive()
	if err != nil || len(got) != 1 || got[0].Header.Type != netlink.Error {
		t.Errorf("answer %v, %v", got, err)
	}
	if len(s.backlog) != 2 || !bytes.Equal(s.backlog[0], packet) || !bytes.Equal(s.backlog[1], packet) {
		t.Errorf("backlog %x", s.backlog)
	}
	if _, err := s.Receive(); err != errEnded || !served {
		t.Errorf("the reader was not called: %v", err)
	}
	_ = s.Close()
	if err := s.write(ack); err != ErrClosed {
		t.Errorf("write after Close: %v", err)
	}
}
