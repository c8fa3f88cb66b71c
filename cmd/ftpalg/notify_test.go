package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestNotifyPatience: a manager that does not read does not hold up the daemon.
func TestNotifyPatience(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	n, err := newNotifier()
	if err != nil {
		t.Fatal(err)
	}
	defer n.conn.Close()
	given := make(chan struct{})
	go func() {
		defer close(given)
		for took := time.Duration(0); took < notifyTimeout/2; { // until there is no room left
			began := time.Now()
			n.say("STATUS=busy")
			took = time.Since(began)
		}
	}()
	select {
	case <-given:
	case <-time.After(20 * notifyTimeout):
		t.Error("it waits for the manager")
	}
}
