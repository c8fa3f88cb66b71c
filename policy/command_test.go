package policy

import (
	"fmt"
	"strings"
	"testing"
)

func ruleWith(t testing.TB, allow, deny []string) *Rule {
	t.Helper()
	return &parse(t, small(fmt.Sprintf("    commands: {allow: %s, deny: %s}", quoted(allow), quoted(deny)), "")).Rules[0]
}

func quoted(list []string) string {
	for i, s := range list {
		list[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(list, ", ") + "]"
}

func TestCommand(t *testing.T) {
	r := ruleWith(t, nil, []string{
		"NOOP", "MKD", "SITE CHMOD", "SITE exec", "STOR /incoming/private", "STOU /incoming/private", "RETR /etc",
		"RETR /Secret Plans", "DELE /", "LIST /etc", "STAT /etc", "MDTM /etc", "MFMT /etc", "CWD /etc",
	})
	for _, c := range []struct {
		line, cwd string
		want      Ruling
	}{
		{"NOOP", "", DeniedCommand},
		{"noop", "", DeniedCommand},
		{"NOOPX", "", Allowed},
		{"TYPE I", "", Allowed},

		// RFC 1123 section 4.1.3.1: the X forms are the same commands.
		{"MKD x", "/", DeniedCommand},
		{"XMKD x", "/", DeniedCommand},
		{"XRMD x", "/", Allowed},

		// Two words: the subcommand alone, in any case, however it is spaced.
		{"SITE CHMOD 777 x", "", DeniedCommand},
		{"SITE chmod", "", DeniedCommand},
		{"SITE  \tChMod\t777", "", DeniedCommand},
		{"SITE EXEC ls", "", DeniedCommand},
		{"SITE CHMODX", "", DeniedPathUnknown},    // whatever it is, it may lead to a path
		{`SITE "CHMOD" 777 x`, "", DeniedCommand}, // ProFTPD strips quotes
		{`SITE "HELP"`, "", DeniedCommand},
		{"SITE HELP CHMOD", "", Allowed},
		{"SITE", "", Allowed},

		// A path covers itself and what is under it.
		{"RETR /etc", "", DeniedPath},
		{"RETR /etc/", "", DeniedPath},
		{"RETR /etc/ssh/key", "", DeniedPath},
		{"RETR /etcetera", "", Allowed},
		{"RETR /", "", Allowed},
		{"RETR /pub/etc", "", Allowed},
		{"RETR /Secret Plans/a", "", DeniedPath},
		{"STOR /incoming/private/x", "", DeniedPath},
		{"STOR /incoming/x", "", Allowed},
		{"APPE /incoming/private/x", "", Allowed}, // each command stands for itself

		// Dots and slashes are no way round, nor is the root a way out.
		{"RETR //etc//passwd", "", DeniedPath},
		{"RETR /./etc/passwd", "", DeniedPath},
		{"RETR /pub/../etc/passwd", "", DeniedPath},
		{"RETR /../../etc/passwd", "", DeniedPath},
		{"RETR /etc/../pub/x", "", Allowed},

		// A relative path depends on the working directory.
		{"RETR passwd", "/etc", DeniedPath},
		{"RETR passwd", "/etc/", DeniedPath},
		{"RETR passwd", "/pub", Allowed},
		{"RETR ../etc/passwd", "/pub", DeniedPath},
		{"RETR passwd", "", DeniedPathUnknown},
		{"RETR passwd", "relative", DeniedPathUnknown},
		{"RETR", "/etc", DeniedPath},
		{"STOU", "/incoming/private", DeniedPath}, // stores in the working directory
		{"STOU", "/incoming", Allowed},
		{"DELE x", "", DeniedPath}, // wherever it is, it is under /
		{"DELE ~x", "", DeniedPath},

		// What servers read in different ways is read in each.
		{"RETR  /etc/passwd", "/pub", DeniedPath},
		{"RETR /etc ", "/pub", DeniedPath},
		{"RETR /ETC/passwd", "/pub", DeniedPath},
		{"RETR /etc./passwd", "/pub", DeniedPath},
		{`RETR \etc\passwd`, "/pub", DeniedPath},
		{`RETR ..\etc`, "/pub", DeniedPath},
		{"RETR ~root/x", "/pub", DeniedPathUnknown},
		{`RETR "/etc/passwd"`, "/pub", DeniedPathUnknown},
		{"RETR C:/etc", "/pub", DeniedPathUnknown},

		// Words that begin with a dash are options of LIST, NLST and STAT.
		{"LIST", "/pub", Allowed},
		{"LIST", "/etc", DeniedPath},
		{"LIST", "", DeniedPathUnknown},
		{"LIST -la", "/etc", DeniedPath},
		{"LIST -la /etc", "/pub", DeniedPath},
		{"LIST -l -a /etc/ssh", "", DeniedPath},
		{"LIST -la /pub", "", Allowed},
		{"LIST -la /pub", "/etc", Allowed},
		{"LIST /pub /etc", "", DeniedPath},
		{"LIST /pub -a /etc", "/", DeniedPath},
		{"LIST -x/../etc", "/", DeniedPath},
		{"LIST /et*", "", DeniedPathUnknown},
		{"LIST /{etc,pub}", "", DeniedPathUnknown},
		{"LIST /My Documents", "/", Allowed},
		{"LIST -R /", "", DeniedPath}, // lists /etc too
		{"LIST -laR", "/", DeniedPath},
		{"LIST -R /pub", "", Allowed},
		{"LIST /", "", Allowed},
		{"STAT", "", Allowed}, // the session's status
		{"STAT -l /etc", "", DeniedPath},
		{"NLST /etc", "", Allowed},

		// Some servers set the time with MDTM; MFMT has the time first.
		{"MDTM /etc/x", "", DeniedPath},
		{"MDTM 20260101000000 /etc/x", "/pub", DeniedPath},
		{"MDTM 20260101000000.123 /etc/x", "/pub", DeniedPath},
		{"MDTM 20260101 /etc/x", "/pub", Allowed},
		{"MFMT 20260101000000 /etc/x", "/pub", DeniedPath},
		{"MFMT 20260101000000 /pub/x", "", Allowed},

		// CDUP and XCUP are CWD to the parent.
		{"CWD ssh", "/etc", DeniedPath},
		{"XCWD /etc", "", DeniedPath},
		{"CDUP", "/etc/ssh", DeniedPath},
		{"XCUP", "/etc/ssh", DeniedPath},
		{"CDUP", "/etc", Allowed},
		{"CDUP", "", DeniedPathUnknown},
	} {
		verb, arg, _ := strings.Cut(c.line, " ")
		if got := r.Command(verb, []byte(arg), c.cwd); got != c.want {
			t.Errorf("%q in %q: %v, want %v", c.line, c.cwd, got, c.want)
		}
	}
	if !r.TracksPaths() {
		t.Error("does not track paths")
	}
}

func TestAllowList(t *testing.T) {
	r := ruleWith(t, []string{"USER", "PASS", "QUIT", "XPWD", "RETR", "CDUP"}, []string{"RETR /etc"})
	for line, want := range map[string]Ruling{
		"USER x": Allowed, "PWD": Allowed, "XPWD": Allowed, "STOR x": DeniedCommand, "USERS": DeniedCommand,
		"RETR /etc/x": DeniedPath, "RETR /pub": Allowed, "XCUP": Allowed, "": DeniedCommand,
	} {
		verb, arg, _ := strings.Cut(line, " ")
		if got := r.Command(verb, []byte(arg), "/"); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
	if !r.Restricts("ZZZ") {
		t.Error("with a list of allowed commands every verb is restricted")
	}
}

func TestZeroRulesAndRulingsDeny(t *testing.T) {
	if got := (*Rule)(nil).Command("NOOP", nil, "/"); got == Allowed {
		t.Error("no rule allows a command")
	}
	if Ruling(0) == Allowed {
		t.Error("the zero ruling allows")
	}
}

func TestRestricts(t *testing.T) {
	r := ruleWith(t, nil, []string{"SITE CHMOD", "MKD", "STOR /x"})
	for prefix, want := range map[string]bool{
		"": true, "S": true, "SI": true, "SITE": true, "SITEX": false, "ST": true, "STO": true, "STOR": true,
		"STOU": false, "STORE": false, "M": true, "MK": true, "MKD": true, "ML": false, "X": true, "XM": true,
		"XMKD": true, "XMD": false, "XC": false, "R": false, "CDUP": false,
	} {
		if got := r.Restricts(prefix); got != want {
			t.Errorf("%q: %v", prefix, got)
		}
	}
	cwd := ruleWith(t, nil, []string{"CWD /x"})
	for _, prefix := range []string{"CW", "CD", "XCW", "XCU"} {
		if !cwd.Restricts(prefix) {
			t.Errorf("CWD /x leaves %s free", prefix)
		}
	}
	names := ruleOf(t, "    users: {deny: root}\n    transfers: download\n    files: {allow: '*.txt'}")
	for prefix, want := range map[string]bool{
		"US": true, "USER": true, "USERS": false, "RET": true, "RNF": true, "RNTO": true, "STO": true, "APPE": true,
		"LIST": false, "DELE": false, "X": true, "XPWD": false, "HASH": true, "SITE": true,
	} {
		if got := names.Restricts(prefix); got != want {
			t.Errorf("%q: %v", prefix, got)
		}
	}
	if names.TracksPaths() {
		t.Error("names of files need no working directory")
	}
	if free := ruleWith(t, nil, nil); free.Restricts("") || free.TracksPaths() {
		t.Error("a rule without lists restricts something")
	}
}

// What Restricts leaves free, Command allows, whatever the argument: the engine lets such lines go on early.
func TestRestrictsAgreesWithCommand(t *testing.T) {
	lists := ruleWith(t, nil, []string{"SITE CHMOD", "MKD", "STOR /x", "CWD /", "MFF /y", "LIST /z"})
	names := ruleOf(t, "    users: {allow: alice}\n    transfers: upload\n    files: {deny: x}")
	verbs := []string{"SITE", "USER", "PWD", "QUIT"}
	for verb := range pathVerbs {
		verbs = append(verbs, verb)
	}
	for x := range standardNames {
		verbs = append(verbs, x)
	}
	for _, verb := range verbs {
		for _, arg := range []string{"", "CHMOD", "/x", "/y", "a=b; /y", "/z", "-R /", "x"} {
			for i := range len(verb) + 1 {
				for _, r := range []*Rule{lists, names} {
					if ruling := r.Command(verb, []byte(arg), ""); ruling != Allowed && !r.Restricts(verb[:i]) {
						t.Errorf("%s %s is %v, but %q is not restricted", verb, arg, ruling, verb[:i])
					}
				}
			}
		}
	}
}

func TestCommandDoesNotAllocate(t *testing.T) {
	r := ruleWith(t, []string{"RETR", "SITE", "XPWD", "STOR"}, []string{"SITE CHMOD", "STOR /x"})
	arg := []byte("HELP chmod and a few more words of argument")
	if n := testing.AllocsPerRun(100, func() {
		for _, verb := range []string{"RETR", "SITE", "XPWD", "LIST"} {
			r.Command(verb, arg, "/pub")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
