package terminate

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ftpalg/policy"
)

// leakSessions is how many sessions a leak has to show in.
const leakSessions = 10_000

// serveAll answers like a small FTP server, until the listener is closed. DROP closes the connection without a word.
func serveAll(l net.Listener, secure func(net.Conn) *tls.Conn) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			answerAll(c, secure)
		}()
	}
}

func answerAll(c net.Conn, secure func(net.Conn) *tls.Conn) {
	r := bufio.NewReader(c)
	fmt.Fprint(c, "220 ready\r\n")
	for {
		text, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.TrimSpace(text); verb {
		case "DROP":
			return
		case "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		case "AUTH TLS":
			fmt.Fprint(c, "234 go on\r\n")
			t := secure(c)
			if t.Handshake() != nil {
				return
			}
			c, r = t, bufio.NewReader(t)
		default:
			fmt.Fprint(c, "200 ok\r\n")
		}
	}
}

// leakKinds are the ways in which the sessions of TestLeaks go, most of them badly.
var leakKinds = []func(c net.Conn, r *bufio.Reader){
	func(c net.Conn, r *bufio.Reader) { talk(c, r, "NOOP\r\n", "QUIT\r\n") },
	func(c net.Conn, r *bufio.Reader) {},
	func(c net.Conn, r *bufio.Reader) { reset(c.(*net.TCPConn)) },
	func(c net.Conn, r *bufio.Reader) { talk(c, r, "AUTH TLS\r\n", "this is no handshake\r\n") },
	func(c net.Conn, r *bufio.Reader) {
		talk(c, r, "AUTH TLS\r\n")
		t := tlsClient(c)
		if t.Handshake() == nil {
			talk(t, bufio.NewReader(t), "NOOP\r\n", "QUIT\r\n")
		}
	},
	func(c net.Conn, r *bufio.Reader) {
		talk(c, r, "AUTH TLS\r\n")
		if tlsClient(c).Handshake() == nil {
			reset(c.(*net.TCPConn))
		}
	},
	func(c net.Conn, r *bufio.Reader) { talk(c, r, "DROP\r\n") },
	func(c net.Conn, r *bufio.Reader) { io.WriteString(c, "half a li") },
	func(c net.Conn, r *bufio.Reader) { talk(c, r, strings.Repeat("x", 20_000)+"\r\n", "NOOP\r\n") },
	func(c net.Conn, r *bufio.Reader) {
		talk(c, r, "PORT 203,0,113,1,195,80\r\n", "EPRT |1|127.0.0.1|50000|\r\n")
	},
}

// talk says lines and reads one answer to each, as far as that goes.
func talk(c net.Conn, r *bufio.Reader, lines ...string) {
	for _, l := range lines {
		io.WriteString(c, l)
		if _, err := r.ReadString('\n'); err != nil {
			return
		}
	}
}

// TestLeaks: after thousands of sessions, failures included, nothing is left of any.
func TestLeaks(t *testing.T) {
	w := newWorld(t, false, func(p *policy.Policy) { p.Limits.SessionsPerClient = 1000 })
	go serveAll(w.back, w.tlsServer)
	w.client.hear("220 ")
	go func() { // nobody reads the events
		for range w.events {
		}
	}()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	var workers sync.WaitGroup
	for first := range 8 {
		workers.Go(func() {
			for i := first; i < leakSessions; i += 8 {
				c, err := net.Dial("tcp", w.front.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(testTimeout))
				r := bufio.NewReader(c)
				if _, err := r.ReadString('\n'); err != nil {
					t.Error("greeting:", err)
				}
				leakKinds[i%len(leakKinds)](c, r)
				c.Close()
			}
		})
	}
	workers.Wait()
	deadline := time.Now().Add(testTimeout)
	for runtime.NumGoroutine() > goroutines+1 || openDescriptors(t) > descriptors+1 || len(w.gateway.Sessions()) > 1 || w.gateway.promised() > 0 {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d sessions, %d goroutines (%d before), %d descriptors (%d before)\n%s", len(w.gateway.Sessions()),
				runtime.NumGoroutine(), goroutines, openDescriptors(t), descriptors, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// promised is how many data connections are still to come.
func (g *Gateway) promised() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.doors)
}
