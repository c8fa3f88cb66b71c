package terminate

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// protectionCommand handles the commands that are about protection (RFC 2228, RFC 4217), which the engine does not see.
// It says whether cmd is one.
func (d *dialogue) protectionCommand(cmd ftp.Command) bool {
	if why := d.rulingOf(cmd); why != alg.NoReason {
		return false // the engine denies it
	}
	switch cmd.Verb {
	case "AUTH":
		d.auth(cmd)
	case "PBSZ":
		d.pbszCommand(cmd)
	case "PROT":
		d.prot(cmd)
	case "CCC":
		d.ccc()
	case "ADAT", "MIC", "CONF", "ENC":
		// RFC 2228 section 3: they belong to mechanisms other than TLS, and would hide commands.
		d.reply(fmt.Sprintf("503 No security mechanism is in use that needs %s", cmd.Verb))
	case "REIN":
		if !d.side[alg.Client].tls {
			return false
		}
		// RFC 4217 section 13 leaves it open what becomes of TLS; the servers that we know do not have the command.
		d.reply("502 REIN is not available under TLS")
	default:
		return false
	}
	return true
}

// rulingOf says why the policy's command lists deny a command.
func (d *dialogue) rulingOf(cmd ftp.Command) alg.Reason {
	if d.rule.Command(cmd.Verb, cmd.Arg, "") == policy.DeniedCommand {
		return alg.CommandDenied
	}
	return alg.NoReason
}

// auth: AUTH TLS, TLS-C, TLS-P and SSL are one command (RFC 4217 section 4, MS-FTPS 1.3), in any case.
func (d *dialogue) auth(cmd ftp.Command) {
	client := &d.side[alg.Client]
	switch {
	case len(bytes.TrimSpace(cmd.Arg)) == 0:
		d.reply("501 AUTH needs the name of a mechanism")
	case !ftp.NamesTLS(cmd.Arg):
		d.reply("504 The mechanism is not known; AUTH TLS is")
	case client.tls:
		d.reply("503 TLS is in use already")
	case !d.shows:
		d.refuse(alg.NoCertificate, []byte("AUTH"))
	case d.channel == policy.Same && !d.side[alg.Server].tls && !d.outOfStep():
		d.ask(authTLS, "AUTH TLS")
	default:
		d.answerAUTH()
	}
}

// answerAUTH answers AUTH without the server, which does not hear of it and so keeps the user and the directory that it has. Those
// may be somebody else's, who spoke before in clear text (RFC 2228 section 3).
func (d *dialogue) answerAUTH() {
	if d.control.HasUser() || d.outOfStep() {
		d.refuse(alg.AUTHTooLate, []byte("AUTH"))
		return
	}
	d.acceptAUTH()
}

// outOfStep reports whether the next reply may be another command's, so that AUTH's would not be known for its own.
func (d *dialogue) outOfStep() bool { return d.control.InDoubt() || d.control.Outstanding() > 0 }

// acceptAUTH begins TLS with the client.
func (d *dialogue) acceptAUTH() {
	d.reply("234 AUTH accepted, TLS begins")
	if d.out.secure(alg.Client) == nil {
		// RFC 4217 section 4: all but the mechanism is as at the beginning.
		for _, e := range d.control.Renew(nil) {
			if e.Kind == alg.ClosePinhole {
				d.out.shut(e.Pinhole, e.Reason)
			}
		}
		d.user = ""
		d.side[alg.Client] = protection{tls: true, data: alg.Clear}
		d.protected()
	}
}

// pbszCommand: with TLS the size is always 0 (RFC 4217 section 9).
func (d *dialogue) pbszCommand(cmd ftp.Command) {
	client, server := &d.side[alg.Client], &d.side[alg.Server]
	_, err := strconv.ParseUint(string(bytes.TrimSpace(cmd.Arg)), 10, 32)
	switch {
	case !client.tls:
		d.reply("503 PBSZ comes behind AUTH")
	case err != nil:
		d.reply("501 PBSZ needs a number")
	case server.tls && !server.pbsz:
		d.ask(pbsz, "PBSZ 0")
	default:
		client.pbsz = true
		d.reply("200 PBSZ=0")
	}
}

func (d *dialogue) prot(cmd ftp.Command) {
	client := &d.side[alg.Client]
	level := strings.ToUpper(string(bytes.TrimSpace(cmd.Arg)))
	switch {
	case !client.tls || !client.pbsz:
		d.reply("503 PROT comes behind PBSZ") // RFC 4217 section 9
	case level == "S" || level == "E":
		d.reply("536 The level is not supported by TLS")
	case level != "C" && level != "P":
		d.reply("504 The level is not known; C and P are")
	case level == "C" && (d.rule.TLS.RequireReuse || d.rule.TLS.CA != ""):
		// A data connection in clear text shows neither the client's certificate nor its TLS session (RFC 2228 section 3: 534).
		d.denied(alg.TLSRequired, []byte("PROT C"))
		d.reply("534 The policy asks for TLS on data connections")
	case !d.side[alg.Server].tls, level == "C" && d.demands: // the server's side does not depend on the client's
		client.data = levels[level]
		d.out.protect()
		d.reply(fmt.Sprintf("200 Data protection is %s", level))
		d.protected()
	case level == "C":
		d.ask(protC, "PROT C")
	default:
		d.ask(protP, "PROT P")
	}
}

var levels = map[string]alg.Level{"C": alg.Clear, "P": alg.TLS}

// ccc lowers the control connection to clear text (RFC 2228 section 3, RFC 4217 section 12.3): on both sides, unless the
// server's is the policy's choice.
func (d *dialogue) ccc() {
	switch {
	case !d.side[alg.Client].tls:
		d.reply("533 The control connection is not protected")
	case d.rule.RequireTLS:
		d.refuse(alg.TLSRequired, []byte("CCC"))
	case d.channel == policy.Same && d.side[alg.Server].tls:
		d.ask(ccc, "CCC")
	default:
		d.clearClient()
	}
}

func (d *dialogue) clearClient() {
	d.reply("200 The control connection is in clear text now")
	if d.out.unsecure(alg.Client) == nil {
		d.side[alg.Client].tls = false
		d.protected()
	}
}

// ask sends the server a command that the engine does not see.
func (d *dialogue) ask(x exchange, command string) {
	d.own = x
	d.out.send(alg.Server, []byte(command+"\r\n"))
}

// ownLine takes a line of the reply to such a command.
func (d *dialogue) ownLine(now time.Time, l line) {
	reply, err := d.replies.Line(ftp.WithoutNegotiation(l.text))
	if err != nil {
		d.feed(now, alg.Server, l.wire) // the engine bounds what is no reply
		return
	}
	if !reply.Last || reply.Preliminary() {
		return // what matters is how it ends
	}
	x := d.own
	d.own = none
	switch x {
	case authTLS, authSSL:
		d.authAnswered(x, reply, l)
	default:
		d.protectionAnswered(x, reply, l)
	}
}

// authAnswered: 234 says that TLS begins (RFC 4217 section 4).
func (d *dialogue) authAnswered(x exchange, reply ftp.Reply, l line) {
	switch {
	case reply.Code == 234:
		if err := d.out.secure(alg.Server); err != nil {
			d.end(alg.UpstreamTLS)
			return
		}
		d.side[alg.Server] = protection{tls: true, data: alg.Clear}
		d.acceptAUTH()
	case x == authTLS && (reply.Code == 500 || reply.Code == 502 || reply.Code == 504):
		d.ask(authSSL, "AUTH SSL") // MS-FTPS 1.3: a server may know only one of the names
	case d.refused == policy.Plain:
		d.out.report(audit.Event{Kind: audit.EventAudit, Reason: alg.AUTHRefused, Text: audit.WireText(l.text)})
		d.answerAUTH()
	case reply.Positive():
		d.end(alg.NotFTP)
	default:
		d.out.report(audit.Event{Kind: audit.EventAudit, Reason: alg.AUTHRefused, Text: audit.WireText(l.text)})
		d.reply(fmt.Sprintf("%d %s", reply.Code, reply.Text))
	}
}

// protectionAnswered takes the reply to PBSZ, PROT or CCC, which the client gets as it is.
func (d *dialogue) protectionAnswered(x exchange, reply ftp.Reply, l line) {
	client, server := &d.side[alg.Client], &d.side[alg.Server]
	ok := reply.Code >= 200 && reply.Code < 300
	if ok && (x == protC || x == protP) {
		client.data = alg.Clear
		if x == protP {
			client.data = alg.TLS
		}
		server.data = client.data
		d.out.protect()
	}
	d.reply(fmt.Sprintf("%d %s", reply.Code, reply.Text))
	if !ok {
		return
	}
	switch x {
	case pbsz:
		client.pbsz, server.pbsz = true, true
	case protC, protP:
		d.protected()
	case ccc:
		if d.out.unsecure(alg.Server) != nil || d.out.unsecure(alg.Client) != nil {
			return
		}
		client.tls, server.tls = false, false
		d.protected()
	}
}

// protected tells the engine and the log how the client's side is protected now.
func (d *dialogue) protected() {
	p := alg.Protection{Control: alg.Clear, Data: d.side[alg.Client].data}
	if d.side[alg.Client].tls {
		p.Control = alg.TLS
	}
	d.control.SetProtection(p)
	d.out.report(audit.Event{Kind: audit.EventProtection, Protection: p})
}

// featureName is the name in a line of FEAT's reply.
func featureName(text []byte) string {
	name, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte{' '})
	return strings.ToUpper(string(name))
}
