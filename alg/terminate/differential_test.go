package terminate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// The policy's own tests, and the gateway over real sockets, decide the same about every command. What each says is compared for
// the commands of RFC 959, 775, 1639, 2228, 2389, 2428, 2640, 3659, 4217 and 7151 and those that servers added, in each state of
// login and protection, with each key of the policy that matters to a command.

// stages are what has been said before.
var stages = []struct {
	name string
	said []string
}{
	{"nobody in clear text", nil},
	{"a user in clear text", []string{"USER lab"}},
	{"logged in in clear text", []string{"USER lab", "PASS x"}},
	{"nobody in TLS", []string{"AUTH TLS"}},
	{"nobody in TLS after PBSZ", []string{"AUTH TLS", "PBSZ 0"}},
	{"logged in in TLS", []string{"AUTH TLS", "USER lab", "PASS x"}},
	{"logged in in TLS with data in TLS", []string{"AUTH TLS", "PBSZ 0", "PROT P", "USER lab", "PASS x"}},
	{"logged in in clear text after EPSV ALL", []string{"USER lab", "PASS x", "EPSV ALL"}},
}

// variants are parts of the policy: keys of the server, and of the rule.
var variants = []struct{ server, rule string }{
	{"", ""},
	{"", ", require: tls"},
	{"", ", commands: {deny: [SITE CHMOD, DELE, CWD /secret, RETR /secret]}"},
	{"", ", commands: {allow: [USER, PASS, AUTH, PBSZ, PROT, PASV, EPSV, RETR, LIST, PWD, CWD, NOOP, QUIT]}"},
	{"", ", users: {deny: [root]}, transfers: [download], files: {deny: ['*.exe']}"},
	{"", ", modes: [PASV]"},
	{"", ", max-size: 1000"},
	{"", ", tls: {session-reuse: require}"},
	{", control: plain", ""},
	{", control: plain", ", require: tls"},
}

// commands are what is said then.
var commands = []string{
	"ABOR", "ACCT x", "ADAT eA==", "ALLO 1", "APPE a", "AUTH", "AUTH GSSAPI", "AUTH SSL", "AUTH TLS", "CCC", "CDUP", "CLNT x", "CONF eA==",
	"CWD /pub", "CWD /secret", "CWD secret", "DELE a", "ENC eA==", "EPRT |1|127.0.0.1|40001|", "EPRT |1|127.0.0.2|40001|", "EPRT |2|::1|40001|",
	"EPSV", "EPSV 1", "EPSV ALL", "ESTA", "ESTP", "FEAT", "HASH a", "HELP", "HOST x", "LANG en", "LIST", "LIST /secret", "LPRT 4,4,127,0,0,1,2,1,1",
	"LPSV", "MDTM a", "MFCT 20200101000000 a", "MFF x=y; a", "MFMT 20200101000000 a", "MIC eA==", "MKD a", "MLSD", "MLST", "MODE S", "MODE Z",
	"NLST", "NOOP", "OPTS UTF8 ON", "PASS x", "PASV", "PBSZ 0", "PBSZ x", "PORT 127,0,0,1,156,65", "PORT 127,0,0,2,156,65", "PORT 127,0,0,1,0,22",
	"PROT", "PROT C", "PROT E", "PROT P", "PROT S", "PROT X", "PWD", "QUIT", "RANG 0 1", "REIN", "REST 1", "RETR /secret/a", "RETR a", "RETR a.exe",
	"RMD a", "RNFR a", "RNTO b", "SITE CHMOD 777 a", "SITE HELP", "SIZE a", "SMNT x", "SPSV", "STAT", "STAT -1", "STAT a", "STOR a", "STOU", "STRU F",
	"STRU R", "SYST", "TYPE I", "USER lab", "USER root", "XCRC a", "XCUP", "XCWD /secret", "XMD5 a", "XMKD a", "XPWD", "XRMD a", "XSHA a", "XSHA256 a",
	"NOSUCH", "NO-COMMAND", "DELE a\xff\xfb/b", "DELE a\x00b",
}

// replyTo is what the server says to a command: 200 to most, and 550 to those that are about data.
func replyTo(verb string) string {
	switch verb {
	case "USER":
		return "331 and the password?"
	case "PASS":
		return "230 in"
	case "AUTH":
		return "234 go on"
	case "PASV":
		return "227 here (127,0,0,1,195,80)"
	case "EPSV":
		return "229 here (|||50000|)"
	case "REIN":
		return "220 as new"
	case "QUIT":
		return "221 bye"
	case "CCC":
		return "533 not that"
	case "RETR", "STOR", "APPE", "STOU", "LIST", "NLST", "MLSD", "STAT":
		return "550 no"
	}
	return "200 ok"
}

// decision is what comes of a command.
type decision struct {
	allowed bool
	pinhole bool
	why     string // the reason's name, or our reply where the log has none
}

// byTest is what the policy's own tests say.
func byTest(t *testing.T, p *policy.Policy, said []string, command string) decision {
	to := netip.AddrPortFrom(p.Servers[0].Addresses[0].Addr(), p.Servers[0].Explicit[0])
	test := policy.Test{Name: "x", From: netip.MustParseAddr("127.0.0.1"), To: to.Addr(), Port: to.Port(), Expect: "allow"}
	test.Dialogue = []policy.Line{{Text: "220 ready"}}
	for _, line := range said {
		verb, _, _ := strings.Cut(line, " ")
		text := replyTo(verb)
		if line == "EPSV ALL" {
			text = "200 ok"
		}
		test.Dialogue = append(test.Dialogue, policy.Line{FromClient: true, Text: line}, policy.Line{Text: text})
	}
	test.Dialogue = append(test.Dialogue, policy.Line{FromClient: true, Text: command})
	q := *p
	outcome := func() decision {
		q.Tests = []policy.Test{test}
		failed := alg.RunTests("x", &q)
		if len(failed) == 0 {
			return decision{allowed: true}
		}
		text := failed[0].Error()
		if _, why, denied := strings.Cut(text, "the policy denies it ("); denied {
			return decision{why: strings.TrimSuffix(why, ")")}
		}
		return decision{allowed: true, pinhole: strings.Contains(text, "opens a pinhole")}
	}
	d := outcome()
	if verb, _, _ := strings.Cut(command, " "); d.allowed && !d.pinhole && (verb == "PASV" || verb == "EPSV" && command != "EPSV ALL") {
		test.Dialogue = append(test.Dialogue, policy.Line{Text: replyTo(verb)})
		d = outcome()
		d.allowed = true // the command was; its reply may not be
	}
	return d
}

// cannedServer answers one control connection, and notes what it hears.
type cannedServer struct {
	mu    sync.Mutex
	heard []string
}

func (s *cannedServer) serve(w *world, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(testTimeout))
	r := bufio.NewReader(c)
	io.WriteString(c, "220 ready\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		s.mu.Lock()
		s.heard = append(s.heard, line)
		s.mu.Unlock()
		verb, _, _ := strings.Cut(line, " ")
		text := replyTo(verb)
		if line == "EPSV ALL" {
			text = "200 ok"
		}
		io.WriteString(c, text+"\r\n")
		if verb == "AUTH" {
			secured := w.tlsServer(c)
			if secured.Handshake() != nil {
				return
			}
			c, r = secured, bufio.NewReader(secured)
		}
	}
}

func (s *cannedServer) take() (heard []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	heard, s.heard = s.heard, nil
	return heard
}

// ask says something and returns the final reply to it; empty when the connection ends in its place.
func (e *end) ask(text string) string {
	e.t.Helper()
	e.say(text)
	return e.answer()
}

// answer reads one final reply.
func (e *end) answer() string {
	e.t.Helper()
	var replies ftp.Replies
	for {
		line, err := e.r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return ""
		}
		if err != nil {
			e.t.Fatal(err)
		}
		reply, err := replies.Line([]byte(strings.TrimRight(line, "\r\n")))
		if err != nil {
			e.t.Fatal(err)
		}
		if reply.Last && !reply.Preliminary() {
			return fmt.Sprintf("%d %s", reply.Code, reply.Text)
		}
	}
}

// byGateway is what the gateway does over sockets.
func (w *world) byGateway(said []string, command string) (d decision, reply string) {
	w.t.Helper()
	w.back.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout))
	c, err := w.back.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	var server cannedServer
	var serving sync.WaitGroup
	serving.Go(func() { server.serve(w, c) })
	ended := false
	defer func() { // so that the next session's events are its own
		c.Close()
		w.client.c.Close()
		serving.Wait()
		for !ended {
			ended = w.event().Kind == audit.EventEnd
		}
	}()
	w.client.hear("220 ")
	for _, line := range said {
		if strings.HasPrefix(w.client.ask(line), "234 ") {
			w.client.secure(tlsClient)
		}
	}
	server.take()
	for _, e := range w.drain() {
		ended = ended || e.Kind == audit.EventEnd
	}
	reply = w.client.ask(command)
	heard := server.take()
	for _, e := range w.drain() {
		ended = ended || e.Kind == audit.EventEnd
		switch {
		case e.Kind == audit.EventDeny, e.Kind == audit.EventEnd && e.Reason != alg.ConnectionClosed:
			d.why = e.Reason.String()
		case e.Kind == audit.EventPinhole:
			d.pinhole = true
		}
	}
	switch {
	case d.why == alg.DataFailed.String():
		d = decision{allowed: true} // there is no data connection, which the policy's tests know nothing of
	case len(heard) > 0: // as it was, or in other words: what comes of it is the server's to say, and its reply may be denied
		d.allowed = true
	case d.why != "":
	case reply < "4":
		d.allowed = true
	default:
		d.why = reply
	}
	return d, reply
}

// event waits for the next event.
func (w *world) event() audit.Event {
	w.t.Helper()
	select {
	case e := <-w.events:
		return e
	case <-time.After(testTimeout):
		w.t.Fatal("no event")
		return audit.Event{}
	}
}

// drain takes the events so far.
func (w *world) drain() (all []audit.Event) {
	for {
		select {
		case e := <-w.events:
			all = append(all, e)
		default:
			return all
		}
	}
}

const differentialPolicy = `version: 1
servers:
  - {name: server, addresses: [127.0.0.1], explicit: [%d], implicit: [], certificates: [{certificate: /c.pem, key: /k.pem}], upstream: {verify: none%s}}
rules:
  - {name: all, to: server, action: terminate%s}
limits: {sessions-per-client: 1000, login-failures: 1000}
`

// aboutProtection are the commands that an inspected session cannot decide as a terminated one does: nobody there speaks TLS.
var aboutProtection = map[string]bool{"AUTH": true, "ADAT": true, "CCC": true, "CONF": true, "ENC": true, "MIC": true, "PBSZ": true, "PROT": true}

// TestInspectedAndTerminatedAgree: in clear text, a command is decided on in the same way whether its session is inspected or terminated.
func TestInspectedAndTerminatedAgree(t *testing.T) {
	cases := 0
	for _, v := range variants {
		text := fmt.Sprintf(differentialPolicy, 21, v.server, v.rule)
		terminated, err := policy.Parse("test", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		inspected, err := policy.Parse("test", []byte(strings.Replace(text, "action: terminate", "action: inspect", 1)))
		if err != nil {
			continue // with a key that needs TLS to be terminated
		}
		for _, stage := range stages {
			if strings.Contains(stage.name, "TLS") {
				continue
			}
			for _, command := range commands {
				if verb, _, _ := strings.Cut(command, " "); aboutProtection[verb] {
					continue
				}
				cases++
				if i, x := byTest(t, inspected, stage.said, command), byTest(t, terminated, stage.said, command); i != x {
					t.Errorf("%s%s, %s, %q: inspected %+v, terminated %+v", v.server, v.rule, stage.name, command, i, x)
				}
			}
		}
	}
	t.Logf("%d cases", cases)
}

func TestPolicyTestsAndGatewayAgree(t *testing.T) {
	var mu sync.Mutex
	cases := 0
	t.Cleanup(func() { t.Logf("%d cases", cases) })
	for _, v := range variants {
		for _, stage := range stages {
			t.Run(strings.TrimSpace(v.server+v.rule+" "+stage.name), func(t *testing.T) {
				t.Parallel()
				var p *policy.Policy
				w := newWorld(t, false, func(base *policy.Policy) {
					var err error
					p, err = policy.Parse("test", fmt.Appendf(nil, differentialPolicy, base.Servers[0].Explicit[0], v.server, v.rule))
					if err != nil {
						t.Fatal(err)
					}
					p.Servers[0].Upstream.Port = base.Servers[0].Upstream.Port
					*base = *p
				})
				for i, command := range commands {
					if i > 0 {
						w.client = newEnd(t, dial(t, w.front))
					}
					got, reply := w.byGateway(stage.said, command)
					if want := byTest(t, p, stage.said, command); got != want {
						t.Errorf("%q: the policy's test says %+v, the gateway %+v, with the reply %q", command, want, got, reply)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				cases += len(commands)
			})
		}
	}
}
