package alg

import "ftpalg/alg/ftp"

// Memory is what a state machine has learned from packets that will not come again. Whoever goes on with its control connection
// (Recall) needs it, so that the reply to a command is taken for that command's, and that a credit can be spent. It is there
// for encoding/gob.
type Memory struct {
	Phase        phase
	Login        login
	EPSVAll      bool
	Secured      bool
	Resumed      bool
	Unread       bool
	StartUnknown bool
	Guess        bool
	Cleared      bool
	DataLevel    Level
	Outstanding  []run
	Fed          [2]uint64 // bytes of each side
	Replies      ftp.Replies
	Pinhole      Pinhole
	TLS          *follower
	Credit       jit
	Directory    workingDirectory
	Running      bool   // the oldest outstanding command is a transfer under way
	Excused      uint16 // of the outstanding commands
	Rests        bool   // the policy rested on state, so that replies were told apart
	Followed     bool   // the working directory was followed
	Doubt        bool   // replies and commands may have parted
	Bad          uint8  // lines before a login that were no commands
}

// Remember gives the memory of a control connection, unless that is in the middle of a line: what has been fed of it would have
// to be known as well.
func (c *Control) Remember() (m Memory, ok bool) {
	if c.inDenied || c.lines[Client].Partial() > 0 || c.lines[Server].Partial() > 0 {
		return Memory{}, false
	}
	return Memory{
		Phase: c.phase, Login: c.login, EPSVAll: c.epsvAll, Secured: c.secured, Resumed: c.resumed, DataLevel: c.dataLevel,
		Unread: c.unread, StartUnknown: c.startUnknown, Guess: c.guess, Cleared: c.cleared,
		Outstanding: c.kinds.runs[:c.kinds.used],
		Fed:         [2]uint64{c.lines[Client].Offset(), c.lines[Server].Offset()},
		Replies:     c.replies, Pinhole: c.pinhole, TLS: c.tls, Credit: c.jit, Directory: c.cwd,
		Running: c.kinds.running, Excused: c.kinds.excused, Doubt: c.doubt, Rests: c.rests, Followed: c.rule.TracksPaths(), Bad: c.bad,
	}, true
}

// Recall goes on where m was made, in a state machine that comes from Resume and has been fed nothing, and says whether it does:
// where the policy has come to forbid TLS meanwhile it stays with what Resume takes for granted.
func (c *Control) Recall(m Memory) bool {
	if (m.Phase == authSent || m.Phase == records) && !c.rule.OpaquePinhole || (m.Phase == records) != (m.TLS != nil) {
		return false
	}
	c.phase, c.login, c.epsvAll, c.secured, c.resumed, c.dataLevel = m.Phase, m.Login, m.EPSVAll, m.Secured, m.Resumed, m.DataLevel
	c.unread, c.startUnknown, c.guess, c.cleared = m.Unread, m.StartUnknown, m.Guess, m.Cleared
	c.kinds = queue{}
	c.kinds.used = uint8(copy(c.kinds.runs[:], m.Outstanding))
	for _, r := range c.kinds.runs {
		c.kinds.n += r.N
	}
	c.kinds.running, c.kinds.excused, c.doubt, c.bad = m.Running, m.Excused, m.Doubt, m.Bad
	c.kinds.mark = usualMark // which it was is not remembered
	for from, fed := range m.Fed {
		c.lines[from].Skip(int(fed))
	}
	c.replies, c.pinhole, c.tls, c.jit, c.cwd = m.Replies, m.Pinhole, m.TLS, m.Credit, m.Directory
	c.tighten(m)
	return true
}

// tighten is for a policy that rests on more than the one under which m was made: nothing is believed that only a careful reader
// would know.
func (c *Control) tighten(m Memory) {
	if !c.rests {
		return
	}
	if c.guess = false; !m.Followed {
		c.cwd.forget()
	}
	if !m.Rests && len(m.Outstanding) > 0 {
		c.part()
	}
}
