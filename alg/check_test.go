package alg

import (
	"path/filepath"
	"strings"
	"testing"

	"ftpalg/policy"
)

// TestPoliciesPass: the policies that we ship pass the tests that they bring along.
func TestPoliciesPass(t *testing.T) {
	files, _ := filepath.Glob("../testdata/policies/*.yaml")
	ran := 0
	for _, file := range files {
		p, err := policy.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		ran += len(p.Tests)
		for _, failed := range RunTests(file, p) {
			t.Error(failed)
		}
	}
	if ran < 6 {
		t.Errorf("only %d tests in %q", ran, files)
	}
}

// TestRunTests: a test of a policy that expects the wrong thing fails, and says what the policy gives.
func TestRunTests(t *testing.T) {
	const src = `version: 1
servers: [{name: files, addresses: [198.51.100.2], passive: 50000-50100}]
rules:
  - {name: nobody, from: any, to: [files], action: deny}
tests:
  - {name: let in, from: 192.0.2.1, to: 198.51.100.2, expect: allow}
`
	for _, test := range []struct{ from, to, want string }{
		{"", "", "expected allow, but the policy denies it (policy-denied)"},
		{"action: deny", "action: inspect", ""},
		{"expect: allow", "expect: deny", ""},
		{"action: deny", "action: inspect, opaque: deny", ""},
		{"action: deny}\ntests:\n  - {", "action: inspect, opaque: deny}\ntests:\n  - {port: 990, ", "expected allow, but the policy denies it (opaque-denied)"},
		{"expect: allow", "command: 'PORT 192,0,2,1,4,1', expect: allow", "denies it (policy-denied)"},
	} {
		p, err := policy.Parse("test.yaml", []byte(strings.Replace(src, test.from, test.to, 1)))
		if err != nil {
			t.Fatal(err)
		}
		failed := RunTests("test.yaml", p)
		switch {
		case test.want == "" && len(failed) > 0:
			t.Errorf("%s → %s: %v", test.from, test.to, failed)
		case test.want != "" && (len(failed) != 1 || !strings.Contains(failed[0].Error(), test.want)):
			t.Errorf("%s → %s: %v, want %q", test.from, test.to, failed, test.want)
		}
	}
}
