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
	_, fx = c.serverLine(line, fx)
	return n, fx
}

// serverLine takes a whole line of the server's, and returns what it is of a reply: the zero value for one that is of none.
func (c *Control) serverLine(line ftp.Line, fx []Effect) (ftp.Reply, []Effect) {
	if len(line.Text) == 0 && line.Flaws&ftp.Refused == 0 && !c.replies.Open() {
		return ftp.Reply{}, append(fx, Effect{Kind: Audit, Reason: BlankLine, Side: Server})
	}
	c.multiline = c.replies.Open()
	reply, err := c.replies.Line(ftp.WithoutNegotiation(line.Text))
	switch {
	case err != nil && c.resumed:
		// Perhaps the middle of a multi-line reply that began before us.
		return ftp.Reply{}, fx
	case err != nil:
		return ftp.Reply{}, c.strayLine(line, fx)
	case !reply.Last:
		return reply, fx
	}
	c.resumed = false
	return reply, c.reply(reply, line, fx)
}

// maxStray bounds the lines without a code that follow one another. Long greetings have some hundred lines.
const maxStray = 1000

// strayLine handles a server's line that is no reply: some servers have such lines before their greeting, or leave out the
// hyphen of a reply of several lines. Clients skip them, and so they may go on.
func (c *Control) strayLine(line ftp.Line, fx []Effect) []Effect {
	if c.stray++; c.stray > maxStray || line.Flaws&ftp.Refused != 0 || ftp.OtherServer(line.Text) {
		fx = append(fx, Effect{Kind: Deny, Reason: NotFTP, Side: Server, Text: line.Text})
		return c.end(NotFTP, fx)
	}
	fx = append(fx, Effect{Kind: Audit, Reason: StrayLine, Side: Server, Text: line.Text})
	return fx
}

// reply handles the last line of a reply: it finds the command that it belongs to.
func (c *Control) reply(r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	continued := c.stray > 0 && r.Code == int(c.code)
	c.stray = 0
	if c.terminated() && c.Asking() {
		if r.Preliminary() {
			return fx // what matters is how it ends
		}
		return c.replied(r, line, fx)
	}
	if c.login == loginUnknown && provesLogin(c.kinds.oldest(), r.Code) {
		c.login = loggedIn
	}
	switch {
	case r.Code == 421:
		// Service closing (RFC 959 section 4.2.2): may come at any time and belongs to no command.
		return c.closePinhole(SessionOver, fx)
	case r.Preliminary():
		return c.preliminary(r, fx)
	case continued:
		return fx // the end of a reply whose lines lack the hyphen
	}
	c.code = uint16(r.Code)
	began := c.kinds.running
	k, found := c.owner(r)
	switch {
	case r.Code == 227 || r.Code == 229:
		return c.announcement(k, r, line, fx)
	case r.Code == 234 && !found:
		// The server is in TLS, and we do not know why.
		return c.end(NotTLS, fx)
	case line.Flaws&ftp.Refused != 0:
		fx = append(fx, Effect{Kind: Audit, Reason: ReplyUnreadable, Side: Server, Text: line.Text})
	}
	if k.direction() != NoTransfer {
		return c.transferAnswered(began, r, fx)
	}
	return c.answered(k, r, fx)
}

// preliminary handles 1yz: a transfer is under way. When a client closes the data connection of a download, Pure-FTPd says nothing else
// than 150 again, so that the second one is the final reply. Other codes mark how far the transfer has got (GridFTP's 111 and 112).
func (c *Control) preliminary(r ftp.Reply, fx []Effect) []Effect {
	if c.kinds.repeats(r.Code) {
		c.kinds.take(0)
		c.cutOff = true
		return c.transferAnswered(true, r, fx)
	}
	c.cutOff = false
	if c.kinds.begins(r.Code) && c.rests {
		c.part()
	}
	return fx
}

// transferAnswered closes the pinhole of the transfer that is over. One that never began, as there is no such file, leaves it
// to the next (RFC 959 section 5.2: ports stay what they are); and the one that a later PORT has announced is not its own.
func (c *Control) transferAnswered(began bool, r ftp.Reply, fx []Effect) []Effect {
	failed := r.Code >= 400 && r.Code != 425 && r.Code != 426
	if (failed || c.doubt) && !began || c.kinds.has(active) {
		return fx // in doubt it may be the late reply to one that was given up
	}
	return c.closePinhole(TransferDone, fx)
}

// answered is what a final reply means for the command it belongs to.
func (c *Control) answered(k kind, r ftp.Reply, fx []Effect) []Effect {
	ok := r.Code < 300
	switch k {
	case auth, authOther:
		return c.authAnswered(k, r, fx)
	case user, pass:
		return c.loginAnswered(r, fx)
	case active:
		if !ok {
			return c.closePinhole(RefusedByServer, fx)
		}
	case epsvAll:
		c.epsvAll = c.epsvAll || ok
	case rein:
		if ok {
			// RFC 959 section 4.1.1: all parameters are reset, as after connecting.
			c.login, c.hadLogin, c.secured = loggedOut, false, c.phase == records
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
	case renameTo:
		if ok {
			c.cwd.move()
		}
	}
	return fx
}

// authAnswered: 234 and nothing else means that the client's next byte is TLS (RFC 4217 section 4). There are clients that take
// any other success for the same, so that nobody knows what comes next. Another mechanism goes on in lines of text, after
// 334 with more of its own data (RFC 2228 section 3).
func (c *Control) authAnswered(k kind, r ftp.Reply, fx []Effect) []Effect {
	c.phase = clear
	switch {
	case r.Code >= 400:
		return append(fx, Effect{Kind: Audit, Reason: AUTHRefused})
	case k == authOther:
		return fx
	case r.Code != 234:
		return c.end(NotTLS, fx)
	}
	c.startTLS()
	return append(fx, Effect{Kind: Protect, Protection: c.Protection()})
}

func (c *Control) loginAnswered(r ftp.Reply, fx []Effect) []Effect {
	before := c.login
	switch {
	case r.Code == 202 && c.login != needAccount:
		// Superfluous (RFC 959 section 4.2): nobody has logged in by it. Pure-FTPd says so to ACCT before USER.
		return fx
	case r.Code == 230 || r.Code == 232 || r.Code < 300 && !c.doubt && !c.unread: // where nobody read the greeting this may be it
		c.login = loggedIn
	case r.Code == 331:
		c.login = needPassword
	case r.Code == 332:
		c.login = needAccount
	case r.Code >= 400 && before == loggedIn:
		return fx // servers keep the user whom they have: "530 Can't change to another user", "502 ACCT not implemented"
	default:
		c.login = loggedOut
	}
	if c.login != loggedIn {
		return fx
	}
	c.hadLogin = true
	c.cwd.reset()
	if before == loggedIn {
		return fx
	}
	return append(fx, Effect{Kind: Login, Reason: NoReason, Side: Server})
}

// announcement: a 227 or 229, the only replies that promise a port. It opens a pinhole only for a command that asked for
// it; there are servers that answer EPSV with 227, and PASV with 229 (design rule 4).
func (c *Control) announcement(k kind, r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	asked := k == pasv || k == epsv
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
	announced := to
	own := announced.Addr() == c.seen().server || announced.Addr().IsUnspecified() && r.Code == 227 || c.target.IsPublic(announced.Addr())
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
		if n, why = c.namePASV(announced.Addr(), p, line); why != NoReason {
			return c.denyReply(why, line, fx)
		}
	}
	return c.named(n, c.open(p, announced, Server, line, fx))
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
