package alg

import (
	"net/netip"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// feedServer takes at most one line of the server's clear text.
func (c *Control) feedServer(b []byte, fx []Effect) (int, []Effect) {
	lines := &c.lines[Server]
	line, n, whole := lines.Next(b, c.policy.Limits.Line)
	if !whole {
		if lines.Partial() > 2*c.policy.Limits.Line {
			// No reply is that long, and a line that never ends must not be followed for ever.
			return n, c.end(NotFTP, fx)
		}
		return n, fx
	}
	if len(line.Text) == 0 && line.Flaws&ftp.Refused == 0 && !c.replies.Open() {
		return n, append(fx, Effect{Kind: Audit, Reason: BlankLine, Side: Server})
	}
	c.multiline = c.replies.Open()
	reply, err := c.replies.Line(line.Text)
	if err != nil {
		if c.resumed {
			// Perhaps the middle of a multi-line reply that began before us.
			return n, fx
		}
		fx = append(fx, Effect{Kind: Deny, Reason: NotFTP, Side: Server, Text: line.Text})
		return n, c.end(NotFTP, fx)
	}
	if !reply.Last {
		return n, fx
	}
	c.resumed = false
	return n, c.reply(reply, line, fx)
}

// reply handles the last line of a reply: it finds the command that it belongs to.
func (c *Control) reply(r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	if r.Code == 421 {
		// Service closing (RFC 959 section 4.2.2): may come at any time and belongs to no command.
		return c.closePinhole(SessionOver, fx)
	}
	k := c.kinds.oldest()
	if c.login == loginUnknown && provesLogin(k, r.Code) {
		c.login = loggedIn
	}
	if r.Preliminary() {
		return fx
	}
	if k.direction() != NoTransfer && r.Code >= 211 && r.Code <= 213 && c.kinds.popStat() {
		return fx
	}
	k = c.resync(r, k)
	if stray(k, r.Code) {
		return fx
	}
	c.kinds.pop()
	if r.Code == 227 || r.Code == 229 {
		return c.announcement(k, r, line, fx)
	}
	if line.Flaws&ftp.Refused != 0 {
		fx = append(fx, Effect{Kind: Audit, Reason: ReplyUnreadable, Side: Server, Text: line.Text})
	}
	return c.answered(k, r, fx)
}

// stray says whether a reply cannot be the oldest command's: PASV and EPSV succeed with their own codes only, so another
// success is one too many for something before, as some servers send after ABOR.
func stray(oldest kind, code int) bool {
	return (oldest == pasv || oldest == epsv) && code < 400 && code != 227 && code != 229
}

// resync finds the command that a reply belongs to whose code only one command has, when the oldest is another: some
// servers leave a reply out (one for a transfer and its ABOR together), and all later ones would be misread. A command
// that was not captured is known by such a reply as well.
func (c *Control) resync(r ftp.Reply, oldest kind) kind {
	only := other
	switch r.Code {
	case 227:
		only = pasv
	case 229:
		only = epsv
	case 234:
		only = auth
		if c.opened {
			only = authOpened
		}
	}
	switch {
	case only == other, only == oldest:
	case c.kinds.skipTo(only), oldest == other && c.missed:
		return only
	}
	return oldest
}

// answered is what a final reply means for the command it belongs to.
func (c *Control) answered(k kind, r ftp.Reply, fx []Effect) []Effect {
	ok := r.Code < 300
	switch k {
	case auth, authOther:
		return c.authAnswered(k, r, fx)
	case authOpened:
		if !ok {
			return append(fx, Effect{Kind: Audit, Reason: AUTHRefused})
		}
		c.SetProtection(Protection{Control: TLS, Data: Clear}) // PROT begins at C (RFC 2228 section 3)
		return append(fx, Effect{Kind: Protect, Protection: c.Protection()})
	case user, pass:
		return c.loginAnswered(r, fx)
	case active:
		if !ok {
			return c.closePinhole(RefusedByServer, fx)
		}
	case upload, download, listing:
		return c.closePinhole(TransferDone, fx)
	case epsvAll:
		c.epsvAll = c.epsvAll || ok
	case rein:
		if ok {
			// RFC 959 section 4.1.1: all parameters are reset, as after connecting.
			c.login, c.secured = loggedOut, c.phase == records || c.wrapped
			c.cwd.reset()
			return append(fx, Effect{Kind: Login})
		}
	case protC, protP:
		if ok {
			c.dataLevel = Clear
			if k == protP {
				c.dataLevel = TLS
			}
			return append(fx, Effect{Kind: Protect, Protection: c.Protection()})
		}
	case cwd, pwd:
		c.cwd.answered(k, ok, r.Text)
	}
	return fx
}

// authAnswered: 234 means that the client's next byte is TLS (RFC 4217 section 4). Clients in use take any 2yz, and 334,
// for the same, so these are read as they read them. With another mechanism 334 asks for more data in clear text
// (RFC 2228 section 3).
func (c *Control) authAnswered(k kind, r ftp.Reply, fx []Effect) []Effect {
	if r.Code < 300 || r.Code == 334 && k == auth {
		c.startTLS()
		return append(fx, Effect{Kind: Protect, Protection: c.Protection()})
	}
	c.phase = clear
	if r.Code == 334 {
		return fx
	}
	return append(fx, Effect{Kind: Audit, Reason: AUTHRefused})
}

func (c *Control) loginAnswered(r ftp.Reply, fx []Effect) []Effect {
	before := c.login
	switch {
	case r.Code == 202 && c.login != needAccount:
		// Superfluous (RFC 959 section 4.2): nobody has logged in by it. Pure-FTPd says so to ACCT before USER.
		return fx
	case r.Code < 300:
		c.login = loggedIn
	case r.Code == 331:
		c.login = needPassword
	case r.Code == 332:
		c.login = needAccount
	default:
		c.login = loggedOut
	}
	if c.login != loggedIn {
		return fx
	}
	c.cwd.reset()
	if before == loggedIn {
		return fx
	}
	return append(fx, Effect{Kind: Login, Reason: NoReason, Side: Server})
}

// announcement: a 227 or 229, the only replies that promise a port. It opens a pinhole only for the command that asked
// for it (design rule 4).
func (c *Control) announcement(k kind, r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	asked := k == pasv && r.Code == 227 || k == epsv && r.Code == 229
	to, mode, err := c.announced(r)
	switch {
	case !asked && err != nil:
		// "227 Logout." promises nothing.
		return c.answered(k, r, fx)
	case !asked:
		// It opens nothing, so it may go on as it is: nobody waits for it.
		return append(fx, Effect{Kind: Deny, Reason: UnsolicitedReply, Side: Server, Text: line.Text,
			Start: line.Start, Len: line.Len - line.EOL})
	case flawReason(line.Flaws) != NoReason:
		return c.denyReply(flawReason(line.Flaws), line, fx)
	case c.login != loggedIn:
		return c.denyReply(NotLoggedIn, line, fx)
	case err != nil:
		return c.denyReply(BadHostPort, line, fx)
	}
	announced := to.Addr()
	own := announced == c.seen().server || announced.IsUnspecified() && r.Code == 227 || c.target.IsPublic(announced)
	to, why := c.checkTarget(to, c.server.Addr(), own || c.policy.Bounce == policy.BouncePeer)
	if why == NoReason && !c.passivePorts().IsZero() && !c.passivePorts().Contains(to.Port()) {
		why = OutsideRange
	}
	if why != NoReason {
		return c.denyReply(why, line, fx)
	}
	p := c.toServer(mode, netip.AddrPortFrom(c.client.Addr(), 0), to.Port())
	var n naming
	if mode == policy.PASV {
		if n, why = c.namePASV(announced, p, line); why != NoReason {
			return c.denyReply(why, line, fx)
		}
	}
	return c.named(n, c.open(p, Server, line, fx))
}

// passivePorts are where the server listens for data connections; zero means that the policy does not say.
func (c *Control) passivePorts() policy.PortRange {
	if c.target == nil {
		return policy.PortRange{}
	}
	return c.target.Passive
}

// announced reads the address of a 227 or 229. EPSV has none: it is the control connection's (RFC 2428 section 3).
func (c *Control) announced(r ftp.Reply) (netip.AddrPort, policy.Mode, error) {
	if r.Code == 227 {
		to, err := ftp.ParsePASV(r.Text)
		return to, policy.PASV, err
	}
	port, err := ftp.ParseEPSV(r.Text)
	return netip.AddrPortFrom(c.server.Addr(), port), policy.EPSV, err
}
