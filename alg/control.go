package alg

import (
	"net/netip"
	"time"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// phase is how the bytes of a control connection are to be read.
type phase uint8

const (
	clear    phase = iota // commands and replies
	authSent              // AUTH has gone on, its reply is awaited: the client must be silent
	records               // TLS records; each side is clear again after its close_notify
	ended                 // we ended it
)

// login is how far the user has got (RFC 959 section 5.4).
type login uint8

const (
	loggedOut login = iota
	needPassword
	needAccount
	loggedIn
	loginUnknown // in a session that is resumed
)

// Control is one control connection. Make one with New, NewTerminated or Resume; it is not safe for concurrent use.
type Control struct {
	policy         *policy.Policy
	rule           *policy.Rule
	target         *policy.Server // nil where the policy lists none
	client, server netip.AddrPort
	nat            *nat // nil without NAT: most sessions have none, and are many

	phase        phase
	login        login
	hadLogin     bool   // somebody has logged in since the session began, or since TLS did in it
	epsvAll      bool   // the server accepted EPSV ALL
	secured      bool   // inside TLS since it began or since AUTH
	resumed      bool   // picked up in the middle, and nothing has been read since that tells what came before
	unread       bool   // nobody has read it from its beginning
	startUnknown bool   // where in the client's stream the server reads is not known (Acknowledged)
	guess        bool   // if its first bytes look like TLS, it is
	cleared      bool   // it was in TLS before (CCC)
	missed       bool   // a command may have been sent that was not captured
	rests        bool   // the policy rests on state, so that the session goes in step
	doubt        bool   // replies and commands may have parted
	cutOff       bool   // the last transfer ended by a second 150, and its own end may come after all
	outOfTurn    bool   // the client's next command goes on though others have no reply
	bad          uint8  // lines before a login that were no commands
	stray        uint16 // lines without a code since the last reply
	code         uint16 // of the last final reply
	deniedLen    int    // bytes of the line that is being overwritten
	inDenied     bool   // the rest of the client's line is being overwritten
	dataLevel    Level
	kinds        queue
	lines        [2]ftp.Lines
	released     [2]uint64 // up to where an incomplete line has gone on
	replies      ftp.Replies
	multiline    bool // the reply that ended last had several lines
	pinhole      Pinhole
	tls          *follower
	jit          jit
	cwd          workingDirectory
	bridge       *bridge // of a terminated session, and else nil
}

// Admit says why a decision lets no control connection begin, or NoReason.
func Admit(d policy.Decision) Reason {
	switch {
	case d.Action == policy.Deny:
		return PolicyDenied
	case d.Action == policy.Inspect && d.Implicit && !d.Rule.OpaquePinhole:
		return OpaqueDenied
	}
	return NoReason
}

// New gives the state machine of a control connection that begins now. The decision is the policy's for these two
// hosts, and Admit must have nothing against it.
func New(p *policy.Policy, d policy.Decision, client, server netip.AddrPort) *Control {
	c := &Control{policy: p, rule: d.Rule, target: d.Server, client: client, server: server, dataLevel: Clear}
	c.rests = d.Rule.RestsOnState()
	if d.Implicit {
		// MS-FTPS 1.3: as if AUTH TLS, PBSZ 0 and PROT P had been given.
		c.startTLS()
		c.dataLevel = TLS
	}
	c.kinds.push(greeting, 1)
	return c
}

// resumeTLS takes the handshake and the login as done.
func (c *Control) resumeTLS() {
	c.tls.resume()
	c.jit.Login = loginExchanges
}

// Translated tells that the gateway translates addresses between the two hosts: where the server really is, and where the
// client is as the server sees it. resizes says that the front end can have a line go on that is longer or shorter than it came.
func (c *Control) Translated(server, client netip.Addr, resizes bool) {
	if c.nat = nil; server != c.server.Addr() || client != c.client.Addr() {
		c.nat = &nat{server: server, client: client, resizes: resizes}
	}
}

// Protection is the protection of both channels now.
func (c *Control) Protection() Protection {
	p := Protection{Control: Clear, Data: c.dataLevel}
	if c.phase == records || c.terminated() && c.InTLS(Client) {
		p.Control = TLS
	}
	return p
}

// hasUser reports whether the server has accepted a USER since the session began, or since the last AUTH. Whatever it has refused
// after a login, it may still have that user.
func (c *Control) hasUser() bool { return c.login != loggedOut || c.hadLogin }

// logIn makes the session one in which somebody has logged in inside TLS, and nothing is outstanding.
func (c *Control) logIn() {
	c.login, c.secured, c.kinds, c.phase, c.tls = loggedIn, true, queue{}, clear, nil
	if !c.terminated() {
		return
	}
	c.Secured(Client, true, nil)
	if c.bridge.channel == policy.Same {
		c.Secured(Server, true, nil)
	}
}

// Outstanding is how many commands have no final reply yet; before the greeting it is one.
func (c *Control) Outstanding() int { return int(c.kinds.n) }

// Transferring is the direction of the oldest transfer command without a final reply, or NoTransfer.
func (c *Control) Transferring() Direction { return c.kinds.transfer() }

// Pinhole is the one outstanding pinhole, or the zero value.
func (c *Control) Pinhole() Pinhole { return c.pinhole }

// Ended says whether we ended the session.
func (c *Control) Ended() bool { return c.phase == ended }

// LoggedIn says whether a login was seen, or is taken for granted in a resumed session.
func (c *Control) LoggedIn() bool { return c.login == loggedIn }

// Opaque says whether one side's bytes are TLS that we cannot read.
func (c *Control) Opaque(from Side) bool { return c.phase == records && !c.tls.Cleared[from] }

// Feed takes the next bytes of one side, in stream order, and appends what should happen to fx. The bytes are not kept.
func (c *Control) Feed(now time.Time, from Side, b []byte, fx []Effect) []Effect {
	if c.phase == clear && from == Client && c.foreignRecord(b) {
		return c.end(NotFTP, fx)
	}
	if c.resumed && c.guess && c.phase == clear && c.rule.OpaquePinhole && beginsRecord(b) {
		// What was read before in clear text was the end of a record.
		c.lines[from].Skip(0)
		c.startTLS()
		c.resumeTLS()
		fx = append(fx, Effect{Kind: Protect, Protection: c.Protection()})
	}
	for len(b) > 0 && c.phase != ended {
		var n int
		switch {
		case c.Opaque(from):
			n, fx = c.feedTLS(now, from, b, fx)
		case c.phase == authSent && from == Client:
			fx = c.end(TextAroundAUTH, fx)
		case from == Client:
			n, fx = c.feedClient(b, fx)
		default:
			n, fx = c.feedServer(b, fx)
		}
		b = b[n:]
	}
	return fx
}

// feedTLS follows TLS records up to the end of b, or to where clear text begins again (CCC, RFC 4217 section 12.3).
func (c *Control) feedTLS(now time.Time, from Side, b []byte, fx []Effect) (int, []Effect) {
	early := from == Server && c.tls.untouched()
	n, ev := c.tls.feed(from, b)
	c.lines[from].Skip(n)
	switch {
	case ev&badRecord != 0 && early && c.secured && !looksLikeTLS(b):
		// The server's text behind its 234, before the handshake, would be taken for protected by a careless client.
		return n, c.end(TextAroundAUTH, fx)
	case ev&badRecord != 0:
		return n, c.end(NotTLS, fx)
	case ev&backToClear != 0:
		if c.tls.Cleared == [2]bool{true, true} {
			c.phase, c.tls, c.jit, c.secured, c.cleared = clear, nil, jit{}, false, true
			c.login = loggedIn // inside TLS: servers refuse CCC before it
			fx = append(fx, Effect{Kind: Protect, Protection: c.Protection()})
		}
	}
	if ev&replySeen != 0 {
		c.jit.earn(now.Add(c.policy.CreditLifetime))
	}
	return n, fx
}

func (c *Control) startTLS() {
	c.phase, c.tls = records, &follower{}
	c.secured, c.dataLevel = true, Unknown
}

// end stops the session: no byte of it goes on any more, and its pinhole goes.
func (c *Control) end(why Reason, fx []Effect) []Effect {
	fx = c.closePinhole(SessionOver, fx)
	c.phase = ended
	return append(fx, Effect{Kind: End, Reason: why})
}

// Abort ends the session for a reason that is not in what its ends have said.
func (c *Control) Abort(why Reason, fx []Effect) []Effect {
	if c.phase == ended {
		return fx
	}
	return c.end(why, fx)
}

// Lose is for a front end that only watches: n bytes of one side were not captured. What they were cannot be known, so
// outstanding commands are forgotten and the next bytes are taken as the beginning of a line or record.
func (c *Control) Lose(from Side, n int) {
	c.lines[from].Skip(n)
	c.kinds, c.replies, c.resumed, c.inDenied, c.stray = queue{}, ftp.Replies{}, true, false, 0
	c.missed, c.guess = c.missed || from == Client, true
	c.login = loggedIn // as in a session that is resumed
	if c.phase == authSent {
		c.phase = clear
	}
	if c.tls != nil {
		c.resumeTLS() // the hello may have been lost
		c.tls.Side[from].Have, c.tls.Side[from].Left = 0, 0
	}
}

// Close is to be called when the connection is gone by itself.
func (c *Control) Close(fx []Effect) []Effect {
	fx = c.closePinhole(SessionOver, fx)
	c.phase = ended
	return fx
}

// open announces a pinhole in place of the one that stood, for the line that promised it.
func (c *Control) open(p Pinhole, announced netip.AddrPort, from Side, line ftp.Line, fx []Effect) []Effect {
	fx = c.closePinhole(NextDataCommand, fx)
	c.pinhole = p
	return append(fx, Effect{Kind: OpenPinhole, Pinhole: p, Announced: announced, Side: from, Start: line.Start, Len: line.Len - line.EOL, Text: line.Text})
}

func (c *Control) closePinhole(why Reason, fx []Effect) []Effect {
	if c.pinhole.IsZero() {
		return fx
	}
	p := c.pinhole
	c.pinhole = Pinhole{}
	return append(fx, Effect{Kind: ClosePinhole, Pinhole: p, Reason: why})
}

// Keep takes over a pinhole that stands, of a session of which nothing else is remembered, as it was in the middle of a line: so it is
// in clear text, whatever its next bytes look like.
func (c *Control) Keep(p Pinhole) { c.pinhole, c.guess = p, false }

// Expire forgets the outstanding pinhole without an effect: it timed out in the kernel.
func (c *Control) Expire() { c.pinhole = Pinhole{} }
