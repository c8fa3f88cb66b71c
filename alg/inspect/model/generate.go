package model

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Lines that clients send, honest ones and others.
var lines = []string{
	"NOOP", "NOOP", "PWD", "PWD", "CWD /", "CWD /pub", "CWD /pub/nowhere", "CWD /nowhere", "CWD /secret", "CWD secret", "CWD ..", "CWD deep", "CDUP",
	"CWD /pub/deep/../../secret", "CWD /pub\xff\xfb/../secret", "CWD pub/\xff\xf1..", "XCUP", "XPWD", "CWD", "CWD \xc2\xa0", "CWD ~",
	"RETR /secret/key", "RETR secret/key", "RETR key", "RETR ../secret/key", "RETR deep/../../secret/key", "RETR /pub/ok", "RETR big", "RETR /big",
	"RETR /pub/d\xff\xfb/../../secret/key", "RETR /se\xff\xf1cret/key", "STOR /secret/new", "STOR new", "APPE key", "SIZE key", "SIZE /secret/key", "MDTM key",
	"LIST", "NLST", "MLSD", "LIST /secret", "LIST -a /secret", "LIST -a/secret", "NLST -1/secret", "NLST secret", "LIST ..",
	"PASV", "PASV", "EPSV", "EPSV", "EPSV ALL", "EPSV 1", "PORT 192,0,2,2,156,64", "PORT 192,0,2,2,156,65", "EPRT |1|192.0.2.2|40002|", "PORT 192,0,2,3,156,64",
	"PORT 192,0,2,2,0,22", "LPRT 4,4,192,0,2,2,2,156,64",
	"USER lab", "USER lab", "PASS pw", "PASS pw", "PASS wrong", "ACCT x", "REIN", "AUTH TLS", "AUTH TLS", "AUTH SSL", "AUTH GSSAPI", "auth tls", "PBSZ 0", "PROT P", "PROT C",
	"ABOR", "ABOR", "STAT", "STAT", "\xff\xf4\xff\xf2ABOR", "HELP", "FEAT", "SYST", "TYPE I", "MODE Z", "REST 1", "QUIT",
	"", "", " ", "\xff\xf1", "\xff\xf1", "\xff\xf4\xff\xf2", "\xff\xfbx", "\xff\xff", "\x00", "\r", "NOOP\r", "POST / HTTP/1.1", "\xff\xf1SITE CHMOD 777 x",
	"SITE CHMOD 777 victim", "MKD evil", "DELE victim", "S\xff\xf1ITE X", " SITE X", "SITE\tX", "site chmod 1 x", "SITE", "\rSITE X", "NOOP\rSITE X", "XXXX",
}

// forged are records that a client in clear text may send for a follower of TLS, with commands between line ends.
func forged(r *rand.Rand) string {
	text := ""
	for range 1 + r.IntN(3) {
		switch r.IntN(6) {
		case 0:
			text += Record(22, "AAAA")
		case 1:
			text += Record(20, "\x01")
		case 2:
			text += Record(21, "\x01\x00")
		case 3:
			text += "\x16\x03\x01\x40\x00\r\n" + denied[r.IntN(len(denied))] + "\r\n"
		default:
			text += Record(23, "\r\n"+denied[r.IntN(len(denied))]+"\r\n")
		}
	}
	return text
}

var denied = []string{"MKD evil", "SITE CHMOD 777 x", "DELE x", "PASV", "RETR /secret/key"}

// generator makes actions that are likely to lead somewhere: what follows a login or a transfer is worth more than what comes
// before it. Each dialogue uses some of the lines and some of the tricks only, so that not all of them end early.
type generator struct {
	*rand.Rand
	list   []Action
	lines  []string
	tricks []func()
}

func (g *generator) add(do Do, n int, text string) { g.list = append(g.list, Action{do, n, text}) }

func (g *generator) ask(line string) { g.add(Say, 0, line+"\r\n"); g.add(Reply, 0, "") }

// Generate makes a dialogue of about n actions.
func Generate(r *rand.Rand, s *Setup, n int) []Action {
	g := &generator{Rand: r}
	for range 4 + r.IntN(20) {
		g.lines = append(g.lines, lines[r.IntN(len(lines))])
	}
	g.tricks = []func(){func() { g.ask(g.line()) }, func() { g.ask(g.line()) }, g.reply}
	for _, trick := range []func(){
		g.several, g.reply, g.reply, g.transfer, g.transfer, g.tls, g.segments, g.fate, g.fate,
		func() { g.talk(g.line() + g.eol()) },
		func() { g.add(Drain, 0, "") },
		func() { g.add(Wait, []int{100, 1000, 1500, 5000, 12000, 31000}[g.IntN(6)], "") },
		func() { g.talk(forged(g.Rand)) },
		func() { g.add(Say, 0, strings.Repeat("A", []int{600, 3000, 6000}[g.IntN(3)])+g.eol()) },
		func() { g.add(Data, 1+g.IntN(6), "") },
		func() { g.ask("CWD /") },
	} {
		if r.IntN(2) == 0 {
			g.tricks = append(g.tricks, trick)
		}
	}
	g.begin(s)
	for len(g.list) < n {
		g.tricks[g.IntN(len(g.tricks))]()
	}
	return g.list
}

// begin is a login, mostly.
func (g *generator) begin(s *Setup) {
	switch p := g.IntN(20); {
	case p == 0:
		return
	case p < 4 && s.Habits.TLS:
		g.add(Reply, 0, "")
		g.tls()
		return
	}
	g.add(Reply, 0, "")
	if g.IntN(10) > 0 {
		g.ask("USER lab")
		g.ask("PASS pw")
	}
}

// several are lines in one segment.
func (g *generator) several() {
	var b strings.Builder
	for range 2 + g.IntN(4) {
		b.WriteString(g.line() + g.eol())
	}
	g.talk(b.String())
}

func (g *generator) line() string { return g.lines[g.IntN(len(g.lines))] }

func (g *generator) eol() string {
	if g.IntN(8) == 0 {
		return []string{"\n", "\r\r\n", "", "\r", "\n\r\n"}[g.IntN(5)]
	}
	return "\r\n"
}

// talk sends text, cut as may be.
func (g *generator) talk(text string) {
	switch g.IntN(8) {
	case 0:
		g.add(Cut, 1+g.IntN(4), text)
	case 1:
		g.add(Backwards, 1+g.IntN(9), text)
	default:
		g.add(Say, 0, text)
	}
}

func (g *generator) reply() {
	switch g.IntN(14) {
	case 0, 1:
		g.add(Replies, 0, "")
	case 2:
		g.add(Part, 1+g.IntN(30), "")
	case 3:
		g.add(Leave, 0, "")
	case 4:
		g.add(Resend, 1+g.IntN(40), "")
	case 5, 6:
		g.add(Reply, 1+g.IntN(20), "")
	default:
		g.add(Reply, 0, "")
	}
}

// transfer begins one, and says something while it lasts.
func (g *generator) transfer() {
	g.ask("PASV")
	g.ask([]string{"RETR /big", "RETR /pub/ok", "STOR /pub/new", "LIST"}[g.IntN(4)])
	for range g.IntN(4) {
		if g.IntN(2) == 0 {
			g.talk(g.line() + "\r\n")
		} else {
			g.ask(g.line())
		}
	}
	if g.IntN(3) > 0 {
		g.add(Drain, 0, "")
		g.add([]Do{Reply, Replies}[g.IntN(2)], 0, "")
	}
}

// tls begins real TLS, where the server has it, and says something inside.
func (g *generator) tls() {
	g.ask("AUTH TLS")
	g.add(Say, 0, clientHello)
	g.add(Reply, 0, "")
	g.add(Say, 0, clientFinished)
	for _, line := range []string{"USER lab", "PASS pw"} {
		g.add(Say, 0, sealed(line+"\r\n"))
		g.add(Reply, 0, "")
	}
	for range 1 + g.IntN(3) {
		g.add(Say, 0, sealed(g.line()+"\r\n"))
		g.add(Reply, 0, "")
	}
}

// segments are what TCP lets everybody do.
func (g *generator) segments() {
	switch g.IntN(5) {
	case 0:
		g.add(Again, 1+g.IntN(30), "")
	case 1:
		g.add(Again, 1+g.IntN(30), g.line()+"\r\n")
	case 2:
		text := g.line() + "\r\n"
		g.add(Ahead, len(text), g.line()+"\r\n")
		g.add(Say, 0, text)
	case 3:
		g.add(KeepAlive, 0, "")
	default:
		g.add(Urgent, 0, g.line()+"\r\n")
	}
}

// fate is what becomes of the connection's entry, and of us.
func (g *generator) fate() {
	switch g.IntN(12) {
	case 0, 1:
		g.add(Forget, 0, "")
		if g.IntN(2) == 0 {
			g.add(Tell, 0, "")
		}
		g.add([]Do{KeepAlive, Say}[g.IntN(2)], 0, "NOOP\r\n")
	case 2:
		g.add(Reset, g.IntN(3), "")
		g.add(Reply, 0, "")
	case 3:
		g.add(Tell, 0, "")
	case 4, 5, 6:
		g.add(Kill, 0, "")
	case 7, 8, 9:
		g.add(HandOver, 0, "")
	default:
		g.add(Reload, 0, "")
	}
}

// Format writes a dialogue, one action a line.
func Format(list []Action) string {
	var b strings.Builder
	for _, a := range list {
		fmt.Fprintln(&b, a)
	}
	return b.String()
}
