package policy

import (
	"strings"
	"testing"
)

// expect holds commands in a working directory to rulings.
func expect(t *testing.T, r *Rule, cwd string, want map[string]Ruling) {
	t.Helper()
	for line, want := range want {
		verb, arg, _ := strings.Cut(line, " ")
		if got := r.Command(verb, []byte(arg), cwd); got != want {
			t.Errorf("%q in %q: %v, want %v", line, cwd, got, want)
		}
	}
}

// Options of a listing may have a path glued to them (ProFTPD, Pure-FTPd), and a backslash may be dropped (Pure-FTPd), be a
// character like others (the others on Unix) or a slash (Windows).
func TestListings(t *testing.T) {
	r := ruleWith(t, nil, []string{"LIST /secret", "NLST /secret", "STAT /secret"})
	for _, verb := range []string{"LIST", "NLST", "STAT"} {
		for arg, want := range map[string]Ruling{
			"-a/secret":       DeniedPath,
			"-1/secret":       DeniedPath,
			"-/secret":        DeniedPath,
			"--/secret":       DeniedPath,
			"-a -l/secret":    DeniedPath,
			"-a-l/secret":     DeniedPath,
			"-al\t/secret":    DeniedPath,
			"--  /secret":     DeniedPath,
			"/pub -/secret":   DeniedPath,
			"-a../secret":     DeniedPath,
			"-a./secret":      DeniedPath,
			"-a//secret/x":    DeniedPath,
			"-l -x/../secret": DeniedPath, // vsftpd's options end at the first space
			`/se\cret`:        DeniedPath,
			`\/secret`:        DeniedPath,
			`\secret`:         DeniedPath,
			`/secret\`:        DeniedPath,
			`-a\/se\cr\et`:    DeniedPath,
			`/pub/..\/secret`: DeniedPath,
			`/\s\e\c\r\e\t`:   DeniedPath,
			"-a~":             DeniedPathUnknown,
			"-a/sec*":         DeniedPathUnknown,
			`-a/s\ec?et`:      DeniedPathUnknown,
			"-R":              DeniedPath,
			"-laR/":           DeniedPath,
			"-l-R":            DeniedPath,
			"/ -R":            DeniedPath,
			"-a/pub":          Allowed,
			"-al":             Allowed,
			"-al /pub":        Allowed,
			"/pub/Read-Me":    Allowed,
			"-l/pub/R":        Allowed,
			`/pub/a\b`:        Allowed,
		} {
			if got := r.Command(verb, []byte(arg), "/"); got != want {
				t.Errorf("%s %s: %v, want %v", verb, arg, got, want)
			}
		}
	}
}

// A backslash that is a slash to Windows is none to Unix: what leaves a directory for the one stays in it for the other.
func TestBackslashes(t *testing.T) {
	r := ruleWith(t, nil, []string{"STOR /secret", "RETR /secret"})
	expect(t, r, "/", map[string]Ruling{
		`STOR /secret/a\..\..\pub\x`: DeniedPath,
		`STOR secret/..\pub\x`:       DeniedPath,
		`STOR \pub\..\secret\x`:      DeniedPath,
		`STOR /pub\x`:                Allowed,
		`RETR /pub/.. /secret/x`:     DeniedPathUnknown, // Windows drops the space
		`RETR /pub/.../secret/x`:     DeniedPathUnknown,
	})
	expect(t, r, "/secret", map[string]Ruling{
		"STOR  /x": DeniedPathUnknown, // under "secret/ " where the space is kept
		"STOR /x":  Allowed,
	})
}

// What lies under a directory that is renamed has another path afterwards.
func TestRenamedDirectory(t *testing.T) {
	expect(t, ruleWith(t, nil, []string{"RNFR /a/secret"}), "/", map[string]Ruling{
		"RNFR /a/secret/x": DeniedPath, "RNFR /a": DeniedPath, "RNFR a/": DeniedPath, "RNFR /": DeniedPath, "RNFR /b": Allowed,
		"RNTO /a": Allowed,
	})
}

// Copies and links are other ways to read, to rename and to write.
func TestSite(t *testing.T) {
	r := ruleWith(t, nil, []string{"RETR /a/secret", "STOR /in", "MKD /in", "RMD /in", "MFMT /in", "MFF /in"})
	expect(t, r, "/a", map[string]Ruling{
		"SITE CPFR /a/secret/x":         DeniedPath,
		"SITE cpfr secret/x":            DeniedPath,
		"SITE  CPFR\t/a/secret/x":       DeniedPath,
		"SITE CPFR /a":                  DeniedPath, // copies what is under it
		"SITE CPFR /pub/../a/secret":    DeniedPath,
		`SITE CPFR "/a/secret/x"`:       DeniedPathUnknown,
		`SITE CPFR x "/../a/secret`:     DeniedPathUnknown, // ProFTPD: "x /../a/secret"
		`SITE "CPFR" /a/secret/x`:       DeniedPathUnknown,
		"SITE CPFR ~/x":                 DeniedPathUnknown,
		"SITE CPFR /pub/x y":            Allowed,
		"SITE CPTO /in/x":               DeniedPath,
		"SITE CPTO /pub/x":              Allowed,
		"SITE CPTO /":                   Allowed,
		"SITE COPY /a/secret/x /pub/x":  DeniedPath,
		"SITE COPY /pub/x /in/x":        DeniedPath,
		"SITE COPY /pub/x /pub/y":       Allowed,
		"SITE COPY /pub/x y /pub/y":     DeniedPathUnknown,
		"SITE SYMLINK /a/secret /pub/x": DeniedPathUnknown,
		"SITE SYMLINK /pub/x /pub/y":    DeniedPathUnknown, // /pub/y/../secret is another place then
		"SITE MKDIR /in/x":              DeniedPath,
		"SITE RMDIR /in/x":              DeniedPath,
		"SITE RMDIR /pub/x":             Allowed,
		"SITE CHMOD 777 /in/x":          DeniedPath,
		"SITE CHGRP ftp /in/x":          DeniedPath,
		"SITE CHMOD 777 /pub/x":         Allowed,
		"SITE UTIME 20260101000000 /x":  DeniedPathUnknown,
		"SITE":                          Allowed,
		"SITE HELP CPFR":                Allowed,
		"SITE UMASK 022":                Allowed,
		"SITE EXEC ls":                  DeniedPathUnknown,
		"HASH /a/secret/x":              DeniedPath,
		"XCRC secret/x 0 1":             DeniedPath,
		`XCRC "secret/x" 0 1`:           DeniedPathUnknown,
		"XSHA256 /pub/x 0 1":            Allowed,
		"XMD5 /a/secret 1":              DeniedPath,
		"MD5 secret/x":                  DeniedPath,
	})
	expect(t, r, "", map[string]Ruling{"SITE CPFR x": DeniedPathUnknown, "SITE CPTO x": DeniedPathUnknown, "HASH x": DeniedPathUnknown})

	// Without paths: a command that is denied as a whole, and names of files.
	expect(t, ruleWith(t, nil, []string{"RNFR", "MKD"}), "/", map[string]Ruling{
		"SITE CPFR x": DeniedCommand, "SITE CPTO x": Allowed, "SITE MKDIR x": DeniedCommand, "SITE FOO x": Allowed,
	})
	expect(t, ruleOf(t, "    files: {deny: '*.key'}"), "", map[string]Ruling{
		"SITE CPFR a.key": DeniedFile, "SITE CPTO x/b.key": DeniedFile, "SITE COPY a b.key": DeniedFile, "SITE COPY a b": Allowed,
		"HASH a.key": DeniedFile, "XCRC a.key 0 1": DeniedFile, "HASH a.txt": Allowed, "SITE FOO a.key": DeniedPathUnknown,
	})
}

// A path is kept as it was meant, also where the canonical form of its letters would end in a space.
func TestPathThatEndsInSpace(t *testing.T) {
	r := ruleWith(t, nil, []string{"STOR /incoming//a /"})
	if want := "STOR /incoming/a /"; r.Deny[0] != want {
		t.Errorf("entry %q, want %q", r.Deny[0], want)
	}
	expect(t, r, "/", map[string]Ruling{"STOR /incoming/a /x": DeniedPath, "STOR /incoming/a ": DeniedPath, "STOR /incoming/ab": Allowed})
	p := parse(t, small(`    commands: {deny: ["STOR /incoming//a /", "STOR /incoming/a ///"]}`, ""))
	roundTrip(t, p.Canonical())
}
