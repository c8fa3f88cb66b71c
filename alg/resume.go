package alg

import (
	"net/netip"
	"slices"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// Phase is how the bytes of a control connection are to be read, as far as it is kept where it outlives this process (in the
// label of the connection's conntrack entry).
type Phase uint8

const (
	PhaseUnknown Phase = iota // nobody has logged in, or nobody has read the connection from its beginning
	PhaseClear                // commands and replies, and somebody has logged in
	PhaseAUTH                 // AUTH has gone on, and its reply has not come
	PhaseTLS
	PhaseCleared // commands and replies again, after TLS (CCC)
)

// Phase is the phase that the connection is in. It changes in Feed alone.
func (c *Control) Phase() Phase {
	switch {
	case c.phase == authSent:
		return PhaseAUTH
	case c.phase == records:
		return PhaseTLS
	case c.unread, c.login != loggedIn:
		return PhaseUnknown
	case c.cleared:
		return PhaseCleared
	}
	return PhaseClear
}

// AdmitResumed says why a control connection cannot go on that was there before us, or NoReason. Where the policy rests on who
// logged in, and how, somebody must have read that; and it may be another policy than the one that the session began with. user is
// empty where nobody knows it.
func AdmitResumed(d policy.Decision, phase Phase, user string) Reason {
	switch {
	case phase == PhaseUnknown && d.Rule.RestsOnLogin():
		return SessionUnknown
	case d.Rule.RequireTLS && (phase == PhaseClear || phase == PhaseCleared):
		return TLSRequired
	case user != "" && !d.Rule.User(user):
		return UserDenied
	}
	return NoReason
}

// Resume gives the state machine of a control connection that was there before we were. What its phase tells is known. All else
// is not: in PhaseUnknown whether there was a login, and always which commands have no reply yet, and the working directory. What
// needs a login is denied until the server's replies prove one. The directory stays unknown: a reply that is late would be taken
// for another command's.
func Resume(p *policy.Policy, d policy.Decision, client, server netip.AddrPort, phase Phase) *Control {
	c := New(p, d, client, server)
	c.phase, c.tls, c.kinds, c.secured = clear, nil, queue{}, false
	c.login, c.resumed, c.startUnknown, c.dataLevel = loginUnknown, true, true, Unknown
	if c.cwd.lose(); c.rests {
		c.part()
	}
	if phase == PhaseUnknown && d.Implicit {
		phase = PhaseTLS
	}
	switch opaque := c.rule.OpaquePinhole; {
	case phase == PhaseTLS && opaque:
		c.startTLS()
		c.resumeTLS()
	case phase == PhaseAUTH && opaque:
		c.phase = authSent
		c.kinds.push(auth, 1)
	case phase == PhaseClear || phase == PhaseCleared:
		c.cleared, c.login = phase == PhaseCleared, loggedIn
	default:
		c.unread = true
		c.guess = !c.rule.RestsOnState() // who is not restricted gains nothing by a forged record
	}
	return c
}

// provesLogin reports whether a reply is one that servers give to users who have logged in, and to nobody else: a data
// connection was offered or is made, or a directory or a file was found. TYPE changes what only they have.
func provesLogin(oldest kind, code int) bool {
	switch code {
	case 125, 150, 213, 226, 227, 229, 250, 257:
		return true
	}
	return code == 200 && oldest == representation
}

// Acknowledged notes that the server has the client's bytes before an offset, and reads on from there: a line that begins there or later
// is read by the server from its beginning.
func (c *Control) Acknowledged(acked uint64) {
	if lines := &c.lines[Client]; lines.Partial() == 0 || lines.PartialStart() >= acked {
		c.startUnknown = false
	}
}

// hides reports whether a server that has the beginning of a line already, with other content, may read a command in the rest of it
// that is denied, or that the engine has to follow. A client can repeat old bytes to a session that is resumed.
func (c *Control) hides(text []byte) bool {
	for i := 1; i < len(text); i++ {
		cmd, err := ftp.ParseCommand(text[i:])
		if err != nil || !ftp.Known(cmd.Verb) {
			continue
		}
		if slices.Contains(restrictedVerbs, cmd.Verb) || c.rule.Command(cmd.Verb, cmd.Arg, c.cwd.Path) != policy.Allowed {
			return true
		}
	}
	return false
}
