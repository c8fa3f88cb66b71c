package alg

import (
	"net/netip"
	"slices"
	"testing"

	"ftpalg/policy"
)

// terminated gives the engine of a connection that testdata/policies/restricted.yaml terminates.
func terminated(t testing.TB, server string) *Control {
	t.Helper()
	p, err := policy.Load("../testdata/policies/restricted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort(server)
	d := p.Decide(tlsClientAddr.Addr(), to)
	if d.Action != policy.Terminate || Admit(d) != NoReason {
		t.Fatalf("%s: %v, %v", server, d.Action, Admit(d))
	}
	return NewTerminated(p, d, tlsClientAddr, to, p.CanShow(d.Server))
}

// say feeds whole lines, "C:" or "S:" before each, and gives what came of the last.
func say(c *Control, lines ...string) (fx []Effect) {
	for _, line := range lines {
		fx = c.Feed(now, side(line[0] == 'C'), []byte(line[2:]+"\r\n"), nil)
	}
	return fx
}

// TestTLSCountsForUSER: on either port, from the beginning or by AUTH, until CCC.
func TestTLSCountsForUSER(t *testing.T) {
	denied := []string{"deny tls-required", "say client: 533 Refused by the gateway: tls-required"}
	c := terminated(t, "198.51.100.3:21")
	if got := c.Protection(); got != (Protection{Clear, Clear}) {
		t.Errorf("begins as %v", got)
	}
	if got := describeAll(say(c, "S:220 ready", "C:USER auditor")); !slices.Equal(got, denied) {
		t.Errorf("USER in clear text: %q", got)
	}
	say(c, "C:AUTH TLS", "S:234 go on")
	if got := c.Protection(); got != (Protection{TLS, Clear}) || c.Opaque(Client) || c.Opaque(Server) {
		t.Errorf("after AUTH: %v", got)
	}
	if got := describeAll(say(c, "C:USER auditor")); len(got) != 0 {
		t.Errorf("USER after AUTH: %q", got)
	}
	c = terminated(t, "198.51.100.3:990")
	if got := describeAll(c.Secured(Client, true, nil)); !slices.Equal(got, []string{"protection tls tls"}) {
		t.Errorf("implicit TLS: %q", got)
	}
	if got := describeAll(say(c, "S:220 ready", "C:USER auditor")); len(got) != 0 {
		t.Errorf("USER in implicit TLS: %q", got)
	}
}

// TestTransferring: from the command that is let through to its final reply, the oldest of several.
func TestTransferring(t *testing.T) {
	c := terminated(t, "198.51.100.4:21")
	for _, step := range []struct {
		line string
		want Direction
	}{
		{"S:220 ready", NoTransfer},
		{"C:RETR a.exe", NoTransfer}, // denied
		{"C:RETR a.txt", Download},
		{"S:150 here", Download},
		{"C:STAT", Download},
		{"S:211 half way", Download},
		{"C:NOOP", Download},
		{"C:STOR b.txt", Download},
		{"S:226 done", Upload},
		{"S:200 ok", Upload},
		{"S:450 no room", NoTransfer},
		{"C:MLSD", Listing},
		{"S:226 done", NoTransfer},
	} {
		say(c, step.line)
		if got := c.Transferring(); got != step.want {
			t.Errorf("after %q: %v, want %v", step.line, got, step.want)
		}
	}
}

// TestBeginTransfer: the effect has the line and its direction, so that a front end can tell what it is about to pass on.
func TestBeginTransfer(t *testing.T) {
	c := terminated(t, "198.51.100.4:21")
	say(c, "S:220 ready")
	for line, want := range map[string]Direction{
		"STOR a": Upload, "STOU": Upload, "appe a": Upload, "RETR a": Download, "LIST": Listing, "NLST": Listing, "mlsd": Listing,
		"SIZE a": NoTransfer, "MLST a": NoTransfer, "STOR a.exe": NoTransfer,
	} {
		got := NoTransfer
		for _, e := range say(c, "C:"+line) {
			if e.Kind == BeginTransfer {
				got = e.Direction
				if string(e.Text) != line {
					t.Errorf("%q: the effect has the line %q", line, e.Text)
				}
			}
		}
		if got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}

// TestAdmit: what is terminated needs no room for FTPS that stays encrypted.
func TestAdmit(t *testing.T) {
	opaque, closed := &policy.Rule{OpaquePinhole: true}, &policy.Rule{}
	for _, test := range []struct {
		d    policy.Decision
		want Reason
	}{
		{policy.Decision{}, PolicyDenied},
		{policy.Decision{Action: policy.Deny, Rule: opaque}, PolicyDenied},
		{policy.Decision{Action: policy.Inspect, Rule: closed}, NoReason},
		{policy.Decision{Action: policy.Inspect, Rule: closed, Implicit: true}, OpaqueDenied},
		{policy.Decision{Action: policy.Inspect, Rule: opaque, Implicit: true}, NoReason},
		{policy.Decision{Action: policy.Terminate, Rule: closed, Implicit: true}, NoReason},
	} {
		if got := Admit(test.d); got != test.want {
			t.Errorf("%+v: %v, want %v", test.d, got, test.want)
		}
	}
}

// TestNamesAreHeld: an incomplete line that a rule may deny for a name or a direction does not go on.
func TestNamesAreHeld(t *testing.T) {
	p, err := policy.Load("../testdata/policies/restricted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	server := netip.MustParseAddrPort("198.51.100.2:21")
	for line, held := range map[string]bool{
		"USER a": true, "RE": true, "RETR": true, "RETR a": true, "STO": true, "STOR a": true, "RNTO a.c": true, "stou ": true,
		"LIST a": false, "DELE a": false, "SIZE": false,
	} {
		c := New(p, p.Decide(tlsClientAddr.Addr(), server), tlsClientAddr, server)
		say(c, "S:220 ready")
		c.Feed(now, Client, []byte(line), nil)
		if got := c.Hold(Client); got != len(line) {
			t.Errorf("%q: holds %d bytes", line, got)
		}
		if c.Release(Client) == held {
			t.Errorf("%q: released: %v", line, !held)
		}
	}
}

// TestFeedDoesNotAllocate: nor where a rule restricts other commands than these.
func TestFeedDoesNotAllocate(t *testing.T) {
	c := terminated(t, "198.51.100.4:21")
	fx := make([]Effect, 0, 8)
	for _, line := range [][2]string{{"NOOP\r\n", "200 ok\r\n"}, {"LIST\r\n", "226 done\r\n"}, {"PASV\r\n", "227 (198,51,100,4,195,80)\r\n"}} {
		client, server := []byte(line[0]), []byte(line[1])
		c.Feed(now, Server, []byte("220 ready\r\n"), nil)
		c.login = loggedIn
		if n := testing.AllocsPerRun(100, func() {
			c.Feed(now, Client, client, fx)
			c.Feed(now, Server, server, fx)
		}); n != 0 {
			t.Errorf("%q: %v allocations", line[0], n)
		}
	}
}

// TestForget: replies that come after all, for commands that were forgotten, cannot make the engine believe in another working
// directory than the server's.
func TestForget(t *testing.T) {
	p, err := policy.Parse("test.yaml", []byte(`version: 1
servers: [{name: files, addresses: [198.51.100.2], implicit: []}]
rules: [{name: all, action: terminate, commands: {deny: [RETR /secret]}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort("198.51.100.2:21")
	c := NewTerminated(p, p.Decide(tlsClientAddr.Addr(), to), tlsClientAddr, to, false)
	say(c, "S:220 ready", "C:USER a", "S:230 in", "C:CWD /", "S:250 ok", "C:RETR a", "S:150 here", "C:NOOP", "C:ABOR")
	c.Forget(nil)
	say(c, "C:CWD /pub/not/there", "S:226 the transfer's", "S:200 of NOOP", "S:226 of ABOR", "S:550 of CWD")
	want := []string{"deny path-unknown", "say client: 550 Refused by the gateway: path-unknown"}
	if got := describeAll(say(c, "C:RETR ../secret/a")); !slices.Equal(got, want) {
		t.Errorf("a relative path afterwards: %q", got)
	}
	if got := describeAll(say(c, "C:PWD", `S:257 "/pub/not/there"`, "C:RETR ../secret/a")); !slices.Equal(got, want) {
		t.Errorf("and after PWD: %q", got)
	}
	if got := describeAll(say(c, "C:RETR /pub/a")); !slices.Equal(got, []string{"transfer download"}) {
		t.Errorf("an absolute path: %q", got)
	}
}

// TestHasUser: whom the server has let in it keeps, whatever it refuses later, until REIN or AUTH.
func TestHasUser(t *testing.T) {
	for _, refused := range [][]string{
		nil, {"C:USER other", "S:530 no"}, {"C:PASS x", "S:503 no"}, {"C:ACCT x", "S:502 no"},
		{"C:USER a", "S:331 any password", "C:ACCT x", "S:502 no"}, {"C:USER a", "S:331 any password", "C:PASS x", "S:530 no"},
	} {
		c := terminated(t, "198.51.100.4:21")
		say(c, "S:220 ready")
		if c.hasUser() {
			t.Error("there is a user before USER")
		}
		say(c, "C:USER a", "S:331 password")
		if !c.hasUser() {
			t.Error("there is no user after USER")
		}
		say(c, "C:PASS b", "S:230 in")
		say(c, refused...)
		if !c.hasUser() {
			t.Errorf("there is no user after a login and %q", refused)
		}
		say(c, "C:REIN", "S:220 again")
		if c.hasUser() {
			t.Errorf("there is a user after REIN, after %q", refused)
		}
	}
	c := terminated(t, "198.51.100.4:21")
	say(c, "S:220 ready", "C:USER a", "S:331 password", "C:PASS x", "S:530 no")
	if c.hasUser() {
		t.Error("there is a user after a login that failed")
	}
}
