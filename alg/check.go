package alg

import (
	"fmt"
	"net/netip"
	"time"

	"ftpalg/policy"
)

// RunTests runs the tests that a policy file brings along through the engine and gives what failed, each with its place.
func RunTests(file string, p *policy.Policy) (failed []error) {
	for i := range p.Tests {
		t := &p.Tests[i]
		if got, why := runTest(p, t); got != t.Expect {
			failed = append(failed, fmt.Errorf("%s:%d: test %q: expected %s, the policy gives %s (%s)",
				file, t.Line, t.Name, t.Expect, got, why))
		}
	}
	return failed
}

// testPort is the client's port in a policy's tests; the policy cannot depend on it.
const testPort = 40000

// runTest gives what a test comes to: what its last line leads to, or whether the connection is allowed at all.
func runTest(p *policy.Policy, t *policy.Test) (got string, why Reason) {
	client, server := netip.AddrPortFrom(t.From, testPort), netip.AddrPortFrom(t.To, t.Port)
	d := p.Decide(t.From, server)
	if why := Admit(d); why != NoReason {
		return "deny", why
	}
	c := begin(p, d, client, server)
	dialogue := t.Dialogue
	if t.Command != "" {
		c.login, c.secured, c.kinds, c.phase, c.tls = loggedIn, true, queue{}, clear, nil
		dialogue = []policy.Line{{FromClient: true, Text: t.Command}}
	}
	got, why = "allow", NoReason
	for _, line := range dialogue {
		from := Server
		if line.FromClient {
			from = Client
		}
		got, why = outcome(c.Feed(time.Time{}, from, []byte(line.Text+"\r\n"), nil))
	}
	return got, why
}

// begin gives the engine that a front end would use for a decision.
func begin(p *policy.Policy, d policy.Decision, client, server netip.AddrPort) *Control {
	if d.Action != policy.Terminate {
		return New(p, d, client, server)
	}
	c := NewTerminated(p, d, client, server)
	if d.Implicit {
		// MS-FTPS 1.3: as if AUTH TLS, PBSZ 0 and PROT P had been given.
		c.SetProtection(Protection{Control: TLS, Data: TLS})
	}
	return c
}

func outcome(fx []Effect) (string, Reason) {
	for _, e := range fx {
		switch e.Kind {
		case Deny, End:
			return "deny", e.Reason
		case OpenPinhole:
			return "pinhole", NoReason
		}
	}
	return "allow", NoReason
}
