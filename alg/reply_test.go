package alg

import (
	"regexp"
	"strings"
	"testing"
)

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]Reason{}
	for r := range reasonCount {
		if other, taken := seen[r.String()]; taken || r.String() == "" {
			t.Errorf("reason %d is called %q, as %d is", r, r, other)
		}
		seen[r.String()] = r
	}
	if got := reasonCount.String(); !strings.HasPrefix(got, "reason(") {
		t.Errorf("what is no reason is called %q", got)
	}
}

// TestReplies: every reason to deny a line or to end a session has a reply of one line, with a code that refuses, and no
// other reason has.
func TestReplies(t *testing.T) {
	reply := regexp.MustCompile(`^[45][0-5][0-9] Refused by the gateway: [a-z-]+$`)
	for r := range reasonCount {
		got := r.Reply()
		refuses := ForeignAddress <= r && r <= GatewayStopped || r == OutsideRange || ProtectionDiffers <= r && r <= DataFailed
		if refuses != (got != "") || refuses && !reply.MatchString(got) {
			t.Errorf("%v: %q", r, got)
		}
		if ends := NotFTP <= r && r <= GatewayStopped; ends != strings.HasPrefix(got, "421 ") {
			t.Errorf("%v: %q; 421 is for reasons to end a session", r, got)
		}
	}
	if got := PathDenied.Reply(); got != "550 Refused by the gateway: path-denied" {
		t.Error(got)
	}
	if got := reasonCount.Reply(); got != "" {
		t.Errorf("what is no reason has the reply %q", got)
	}
}
