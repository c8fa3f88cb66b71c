package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"ftpalg/policy"
)

// pathStage is a server with a secret in it, and a session in the account's home directory.
type pathStage struct {
	*Stage
	t       *testing.T
	session *control
	plain   Scenario
}

const secret = "the secret"

// newPathStage starts a server that the client reaches with no ftpalg between.
func newPathStage(t *testing.T, kind ServerKind) *pathStage {
	t.Helper()
	requireRoot(t)
	kind = kind.with(Setup{NoTLS: true, Modules: []string{"mod_copy", "mod_site_misc", "mod_digest"}})
	s, err := newStage(t.Context(), kind, Config{ServersDir: serversDir}, (*Stage).openUp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &pathStage{Stage: s, t: t, plain: Scenario{Server: kind, Client: held, Mode: PASV, Family: IPv4, Protection: Plain}}
	for name, contents := range map[string]string{"secret/key.txt": secret, "secret/deep/key.txt": secret, "pub/readme.txt": "hello", "pub/-a": ""} {
		p.put(name, contents)
	}
	p.login()
	return p
}

func (p *pathStage) put(name, contents string) {
	p.t.Helper()
	file := p.Server.File(name)
	for dir := file[:strings.LastIndexByte(file, '/')]; len(dir) > len(p.Server.home); dir = dir[:strings.LastIndexByte(dir, '/')] {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Chown(dir, uid, uid); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte(contents), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Chown(file, uid, uid); err != nil {
		p.t.Fatal(err)
	}
}

// login begins another session.
func (p *pathStage) login() {
	p.t.Helper()
	if p.session != nil {
		p.session.conn.Close()
	}
	p.session = login(p.t, p.Stage, p.plain)
	do(p.t, p.session, 250, "CWD "+p.Server.home)
}

// guard puts ftpalg between, with a rule that denies what lies in secret.
func (p *pathStage) guarded(verbs ...string) *policy.Rule {
	p.t.Helper()
	var deny []string
	for _, verb := range verbs {
		deny = append(deny, fmt.Sprintf("%q", verb+" "+p.Server.File("secret")))
	}
	text := policyWith(p.t, "    opaque-active: pinhole\n", "    opaque-active: pinhole\n    commands: {deny: ["+strings.Join(deny, ", ")+"]}\n")
	startFTPAlg(p.t, p.Lab, text)
	if err := p.Lab.SetForward(context.WithoutCancel(p.t.Context()), Drop); err != nil {
		p.t.Fatal(err)
	}
	p.login()
	parsed, err := policy.Parse("lab", []byte(text))
	if err != nil {
		p.t.Fatal(err)
	}
	return &parsed.Rules[0]
}

// run gives a command and returns all that it tells: its replies, and what comes over a data connection.
func (p *pathStage) run(command string) (told string) {
	p.t.Helper()
	if err := p.session.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	var data net.Conn
	switch verb, _, _ := strings.Cut(command, " "); verb {
	case "LIST", "NLST", "MLSD", "RETR":
		at, err := p.session.arrange(p.plain)
		if err != nil {
			p.t.Fatal(err)
		}
		data = dial(p.t, p.Lab, Client, at)
		defer data.Close() // it may be closed already
	}
	if err := p.session.PrintfLine("%s", command); err != nil {
		p.t.Fatal(err)
	}
	for {
		code, text, err := p.session.ReadResponse(0)
		if err != nil {
			p.t.Fatalf("%s: %v", command, err)
		}
		told += fmt.Sprint(code, " ", text, "\n")
		if code >= 200 {
			return told
		}
		if data != nil {
			_ = data.SetDeadline(time.Now().Add(patience))
			listing, err := io.ReadAll(data)
			if err = errors.Join(err, data.Close()); err != nil { // ProFTPD waits for our end of it
				p.t.Fatalf("%s: %v", command, err)
			}
			told += string(listing)
			data = nil
		}
	}
}

// spellings makes arguments of listings by chance, always the same ones, behind some that are known to matter.
func spellings(n int) []string {
	list := []string{
		"-a/secret", "-/secret", "-a./secret", "-asecret", "-a secret", "-a\\secret", `se\cret`, `\secret`, `./\secret`, `sec\ret\`, `\s\e\c\r\e\t`,
		"--  secret", "-l -a./secret", "-al\t./secret", "-l/../secret", `-a./se\cret`, "pub -./secret", "pub secret", "-R", "-laR .", "-l -x/../secret",
		"pub/../secret", " secret", "secret/", "secret//", "./secret/.", "secret/deep", "~/secret",
	}
	pieces := []string{"-", "-a", "l", "R", "1", "/", "/", `\`, " ", "secret", "secret", "secret", "se", `se\cret`, "cret", "pub", ".", "./", "..", "\t", "~", "*"}
	random := rand.New(rand.NewPCG(1, 2))
	for range n {
		var b strings.Builder
		for range 1 + random.IntN(6) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		list = append(list, b.String())
	}
	return list
}

// Outcome: however a client writes it, a listing that leads to a denied directory is refused, for each server as that server reads
// it; ordinary listings pass.
func TestListingsAsServersReadThem(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			p := newPathStage(t, kind)
			var leads []string
			for i, argument := range spellings(150) {
				command := []string{"STAT", "NLST", "LIST"}[i%3] + " " + argument
				if strings.Contains(p.run(command), "key.txt") {
					leads = append(leads, command)
				}
			}
			if len(leads) < 12 {
				t.Fatalf("only %d spellings lead to the secret: %q", len(leads), leads)
			}
			rule := p.guarded("LIST", "NLST", "STAT")
			for _, command := range leads {
				verb, argument, _ := strings.Cut(command, " ")
				if rule.Command(verb, []byte(argument), p.Server.home) == policy.Allowed {
					t.Errorf("the rule allows %q", command)
				}
				if told := p.run(command); strings.Contains(told, "key.txt") {
					t.Errorf("%q told %q", command, told)
				}
			}
			for _, command := range []string{"LIST", "LIST -la", "NLST pub", "LIST -a pub", "NLST -a/" + p.Server.File("pub")[1:], "STAT pub"} {
				if told := p.run(command); !strings.HasPrefix(told, "1") && !strings.HasPrefix(told, "2") {
					t.Errorf("%q told %q", command, told)
				}
			}
		})
	}
}

// Outcome: what a rule denies to read, to rename or to write is not copied, linked or digested either (ProFTPD's modules copy, site_misc
// and digest).
func TestCopiesAsProFTPDMakesThem(t *testing.T) {
	p := newPathStage(t, Servers[1])
	// Each leaves the secret where it can be read, or tells something of it.
	home := p.Server.home
	ways := [][]string{
		{"SITE CPFR secret/key.txt", "SITE CPTO pub/out.txt"},
		{"SITE CPFR " + home + "/secret/key.txt", "SITE CPTO pub/out.txt"},
		{`SITE CPFR "secret/key.txt"`, "SITE CPTO pub/out.txt"},
		{`SITE "CPFR" secret/key.txt`, "SITE CPTO pub/out.txt"},
		{"SITE  CPFR   secret/key.txt", "SITE CPTO  pub/out.txt"},
		{"SITE COPY secret/key.txt pub/out.txt"},
		{`SITE COPY "secret/key.txt" pub/out.txt`},
		{"SITE SYMLINK " + home + "/secret/key.txt " + home + "/pub/out.txt"},
		{"RNFR secret/key.txt", "RNTO pub/out.txt"},
		{"XMD5 secret/key.txt"},
		{"XCRC secret/key.txt 0 1"},
		{`XSHA1 "secret/key.txt"`},
		{"HASH secret/key.txt"},
	}
	try := func(way []string) bool {
		told := ""
		for _, command := range way {
			told = p.run(command)
		}
		if strings.HasPrefix(way[0], "X") || strings.HasPrefix(way[0], "H") {
			return strings.HasPrefix(told, "2")
		}
		out, err := os.ReadFile(p.Server.File("pub/out.txt"))
		if err != nil {
			return false
		}
		if err := os.Remove(p.Server.File("pub/out.txt")); err != nil {
			t.Fatal(err)
		}
		p.put("secret/key.txt", secret)
		return string(out) == secret
	}
	working := 0
	for _, way := range ways {
		if try(way) {
			working++
		} else {
			t.Logf("without ftpalg %q does nothing", way)
		}
	}
	if working < 8 {
		t.Errorf("only %d ways work without ftpalg", working)
	}
	p.guarded("RETR", "RNFR")
	for _, way := range ways {
		if try(way) {
			t.Errorf("%q passes", way)
		}
	}
	// Copies elsewhere go on.
	for _, command := range []string{"SITE CPFR pub/readme.txt", "SITE CPTO pub/copy.txt", "XMD5 pub/copy.txt"} {
		if told := p.run(command); !strings.HasPrefix(told, "2") && !strings.HasPrefix(told, "3") {
			t.Errorf("%q told %q", command, told)
		}
	}
}
