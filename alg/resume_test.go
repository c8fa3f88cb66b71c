package alg

import (
	"net/netip"
	"testing"
	"time"

	"ftpalg/policy"
)

// TestLinesOfUnknownStart: in a session that is resumed a client may repeat bytes that the server has, with other content. Until the
// server has acknowledged where it reads, every rest of a line is judged as well.
func TestLinesOfUnknownStart(t *testing.T) {
	p, err := policy.Parse("test", []byte("version: 1\nservers: [{name: s, addresses: [198.51.100.2]}]\n"+
		"rules: [{name: r, to: s, action: inspect, commands: {deny: [SITE, RETR /secret]}}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	client, server := netip.MustParseAddrPort("192.0.2.2:40000"), netip.MustParseAddrPort("198.51.100.2:21")
	resumed := func() *Control {
		return Resume(p, p.Decide(client.Addr(), server), client, server, PhaseClear)
	}
	for line, want := range map[string]Reason{
		"RERETR /secret/key":       StartUnknown,
		"RETR /secret/key":         PathDenied,
		"NOOP SITE CHMOD 777 x":    StartUnknown,
		"xAUTH TLS":                StartUnknown,
		"xPORT 203,0,113,9,156,64": StartUnknown,
		"RETR /pub/file":           NoReason,
		"MKD a directory":          NoReason,
		"XCWD /pub":                NoReason,
	} {
		if _, why := outcome(resumed().Feed(time.Time{}, Client, []byte(line+"\r\n"), nil)); why != want.String() {
			t.Errorf("%q: %v, want %v", line, why, want)
		}
	}

	c := resumed()
	c.Acknowledged(0)
	if _, why := outcome(c.Feed(time.Time{}, Client, []byte("NOOP SITE CHMOD 777 x\r\n"), nil)); why != NoReason.String() {
		t.Errorf("after an acknowledgement: %v", why)
	}
	c = resumed()
	c.Feed(time.Time{}, Client, []byte("RE"), nil)
	c.Acknowledged(2) // the server has these two, as something else
	if _, why := outcome(c.Feed(time.Time{}, Client, []byte("RETR /secret/key\r\n"), nil)); why != StartUnknown.String() {
		t.Errorf("a line whose beginning the server had: %v", why)
	}
}

// TestAdmitResumed: a session that began under another policy goes on only if it could have begun under this one.
func TestAdmitResumed(t *testing.T) {
	for _, test := range []struct {
		rule  string
		phase Phase
		user  string
		want  Reason
	}{
		{"require: tls", PhaseClear, "a", TLSRequired},
		{"require: tls", PhaseCleared, "a", TLSRequired},
		{"require: tls", PhaseTLS, "a", NoReason},
		{"require: tls", PhaseUnknown, "", SessionUnknown},
		{"users: {deny: [a]}", PhaseClear, "a", UserDenied},
		{"users: {deny: [a]}", PhaseClear, "b", NoReason},
		{"users: {deny: [a]}", PhaseUnknown, "", SessionUnknown},
		{"commands: {deny: [SITE]}", PhaseUnknown, "", NoReason},
	} {
		p, err := policy.Parse("test", []byte("version: 1\nservers: [{name: s, addresses: [198.51.100.2]}]\n"+
			"rules: [{name: r, to: s, action: inspect, "+test.rule+"}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		d := p.Decide(netip.MustParseAddr("192.0.2.2"), netip.MustParseAddrPort("198.51.100.2:21"))
		if got := AdmitResumed(d, test.phase, test.user); got != test.want {
			t.Errorf("%s, phase %d, user %q: %v, want %v", test.rule, test.phase, test.user, got, test.want)
		}
	}
}
