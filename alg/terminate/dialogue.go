package terminate

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// outside is what a dialogue acts on. session is one.
type outside interface {
	send(to alg.Side, text []byte, said transport)
	// secure begins TLS with a side that has agreed to it. With the client that happens when it is read next.
	secure(alg.Side) error
	// unsecure ends TLS with a side.
	unsecure(alg.Side) error
	// open makes a pinhole, and gives where it leads to as it is announced; NoReason says that it stands.
	open(alg.Pinhole) (netip.AddrPort, alg.Reason)
	// shut takes it away.
	shut(alg.Pinhole, alg.Reason)
	// begin says that a transfer is asked for, and returns why it must not be; accepted says that the server has answered
	// it with 1yz, and finish that its final reply is here. finish returns the reply that has to stand in its place, or "".
	begin(alg.Direction) alg.Reason
	accepted()
	finish(code int) string
	// protect says that PROT was answered with success.
	protect()
	report(audit.Event)
	// hangUp ends the session when what was sent is out.
	hangUp(alg.Reason)
}

// dialogue is who speaks when: a line of one side in, actions on the outside. What a line means and who speaks TLS the engine
// decides.
//
// Commands are passed on one at a time: the next when the one before has its final reply. So a reply of ours is never out
// of order, and nothing that a client sent ahead is read in another state than it was meant for.
type dialogue struct {
	out     outside
	control *alg.Control
	rule    *policy.Rule
	limit   int  // login failures
	shows   bool // there is a certificate to show to the client

	settling bool   // the reply at hand waits for its data connection
	verb     string // of the command whose reply comes next, if it is one at all
	failures int
	features features
	aborted  bool   // ABOR has gone on, and not everything before it is answered
	held     []byte // the lines so far of a transfer's final reply
	told     bool   // the client has been told how its transfer ended: the server's own reply is for nobody
	user     string
	fx       []alg.Effect
	over     bool
}

// features is how far the reply to FEAT is (RFC 2389 section 3).
type features uint8

const (
	noFeatures features = iota // the reply at hand is another command's
	awaited
	listed // its first line is through
)

// aloud are the commands that a client may send while a transfer is under way.
var aloud = map[string]bool{"ABOR": true, "STAT": true, "QUIT": true, "NOOP": true}

// ready reports whether a client's line may be taken now.
func (d *dialogue) ready(l line) bool {
	switch {
	case d.over:
		return true
	case d.control.Asking():
		return false
	case !d.settling && d.control.Owed() == 0:
		return true
	case !d.settling && d.control.Transferring() == alg.NoTransfer:
		return false
	}
	cmd, err := ftp.ParseCommand(l.Text)
	return err == nil && aloud[cmd.Verb] && (!d.settling || cmd.Verb == "NOOP") && d.rule.Command(cmd.Verb, cmd.Arg, "") == policy.Allowed
}

// listen reports whether the client is to be read at all. While the server is asked about protection it is not: what cannot be
// answered yet is better left in its socket.
func (d *dialogue) listen() bool {
	return d.over || !d.control.Asking()
}

// owedGivenUp is how long a client's command waits for the reply to a transfer that was given up: some servers never answer it.
const owedGivenUp = 2 * time.Second

// patience is how long the client's next command waits for the replies to those before it; 0 is for as long as it takes. givenUp
// says that the transfer at hand was given up.
func (d *dialogue) patience(givenUp bool) time.Duration {
	switch {
	case d.settling, d.control.Asking():
		return 0
	case givenUp:
		return owedGivenUp
	case d.control.Transferring() != alg.NoTransfer:
		return 0
	}
	return d.control.Patience()
}

// goOn has the client's next command wait no longer. What servers may leave without a reply may still have one; of the rest none
// is waited for.
func (d *dialogue) goOn() {
	d.aborted, d.told = false, false
	decide := d.control.GoOn
	if d.control.Transferring() != alg.NoTransfer {
		decide = d.control.Forget // it was given up
	}
	for _, e := range decide(nil) {
		d.out.shut(e.Pinhole, e.Reason)
	}
}

// busy says whether the client has a reply to come.
func (d *dialogue) busy() bool {
	return d.settling || d.control.Asking() || d.control.Outstanding() > 0
}

// clientLine takes a line of the client's. It has to be ready.
func (d *dialogue) clientLine(l line) {
	if d.over {
		return
	}
	cmd, _ := ftp.ParseCommand(l.Text)
	if d.settling {
		d.reply("200 NOOP") // the server is heard again when its transfer's data has gone on
		return
	}
	if len(l.Text) == 0 && l.Flaws&ftp.Refused == 0 {
		return // nobody answers an empty line
	}
	if l.Flaws&ftp.BareLF != 0 && l.Flaws&ftp.Refused == 0 {
		// The connection to the server is ours, and so are the ends of its lines: there are servers for which LF alone is none.
		l.wire, l.Flaws = append(bytes.Clone(l.wire[:len(l.wire)-1]), "\r\n"...), l.Flaws&^ftp.BareLF
	}
	d.verb = cmd.Verb
	l.wire = withoutSignals(l, cmd)
	d.fx = d.control.ClientLine(l.Line, d.fx[:0])
	if answered := d.carryOut(&l); !answered && !d.over {
		d.aborted = d.aborted || cmd.Verb == "ABOR"
		if d.features = noFeatures; cmd.Verb == "FEAT" {
			d.features = awaited
		}
		d.send(alg.Server, l.wire)
	}
}

// urgent are the commands that Telnet signals may come before (RFC 959 section 4.1.3).
var urgent = map[string]bool{"ABOR": true, "STAT": true, "QUIT": true}

// withoutSignals is the line as it goes on: as it came, but for the Telnet signals before an urgent command, whose urgency went
// lost with the connection that had it. All other bytes belong to names.
func withoutSignals(l line, cmd ftp.Command) []byte {
	plain := append(bytes.Clone(l.Text), "\r\n"...)
	if urgent[cmd.Verb] && bytes.HasSuffix(l.wire, plain) {
		return plain
	}
	return l.wire
}

// serverLine takes a line of the server's.
func (d *dialogue) serverLine(l line) {
	if d.over {
		return
	}
	if l.Flaws&ftp.TooLong != 0 {
		d.end(alg.NotFTP)
		return
	}
	asking, transferring := d.control.Asking(), d.control.Transferring() != alg.NoTransfer
	var reply ftp.Reply
	reply, d.fx = d.control.ServerLine(l.Line, d.fx[:0])
	d.carryOut(&l)
	switch {
	case asking, d.over: // it was for us, or the engine has ended the session
	case reply.Code == 0 && len(l.Text) == 0: // nobody waits for an empty line
	case reply.Code == 0:
		d.passStray(l)
	default:
		d.pass(reply, l, transferring, transferring && reply.Last && d.control.Transferring() == alg.NoTransfer)
	}
}

// maxHeld bounds what is kept of a reply of several lines to a transfer. Longer ones go on as they come.
const maxHeld = 8 << 10

// pass passes a line of a reply on. The final reply to a transfer goes on as a whole, since another may have to stand in its
// place.
func (d *dialogue) pass(reply ftp.Reply, l line, transferring, transferred bool) {
	switch {
	case transferring && !transferred && reply.Preliminary() && reply.Last:
		d.out.accepted()
		d.transferLine(l)
	case transferred:
		if text := d.out.finish(reply.Code); text != "" && !d.over && !d.told {
			d.held = nil
			d.reply(text)
			return
		}
		d.transferLine(l)
		d.told = false
	case transferring && !reply.Last && len(d.held)+len(l.wire) <= maxHeld:
		d.held = append(d.held, l.wire...)
		return
	case d.features != noFeatures && !d.feature(reply, l):
		return
	default:
		d.send(alg.Client, append(d.held, l.wire...))
		d.held = nil
	}
	if reply.Last && (transferred || !reply.Preliminary()) {
		d.answered(reply.Code)
	}
}

// transferLine passes on the last line of a reply to a transfer, and those before it, unless the client has been told something
// else.
func (d *dialogue) transferLine(l line) {
	if !d.told {
		d.send(alg.Client, append(d.held, l.wire...))
	}
	d.held = nil
}

// endTransfer ends the transfer at hand for the client, with a reply of ours.
func (d *dialogue) endTransfer(text string) {
	if d.over || d.told || d.settling || d.control.Transferring() == alg.NoTransfer {
		return
	}
	d.told = true
	d.reply(text)
}

// answered notes what a final reply says of the command before it.
func (d *dialogue) answered(code int) {
	d.features = noFeatures
	d.aborted = d.aborted && d.control.Outstanding() > 0
	switch {
	case code == 421:
		d.out.hangUp(alg.ConnectionClosed)
	case d.verb == "QUIT" && code < 300 && d.control.Outstanding() == 0:
		d.out.hangUp(alg.ConnectionClosed)
	case (d.verb == "PASS" || d.verb == "ACCT") && (code >= 500 || d.control.InDoubt()):
		if d.failures++; d.failures >= d.limit {
			d.end(alg.LoginLimit)
		}
	}
}

// passStray passes on a line that is no reply, which the engine has let pass: clients skip it. A feature of a server that
// leaves out the hyphen of FEAT's reply is one too.
func (d *dialogue) passStray(l line) {
	if !d.withheld(l) {
		d.send(alg.Client, l.wire)
	}
}

// withheld reports whether a line has a feature that is not the server's to announce: how the client is protected, and modes
// of transfer that are refused.
func (d *dialogue) withheld(l line) bool {
	switch featureName(l.Text) {
	case "AUTH", "PBSZ", "PROT", "CCC":
		return true
	case "MODE":
		return d.rule.MaxSize > 0
	}
	return false
}

// feature handles a line of FEAT's reply (RFC 2389) and reports whether the server's own line goes on.
func (d *dialogue) feature(reply ftp.Reply, l line) bool {
	if reply.Code != 211 {
		return true
	}
	if d.shows && reply.Last && d.features == awaited {
		d.reply("211-Features:") // the server has none
	}
	d.features = listed
	if reply.Last {
		if d.shows {
			// In TLS too, as servers have it: there are clients to which PROT is not known where AUTH is not.
			d.reply(" AUTH TLS")
			d.reply(" PBSZ")
			d.reply(" PROT")
		}
		return true
	}
	return !d.withheld(l)
}

// carryOut does what the engine asks for after a line of one side, which may change on its way. It reports whether something of ours
// was said, so that the line goes no further.
func (d *dialogue) carryOut(l *line) (answered bool) {
	for i := 0; i < len(d.fx); i++ { // a refusal appends to them
		switch e := d.fx[i]; e.Kind {
		case alg.OpenPinhole:
			d.open(e, l)
		case alg.BeginTransfer:
			if why := d.out.begin(e.Direction); why != alg.NoReason {
				d.fx = d.control.Refuse(e, why, d.fx)
			}
		case alg.Rewrite:
			copy(l.wire[e.Start:], e.New)
		case alg.Say:
			answered = true
			d.out.send(e.Side, append(bytes.Clone(e.Text), "\r\n"...), transportOf(e.Protection.Control == alg.TLS))
		case alg.StartTLS:
			if d.out.secure(e.Side) != nil {
				d.control.Unsecured()
				d.end(alg.UpstreamTLS)
				return true
			}
		case alg.StopTLS:
			if d.out.unsecure(e.Side) != nil {
				return true
			}
		default:
			d.note(e)
		}
	}
	return answered
}

// open makes a pinhole, and has the line that announces it name where it leads.
func (d *dialogue) open(e alg.Effect, l *line) {
	at, why := d.out.open(e.Pinhole)
	if why != alg.NoReason {
		d.fx = d.control.Refuse(e, why, d.fx)
		return
	}
	if text := d.control.Announcement(e, at); text != nil {
		l.wire = append(text, "\r\n"...)
	}
}

// note does what an effect asks for that changes nothing of what goes on.
func (d *dialogue) note(e alg.Effect) {
	switch e.Kind {
	case alg.ClosePinhole:
		d.out.shut(e.Pinhole, e.Reason)
	case alg.ProtectData:
		d.out.protect()
	case alg.Protect:
		d.protected(e.Protection)
	case alg.Deny:
		d.denied(e.Reason, e.Text)
	case alg.End:
		d.end(e.Reason)
	case alg.Login:
		d.login(e)
	case alg.Audit:
		d.out.report(audit.Event{Kind: audit.EventAudit, Reason: e.Reason, Text: audit.WireText(e.Text)})
	}
}

func (d *dialogue) protected(p alg.Protection) {
	d.out.report(audit.Event{Kind: audit.EventProtection, Protection: p})
}

func (d *dialogue) login(e alg.Effect) {
	if e.Side == alg.Client { // USER, or REIN
		d.user = audit.WireText(e.Text)
		return
	}
	d.out.report(audit.Event{Kind: audit.EventLogin, Text: d.user})
}

// end ends the session by our decision, which the client is told.
func (d *dialogue) end(why alg.Reason) {
	if d.over {
		return
	}
	d.reply(why.Reply())
	d.over = true
	d.out.report(audit.Event{Kind: audit.EventEnd, Reason: why})
	d.out.hangUp(why)
}

func (d *dialogue) denied(why alg.Reason, text []byte) {
	d.out.report(audit.Event{Kind: audit.EventDeny, Reason: why, Text: audit.WireText(text)})
}

// reply sends the client a line of our own.
func (d *dialogue) reply(text string) { d.send(alg.Client, []byte(text+"\r\n")) }

// send says something to a side as that is protected now.
func (d *dialogue) send(to alg.Side, text []byte) {
	d.out.send(to, text, transportOf(d.control.InTLS(to)))
}

// featureName is the name in a line of FEAT's reply.
func featureName(text []byte) string {
	name, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte{' '})
	return strings.ToUpper(string(name))
}
