package alg

import (
	"bytes"
	"slices"

	"ftpalg/alg/ftp"
)

// A denied line is overwritten in place, with the same length, so that no sequence number moves and nothing has to be
// sent by us. A command becomes a word that no server knows: the client gets the server's own 500 and the connection
// lives. A reply that announces a port becomes a refusal.
//
// That takes the whole line. So a line goes on whole or not at all: the front end holds the segments of an incomplete
// one (Hold). A sender whose TCP waits for an acknowledgement before it sends the rest (RFC 896, Nagle) would wait for
// ever, so a line that nothing can restrict is let go (Release), and one that can be is given up (Abandon).

// Hold says how many of the bytes fed last belong to an incomplete line that must not go on yet.
func (c *Control) Hold(from Side) int {
	lines := &c.lines[from]
	switch {
	case c.phase == ended, c.Opaque(from):
		return 0
	case lines.PartialStart() < c.released[from], from == Client && c.inDenied:
		return 0
	case from == Server && !c.kinds.has(pasv, epsv):
		return 0
	}
	return lines.Partial()
}

// Release lets the incomplete line of one side go on and says whether it may: not if it could still turn out to be a
// command that is denied or that opens a pinhole, or has what no command may have.
func (c *Control) Release(from Side) bool {
	partial := c.lines[from].PartialText()
	if from == Client && (c.lines[from].PartialFlaws()&ftp.Refused != 0 || c.restricted(partial)) || from == Server && c.translates() && c.kinds.has(pasv, epsv) {
		return false
	}
	c.released[from] = c.lines[from].Offset()
	return true
}

// Abandon refuses an incomplete line that Release does not let go. What comes of a client's later is overwritten. A server's
// becomes another of its reply or, if it is the last one, a refusal: 4yz, for us as well.
func (c *Control) Abandon(from Side, fx []Effect) []Effect {
	if from == Client {
		return c.denyPartial(PartialLine, fx)
	}
	first := []byte{'4'}
	if c.replies.Open() {
		first[0] = ' '
	}
	copy(c.lines[Server].PartialText(), first)
	return c.rewrite(Server, c.lines[Server].PartialStart(), first, fx)
}

// restrictedVerbs are the commands that the engine itself may deny, whatever the policy says.
var restrictedVerbs = []string{"PORT", "EPRT", "PASV", "EPSV", "LPRT", "LPSV", "SPSV", "AUTH", "USER", "PASS", "ACCT"}

// loginVerbs are those of them that are denied where the policy requires TLS.
var loginVerbs = []string{"USER", "PASS", "ACCT"}

// restricted says whether some line that begins like this could be denied.
func (c *Control) restricted(text []byte) bool {
	name, _, complete := bytes.Cut(text, []byte{' '})
	prefix := string(bytes.ToUpper(name))
	for _, verb := range restrictedVerbs {
		if slices.Contains(loginVerbs, verb) && (!c.rule.RequireTLS || c.secured) {
			continue
		}
		if verb == prefix || !complete && len(prefix) < len(verb) && verb[:len(prefix)] == prefix {
			return true
		}
	}
	return c.rule.Restricts(prefix)
}

// denyCommand overwrites a client's line up to its terminator.
func (c *Control) denyCommand(why Reason, line ftp.Line, fx []Effect) []Effect {
	fx = append(fx, Effect{Kind: Deny, Reason: why, Text: c.shown(line.Text), Start: line.Start, Len: line.Len - line.EOL})
	if line.Len > longestAnswered {
		return c.end(NotFTP, fx)
	}
	return c.overwriteLine(line.Start, line.Len-line.EOL, line.Flaws, fx)
}

// secret stands for a line that may be a password.
var secret = []byte("(not shown, as the server has asked for a password)")

// shown is what may be told of a client's line. Where the server has asked for a password or an account, what is no command may be one,
// typed without PASS before it.
func (c *Control) shown(text []byte) []byte {
	if c.login != needPassword && c.login != needAccount {
		return text
	}
	if cmd, err := ftp.ParseCommand(text); err == nil && ftp.Known(cmd.Verb) {
		return text
	}
	return secret
}

// longestAnswered bounds the lines that every server answers once. To longer ones ProFTPD says nothing, and Pure-FTPd twice
// that it does not know the command, so that nobody could tell later which reply is whose.
const longestAnswered = 4000

// denyPartial refuses a client's line before its end has been seen.
func (c *Control) denyPartial(why Reason, fx []Effect) []Effect {
	lines := &c.lines[Client]
	start, n := lines.PartialStart(), lines.Partial()
	fx = append(fx, Effect{Kind: Deny, Reason: why, Text: c.shown(lines.PartialText()), Start: start, Len: n})
	if c.inDenied, c.deniedLen = true, n; n > longestAnswered {
		return c.end(NotFTP, fx)
	}
	return c.overwrite(start, n, fx)
}

// overwriteRest goes on with a line that denyPartial refused: n bytes from start, which end it or not.
func (c *Control) overwriteRest(start uint64, n int, line ftp.Line, whole bool, fx []Effect) []Effect {
	if c.deniedLen += n; c.deniedLen > longestAnswered {
		return c.end(NotFTP, fx)
	}
	if !whole {
		return c.overwrite(start, n, fx)
	}
	c.inDenied = false
	if !c.kinds.push(denied, c.policy.Limits.Outstanding) {
		return c.end(TooManyOutstanding, fx)
	}
	return c.overwriteLine(start, n-min(n, line.EOL), line.Flaws, fx)
}

// overwriteLine overwrites n bytes before the end of a line. Where that is LF alone the last of them becomes its CR, so that
// every server sees the end and answers.
func (c *Control) overwriteLine(start uint64, n int, flaws ftp.Flaw, fx []Effect) []Effect {
	if flaws&ftp.BareLF == 0 || n < 2 {
		return c.overwrite(start, n, fx)
	}
	return c.rewrite(Client, start, append(bytes.Repeat([]byte{'X'}, n-1), '\r'), fx)
}

// overwrite makes n bytes of the client's stream a word that is no command.
func (c *Control) overwrite(start uint64, n int, fx []Effect) []Effect {
	return c.rewrite(Client, start, bytes.Repeat([]byte{'X'}, n), fx)
}

// denyReply overwrites the last line of a reply of the server's.
func (c *Control) denyReply(why Reason, line ftp.Line, fx []Effect) []Effect {
	e := Effect{Kind: Deny, Reason: why, Side: Server, Text: line.Text, Start: line.Start, Len: line.Len - line.EOL}
	return c.refuseReply(why, e.Start, e.Len, append(fx, e))
}

// refuseReply puts a refusal in place of a reply's last line. 425 is RFC 959's word for a data connection that cannot
// be; a reply of several lines has to end with the code that it began with.
func (c *Control) refuseReply(why Reason, start uint64, n int, fx []Effect) []Effect {
	text := make([]byte, 0, 64+n)
	text = append(text, "425"+refused...)
	text = append(text, why.String()...)
	for len(text) < n {
		text = append(text, ' ')
	}
	if c.multiline {
		return c.rewrite(Server, start+4, text[4:max(n, 4)], fx)
	}
	return c.rewrite(Server, start, text[:n], fx)
}

func (c *Control) rewrite(side Side, start uint64, text []byte, fx []Effect) []Effect {
	switch {
	case len(text) == 0:
		return fx
	case start < c.released[side]:
		return c.end(SplitLine, fx)
	}
	return append(fx, Effect{Kind: Rewrite, Side: side, Start: start, Len: len(text), New: text})
}

// Refuse is for an OpenPinhole or a BeginTransfer that could not be carried out: the line that asked for it must not go on (design
// rule 2).
func (c *Control) Refuse(e Effect, why Reason, fx []Effect) []Effect {
	if e.Kind == OpenPinhole && c.pinhole == e.Pinhole {
		c.pinhole = Pinhole{}
	}
	if c.terminated() && e.Side == Client {
		c.kinds.dropNewest()
		return c.refuse(why, e.Text, true, fx)
	}
	fx = append(fx, Effect{Kind: Deny, Reason: why, Side: e.Side, Text: e.Text, Start: e.Start, Len: e.Len})
	if e.Side == Server {
		return c.refuseReply(why, e.Start, e.Len, fx)
	}
	return c.overwrite(e.Start, e.Len, fx)
}
