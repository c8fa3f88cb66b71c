package alg

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"ftpalg/policy"
)

// TestPasswordsAreNotShown: a password that is typed without PASS when the server asks for one reaches no log, whatever is wrong with it.
func TestPasswordsAreNotShown(t *testing.T) {
	p, err := policy.Parse("test.yaml", []byte(`version: 1
servers: [{name: files, addresses: [198.51.100.2]}]
rules: [{name: all, action: inspect, commands: {allow: [USER, PASS, QUIT]}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	server := netip.MustParseAddrPort("198.51.100.2:21")
	for _, typed := range []string{"hunter2\r\n", "hunter2 \x00\r\n", "hunter2\n", "hunter2" + strings.Repeat("x", 5000) + "\r\n", "hunter2\xff\xf4\r\n"} {
		c := New(p, p.Decide(tlsClientAddr.Addr(), server), tlsClientAddr, server)
		say(c, "S:220 ready", "C:USER lab", "S:331 and the password?")
		denied := false
		for _, e := range c.Feed(now, Client, []byte(typed), nil) {
			denied = denied || e.Kind == Deny
			if bytes.Contains(e.Text, []byte("hunter2")) {
				t.Errorf("%.20q: %v tells %.20q", typed, e.Reason, e.Text)
			}
		}
		if !denied {
			t.Errorf("%.20q is not denied", typed)
		}
	}
}
