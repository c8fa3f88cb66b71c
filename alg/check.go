package alg

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ftpalg/policy"
)

// RunTests runs the tests that a policy file brings along through the engine and gives what failed, each with its place.
func RunTests(file string, p *policy.Policy) (failed []error) {
	for i := range p.Tests {
		t := &p.Tests[i]
		if got, why := runTest(p, t); got != t.Expect {
			failed = append(failed, fmt.Errorf("%s:%d: test %q: expected %s, but %s", file, t.Line, t.Name, t.Expect, found(got, why)))
		}
	}
	return failed
}

// found says what a test comes to.
func found(got, why string) string {
	switch got {
	case "pinhole":
		return "the policy opens a pinhole"
	case "allow":
		return "the policy allows it"
	}
	return fmt.Sprintf("the policy denies it (%s)", why)
}

// testPort is the client's port in a policy's tests; the policy cannot depend on it.
const testPort = 40000

// runTest gives what a test comes to: what its last line leads to, or whether the connection is allowed at all.
func runTest(p *policy.Policy, t *policy.Test) (got, why string) {
	client, server := netip.AddrPortFrom(t.From, testPort), netip.AddrPortFrom(t.To, t.Port)
	d := p.Decide(t.From, server)
	if why := Admit(d); why != NoReason {
		return "deny", why.String()
	}
	c := begin(p, d, client, server)
	dialogue := t.Dialogue
	if t.Command != "" {
		c.logIn()
		dialogue = []policy.Line{{FromClient: true, Text: t.Command}}
	}
	got, why = "allow", NoReason.String()
	answered := false // the client, here: the server does not hear of it, and what it would say is not heard
	for _, line := range dialogue {
		from := Server
		if line.FromClient {
			from, answered = Client, false
		}
		if answered {
			continue
		}
		fx := c.Feed(time.Time{}, from, []byte(line.Text+"\r\n"), nil)
		answered = slices.ContainsFunc(fx, func(e Effect) bool { return e.Kind == Say && e.Side == Client })
		got, why = outcome(fx)
	}
	return got, why
}

// begin gives the engine that a front end would use for a decision.
func begin(p *policy.Policy, d policy.Decision, client, server netip.AddrPort) *Control {
	if d.Action != policy.Terminate {
		return New(p, d, client, server)
	}
	c := NewTerminated(p, d, client, server, p.CanShow(d.Server))
	if channel := c.bridge.channel; channel == policy.Explicit || channel == policy.Implicit {
		c.Secured(Server, true, nil)
	}
	if d.Implicit {
		c.Secured(Client, true, nil)
	}
	return c
}

// outcome is what the effects of a line come to, and why: a reason's name, or the reply of ours that refuses the line.
func outcome(fx []Effect) (got, why string) {
	for _, e := range fx {
		switch {
		case e.Kind == Deny, e.Kind == End:
			return "deny", e.Reason.String()
		case e.Kind == Say && e.Side == Client && e.Text[0] >= '4':
			return "deny", string(e.Text)
		case e.Kind == OpenPinhole:
			return "pinhole", NoReason.String()
		}
	}
	return "allow", NoReason.String()
}
