package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse: nothing panics; what parses has a canonical form that parses to an equal policy; every fault has a place.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(policies, "*.yaml"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds in %s (%v)", policies, err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Add([]byte(decisions))
	f.Add([]byte(small(`    commands: {allow: [a, "null"], deny: ["SITE #x", "SITE 'x", "RETR /a: b", "RETR /- c"]}`, "")))
	f.Add([]byte(small("", "tests: [{name: 'a \"b\" \\ c', from: ::, to: 1.2.3.4, command: '~', expect: allow}]")))
	f.Add([]byte(small(`    commands: {deny: ["STOR /incoming//a /"]}`, "")))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? [a]\n: b\n--- !x\n%y\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Parse("fuzz", src)
		if err != nil {
			var fault *Error
			if !errors.As(err, &fault) || fault.Line < 1 || fault.Column < 1 {
				t.Fatalf("a fault without a place: %v", err)
			}
			return
		}
		roundTrip(t, p.Canonical())
	})
}

// FuzzCommand: however a path is written, what a server would find under /deny is never allowed.
func FuzzCommand(f *testing.F) {
	r := ruleWith(f, nil, []string{"RETR /deny", "LIST /deny", "SITE CHMOD"})
	for _, seed := range []string{"/deny/x", "../deny", "a/b/../../deny", "-la /deny", "~", `\deny`, "chmod 1", " \t", "CHMOD", "CHMOD\f7"} {
		f.Add(seed, "/pub/a")
	}
	f.Fuzz(func(t *testing.T, arg, cwd string) {
		for _, verb := range []string{"RETR", "LIST", "SITE", "NOOP"} {
			got := r.Command(verb, []byte(arg), cwd)
			if want := walk(arg, cwd); verb == "RETR" && want && got == Allowed {
				t.Errorf("RETR %q in %q leads to /deny and is allowed", arg, cwd)
			}
			if verb == "NOOP" && got != Allowed {
				t.Errorf("NOOP %q: %v", arg, got)
			}
			if fields := strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(blanks, r) }); verb == "SITE" && len(fields) > 0 && fields[0] == "CHMOD" && arg[0] == 'C' && got == Allowed {
				t.Errorf("SITE %q is allowed", arg)
			}
		}
	})
}

// walk follows a path one name at a time, as a server without links does, and reports whether it ends in /deny.
func walk(arg, cwd string) bool {
	if !strings.HasPrefix(arg, "/") {
		if !strings.HasPrefix(cwd, "/") {
			return false
		}
		arg = cwd + "/" + arg
	}
	var at []string
	for name := range strings.SplitSeq(arg, "/") {
		switch name {
		case "", ".":
		case "..":
			at = at[:max(0, len(at)-1)]
		default:
			at = append(at, name)
		}
	}
	return len(at) > 0 && at[0] == "deny"
}

func BenchmarkDecide(b *testing.B) {
	p := parse(b, decisions)
	client, server := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("198.51.100.2:990")
	for b.Loop() {
		p.Decide(client, server)
	}
}

// FuzzCanonicalText: any text that a policy may hold comes back from the canonical form as it was.
func FuzzCanonicalText(f *testing.F) {
	for _, seed := range []string{"null", "~", "1e3", "0x10", "1_0", "- a", "a: b", "a #b", "yes", "2026-01-01", "::", "1:30", `\"`, "'", "é", ".inf", "<<", "*a"} {
		f.Add(seed, seed, seed)
	}
	f.Fuzz(func(t *testing.T, name, command, line string) {
		if !utf8.ValidString(name+","+command+","+line) || strings.ContainsAny(line, "\r\n") {
			return // another text, or more lines, than the test thinks
		}
		src := small("", fmt.Sprintf("tests:\n  - {name: %q, from: 192.0.2.1, to: '::2', command: %q, expect: deny}\n"+
			"  - {name: %q, from: 192.0.2.1, to: '::2', dialogue: %q, expect: deny}\n", name, command, name+"2", "C: "+line+"\nS:"+line))
		p, err := Parse("fuzz", []byte(src))
		if err != nil {
			return
		}
		if got := p.Tests[0]; got.Name != name || got.Command != command {
			t.Fatalf("%q and %q became %+v", name, command, got)
		}
		if got := p.Tests[1].Dialogue; len(got) != 2 || got[0].Text != line {
			t.Fatalf("%q became %+v", line, got)
		}
		roundTrip(t, p.Canonical())
	})
}
