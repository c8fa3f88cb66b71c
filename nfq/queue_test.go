package nfq

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/nfq/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const patience = 5 * time.Second // how long a condition may take to come true

// until waits for a condition, checking it often.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// echo serves lines on port 21 of the lab's server, and returns each line to its sender.
func echo(t testing.TB, network string) {
	t.Helper()
	var l net.Listener
	var err error
	lab.Inside(t, "server", func() { l, err = net.Listen(network, ":21") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(struct{ io.Writer }{c}, c) // no splice: plain reads and writes
			}()
		}
	}()
}

// connect opens a connection from the lab's client to port 21 of its server.
func connect(t testing.TB, network string) net.Conn {
	t.Helper()
	address := map[string]string{"tcp4": "198.51.100.2:21", "tcp6": "[2001:db8:2::2]:21"}[network]
	var c net.Conn
	var err error
	lab.Inside(t, "client", func() { c, err = net.DialTimeout(network, address, patience) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exchange sends a line and expects another back.
func exchange(t testing.TB, c net.Conn, line, want string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "%s\r\n", line); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if strings.TrimRight(got, "\r\n") != want || err != nil {
		t.Fatalf("sent %q, got %q (%v), want %q", line, got, err, want)
	}
}

// open binds a queue whose handler can use it.
func open(t testing.TB, num uint16, opt Options, h func(q *Queue, p *Packet)) *Queue {
	t.Helper()
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	var q *Queue
	ready := make(chan struct{})
	q, err := Open(t.Context(), num, opt, func(p *Packet) { <-ready; h(q, p) })
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	t.Cleanup(func() { q.Close() })
	return q
}

func TestQueueVerdicts(t *testing.T) {
	lab.Build(t)
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			echo(t, network)
			decoder, seg := NewDecoder(), new(Segment)
			var dropped atomic.Int32
			q := open(t, 7, Options{}, func(q *Queue, p *Packet) {
				v := Verdict{Accept: true}
				if err := decoder.Decode(p.Data, seg); err != nil {
					t.Errorf("decode: %v", err)
				}
				switch string(seg.Payload) {
				case "SITE\r\n": // a denied command, overwritten in place
					copy(seg.Payload, "NOOP\r\n")
					if err := FixChecksums(seg.Packet); err != nil {
						t.Error(err)
					}
					v.Payload = seg.Packet
				case "lost\r\n":
					if dropped.Add(1) == 1 {
						v = Verdict{}
					}
				case "mark\r\n":
					v.SetMark, v.Mark = true, 0x20000000
				}
				if err := q.Verdict(p.ID, v); err != nil {
					t.Error(err)
				}
			})
			lab.Rule(t, "-p tcp --dport 21 -j NFQUEUE --queue-num 7")
			lab.Rule(t, "-p tcp --sport 21 -j NFQUEUE --queue-num 7")
			lab.Run(t, "iptables -w -A FORWARD -m mark --mark 0x20000000 -p tcp -j REJECT --reject-with tcp-reset")
			lab.Run(t, "ip6tables -w -A FORWARD -m mark --mark 0x20000000 -p tcp -j REJECT --reject-with tcp-reset")
			defer lab.Run(t, "iptables -w -F FORWARD")
			defer lab.Run(t, "ip6tables -w -F FORWARD")
			c := connect(t, network)
			exchange(t, c, "PASV", "PASV")
			exchange(t, c, "SITE", "NOOP")
			exchange(t, c, "lost", "lost")
			if dropped.Load() < 2 {
				t.Error("the dropped segment was not sent again: it was not dropped")
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, "mark\r\n")
			if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
				t.Errorf("the marked packet was not reset: %v", err)
			}
			until(t, "one verdict for each packet, nothing lost", func() bool {
				s := q.Stats()
				return s.Received > 4 && s.Received == s.Verdicts && s.Loss == Loss{}
			})
		})
	}
}

// TestQueueHeldPacket gives a verdict from another goroutine, after later packets had theirs.
func TestQueueHeldPacket(t *testing.T) {
	lab.Build(t)
	echo(t, "tcp4")
	held := make(chan uint32, 16)
	q := open(t, 7, Options{}, func(q *Queue, p *Packet) {
		if strings.Contains(string(p.Data), "hold") {
			held <- p.ID
			return
		}
		_ = q.Verdict(p.ID, Verdict{Accept: true})
	})
	lab.Rule(t, "-p tcp --dport 21 -j NFQUEUE --queue-num 7")
	first, second := connect(t, "tcp4"), connect(t, "tcp4")
	fmt.Fprintf(first, "hold\r\n")
	id := <-held
	exchange(t, second, "PASV", "PASV")
	if err := q.Verdict(id, Verdict{Accept: true}); err != nil {
		t.Fatal(err)
	}
	_ = first.SetDeadline(time.Now().Add(patience))
	if line, err := bufio.NewReader(first).ReadString('\n'); line != "hold\r\n" {
		t.Errorf("the held line came back as %q, %v", line, err)
	}
}

func TestQueueTaken(t *testing.T) {
	lab.NeedRoot(t)
	open(t, 7, Options{}, func(q *Queue, p *Packet) {})
	_, err := Open(t.Context(), 7, Options{}, func(p *Packet) {})
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "queue 7") ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestQueueClose(t *testing.T) {
	lab.NeedRoot(t)
	q := open(t, 7, Options{}, func(q *Queue, p *Packet) {})
	if err := q.Close(); err != nil || q.Err() != nil {
		t.Error(err, q.Err())
	}
	if err := q.Verdict(1, Verdict{}); !errors.Is(err, ErrClosed) {
		t.Errorf("verdict after Close: %v", err)
	}
	if _, found, err := lookup(7); found || err != nil {
		t.Errorf("queue still bound: %v, %v", found, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	again, err := Open(ctx, 7, Options{}, func(p *Packet) {})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-again.Done():
	case <-time.After(patience):
		t.Error("the end of the context does not close the queue")
	}
}

// TestQueueClosesBehindVerdicts: who has decided on a packet when the queue closes still tells the kernel so. It will act as if
// the packet had gone on, and nobody else knows what it has decided.
func TestQueueClosesBehindVerdicts(t *testing.T) {
	lab.Build(t)
	echo(t, "tcp4")
	given, release := make(chan error, DefaultBatch), make(chan struct{})
	q := open(t, 7, Options{}, func(q *Queue, p *Packet) {
		<-release
		given <- q.Verdict(p.ID, Verdict{Accept: true})
	})
	conn, c := q.conn, connect(t, "tcp4")
	lab.Rule(t, "-p tcp --dport 21 -j NFQUEUE --queue-num 7")
	if _, err := io.WriteString(c, "line\r\n"); err != nil {
		t.Fatal(err)
	}
	until(t, "the packet is read", func() bool { return q.Stats().Received == 1 })
	closed := make(chan error)
	go func() { closed <- q.Close() }()
	until(t, "the queue closes", conn.closing.Load)
	close(release)
	if err := errors.Join(<-given, <-closed); err != nil {
		t.Error(err)
	}
}

// TestQueueFull holds every packet, so that the kernel's queue fills.
func TestQueueFull(t *testing.T) {
	lab.Build(t)
	for _, failOpen := range []bool{false, true} {
		t.Run(fmt.Sprint("failOpen=", failOpen), func(t *testing.T) {
			losses := make(chan Loss, 16)
			open(t, 7, Options{MaxLen: 2, FailOpen: failOpen, OnLoss: func(l Loss) { losses <- l }}, func(q *Queue, p *Packet) {})
			lab.Rule(t, "-p udp --dport 9 -j NFQUEUE --queue-num 7")
			var server net.PacketConn
			var client net.Conn
			var err, err2 error
			lab.Inside(t, "server", func() { server, err = net.ListenPacket("udp4", ":9") })
			lab.Inside(t, "client", func() { client, err2 = net.Dial("udp4", "198.51.100.2:9") })
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			defer client.Close()
			for i := range 5 {
				fmt.Fprint(client, i)
			}
			wait := patience
			if !failOpen {
				wait = 100 * time.Millisecond // nothing may arrive
			}
			_ = server.SetReadDeadline(time.Now().Add(wait))
			_, _, err = server.ReadFrom(make([]byte, 9))
			if arrived := err == nil; arrived != failOpen {
				t.Errorf("a packet got past the full queue: %v, with fail open %v", arrived, failOpen)
			}
			if failOpen {
				return // the kernel does not count what it let pass
			}
			select {
			case l := <-losses:
				if l.QueueDropped != 3 {
					t.Errorf("reported %+v, want 3 dropped", l)
				}
			case <-time.After(patience):
				t.Error("the full queue was not reported")
			}
		})
	}
}

// datagrams sends UDP to the lab's server port 9, which the queue is to see.
func datagrams(t testing.TB) func(count, size int) {
	t.Helper()
	var c net.Conn
	var err error
	lab.Inside(t, "client", func() { c, err = net.Dial("udp4", "198.51.100.2:9") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	lab.Rule(t, "-p udp --dport 9 -j NFQUEUE --queue-num 7")
	return func(count, size int) {
		for range count {
			_, _ = c.Write(make([]byte, size)) // refused by the server's ICMP now and then: it need not listen
		}
	}
}

// TestQueueOverrun floods a socket with a small buffer whose reader stands still: that is counted, and reading goes on.
func TestQueueOverrun(t *testing.T) {
	lab.Build(t)
	stop := make(chan struct{})
	losses := make(chan Loss, 64)
	q := open(t, 7, Options{OnLoss: func(l Loss) { losses <- l }}, func(q *Queue, p *Packet) {
		<-stop
		_ = q.Verdict(p.ID, Verdict{})
	})
	if err := unix.SetsockoptInt(q.conn.socket.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
		t.Fatal(err)
	}
	send := datagrams(t)
	send(100, 1400)
	close(stop)
	until(t, "ENOBUFS", func() bool { return q.Stats().Overruns > 0 })
	received := q.Stats().Received
	until(t, "packets after ENOBUFS", func() bool { send(1, 10); return q.Stats().Received > received })
	var sum Loss
	for end := time.After(patience); sum.UserDropped == 0 || sum.Overruns == 0; {
		select {
		case l := <-losses:
			sum.UserDropped += l.UserDropped
			sum.Overruns += l.Overruns
		case <-end:
			t.Fatalf("reported %+v", sum)
		}
	}
}

// unbind takes the queue away behind the back of its reader, as nothing but its own socket can.
func unbind(t testing.TB, q *Queue) {
	t.Helper()
	message := appendHeader(nil, 3<<8|2, unix.NLM_F_REQUEST)
	message = append(message, 0, 0, 0, byte(q.num), 8, 0, 1, 0, 2, 0, 0, 0) // NFQA_CFG_CMD: unbind
	message[0] = byte(len(message))
	// A queue that was just bound again reads packets a moment before it can be written to.
	until(t, "the queue's socket", func() bool {
		q.mu.RLock()
		defer q.mu.RUnlock()
		return q.conn != nil
	})
	q.mu.RLock()
	defer q.mu.RUnlock()
	if err := q.conn.socket.write(message); err != nil {
		t.Fatal(err)
	}
	if _, found, _ := lookup(q.num); found {
		t.Fatal("the queue was not unbound")
	}
}

func TestQueueVanishes(t *testing.T) {
	lab.Build(t)
	q := open(t, 7, Options{}, func(q *Queue, p *Packet) { _ = q.Verdict(p.ID, Verdict{}) })
	send := datagrams(t)
	unbind(t, q)
	until(t, "packets through the queue bound again", func() bool { send(1, 10); return q.Stats().Received > 0 })

	// Now somebody else takes it, and keeps it.
	unbind(t, q)
	thief, err := Open(t.Context(), 7, Options{}, func(p *Packet) {})
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	select {
	case <-q.Done():
		if !errors.Is(q.Err(), ErrVanished) {
			t.Errorf("got %v", q.Err())
		}
	case <-time.After(2 * reopenTries * watchInterval):
		t.Error("the lost queue goes on")
	}
}
