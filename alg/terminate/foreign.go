package terminate

import (
	"time"

	"ftpalg/alg"
	"ftpalg/conntrack"
)

// Expects reports whether an expectation is under a session's control connection, and whether the session asked for it.
func (g *Gateway) Expects(x conntrack.Expectation) (session uint64, asked bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.session(x.Master)
	if s == nil {
		return 0, false
	}
	n := g.doors[door{x.From.Addr(), x.To}]
	return s.number, n != nil && n.session == s && n.pinhole.From == x.From
}

// Abort ends the session of a client's connection, if there is one.
func (g *Gateway) Abort(_ time.Time, master conntrack.Tuple, why alg.Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.session(master); s != nil {
		s.abandon(why)
	}
}

// session finds the session of a client's connection. g.mu must be held.
func (g *Gateway) session(master conntrack.Tuple) *session {
	for s := range g.sessions {
		if s.tuple() == master {
			return s
		}
	}
	return nil
}
