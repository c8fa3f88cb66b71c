package main

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
)

// follower is a front end with sessions, each of which asks for expectations under its control connection.
type follower interface {
	// Expects gives the session of an expectation's control connection, or 0, and whether it asked for the expectation.
	Expects(conntrack.Expectation) (session uint64, asked bool)
	// Abort ends the session of a control connection, if there is one.
	Abort(now time.Time, master conntrack.Tuple, why alg.Reason)
}

// watchExpectations removes what conntrack is made to expect under control connections of ours without that we asked for it, and
// ends their sessions (design rule 11): a helper of the kernel's may read what clients write. strangers says that it also
// removes what a helper made under a connection to a control port whose session nobody follows.
func (d *daemon) watchExpectations(ctx context.Context, strangers bool, followers ...follower) error {
	judge := func(e conntrack.Expected) {
		var session uint64
		var asked bool
		for _, f := range followers {
			if session, asked = f.Expects(e.Expectation); session != 0 {
				break
			}
		}
		asked = asked && e.Protocol == unix.IPPROTO_TCP
		helped := strangers && e.Writer == 0 && d.inspector.Policy().IsControlPort(e.Master.Dst)
		if asked || session == 0 && !helped {
			return
		}
		d.removeForeign(e, session)
		for _, f := range followers {
			f.Abort(time.Now(), e.Master, alg.ForeignExpectation)
		}
	}
	listening := false
	return conntrack.WatchExpectations(ctx, d.conntrack.Port(), judge, func() {
		if listening { // nothing came about before that, but what is known to be earlier
			d.eachExpectation(judge)
		}
		listening = true
	})
}

// earlier is what the kernel expected under control connections before we began: of sessions of a process that was killed, or
// that handed over. It serves the session that asked for it until it times out, or that asks for another.
type earlier struct {
	mu    sync.Mutex
	until map[promise]time.Time // guarded by mu; when each times out
}

// promise tells an expectation from others.
type promise struct {
	master   conntrack.Tuple
	from, to netip.AddrPort
	protocol uint8
}

func promiseOf(e conntrack.Expected) promise { return promise{e.Master, e.From, e.To, e.Protocol} }

// note notes what stands.
func (l *earlier) note(all []conntrack.Expected, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = map[promise]time.Time{}
	for _, e := range all {
		l.until[promiseOf(e)] = now.Add(e.Timeout)
	}
}

// has reports whether an expectation that stands is from before us.
func (l *earlier) has(e conntrack.Expected, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.until[promiseOf(e)])
}

// replacedBy forgets and returns what is from before us under the control connection of an expectation of ours. Where that is the
// same, it has taken its place already.
func (l *earlier) replacedBy(e conntrack.Expectation, now time.Time) map[promise]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := map[promise]bool{}
	for p, until := range l.until {
		over := now.After(until)
		if !over && p.master == e.Master && p != (promise{e.Master, e.From, e.To, unix.IPPROTO_TCP}) {
			old[p] = true
		}
		if over || p.master == e.Master {
			delete(l.until, p)
		}
	}
	return old
}

// noteEarlier has to come before the first pinhole of ours.
func (d *daemon) noteEarlier() error {
	all, err := d.conntrack.Expected()
	d.earlier.note(all, time.Now())
	return err
}

// expecting is conntrack for the front ends: a pinhole of a session takes the place of what the session asked for before us.
type expecting struct {
	*conntrack.Conn
	replaceEarlier func(conntrack.Expectation)
}

// Expect does what Conn.Expect does.
func (c expecting) Expect(e conntrack.Expectation) error {
	err := c.Conn.Expect(e)
	if err == nil {
		c.replaceEarlier(e)
	}
	return err
}

// replaceEarlier withdraws what a session asked for before us: it has asked again, and a session has one pinhole at a time (design
// rule 3). The kernel finds an expectation by its ends alone, so what is there has to be looked at first.
func (d *daemon) replaceEarlier(e conntrack.Expectation) {
	old := d.earlier.replacedBy(e, time.Now())
	if len(old) == 0 {
		return
	}
	all, err := d.conntrack.Expected()
	for _, x := range all {
		if !old[promiseOf(x)] {
			continue
		}
		if removed := d.conntrack.Remove(x); !errors.Is(removed, conntrack.ErrNotFound) {
			err = errors.Join(err, removed)
		}
	}
	if err != nil {
		d.log.Error("a pinhole from before this process is not withdrawn; it times out", "err", err)
	}
}

// eachExpectation looks at all that stand, because some came about without an event. Who made them is not told.
func (d *daemon) eachExpectation(judge func(conntrack.Expected)) {
	all, err := d.conntrack.Expected()
	if err != nil {
		d.log.Error("what the kernel expects is not known", "err", err)
	}
	for _, e := range all {
		e.Writer = d.conntrack.Port() // perhaps: a session decides alone
		if !d.earlier.has(e, time.Now()) {
			judge(e)
		}
	}
}

// removeForeign removes a foreign expectation, and what has come of it already.
func (d *daemon) removeForeign(e conntrack.Expected, session uint64) {
	result := "removed"
	switch err := d.conntrack.Remove(e); {
	case errors.Is(err, conntrack.ErrNotFound):
		result = "used already, or gone"
	case err != nil:
		result = err.Error()
	}
	forgotten, err := d.conntrack.Forget(e)
	if err != nil {
		d.log.Error("a connection that ftpalg did not ask for may go on", "session", session, "err", err)
	}
	d.log.Error("conntrack expected a connection that ftpalg did not ask for", "session", session,
		"reason", alg.ForeignExpectation.String(), "result", result, "client", e.Master.Src.String(), "server", e.Master.Dst.String(),
		"from", e.From.Addr().String(), "to", e.To.String(), "protocol", e.Protocol,
		"helper", e.Helper, "writer", e.Writer, "forgotten", forgotten)
}

// pinholes lists what the kernel expects under control connections of ours, whoever asked for it, by session.
func (d *daemon) pinholes() []pinholeRecord {
	all, err := d.conntrack.Expected()
	if err != nil {
		d.log.Error("what the kernel expects is not known", "err", err)
	}
	sessions := map[conntrack.Tuple]audit.SessionInfo{}
	for _, s := range d.allSessions() {
		sessions[conntrack.Tuple{Src: s.Client, Dst: s.Server}] = s
	}
	var list []pinholeRecord
	for _, x := range all {
		s, followed := sessions[x.Master]
		if !followed && !d.inspector.Policy().IsControlPort(x.Master.Dst) {
			continue
		}
		r := pinholeRecord{Session: s.Number, From: x.From.Addr().String(), To: x.To.String(), Until: time.Now().Add(x.Timeout)}
		switch {
		case s.Pinhole.From.Addr() == x.From.Addr() && s.Pinhole.To == x.To && x.Protocol == unix.IPPROTO_TCP:
			r.Mode = s.Pinhole.Mode.String()
		case d.earlier.has(x, time.Now()):
			r.Earlier = true
		default:
			r.Foreign = followed || !d.predecessor.open() // it may have asked
		}
		list = append(list, r)
	}
	slices.SortStableFunc(list, func(a, b pinholeRecord) int { return cmp.Compare(a.Session, b.Session) })
	return list
}
