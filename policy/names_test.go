package policy

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

func ruleOf(t testing.TB, lines string) *Rule {
	t.Helper()
	return &parse(t, small(lines, "")).Rules[0]
}

func TestUser(t *testing.T) {
	for _, c := range []struct {
		users  string
		name   string
		allows bool
	}{
		{"{}", "anyone", true},
		{"{}", strings.Repeat("x", 5000), true},
		{"{allow: [alice, bob]}", "alice", true},
		{"{allow: [alice, bob]}", "BOB", true},
		{"{allow: [alice, bob]}", "carol", false},
		{"{allow: [alice, bob]}", "alicea", false},
		{"{allow: [alice, bob]}", "", false},
		{"{deny: [root, 'adm*']}", "alice", true},
		{"{deny: [root, 'adm*']}", "Root", false},
		{"{deny: [root, 'adm*']}", "administrator", false},
		{"{deny: [root, 'adm*']}", "xadm", true},
		{"{allow: 'b*', deny: bob}", "bert", true},
		{"{allow: 'b*', deny: bob}", "bob", false},
		// Blanks are skipped by some servers and kept by others.
		{"{deny: root}", " root", false},
		{"{deny: root}", "root\\t", false},
		{"{allow: alice}", " alice", false},
		// A slash and a bracket are characters like others, and so is a backslash.
		{"{deny: 'a*'}", "a/b", false},
		{"{deny: 'a?b'}", "a/b", false},
		{"{deny: 'a/b'}", "A/B", false},
		{"{deny: '[ab]'}", "a", true},
		{"{deny: '[ab]'}", "[ab]", false},
		{`{deny: 'dom\*'}`, `DOM\alice`, false},
		{`{deny: 'dom\*'}`, `dom*`, true},
		// Letters with two forms of lower case: the long s and the Kelvin sign.
		{"{deny: 'sk'}", "\u017f\u212a", false},
		{"{deny: '?'}", "\xff", false},
		{"{deny: x}", strings.Repeat("y", maxName+1), false},
	} {
		name := strings.ReplaceAll(c.name, `\t`, "\t")
		r := ruleOf(t, "    users: "+c.users)
		if got := r.User(name); got != c.allows {
			t.Errorf("users: %s: %q is %v", c.users, name, got)
		}
		if got := r.Command("USER", []byte(name), ""); (got == Allowed) != c.allows || got != Allowed && got != DeniedUser {
			t.Errorf("users: %s: USER %q: %v", c.users, name, got)
		}
	}
}

func TestFile(t *testing.T) {
	const texts, programs = "{allow: ['*.txt', README]}", "{deny: ['*.exe', '.*', '[0-9]?']}"
	for _, c := range []struct {
		files, arg string
		allows     bool
	}{
		{"{}", "/any/thing.exe", true},
		{texts, "a.txt", true},
		{texts, "/pub/a b/A.TXT", true},
		{texts, "readme", true},
		{texts, "/pub/readme/", true}, // what servers that clean paths take for the same
		{texts, "a.exe", false},
		{texts, "a.txt.exe", false},
		{texts, "txt", false},
		{texts, "", false},
		{texts, "/", false},
		{texts, "a.txt/..", false},
		{programs, "a.txt", true},
		{programs, "a.exe/b.txt", true}, // a directory
		{programs, "A.Exe", false},
		{programs, "/pub/a.exe", false},
		{programs, "/pub/.profile", false},
		{programs, "7z", false},
		{programs, "77z", true},
		{programs, "x7", true},

		// Dots and slashes are no way round.
		{programs, "a.exe/", false},
		{programs, "a.exe/.", false},
		{programs, "a.exe/b/..", false},
		{programs, "b/../a.exe", false},
		{texts, "a.exe/./", false},

		// What servers read in different ways is read in each.
		{programs, " a.exe", false},
		{programs, "a.exe ", false},
		{programs, `"a.exe"`, false},
		{programs, "'/pub/a.exe'", false},
		{programs, `pub\.profile`, false},
		{texts, `a.exe\b.txt`, true},
		{"{allow: 'b*'}", `a\b`, false}, // one name on Unix
		{"{allow: 'a*'}", `a\b`, false},
		{programs, "a.exe.", false},
		{programs, "a.exe. .", false},
		{programs, "a.exe::$DATA", false},
		{programs, "a.exe:b.txt", false},
		{programs, "C:a.exe", false},
		{texts, "a.exe:b.txt", false},
		{texts, "10:30.txt", false},
		{"{allow: ['*.txt', '10']}", "10:30.txt", true},
		{programs, "a.e\u212ae", true},
		{"{deny: '*.ks'}", "a.\u212a\u017f", false},
		{"{deny: 'a\\[1].txt'}", "a[1].txt", false},
		{programs, strings.Repeat("x", maxName), true},
		{programs, strings.Repeat("x", maxName+1), false},
		{programs, strings.Repeat("x", maxName+1) + "/a.txt", true},
		{programs, strings.Repeat("x", maxName+1) + "/.", false},
	} {
		r := ruleOf(t, "    files: "+c.files)
		if got := r.File(c.arg); got != c.allows {
			t.Errorf("files: %s: %q is %v", c.files, c.arg, got)
		}
		for _, verb := range fileVerbs {
			if verb == "STOU" && c.arg == "" {
				continue
			}
			if got := r.Command(verb, []byte(c.arg), ""); (got == Allowed) != c.allows || got != Allowed && got != DeniedFile {
				t.Errorf("files: %s: %s %q: %v", c.files, verb, c.arg, got)
			}
		}
		if got := r.Command("DELE", []byte(c.arg), ""); got != Allowed {
			t.Errorf("files: %s: DELE %q: %v", c.files, c.arg, got)
		}
	}
	r := ruleOf(t, "    files: "+texts)
	for _, arg := range []string{"", " "} {
		if got := r.Command("STOU", []byte(arg), ""); got != Allowed {
			t.Errorf("STOU %q, which names no file: %v", arg, got)
		}
	}
}

func TestTransfers(t *testing.T) {
	for _, c := range []struct{ transfers, allowed string }{
		{"[upload, download]", "RETR STOR STOU APPE"}, {"upload", "STOR STOU APPE"}, {"download", "RETR"}, {"[]", ""},
	} {
		r := ruleOf(t, "    transfers: "+c.transfers)
		for _, verb := range []string{"RETR", "STOR", "STOU", "APPE"} {
			want := DeniedDirection
			if strings.Contains(c.allowed, verb) {
				want = Allowed
			}
			if got := r.Command(verb, []byte("x"), ""); got != want {
				t.Errorf("transfers: %s: %s is %v", c.transfers, verb, got)
			}
		}
		for _, verb := range []string{"LIST", "NLST", "MLSD", "RNTO", "SIZE"} {
			if got := r.Command(verb, []byte("x"), ""); got != Allowed {
				t.Errorf("transfers: %s: %s is %v", c.transfers, verb, got)
			}
		}
	}
}

// The deny list, the direction, the names and the paths of one command, in this order.
func TestCommandWithSeveralRestrictions(t *testing.T) {
	r := ruleOf(t, "    commands: {deny: [RETR /etc, STOR /etc]}\n    transfers: download\n    files: {deny: '*.exe'}")
	for line, want := range map[string]Ruling{
		"STOR /etc/a.exe": DeniedDirection, "RETR /etc/a.exe": DeniedFile, "RETR /etc/a": DeniedPath,
		"RETR a": DeniedPathUnknown, "RETR /pub/a": Allowed, "RNTO a.exe": DeniedFile, "STOU": DeniedDirection,
	} {
		verb, arg, _ := strings.Cut(line, " ")
		if got := r.Command(verb, []byte(arg), ""); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}

func TestNamesErrors(t *testing.T) {
	const noUser = "is no user's name; write printable characters without spaces around them, and * or ? as wild cards"
	wantErrors(t, small(`    users: {allow: ["", a, " b"], deny: [c, a, "d\te"]}`, ""), []string{
		`6:21: rules[0].users.allow[0]: "" ` + noUser,
		`6:28: rules[0].users.allow[2]: " b" ` + noUser,
		`6:45: rules[0].users.deny[1]: "a" is allowed and denied; remove one`,
		`6:48: rules[0].users.deny[2]: "d\te" ` + noUser,
	})
	const noPattern = `is no pattern that can be read; close its [, and write \[ or \\ for these characters themselves`
	wantErrors(t, small(`    files: {allow: ["", "pub/*.txt", '[a', 'a[]b', 'b\'], deny: ['*x[', '[^]', '[a-]', '[]']}`, ""), []string{
		`6:21: rules[0].files.allow[0]: "" is no file's name; write printable characters, and * or ? as wild cards`,
		`6:25: rules[0].files.allow[1]: "pub/*.txt" has a slash; a pattern is for the last element of a path, as *.exe is (paths go under commands)`,
		`6:38: rules[0].files.allow[2]: "[a" ` + noPattern,
		`6:44: rules[0].files.allow[3]: "a[]b" ` + noPattern,
		`6:52: rules[0].files.allow[4]: "b\\" ` + noPattern,
		`6:66: rules[0].files.deny[0]: "*x[" ` + noPattern,
		`6:73: rules[0].files.deny[1]: "[^]" ` + noPattern,
		`6:80: rules[0].files.deny[2]: "[a-]" ` + noPattern,
		`6:88: rules[0].files.deny[3]: "[]" ` + noPattern,
	})
	many := strings.Repeat("a,", maxPatterns+1)
	wantErrors(t, small("    users: {deny: ["+many+"]}\n    files: {allow: "+strings.Repeat("x", maxPattern+1)+"}\n    transfers: both", ""), []string{
		"6:19: rules[0].users.deny: 257 patterns; 256 is the most, use wild cards",
		"7:20: rules[0].files.allow[0]: longer than 255 bytes; use wild cards",
		`8:16: rules[0].transfers[0]: "both" is not known here; write one of: upload, download`,
	})
}

// FuzzFile: whatever stands around it, a denied name is denied and a name that is not on the list of allowed is not
// allowed, as a server without links reads it; and no pattern that parses is found bad later.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{"a.exe", "/pub/A.EXE ", `"x\y.exe"`, "a.exe/b/..", "a.exe::$DATA", "\xff.exe", "C:x.exe."} {
		f.Add(seed, "*.exe")
	}
	f.Add("a", "[a-z]*\\")
	f.Fuzz(func(t *testing.T, arg, pattern string) {
		p, err := Parse("fuzz", []byte(small(fmt.Sprintf("    files: {deny: [%q]}", pattern), "")))
		if err != nil {
			return
		}
		denies := &p.Rules[0]
		base := path.Base(path.Clean(arg))
		matches, err := path.Match(p.Rules[0].Files.Deny[0], base)
		if err != nil {
			t.Fatalf("%q: %v", pattern, err)
		}
		if matches && !strings.ContainsAny(pattern, "[\\") && denies.File(arg) {
			t.Errorf("%q is %q and not denied", arg, pattern)
		}
		allows := ruleOf(t, "    files: {allow: '*.txt'}")
		if allows.File(arg) && !strings.HasSuffix(strings.ToLower(base), ".txt") {
			t.Errorf("%q is allowed", arg)
		}
	})
}
