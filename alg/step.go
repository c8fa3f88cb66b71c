package alg

import (
	"bytes"
	"slices"
	"time"

	"ftpalg/alg/ftp"
)

// Where the policy rests on state, a session goes in step (design rule 10): the client's next command is fed when the last one
// has its final reply, so that a reply is never taken for another command's. During a transfer that takes as long as the
// transfer, so what RFC 959 section 4.1.3 allows there goes at once.

// How long a waiting command waits for replies before the engine decides (GoOn): for those that servers may leave out, and
// for others. A login, a hash or a large directory may take many seconds.
const (
	soon = 4 * time.Second
	late = 30 * time.Second
)

// aloud are the commands that may be sent during a transfer. AUTH is refused there, at once.
var aloud = []string{"ABOR", "STAT", "QUIT", "NOOP", "AUTH"}

// inStep reports whether commands wait for replies. Where replies and commands have parted already nothing is left to keep.
func (c *Control) inStep() bool { return c.rests && !c.doubt }

// Ready returns how many of b, the next bytes of one side, may be fed now: where the session goes in step one line of the client's, or
// several of commands that change nothing, and 0 where it has to wait for replies.
func (c *Control) Ready(from Side, b []byte) int {
	if from == Server || c.phase != clear || !c.inStep() {
		return len(b)
	}
	lines, calm := c.lines[Client].Clone(), c.kinds.calm()
	waits := c.kinds.n > c.kinds.excused && !c.outOfTurn
	for n := 0; ; {
		line, taken, whole := lines.Next(b[n:], c.policy.Limits.Line)
		text := line.Text
		if !whole {
			text = lines.PartialText()
		}
		passing := calm && c.passes(text, whole)
		if waits && !c.inDenied && !passing && !c.mayInterrupt(text, whole) {
			return n
		}
		if n += taken; n == len(b) || !passing || c.inDenied || c.outOfTurn {
			return n
		}
		waits = true
	}
}

// passing are commands after which all is as before, for what the engine follows. Several of them may be without a reply: which of
// their replies is whose does not matter.
var passing = []string{"ALLO", "CLNT", "DELE", "FEAT", "HELP", "LANG", "MDTM", "MFCT", "MFF", "MFMT", "MKD", "MLST", "MODE", "NOOP", "OPTS",
	"PBSZ", "REST", "RMD", "RNFR", "SIZE", "STRU", "SYST", "TYPE", "XMKD", "XRMD"}

// passes reports whether a line, or the beginning of one, is such a command, or one that is denied before a login.
func (c *Control) passes(text []byte, whole bool) bool {
	name, _, complete := bytes.Cut(text, []byte{' '})
	verb := string(bytes.ToUpper(name))
	return (whole || complete) && (slices.Contains(passing, verb) || c.login != loggedIn && (verb == "PORT" || verb == "EPRT"))
}

// mayInterrupt reports whether a line, or the beginning of one, may go on during a transfer.
func (c *Control) mayInterrupt(text []byte, whole bool) bool {
	if c.kinds.transfer() == NoTransfer {
		return false
	}
	name, _, complete := bytes.Cut(bytes.ToUpper(text), []byte{' '})
	for _, verb := range aloud {
		if string(name) == verb || !whole && !complete && bytes.HasPrefix([]byte(verb), name) {
			return true
		}
	}
	return false
}

// Patience is how long the client's next command waits for the replies that are outstanding, before GoOn is to be called; 0
// for as long as it takes.
func (c *Control) Patience() time.Duration {
	switch {
	case c.kinds.oldest() == greeting:
		return 0
	case c.kinds.transfer() != NoTransfer, c.kinds.optional():
		return soon
	}
	return late
}

// GoOn decides that the client's next command has waited long enough. What may stay without a reply is excused: should one
// come, its code tells. During a transfer one command goes on, and nobody knows whether the server answers it at once, after the
// transfer or together with it: replies and commands have parted, as in all other cases.
func (c *Control) GoOn(fx []Effect) []Effect {
	switch {
	case c.kinds.transfer() != NoTransfer:
		c.outOfTurn = true
		c.part()
	case c.kinds.optional():
		c.kinds.excused = c.kinds.n
	default:
		return c.Forget(fx)
	}
	return fx
}

// Forget forgets the commands without a reply, as none will come. Where one comes after all, it and all later ones are taken
// for another command's.
func (c *Control) Forget(fx []Effect) []Effect {
	if c.kinds.has(user, pass, rein) {
		c.login = loggedOut
	}
	c.kinds = queue{}
	c.part()
	return c.closePinhole(TransferDone, fx)
}

// part notes that replies and commands may have parted (design rule 10): the working directory cannot be followed from here
// on, AUTH is refused, and only a reply that nothing else has tells of a login.
func (c *Control) part() {
	c.doubt = true
	c.cwd.lose()
}

// InDoubt reports whether replies and commands may have parted.
func (c *Control) InDoubt() bool { return c.doubt }

// Owed is how many commands have no final reply and are to have one, for front ends that pass commands on one at a time.
func (c *Control) Owed() int { return int(c.kinds.n - min(c.kinds.n, c.kinds.excused)) }

// owner finds the command that a final reply belongs to and takes it out. found is false for a reply that nobody asked for.
func (c *Control) owner(r ftp.Reply) (k kind, found bool) {
	i, sure := c.kinds.match(r.Code)
	if i < 0 {
		if c.missed && c.kinds.n == 0 {
			return missedKind(r.Code) // it was not captured
		}
		if c.cutOff && c.kinds.n == 0 && endsTransfer(r.Code) {
			c.cutOff = false
			return other, false
		}
		if !c.resumed {
			c.part()
		}
		return other, false
	}
	doubtful := c.rests && c.kinds.doubtful(i, r.Code)
	k, passed := c.kinds.answer(i)
	if (passed || !sure || doubtful) && c.rests {
		c.part()
	}
	return k, true
}

// missedKind is the command that a reply shows to have been sent, by a code that only it has.
func missedKind(code int) (k kind, found bool) {
	switch code {
	case 227, 229:
		return pasv, true
	case 234:
		return auth, true
	}
	return other, false
}
