package alg

import (
	"bytes"
	"errors"
	"net/netip"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// firstUnprivileged is the lowest port that needs no privilege to listen on.
const firstUnprivileged = 1024

// feedClient takes at most one line of the client's clear text.
func (c *Control) feedClient(b []byte, fx []Effect) (int, []Effect) {
	lines := &c.lines[Client]
	before := lines.Offset()
	line, n, whole := lines.Next(b, c.policy.Limits.Line)
	switch {
	case c.inDenied:
		return n, c.overwriteRest(before, n, line, whole, fx)
	case !whole && lines.Partial() > c.policy.Limits.Line:
		return n, c.denyPartial(LineTooLong, fx)
	case !whole:
		return n, fx
	}
	fx = c.clientLine(line, fx)
	if c.phase == authSent && len(b) > n {
		// Whatever is behind AUTH in the same segment is never read as commands (design rule 5).
		fx = c.end(TextAroundAUTH, fx)
	}
	return n, fx
}

// clientLine takes a whole line of the client's.
func (c *Control) clientLine(line ftp.Line, fx []Effect) []Effect {
	c.missed, c.outOfTurn = false, false
	k, fx := c.ruling(line, fx)
	if c.phase == ended || k == own {
		return fx
	}
	if k == noop && c.kinds.full() && c.rests {
		c.part() // it is not counted
	}
	if !c.kinds.push(k, c.policy.Limits.Outstanding) {
		return c.end(TooManyOutstanding, fx)
	}
	if k == auth || k == authOther {
		c.phase = authSent
	}
	return fx
}

// ruling decides on a line of the client's, and says what to remember of it until the server answers.
func (c *Control) ruling(line ftp.Line, fx []Effect) (kind, []Effect) {
	if len(line.Text) == 0 && line.Flaws&ftp.Refused == 0 {
		return c.blankLine(line, fx)
	}
	if line.Flaws&ftp.BareLF != 0 && !c.rests {
		fx = append(fx, Effect{Kind: Audit, Reason: BareLineFeed, Text: c.shown(line.Text)})
	}
	k, why, fx := c.command(line, fx)
	c.resumed = c.resumed && why != NoReason
	if why == NoReason {
		return k, fx
	}
	foreign := c.foreign(why, line)
	k = denied
	if c.terminated() {
		k, fx = own, c.refuse(why, line.Text, !foreign, fx)
	} else {
		fx = c.denyCommand(why, line, fx)
	}
	if foreign {
		fx = c.end(NotFTP, fx)
	}
	return k, fx
}

// blankLine handles a line without text. Telnet signals alone become a word, which every server answers; what some servers
// answer has no room for one, so that its reply may come or not.
func (c *Control) blankLine(line ftp.Line, fx []Effect) (kind, []Effect) {
	if line.Len == line.EOL {
		return blank, append(fx, Effect{Kind: Audit, Reason: BlankLine})
	}
	return denied, c.denyCommand(BlankLine, line, fx)
}

// maxBad bounds the lines before a login that are no commands. People mistype, and browsers go on for longer.
const maxBad = 5

// foreign reports whether a line that was denied shows that the client does not speak FTP at all: a web page can make a browser
// send requests to an FTP server, with FTP commands in their bodies or names (NAT slipstreaming). Nobody types control characters.
func (c *Control) foreign(why Reason, line ftp.Line) bool {
	switch {
	case why == NotFTP:
		return true
	case c.login == loggedIn || why != BadCommand && why != BadCharacters:
		return false
	}
	c.bad++
	return c.bad > maxBad || bytes.ContainsFunc(line.Text, func(r rune) bool { return r < ' ' && r != '\t' })
}

// command decides on one command line: what it is, or why it is denied.
func (c *Control) command(line ftp.Line, fx []Effect) (kind, Reason, []Effect) {
	switch why := flawReason(line.Flaws); {
	case c.login != loggedIn && ftp.OtherClient(line.Text):
		return other, NotFTP, fx
	case why != NoReason:
		return other, why, fx
	case line.Flaws&ftp.BareLF != 0 && c.rests:
		// A server for which that is no end of a line has not read what we have.
		return other, BareLineFeed, fx
	}
	cmd, err := ftp.ParseCommand(line.Text)
	if err != nil {
		return other, BadCommand, fx
	}
	if line.Flaws&ftp.RawIAC != 0 && c.restricted(line.Text) || line.Flaws&ftp.Signals != 0 && !urgent(cmd.Verb) {
		return other, BadCharacters, fx
	}
	if why := rulingReason(c.rule.Command(cmd.Verb, cmd.Arg, c.cwd.Path)); why != NoReason {
		return other, why, fx
	}
	if c.startUnknown && c.hides(line.Text) {
		return other, StartUnknown, fx
	}
	if c.terminated() {
		if handled, why, fx := c.bridged(cmd, fx); handled {
			return own, why, fx
		}
	}
	switch cmd.Verb {
	case "PORT", "EPRT":
		return c.active(cmd, line, fx)
	case "PASV", "EPSV":
		return c.passive(cmd, fx)
	case "LPRT", "LPSV", "SPSV":
		// RFC 1639's long addresses and the single-port mode cannot be followed.
		return other, ModeDenied, fx
	case "USER":
		return c.user(cmd, fx)
	case "STAT":
		if listsNames(cmd.Arg) {
			return other, StatListing, fx
		}
	case "PASS", "ACCT":
		if c.rule.RequireTLS && !c.secured {
			return other, TLSRequired, fx
		}
	case "AUTH":
		return c.auth(cmd, fx)
	case "MIC", "CONF", "ENC":
		if c.rests {
			return other, OpaqueDenied, fx
		}
	case "MODE", "STRU":
		if c.rule.MaxSize > 0 && !bytes.EqualFold(cmd.Arg, countable[cmd.Verb]) {
			return other, TransferMode, fx
		}
	case "REIN":
		return rein, NoReason, c.closePinhole(NextDataCommand, fx)
	case "PROT":
		return protKind(cmd.Arg), NoReason, fx
	case "CWD", "XCWD":
		c.cwd.request(c.rule.TracksPaths(), cmd.Arg)
		return cwd, NoReason, fx
	case "CDUP", "XCUP":
		c.cwd.request(c.rule.TracksPaths(), []byte(".."))
		return cwd, NoReason, fx
	}
	k := simpleKinds[cmd.Verb]
	if d := k.direction(); d != NoTransfer {
		fx = append(fx, Effect{Kind: BeginTransfer, Direction: d, Text: line.Text})
	}
	return k, NoReason, fx
}

// countable are the mode and the structure in which a data connection carries the bytes of one file and nothing else. Blocks and
// compression hide how many these are (RFC 959 section 3.4), pages have a place of their own in a file that may be longer than all
// of them (section 3.1.2.3), and records end a file before the connection ends (section 3.4.1).
var countable = map[string][]byte{"MODE": []byte("S"), "STRU": []byte("F")}

// simpleKinds are the commands that need nothing when they are sent, only when they are answered.
var simpleKinds = map[string]kind{
	"STOR": upload, "STOU": upload, "APPE": upload, "RETR": download,
	"LIST": listing, "NLST": listing, "MLSD": listing,
	"PASS": pass, "ACCT": pass, "QUIT": quit, "STAT": stat,
	"PWD": pwd, "XPWD": pwd, "RNTO": renameTo, "TYPE": representation, "NOOP": noop, "ABOR": abor,
}

// listsNames reports whether STAT asks for what servers print as bare names: Pure-FTPd does for -1, and for a directory that a pattern
// or another name stands beside. The reply goes over the control connection (RFC 959 section 4.1.3), so that a client could make
// directories named as replies. A single name is listed in lines that begin with permissions.
func listsNames(arg []byte) bool {
	arg = bytes.TrimSpace(arg)
	return bytes.HasPrefix(arg, []byte{'-'}) || bytes.ContainsAny(arg, " \t*?[{")
}

// urgent reports whether a command may follow Telnet's signals (RFC 959 section 4.1.3).
func urgent(verb string) bool { return verb == "ABOR" || verb == "STAT" || verb == "QUIT" }

// foreignRecord reports whether a client begins TLS where there is none: no line of FTP begins with such a byte.
func (c *Control) foreignRecord(b []byte) bool {
	if c.lines[Client].Partial() > 0 || c.inDenied || len(b) == 0 || c.terminated() || !looksLikeTLS(b) {
		return false
	}
	return !c.resumed || !c.guess
}

func protKind(level []byte) kind {
	switch {
	case bytes.EqualFold(level, []byte("C")):
		return protC
	case bytes.EqualFold(level, []byte("P")):
		return protP
	}
	return other
}

func (c *Control) user(cmd ftp.Command, fx []Effect) (kind, Reason, []Effect) {
	if c.rule.RequireTLS && !c.secured {
		return other, TLSRequired, fx
	}
	return user, NoReason, append(fx, Effect{Kind: Login, Text: cmd.Arg})
}

// auth: AUTH TLS, TLS-C, TLS-P and SSL are one command (RFC 4217 section 4, MS-FTPS 1.3), in any case.
func (c *Control) auth(cmd ftp.Command, fx []Effect) (kind, Reason, []Effect) {
	tls := ftp.NamesTLS(cmd.Arg)
	switch {
	case c.kinds.n > 0 || c.doubt:
		// Its reply could be taken for another's, and what follows for TLS.
		return other, OutOfStep, fx
	case !c.rule.OpaquePinhole: // another mechanism would leave the session closed to us
		return other, OpaqueDenied, fx
	case tls:
		return auth, NoReason, fx
	case c.rests:
		return other, OpaqueDenied, fx // MIC and ENC would hide commands that the rule is about (RFC 2228 section 4)
	}
	return authOther, NoReason, fx
}

func (c *Control) passive(cmd ftp.Command, fx []Effect) (kind, Reason, []Effect) {
	mode, k := policy.PASV, pasv
	if cmd.Verb == "EPSV" {
		mode, k = policy.EPSV, epsv
	}
	switch {
	case !c.rule.Modes.Has(mode):
		return other, ModeDenied, fx
	case c.epsvAll && mode != policy.EPSV:
		return other, AfterEPSVAll, fx
	}
	if mode == policy.EPSV {
		// An argument that cannot be read is the server's to refuse; only ALL means something here.
		if req, err := ftp.ParseEPSVRequest(cmd.Arg); err == nil && req.All {
			return epsvAll, NoReason, fx
		}
	}
	return k, NoReason, c.closePinhole(NextDataCommand, fx)
}

// active: the client tells where it listens. The address must be its own; the pinhole stands before the command goes on,
// so that no server is faster.
func (c *Control) active(cmd ftp.Command, line ftp.Line, fx []Effect) (kind, Reason, []Effect) {
	mode, parse := policy.PORT, ftp.ParsePort
	if cmd.Verb == "EPRT" {
		mode, parse = policy.EPRT, ftp.ParseEPRT
	}
	switch {
	case !c.rule.Modes.Has(mode):
		return other, ModeDenied, fx
	case c.login != loggedIn:
		// A browser can be made to say PORT to a server, and not to log in first (NAT slipstreaming).
		return other, NotLoggedIn, fx
	case c.epsvAll:
		return other, AfterEPSVAll, fx
	}
	to, err := parse(cmd.Arg)
	switch {
	case errors.Is(err, ftp.ErrProtocol), err == nil && mode == policy.EPRT && to.Addr().Is4() != c.client.Addr().Is4():
		return other, OtherProtocol, fx
	case err != nil:
		return other, BadHostPort, fx
	}
	// An address that the server must not obey cannot be overlooked here. Before NAT a client may know its public one.
	announced := to
	to, why := c.checkTarget(to, c.client.Addr(), to.Addr() == c.seen().client)
	if why != NoReason {
		return other, why, fx
	}
	p := c.toClient(mode, netip.AddrPortFrom(c.seen().server, 0), to.Port())
	n, why := c.nameActive(announced, p, cmd.Arg, line)
	if why != NoReason {
		return other, why, fx
	}
	return active, NoReason, c.named(n, c.open(p, announced, Client, line, fx))
}

// checkTarget compares an announced address with the peer's own. An address from the wire is never an authority: what
// comes out always has the peer's (design rule 1).
func (c *Control) checkTarget(to netip.AddrPort, peer netip.Addr, overlook bool) (netip.AddrPort, Reason) {
	if to.Addr() != peer && !overlook {
		return netip.AddrPort{}, ForeignAddress
	}
	if to.Port() < firstUnprivileged && !c.policy.PrivilegedPorts {
		return netip.AddrPort{}, PrivilegedPort
	}
	return netip.AddrPortFrom(peer, to.Port()), NoReason
}

func flawReason(f ftp.Flaw) Reason {
	switch {
	case f&ftp.TooLong != 0:
		return LineTooLong
	case f&ftp.Refused != 0:
		return BadCharacters
	}
	return NoReason
}

func rulingReason(r policy.Ruling) Reason {
	switch r {
	case policy.Allowed:
		return NoReason
	case policy.DeniedPath:
		return PathDenied
	case policy.DeniedPathUnknown:
		return PathUnknown
	case policy.DeniedUser:
		return UserDenied
	case policy.DeniedDirection:
		return DirectionDenied
	case policy.DeniedFile:
		return FileDenied
	}
	return CommandDenied
}
