package terminate

import (
	"net"
	"testing"
	"time"

	"ftpalg/policy"
)

// A client that closes or resets its connection with a reply owed leaves no session behind, whether the next command waits for its
// turn or not.
func TestClosedClient(t *testing.T) {
	leave := map[string]func(*net.TCPConn){
		"closed":      func(c *net.TCPConn) { c.Close() },
		"half closed": func(c *net.TCPConn) { c.CloseWrite() },
		"reset":       reset,
	}
	for name, left := range leave {
		for _, commands := range [][]string{{"SYST"}, {"NOOP"}, {"SYST", "PWD"}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, false, func(p *policy.Policy) { p.Limits.IdleTimeout = time.Second })
				s := w.loggedIn()
				w.client.say(commands...)
				s.hear(commands[0])
				left(w.client.c.(*net.TCPConn))
				s.hearEnd()
			})
		}
	}
}

// A client that has said its last while a server is slow gets the replies that come within the idle timeout of one another.
func TestSlowRepliesToHalfClosedClient(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	w := newWorld(t, false, func(p *policy.Policy) { p.Limits.IdleTimeout = idle })
	s, c := w.loggedIn(), w.client
	c.say("STAT")
	s.hear("STAT")
	if err := c.c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	pace := time.NewTicker(idle / 2)
	defer pace.Stop()
	for range 4 {
		<-pace.C
		s.say("211-more")
	}
	s.say("211 end")
	for range 4 {
		c.hear("211-")
	}
	c.hear("211 ")
	c.hearEnd()
}
