package terminate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// stageHand is an outside that writes down what a dialogue does.
type stageHand struct {
	log      []string
	noServer bool       // TLS with the server fails
	refuse   alg.Reason // of pinholes
	unfit    alg.Reason // of the data connection for a transfer
	instead  string     // of a transfer's reply
	over     bool
	sent     [2]string    // last, by side
	state    [2]transport // what each side is in
}

func (o *stageHand) note(format string, args ...any) {
	o.log = append(o.log, fmt.Sprintf(format, args...))
}

func (o *stageHand) send(to alg.Side, text []byte, said transport) {
	if said != o.state[to] {
		o.note("%s is not in what it was to be told in", sideName(to))
	}
	o.sent[to] = string(text)
	o.note("%s< %s", sideName(to), strings.TrimRight(string(text), "\r\n"))
}

func (o *stageHand) secure(side alg.Side) error {
	if side == alg.Server && o.noServer {
		return errors.New("no TLS")
	}
	o.state[side] = inTLS
	o.note("%s TLS", sideName(side))
	return nil
}

func (o *stageHand) unsecure(side alg.Side) error {
	o.state[side] = inClear
	o.note("%s clear", sideName(side))
	return nil
}

func (o *stageHand) open(p alg.Pinhole) (netip.AddrPort, alg.Reason) {
	if o.refuse == alg.NoReason {
		o.note("open %s %s", p.Mode, p.To)
	}
	return p.To, o.refuse
}

func (o *stageHand) shut(p alg.Pinhole, why alg.Reason) { o.note("shut %s", why) }
func (o *stageHand) finish(int) string                  { return o.instead }
func (o *stageHand) accepted()                          { o.note("accepted") }
func (o *stageHand) protect()                           { o.note("protect") }

func (o *stageHand) begin(alg.Direction) alg.Reason {
	if o.unfit == alg.NoReason {
		o.note("begin")
	}
	return o.unfit
}

func (o *stageHand) report(e audit.Event) {
	if e.Kind == audit.EventDeny {
		o.note("deny %s", e.Reason)
	}
}

func (o *stageHand) hangUp(why alg.Reason) {
	o.over = true
	o.note("hang up")
}

func sideName(s alg.Side) string { return [...]string{"C", "S"}[s] }

var (
	scriptClient = netip.MustParseAddrPort("192.0.2.2:40000")
	scriptServer = netip.MustParseAddrPort("198.51.100.2:21")
)

// scripted is what a script begins with. The texts are parts of its policy.
type scripted struct {
	upstream     string // how the server is spoken to; empty for as the client is
	server, rule string // keys of each
	top          string
	bare         bool // there is no certificate to show
	implicit     bool // the client comes to the implicit port
	ipv6         bool
}

func (begins scripted) dialogue(o *stageHand) *dialogue {
	upstream := "{verify: none"
	if begins.upstream != "" {
		upstream += ", control: " + begins.upstream
	}
	client, server := scriptClient, scriptServer
	if begins.ipv6 {
		client, server = netip.MustParseAddrPort("[2001:db8:1::2]:40000"), netip.MustParseAddrPort("[2001:db8:2::2]:21")
	}
	if begins.implicit {
		server = netip.AddrPortFrom(server.Addr(), 990)
	}
	text := fmt.Sprintf(`version: 1
servers:
  - {name: server, addresses: ["%s"], certificates: [{certificate: /c.pem, key: /k.pem}], upstream: %s%s}}
rules:
  - {name: all, to: server, action: terminate, commands: {deny: [SITE]}%s}
%s`, server.Addr(), upstream, begins.server, begins.rule, begins.top)
	p, err := policy.Parse("test", []byte(text))
	if err != nil {
		panic(err) // it is constant
	}
	d := p.Decide(client.Addr(), server)
	x := &dialogue{out: o, control: alg.NewTerminated(p, d, client, server, !begins.bare), rule: d.Rule, limit: 2, shows: !begins.bare}
	if channel, _ := d.Server.Dial(server.Port()); channel == policy.Explicit || channel == policy.Implicit {
		x.control.Secured(alg.Server, true, nil)
		o.state[alg.Server] = inTLS
	}
	if begins.implicit {
		x.control.Secured(alg.Client, true, nil)
		o.state[alg.Client] = inTLS
	}
	return x
}

// Lines that begin with "C: " and "S: " are said by the client and by the server; what follows each, behind "=> " or on
// lines of its own, is what the dialogue does.
var scripts = []struct {
	name   string
	begins scripted
	change func(*stageHand)
	script string
}{
	{name: "plain", script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: PASV => S< PASV
		S: 227 Entering (198,51,100,2,195,80) => open PASV 198.51.100.2:50000, C< 227 Entering (198,51,100,2,195,80)
		C: RETR x => begin, S< RETR x
		S: 150 here => accepted, C< 150 here
		S: 226 done => shut transfer-done, C< 226 done
		C: QUIT => S< QUIT
		S: 221 bye => C< 221 bye, hang up`},
	{name: "a denied command is answered here", script: `
		S: 220 hello => C< 220 hello
		C: SITE EXEC => deny command-denied, C< REPLY command-denied
		C: NOOP => S< NOOP
		S: 200 ok => C< 200 ok`},
	{name: "a foreign address in PORT", script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: PORT 203,0,113,1,195,80 => deny foreign-address, C< REPLY foreign-address
		C: PORT 192,0,2,2,195,80 => open PORT 192.0.2.2:50000, S< PORT 192,0,2,2,195,80`},
	{name: "a server's inside address in 227", begins: scripted{top: "bounce: peer"}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: PASV => S< PASV
		S: 227 Entering (203,0,113,9,195,80) => open PASV 198.51.100.2:50000, C< 227 Entering Passive Mode (198,51,100,2,195,80).`},
	{name: "PASV over IPv6", begins: scripted{top: "bounce: peer", ipv6: true}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: PASV => S< PASV
		S: 227 Entering Passive Mode (0,0,0,0,195,80). => open PASV [2001:db8:2::2]:50000, C< 227 Entering Passive Mode (0,0,0,0,195,80).
		C: PASV => shut next-data-command, S< PASV
		S: 227 Entering Passive Mode (203,0,113,9,195,80). => open PASV [2001:db8:2::2]:50000, C< 227 Entering Passive Mode (0,0,0,0,195,80).`},
	{name: "QUIT during a transfer", script: `
		S: 220 hello => C< 220 hello
		C: RETR x => begin, S< RETR x
		C: QUIT => S< QUIT
		S: 226 done => C< 226 done
		S: 221 bye => C< 221 bye, hang up`},
	{name: "a pinhole that cannot be", change: func(o *stageHand) { o.refuse = alg.ExpectationFailed }, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: EPRT |1|192.0.2.2|50000| => deny expectation-failed, C< REPLY expectation-failed
		C: EPSV => S< EPSV
		S: 229 Entering Extended Passive Mode (|||50000|) => deny expectation-failed, C< 425 Refused by the gateway: expectation-fail...`},
	{name: "AUTH", script: `
		S: 220 hello => C< 220 hello
		C: PBSZ 0 => C< 503 PBSZ comes after AUTH
		C: PROT P => C< 503 PROT comes after PBSZ
		C: CCC => C< 533 The control connection is not protected
		C: AUTH => C< 501 AUTH needs the name of a mechanism
		C: AUTH GSSAPI => C< 504 The mechanism is not known; AUTH TLS is
		C: auth ssl => S< AUTH TLS
		S: 234 go => S TLS, C< 234 AUTH accepted, TLS begins, C TLS
		C: AUTH TLS => C< 503 TLS is in use already
		C: PROT P => C< 503 PROT comes after PBSZ
		C: PBSZ x => C< 501 PBSZ needs a number
		C: PBSZ 0 => S< PBSZ 0
		S: 200 PBSZ=0 => C< 200 PBSZ=0
		C: PROT S => C< 536 The level is not supported by TLS
		C: PROT X => C< 504 The level is not known; C and P are
		C: PROT P => S< PROT P
		S: 200 private => protect, C< 200 private
		C: PROT C => S< PROT C
		S: 534 never => C< 534 never
		C: REIN => C< 502 REIN is not available under TLS
		C: ENC abc => C< 503 No security mechanism is in use that needs ENC
		C: CCC => S< CCC
		S: 200 clear => C< 200 clear, S clear, C clear
		C: NOOP => S< NOOP`},
	{name: "a server that knows AUTH SSL alone", script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => S< AUTH TLS
		S: 504 what? => S< AUTH SSL
		S: 234 go => S TLS, C< 234 AUTH accepted, TLS begins, C TLS`},
	{name: "a server that refuses AUTH", script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => S< AUTH TLS
		S: 534 no => C< 534 no
		C: USER lab => S< USER lab`},
	{name: "a server that knows no AUTH", script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => S< AUTH TLS
		S: 502 what? => S< AUTH SSL
		S: 500 what? => C< 500 what?`},
	{name: "a server that refuses AUTH, and the policy goes on", begins: scripted{server: ", auth-refused: plain"}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => S< AUTH TLS
		S: 534 no => C< 234 AUTH accepted, TLS begins, C TLS
		C: PBSZ 0 => C< 200 PBSZ=0
		C: PROT P => protect, C< 200 Data protection is P`},
	{name: "TLS with the server fails", change: func(o *stageHand) { o.noServer = true }, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => S< AUTH TLS
		S: 234 go => C< REPLY upstream-tls, hang up`},
	{name: "no certificate to show", begins: scripted{bare: true}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => deny no-certificate, C< REPLY no-certificate`},
	{name: "a plain server behind TLS", begins: scripted{upstream: "plain"}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: PBSZ 0 => C< 200 PBSZ=0
		C: PROT P => protect, C< 200 Data protection is P
		C: CCC => C< 200 The control connection is in clear text now, C clear`},
	{name: "AUTH from a user", begins: scripted{upstream: "explicit"}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 331 more => C< 331 more
		C: AUTH TLS => deny auth-too-late, C< REPLY auth-too-late
		C: PASS x => S< PASS x
		S: 230 in => C< 230 in
		C: AUTH TLS => deny auth-too-late, C< REPLY auth-too-late
		C: REIN => S< REIN
		S: 220 anew => C< 220 anew
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS`},
	{name: "AUTH from a user whom the server refused", begins: scripted{upstream: "plain"}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 530 not without TLS => C< 530 not without TLS
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: USER lab => S< USER lab
		S: 331 more => C< 331 more`},
	{name: "AUTH from a user whom the policy refused", begins: scripted{upstream: "plain", rule: ", require: tls"}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => deny tls-required, C< REPLY tls-required
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: USER lab => S< USER lab`},
	{name: "AUTH that the server refuses, and the policy goes on, from a user", begins: scripted{server: ", auth-refused: plain"}, script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: AUTH TLS => S< AUTH TLS
		S: 534 no => deny auth-too-late, C< REPLY auth-too-late
		C: NOOP => S< NOOP`},
	{name: "AUTH that the server accepts from a user: the gateway forgets who that was", script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: EPSV => S< EPSV
		S: 229 here (|||50000|) => open EPSV 198.51.100.2:50000, C< 229 here (|||50000|)
		C: AUTH TLS => S< AUTH TLS
		S: 234 go => S TLS, C< 234 AUTH accepted, TLS begins, C TLS, shut next-data-command
		C: PORT 192,0,2,2,195,80 => deny not-logged-in, C< REPLY not-logged-in`},
	{name: "AUTH when replies and commands may have parted", script: `
		S: 220 hello => C< 220 hello
		C: RETR a => begin, S< RETR a
		forget
		C: AUTH TLS => deny auth-too-late, C< REPLY auth-too-late`},
	{name: "data in clear text where the policy asks for a TLS session", begins: scripted{upstream: "plain", rule: ", tls: {session-reuse: require}"}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: PBSZ 0 => C< 200 PBSZ=0
		C: PROT C => deny tls-required, C< 534 The policy asks for TLS on data connections
		C: PROT P => protect, C< 200 Data protection is P`},
	{name: "PROT C where the policy wants TLS with the server", begins: scripted{upstream: "explicit"}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: PBSZ 0 => C< 200 PBSZ=0
		C: PROT C => protect, C< 200 Data protection is C
		C: PROT P => S< PROT P
		S: 200 private => protect, C< 200 private
		C: PROT C => protect, C< 200 Data protection is C`},
	{name: "a server with TLS behind a plain client", begins: scripted{upstream: "explicit"}, script: `
		S: 220 hello => C< 220 hello
		C: AUTH TLS => C< 234 AUTH accepted, TLS begins, C TLS
		C: PBSZ 0 => C< 200 PBSZ=0
		C: CCC => C< 200 The control connection is in clear text now, C clear`},
	{name: "FEAT says what the gateway can do", begins: scripted{upstream: "plain"}, script: `
		S: 220 hello => C< 220 hello
		C: FEAT => S< FEAT
		S: 211-Features: => C< 211-Features:
		S:  MDTM => C<  MDTM
		S:  AUTH GSSAPI
		S: 211 End => C<  AUTH TLS, C<  PBSZ, C<  PROT, C< 211 End
		C: FEAT => S< FEAT
		S: 500 what? => C< 500 what?
		C: FEAT => S< FEAT
		S: 211 none => C< 211-Features:, C<  AUTH TLS, C<  PBSZ, C<  PROT, C< 211 none`},
	{name: "features in TLS", begins: scripted{implicit: true}, script: `
		S: 220 hello => C< 220 hello
		C: FEAT => S< FEAT
		S: 211-Extensions supported: => C< 211-Extensions supported:
		S:  AUTH TLS
		S: 211 End => C<  AUTH TLS, C<  PBSZ, C<  PROT, C< 211 End`},
	{name: "one command at a time, but for ABOR", script: `
		S: 220 hello => C< 220 hello
		C: RETR x => begin, S< RETR x
		wait: NOOP2
		S: 150 here => accepted, C< 150 here
		wait: SIZE x
		C: ABOR => S< ABOR
		S: 426 cut => C< 426 cut
		S: 226 aborted => C< 226 aborted
		C: SIZE x => S< SIZE x`},
	{name: "a download that the client cuts off, with Pure-FTPd", script: `
		S: 220 hello => C< 220 hello
		C: RETR big => begin, S< RETR big
		S: 150 here => accepted, C< 150 here
		wait: SIZE x
		S: 150 0.001 seconds => C< 150 0.001 seconds
		C: SIZE x => S< SIZE x
		S: 213 5 => C< 213 5`},
	{name: "another reply for a transfer", change: func(o *stageHand) { o.instead = "552 too large" }, script: `
		S: 220 hello => C< 220 hello
		C: STOR x => begin, S< STOR x
		S: 150 here => accepted, C< 150 here
		S: 226-so far
		S: 226 done => C< 552 too large`},
	{name: "EPRT of another protocol", script: `
		S: 220 hello => C< 220 hello
		C: USER lab => S< USER lab
		S: 230 in => C< 230 in
		C: EPRT |2|2001:db8::2|50000| => deny other-protocol, C< 522 Network protocol not supported, use (1)
		C: EPRT |3|192.0.2.2|50000| => deny other-protocol, C< 522 Network protocol not supported, use (1)
		C: EPRT |1|192.0.2.3|50000| => deny foreign-address, C< REPLY foreign-address`},
	{name: "login failures", script: `
		S: 220 hello => C< 220 hello
		C: USER a => S< USER a
		S: 331 more => C< 331 more
		C: PASS b => S< PASS b
		S: 530 no => C< 530 no
		C: USER a => S< USER a
		S: 331 more => C< 331 more
		C: PASS b => S< PASS b
		S: 530 no => C< 530 no, C< REPLY login-limit, hang up`},
	{name: "login failures behind forgotten replies", script: `
		S: 220 hello => C< 220 hello
		C: RETR a => begin, S< RETR a
		S: 150 here => accepted, C< 150 here
		C: NOOP => S< NOOP
		C: ABOR => S< ABOR
		forget
		C: PASS a => S< PASS a
		S: 226 of the transfer => C< 226 of the transfer
		C: PASS b => S< PASS b
		S: 200 of NOOP => C< 200 of NOOP, C< REPLY login-limit, hang up`},
	{name: "not FTP", script: `
		S: SSH-2.0-OpenSSH => deny not-ftp, C< REPLY not-ftp, hang up`},
	{name: "421", script: `
		S: 421 too many => C< 421 too many, hang up`},
}

func TestDialogue(t *testing.T) {
	for _, test := range scripts {
		t.Run(test.name, func(t *testing.T) {
			o := &stageHand{}
			d := test.begins.dialogue(o)
			if test.change != nil {
				test.change(o)
			}
			for _, step := range strings.Split(strings.TrimSpace(test.script), "\n") {
				playStep(t, o, d, strings.TrimLeft(step, "\t"))
			}
		})
	}
}

// playStep has one line said, and compares what is done.
func playStep(t *testing.T, o *stageHand, d *dialogue, step string) {
	t.Helper()
	said, want, _ := strings.Cut(step, " => ")
	who, text, _ := strings.Cut(said, ": ")
	l := line{Line: ftp.Line{Text: []byte(text), Len: len(text) + 2, EOL: 2}, wire: []byte(text + "\r\n")}
	o.log = nil
	switch ready := d.ready(l); {
	case who == "forget":
		d.goOn()
	case who == "wait":
		if ready {
			t.Errorf("%q is taken during another command", text)
		}
		return
	case who == "C" && !ready:
		t.Fatalf("%q is not taken", text)
	case who == "C":
		d.clientLine(l)
	default:
		d.serverLine(l)
	}
	if got := strings.Join(o.log, ", "); !matches(got, want) {
		t.Errorf("%s\n got %s\nwant %s", said, got, want)
	}
}

// matches compares, with REPLY for a reply that a reason gives, and "..." for any rest.
func matches(got, want string) bool {
	if before, found := strings.CutSuffix(want, "..."); found {
		return strings.HasPrefix(got, before)
	}
	if i := strings.Index(want, "REPLY "); i >= 0 {
		name, rest, more := strings.Cut(want[i+len("REPLY "):], ",")
		for r := alg.NoReason; r < 255; r++ {
			if r.String() == name {
				want = want[:i] + r.Reply()
				break
			}
		}
		if more {
			want += "," + rest
		}
	}
	return got == want
}

// What the client sends goes on byte for byte, or is refused with a reply; but Telnet signals before ABOR are left out. Where a
// rule looks at names the engine refuses more (testdata/transcripts/telnet.txt).
func TestNamesAreNotChanged(t *testing.T) {
	for said, want := range map[string]string{
		"DELE a\xff\xf1b\r\n":               "DELE a\xff\xf1b\r\n",
		"DELE a\xff\xfb/b\r\n":              "DELE a\xff\xfb/b\r\n",
		"MKD .\xff\xfb/./x\xff\xff\r\n":     "MKD .\xff\xfb/./x\xff\xff\r\n",
		"DELE \xcc\xee\xff\xe1\r\n":         "DELE \xcc\xee\xff\xe1\r\n",
		"DELE \xcc\xee\xff\xff\r\n":         "DELE \xcc\xee\xff\xff\r\n",
		"DELE \xcc\xee\xff\r\n":             "DELE \xcc\xee\xff\r\n",
		"\xff\xf4\xff\xf2ABOR\r\n":          "ABOR\r\n",
		"\xff\xf4\xff\xf2STAT\r\n":          "STAT\r\n",
		"STAT \xff\xff\r\n":                 "STAT \xff\xff\r\n",
		"\xff\xf4\xff\xf2STAT \xff\xff\r\n": "STAT \xff\xff\r\n",
		"DELE \xe1\n":                       "DELE \xe1\r\n", // the line ends as the server needs it
	} {
		o := &stageHand{}
		d := scripted{upstream: "plain"}.dialogue(o)
		playStep(t, o, d, "S: 220 hello => C< 220 hello")
		r := lineReader{limit: 4096, buf: []byte(said)}
		l, err := r.next(nil, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		o.log = nil
		d.clientLine(l)
		got := strings.Join(o.log, ", ")
		if sent := o.sent[alg.Server]; sent != want || want == "" && !strings.Contains(got, "C< 50") {
			t.Errorf("%q went on as %q: %s", said, sent, got)
		}
	}
}

// fuzzed are what fuzzing begins with: each way to speak to the server.
var fuzzed = []scripted{{}, {upstream: "plain"}, {upstream: "explicit"}, {implicit: true}}

// FuzzDialogue has both sides say anything. Nothing may be sent between AUTH and its reply, nothing but whole lines, and
// nothing at all when the session is over.
func FuzzDialogue(f *testing.F) {
	for _, test := range scripts {
		var said []string
		for _, step := range strings.Split(strings.TrimSpace(test.script), "\n") {
			before, _, _ := strings.Cut(strings.TrimSpace(step), " => ")
			said = append(said, before)
		}
		f.Add(uint8(max(0, slices.Index(fuzzed, test.begins))), strings.Join(said, "\n"))
	}
	f.Fuzz(func(t *testing.T, begins uint8, text string) {
		o := &stageHand{}
		d := fuzzed[int(begins)%len(fuzzed)].dialogue(o)
		for _, said := range strings.Split(text, "\n") {
			who, words, _ := strings.Cut(said, ": ")
			r := lineReader{limit: 4096, buf: []byte(words + "\r\n")}
			l, err := r.next(nil, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			over, asking := o.over, d.control.Asking()
			o.log = nil
			if who == "C" && d.ready(l) {
				d.clientLine(l)
			} else if who != "C" {
				d.serverLine(l)
			}
			checkActions(t, o.log, over, asking && who == "C")
			d.over = d.over || o.over // as session has it
		}
	})
}

func checkActions(t *testing.T, log []string, over, silent bool) {
	t.Helper()
	sent := func(a string) bool { return len(a) > 2 && a[1] == '<' }
	switch {
	case over && len(log) > 0:
		t.Errorf("after the end: %q", log)
	case silent && slices.ContainsFunc(log, sent):
		t.Errorf("between AUTH and its reply: %q", log)
	}
}
