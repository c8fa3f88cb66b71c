package terminate

import (
	"net"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// A mistake of ours (a panic) in a goroutine that serves a session ends that session and no other. Each such goroutine defers a
// rescue. What it runs must leave no lock held, so that it unlocks in deferred calls.

// rescue is to be deferred by every goroutine that serves the session.
func (s *session) rescue() {
	if mistake := recover(); mistake != nil {
		s.failed(audit.NewFault(mistake))
	}
}

// failed ends the session after a mistake of ours. Its client is told, unless that is what failed.
func (s *session) failed(fault *audit.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		s.report(audit.Event{Kind: audit.EventAudit, Reason: alg.InternalError, Err: fault})
		return
	}
	client := s.peers[alg.Client]
	if !s.implicit || client.state == inTLS {
		_ = client.send([]byte(alg.InternalError.Reply()+"\r\n"), client.state) // it is told if it listens
	}
	s.dialogue.over = false // so that the end is reported, even in the middle of another
	s.end(audit.Event{Kind: audit.EventEnd, Reason: alg.InternalError, Err: fault})
}

// rescue is to be deferred where a connection has no session yet.
func (g *Gateway) rescue(c *net.TCPConn) {
	if mistake := recover(); mistake != nil {
		from, to := endpoints(c)
		g.Report(audit.Event{Time: time.Now(), Kind: audit.EventAudit, Reason: alg.InternalError, From: from, To: to, Err: audit.NewFault(mistake)})
		reset(c)
	}
}
