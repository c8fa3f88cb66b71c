package alg

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// bridge is the TLS dialogue of a terminated session: the front end speaks TLS with each side when it is told to (StartTLS,
// StopTLS), and feeds clear text alone. The commands about protection (RFC 2228, RFC 4217) are answered here, or asked of the
// server in other words: the two sides may be protected in different ways.
type bridge struct {
	shows   bool           // there is a certificate to show to clients
	channel policy.Channel // how the server is spoken to
	demands bool           // the policy wants TLS with the server, whatever the client does
	refused policy.Channel // what to do if the server refuses AUTH

	sides  [2]protection
	asking question
}

// protection is how one side of a terminated session is protected.
type protection struct {
	tls  bool
	pbsz bool // PBSZ was answered with success, or is taken for granted
	data Level
}

// question is what the server is asked in a client's place.
type question uint8

const (
	nothing question = iota
	askTLS           // AUTH TLS
	askSSL           // AUTH SSL
	askPBSZ
	askPROTC
	askPROTP
	askCCC
)

// NewTerminated is New for a front end that speaks TLS itself, with the client and with the server. It feeds clear text
// alone, on implicit ports too, where it says with Secured what it speaks TLS with before anything is said. shows says that it has
// a certificate for clients.
func NewTerminated(p *policy.Policy, d policy.Decision, client, server netip.AddrPort, shows bool) *Control {
	d.Implicit = false
	c := New(p, d, client, server)
	c.bridge = &bridge{shows: shows, sides: [2]protection{{data: Clear}, {data: Clear}}}
	if d.Server != nil {
		c.bridge.refused = d.Server.Upstream.AuthRefused
		c.bridge.demands = d.Server.Upstream.Control == policy.Explicit || d.Server.Upstream.Control == policy.Implicit
		c.bridge.channel, _ = d.Server.Dial(d.Real.Port())
	}
	return c
}

// Secured tells that a side of a terminated session is in TLS before anything is said, and its data too: as if AUTH TLS, PBSZ 0 and
// PROT P had been given (MS-FTPS 1.3). pbsz is false for a server that was not asked, which may want to be.
func (c *Control) Secured(side Side, pbsz bool, fx []Effect) []Effect {
	c.bridge.sides[side] = protection{tls: true, pbsz: pbsz, data: TLS}
	if side == Server {
		return fx
	}
	return c.protected(fx)
}

// ClientLine takes a whole line of the client's in a terminated session. Whoever reads it ends it as servers need it.
func (c *Control) ClientLine(line ftp.Line, fx []Effect) []Effect {
	if c.phase == ended {
		return fx
	}
	line.Start = 0
	return c.clientLine(line, fx)
}

// ServerLine takes a whole line of the server's in a terminated session, and returns what it is of a reply: the zero value for one that
// is of none. What effects count from is the line's beginning.
func (c *Control) ServerLine(line ftp.Line, fx []Effect) (ftp.Reply, []Effect) {
	if c.phase == ended {
		return ftp.Reply{}, fx
	}
	line.Start = 0
	return c.serverLine(line, fx)
}

// Announcement is the line that announces a pinhole of a terminated session which stands, where it leads to; nil if the line of e may go
// on as it is. A server has to connect where the gateway, or NAT, has the client; a client where the control connection leads, whatever
// address the policy overlooks (bounce: peer).
func (c *Control) Announcement(e Effect, at netip.AddrPort) []byte {
	switch {
	case e.Pinhole.Mode == policy.EPSV, e.Announced == at:
		return nil
	case e.Pinhole.Mode == policy.PORT:
		return []byte("PORT " + ftp.FormatPort(at))
	case e.Pinhole.Mode == policy.EPRT:
		return []byte("EPRT " + ftp.FormatEPRT(at))
	case !at.Addr().Is4():
		// A 227 has no room for it. 0.0.0.0, as servers say over IPv6, is to clients the address of the control connection.
		at = netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())
	}
	if e.Announced == at {
		return nil
	}
	return []byte("227 " + ftp.FormatPASV(at))
}

// Unsecured tells that TLS that was to begin has not (StartTLS): neither side is in it. The session has to end.
func (c *Control) Unsecured() {
	c.bridge.sides = [2]protection{{data: Clear}, {data: Clear}}
	c.protected(nil)
}

// InTLS reports how what is said to a side of a terminated session has to be said now.
func (c *Control) InTLS(side Side) bool { return c.bridge.sides[side].tls }

// DataLevels are how the data of a terminated session is protected now, by side.
func (c *Control) DataLevels() [2]Level {
	return [2]Level{c.bridge.sides[Client].data, c.bridge.sides[Server].data}
}

// Asking reports whether the server is asked something in the client's place, whose next line has to wait for the answer.
func (c *Control) Asking() bool { return c.bridge.asking != nothing }

// terminated reports whether the front end speaks TLS itself.
func (c *Control) terminated() bool { return c.bridge != nil }

// bridged handles a command of a terminated session that is about protection; handled says whether it is one. A reason is why it
// is denied.
func (c *Control) bridged(cmd ftp.Command, fx []Effect) (handled bool, why Reason, _ []Effect) {
	switch cmd.Verb {
	case "AUTH":
		why, fx = c.askedForTLS(cmd, fx)
	case "PBSZ":
		fx = c.protectionBuffer(cmd, fx)
	case "PROT":
		fx = c.dataProtection(cmd, fx)
	case "CCC":
		why, fx = c.clearCommandChannel(fx)
	case "ADAT", "MIC", "CONF", "ENC":
		// RFC 2228 section 3: they belong to mechanisms other than TLS, and would hide commands.
		fx = c.say(fmt.Sprintf("503 No security mechanism is in use that needs %s", cmd.Verb), fx)
	case "REIN":
		if !c.InTLS(Client) {
			return false, NoReason, fx
		}
		// RFC 4217 section 13 leaves it open what becomes of TLS; the servers that we know do not have the command.
		fx = c.say("502 REIN is not available under TLS", fx)
	default:
		return false, NoReason, fx
	}
	return true, why, fx
}

// say has the client told a line of ours.
func (c *Control) say(text string, fx []Effect) []Effect {
	return append(fx, Effect{Kind: Say, Side: Client, Text: []byte(text), Protection: c.Protection()})
}

// refuse denies a line of the client's, which is told unless the session ends for it.
func (c *Control) refuse(why Reason, text []byte, told bool, fx []Effect) []Effect {
	fx = append(fx, Effect{Kind: Deny, Reason: why, Text: c.shown(text)})
	if !told {
		return fx
	}
	return c.say(c.Refusal(why), fx)
}

// ask asks the server something in the client's place.
func (c *Control) ask(q question, text string, fx []Effect) []Effect {
	c.bridge.asking = q
	e := Effect{Kind: Say, Side: Server, Text: []byte(text), Protection: Protection{Control: Clear}}
	if c.InTLS(Server) {
		e.Protection.Control = TLS
	}
	return append(fx, e)
}

// askedForTLS: AUTH TLS, TLS-C, TLS-P and SSL are one command (RFC 4217 section 4, MS-FTPS 1.3), in any case.
func (c *Control) askedForTLS(cmd ftp.Command, fx []Effect) (Reason, []Effect) {
	switch {
	case len(bytes.TrimSpace(cmd.Arg)) == 0:
		return NoReason, c.say("501 AUTH needs the name of a mechanism", fx)
	case !ftp.NamesTLS(cmd.Arg):
		return NoReason, c.say("504 The mechanism is not known; AUTH TLS is", fx)
	case c.InTLS(Client):
		return NoReason, c.say("503 TLS is in use already", fx)
	case !c.bridge.shows:
		return NoCertificate, fx
	case c.bridge.channel == policy.Same && !c.InTLS(Server) && !c.outOfStep():
		return NoReason, c.ask(askTLS, "AUTH TLS", fx)
	case c.mayNotAnswerAUTH():
		return AUTHTooLate, fx
	}
	return NoReason, c.acceptAUTH(fx)
}

// outOfStep reports whether the next reply may be another command's, so that AUTH's would not be known for its own.
func (c *Control) outOfStep() bool { return c.doubt || c.kinds.n > 0 }

// mayNotAnswerAUTH reports whether AUTH cannot be answered without the server, which does not hear of it and so keeps the user and
// the directory that it has. Those may be somebody else's, who spoke before in clear text (RFC 2228 section 3).
func (c *Control) mayNotAnswerAUTH() bool { return c.hasUser() || c.outOfStep() }

// acceptAUTH begins TLS with the client. All but the mechanism is as at the beginning (RFC 4217 section 4): whatever was said before,
// in clear text, was said by nobody.
func (c *Control) acceptAUTH(fx []Effect) []Effect {
	fx = c.say("234 AUTH accepted, TLS begins", fx)
	fx = append(fx, Effect{Kind: StartTLS, Side: Client})
	c.login, c.hadLogin = loggedOut, false
	c.cwd.reset()
	fx = append(c.closePinhole(NextDataCommand, fx), Effect{Kind: Login})
	c.bridge.sides[Client] = protection{tls: true, data: Clear}
	return c.protected(fx)
}

// protectionBuffer: with TLS the size is always 0 (RFC 4217 section 9).
func (c *Control) protectionBuffer(cmd ftp.Command, fx []Effect) []Effect {
	client, server := &c.bridge.sides[Client], &c.bridge.sides[Server]
	_, err := strconv.ParseUint(string(bytes.TrimSpace(cmd.Arg)), 10, 32)
	switch {
	case !client.tls:
		return c.say("503 PBSZ comes after AUTH", fx)
	case err != nil:
		return c.say("501 PBSZ needs a number", fx)
	case server.tls && !server.pbsz:
		return c.ask(askPBSZ, "PBSZ 0", fx)
	}
	client.pbsz = true
	return c.say("200 PBSZ=0", fx)
}

func (c *Control) dataProtection(cmd ftp.Command, fx []Effect) []Effect {
	client := c.bridge.sides[Client]
	level := strings.ToUpper(string(bytes.TrimSpace(cmd.Arg)))
	switch {
	case !client.tls || !client.pbsz:
		return c.say("503 PROT comes after PBSZ", fx) // RFC 4217 section 9
	case level == "S" || level == "E":
		return c.say("536 The level is not supported by TLS", fx)
	case level != "C" && level != "P":
		return c.say("504 The level is not known; C and P are", fx)
	case level == "C" && (c.rule.TLS.RequireReuse || c.rule.TLS.CA != ""):
		// A data connection in clear text shows neither the client's certificate nor its TLS session (RFC 2228 section 3: 534).
		fx = append(fx, Effect{Kind: Deny, Reason: TLSRequired, Text: []byte("PROT C")})
		return c.say("534 The policy asks for TLS on data connections", fx)
	case !c.InTLS(Server), level == "C" && c.bridge.demands: // the server's side does not depend on the client's
		c.bridge.sides[Client].data = levelOf(level == "P")
		fx = append(fx, Effect{Kind: ProtectData})
		return c.protected(c.say(fmt.Sprintf("200 Data protection is %s", level), fx))
	case level == "C":
		return c.ask(askPROTC, "PROT C", fx)
	}
	return c.ask(askPROTP, "PROT P", fx)
}

func levelOf(protected bool) Level {
	if protected {
		return TLS
	}
	return Clear
}

// clearCommandChannel lowers the control connection to clear text (RFC 2228 section 3, RFC 4217 section 12.3): on both sides,
// unless the server's is the policy's choice.
func (c *Control) clearCommandChannel(fx []Effect) (Reason, []Effect) {
	switch {
	case !c.InTLS(Client):
		return NoReason, c.say("533 The control connection is not protected", fx)
	case c.rule.RequireTLS:
		return TLSRequired, fx
	case c.bridge.channel == policy.Same && c.InTLS(Server):
		return NoReason, c.ask(askCCC, "CCC", fx)
	}
	fx = c.say("200 The control connection is in clear text now", fx)
	fx = append(fx, Effect{Kind: StopTLS, Side: Client})
	c.bridge.sides[Client].tls = false
	return NoReason, c.protected(fx)
}

// replied takes the server's reply to what it was asked in the client's place.
func (c *Control) replied(r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	q := c.bridge.asking
	c.bridge.asking = nothing
	if q == askTLS || q == askSSL {
		return c.authReplied(q, r, line, fx)
	}
	return c.protectionReplied(q, r, fx)
}

// authReplied: 234 says that TLS begins (RFC 4217 section 4).
func (c *Control) authReplied(q question, r ftp.Reply, line ftp.Line, fx []Effect) []Effect {
	switch {
	case r.Code == 234:
		fx = append(fx, Effect{Kind: StartTLS, Side: Server})
		c.bridge.sides[Server] = protection{tls: true, data: Clear}
		return c.acceptAUTH(fx)
	case q == askTLS && (r.Code == 500 || r.Code == 502 || r.Code == 504):
		return c.ask(askSSL, "AUTH SSL", fx) // MS-FTPS 1.3: a server may know only one of the names
	case r.Positive() && c.bridge.refused != policy.Plain:
		return c.end(NotFTP, fx)
	}
	fx = append(fx, Effect{Kind: Audit, Reason: AUTHRefused, Text: line.Text})
	switch {
	case c.bridge.refused != policy.Plain:
		return c.say(fmt.Sprintf("%d %s", r.Code, r.Text), fx)
	case c.mayNotAnswerAUTH():
		return c.refuse(AUTHTooLate, []byte("AUTH"), true, fx)
	}
	return c.acceptAUTH(fx)
}

// protectionReplied takes the reply to PBSZ, PROT or CCC, which the client gets as it is.
func (c *Control) protectionReplied(q question, r ftp.Reply, fx []Effect) []Effect {
	client, server := &c.bridge.sides[Client], &c.bridge.sides[Server]
	ok := r.Code >= 200 && r.Code < 300
	if ok && (q == askPROTC || q == askPROTP) {
		client.data = levelOf(q == askPROTP)
		server.data = client.data
		fx = append(fx, Effect{Kind: ProtectData})
	}
	fx = c.say(fmt.Sprintf("%d %s", r.Code, r.Text), fx)
	switch {
	case !ok:
		return fx
	case q == askPBSZ:
		client.pbsz, server.pbsz = true, true
		return fx
	case q == askCCC:
		fx = append(fx, Effect{Kind: StopTLS, Side: Server}, Effect{Kind: StopTLS, Side: Client})
		client.tls, server.tls = false, false
	}
	return c.protected(fx)
}

// protected tells how the client's side of a terminated session is protected now.
func (c *Control) protected(fx []Effect) []Effect {
	c.secured, c.dataLevel = c.InTLS(Client), c.bridge.sides[Client].data
	return append(fx, Effect{Kind: Protect, Protection: c.Protection()})
}
