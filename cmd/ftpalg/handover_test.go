package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// A connection that goes over the link is the same connection, and the end of one process is seen by the other.
func TestLink(t *testing.T) {
	ours, file, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := openLink(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(theirs.send(sayTake+" 7", nil), theirs.send(sayData, accepted.(*net.TCPConn)), accepted.Close()); err != nil {
		t.Fatal(err)
	}
	if rest, err := ours.expect(sayTake); rest != "7" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	text, socket, err := ours.receive()
	if err != nil || text != sayData || socket == nil {
		t.Fatalf("%q, %v, %v", text, socket, err)
	}
	passed, err := net.FileConn(socket)
	if err := errors.Join(err, socket.Close()); err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	if passed.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("it is the connection of %s", passed.RemoteAddr())
	}
	if !ours.open() {
		t.Error("the other end is taken for gone")
	}
	theirs.Close()
	if ours.open() {
		t.Error("the other end is taken for there")
	}
	if _, _, err := ours.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := ours.send(sayReady, nil); err == nil {
		t.Error("a message to nobody was sent")
	}
}

// TestPredecessorKilled: who has taken everything goes on without the predecessor.
func TestPredecessorKilled(t *testing.T) {
	ours, file, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := openLink(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	var log bytes.Buffer
	d := &daemon{log: slog.New(slog.NewTextHandler(&log, nil)), predecessor: theirs}
	d.tookOver()
	if !strings.Contains(log.String(), "the predecessor has ended") {
		t.Errorf("the log says %q", log.String())
	}
}
