package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Each case is a file and every message that it must give, whole and in order.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"empty", "", []string{"1:1: empty; a policy begins with version: 1"}},
		{"only comments", "# nothing\n", []string{"1:1: empty; a policy begins with version: 1"}},
		{"a word", "deny\n", []string{`1:1: the text "deny" where keys and values are wanted; write one of: version, servers, clients, rules, authority, bounce, privileged-ports, fail, helper, pinhole-timeout, credit-lifetime, limits, tests`}},
		{"nothing required", "fail: open\n", []string{
			"1:1: version: missing; add it", "1:1: servers: missing; add it", "1:1: rules: missing; add it",
		}},
		{"two documents", "version: 1\n---\nversion: 1\n", []string{"1:1: 2 YAML documents; a policy is one, remove the --- between them"}},
		{"not YAML", "version: [1\n", []string{"1:10: not YAML: sequence end token ']' not found; check indentation, colons and quotes here"}},
		{"not UTF-8", "version: 1\nfail: \xff\n", []string{"2:7: a byte that is not UTF-8 text, or a control character; save the file as UTF-8"}},
		{"NUL", "version: 1\x00\n", []string{"1:11: a byte that is not UTF-8 text, or a control character; save the file as UTF-8"}},
		{"alias", small("    to: &x files\n    from: *x", ""), []string{"6:9: anchors and aliases are not supported; write the value out, or put quotes around it"}},
		{"tag", "version: !!int 1\n", []string{`1:10: "!!int": tags, directives, merge keys and ? keys are not supported; write plain keys and values`}},
		{"brackets", "tests: " + strings.Repeat("[", 17) + strings.Repeat("]", 17), []string{"1:24: more than 16 brackets deep; nest less"}},
		{"dashes", strings.Repeat("- ", 201) + "x", []string{`1:401: "-" beyond column 400; nest less`}},
		{"unknown key", small("    form: any", ""), []string{"6:5: rules[0].form: unknown key; the keys here are name, from, to, action, modes, require, opaque, opaque-active, data, tls, commands, users, transfers, files, max-size"}},
		{"key that is nearly one", small("    user: [lab]", ""), []string{"6:5: rules[0].user: unknown key; did you mean users?"}},
		{"another", small("", "pinhole-timout: 5s"), []string{"7:1: pinhole-timout: unknown key; did you mean pinhole-timeout?"}},
		{"key of the wrong level", small("", "line: 5"), []string{"7:1: line: unknown key; the keys here are version, servers, clients, rules, authority, bounce, privileged-ports, fail, helper, pinhole-timeout, credit-lifetime, limits, tests"}},
		{"duplicate key", small("    action: deny", ""), []string{"6:5: rules[0].action: given twice; remove one"}},
		{"number for text", small("    from: 7", ""), []string{"6:11: rules[0].from[0]: the number 7 where text is wanted; put quotes around it"}},
		{"text for number", small("", `limits: {line: "512"}`), []string{`7:16: limits.line: the text "512" where a whole decimal number is wanted; write digits without quotes`}},
		{"octal", small("", "limits: {sessions: 021}"), []string{"7:20: limits.sessions: the number 021 where a whole decimal number is wanted; write digits without quotes"}},
		{"fraction", small("", "limits: {sessions: 1.0}"), []string{"7:20: limits.sessions: the number 1.0 where a whole decimal number is wanted; write digits without quotes"}},
		{"truth", small("", "helper: true"), []string{"7:9: helper: the truth value true where text is wanted; put quotes around it"}},
		{"null", small("", "tests:"), []string{"7:6: tests: nothing where a list is wanted; begin each item with a dash"}},
		{"mapping for list", small("", "clients: {name: a, addresses: 192.0.2.1}"), []string{"7:10: clients: keys and values where a list is wanted; begin each item with a dash"}},
		{"list for mapping", small("    commands: [SITE]", ""), []string{"6:15: rules[0].commands: a list where keys and values are wanted; write one of: allow, deny"}},
		{"number for duration", small("", "pinhole-timeout: 30"), []string{"7:18: pinhole-timeout: the number 30 where a duration is wanted; write it with its unit, such as 30s or 2m"}},

		{"version", strings.Replace(small("", ""), "version: 1", "version: 2", 1), []string{"1:10: version: 2 is not a version that this ftpalg knows; write 1"}},
		{"durations", small("", "pinhole-timeout: 1h\ncredit-lifetime: 500ms"), []string{
			"7:18: pinhole-timeout: 1h0m0s is out of bounds; write 1s to 5m0s",
			"8:18: credit-lifetime: 500ms is out of bounds; write 1s to 1m0s",
		}},
		{"part of a second", small("", "pinhole-timeout: 1500ms"), []string{"7:18: pinhole-timeout: 1.5s is not whole seconds, which is what conntrack counts in; round it"}},
		{"words", small("    require: ssl\n    opaque: maybe\n    modes: [PASV, XPASV]", "bounce: allow\nfail: safe\nhelper: amanda"), []string{
			`6:14: rules[0].require: "ssl" is not known here; write one of: none, tls`,
			`7:13: rules[0].opaque: "maybe" is not known here; write one of: deny, pinhole`,
			`8:19: rules[0].modes[1]: "XPASV" is not known here; write one of: PASV, EPSV, PORT, EPRT`,
			`9:9: bounce: "allow" is not known here; write one of: deny, peer`,
			`10:7: fail: "safe" is not known here; write one of: closed, open`,
			`11:9: helper: "amanda" is not known here; write one of: auto, ftpalg, sane, ftp, irc, pptp, sip`,
		}},
		{"limits", small("", "limits:\n  line: 10\n  gap: -1\n  pinholes: 1000001"), []string{
			"8:9: limits.line: 10 is out of bounds; write 512 to 65536",
			"9:8: limits.gap: -1 is out of bounds; write 1460 to 16777216",
			"10:13: limits.pinholes: 1000001 is out of bounds; write 1 to 1000000",
		}},
		{"limits of terminated connections", small("", "limits:\n  handshakes: 0\n  handshake-timeout: 61s\n  idle-timeout: 0s\n  login-failures: 1001"), []string{
			"8:15: limits.handshakes: 0 is out of bounds; write 1 to 10000",
			"9:22: limits.handshake-timeout: 1m1s is out of bounds; write 1s to 1m0s",
			"10:17: limits.idle-timeout: 0s is out of bounds; write 1s to 24h0m0s",
			"11:19: limits.login-failures: 1001 is out of bounds; write 1 to 1000",
		}},
		{"opaque-active alone", small("    opaque: deny\n    opaque-active: pinhole", ""), []string{"7:20: rules[0].opaque-active: pinhole, but opaque is deny; set opaque: pinhole, or opaque-active: deny"}},
		{"empty lists", "version: 1\nservers: []\nrules: []\n", []string{
			"2:10: servers: empty; list at least one server",
			"3:8: rules: empty, so that everything is denied; list at least one rule",
		}},
		{"empty lists of a rule", small("    from: []\n    to: []\n    modes: []", ""), []string{
			"6:11: rules[0].from: empty, so that the rule matches nothing; list names, or write any",
			"7:9: rules[0].to: empty, so that the rule matches nothing; list names, or write any",
			"8:12: rules[0].modes: empty, so that no data connection is allowed; list some of PASV, EPSV, PORT, EPRT, or write action: deny",
		}},
		{"names", small("    from: [any, desk]\n    to: [files, fils, files]", "clients: [{name: office, addresses: 192.0.2.1}]"), []string{
			"6:12: rules[0].from[0]: any stands for all and goes alone; remove it or the other names",
			`6:17: rules[0].from[1]: "desk" is not defined; there is: any, office`,
			`7:17: rules[0].to[1]: "fils" is not defined; there is: any, files`,
			`7:23: rules[0].to[2]: "files" is listed twice; remove one`,
		}},
		{"names of entries", small("  - {name: all, action: deny}", "clients: [{name: any, addresses: 192.0.2.1}, {name: ' x', addresses: 192.0.2.1}]"), []string{
			`6:12: rules[1].name: "all" is the name of rules[0] already; choose another`,
			`7:18: clients[0].name: "any" is kept for rules, where it means all of them; choose another name`,
			`7:53: clients[1].name: " x" is no name; write printable characters without spaces around them`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { wantErrors(t, c.src, c.want) })
	}
}

func wantErrors(t *testing.T, src string, want []string) {
	t.Helper()
	_, err := Parse("p.yaml", []byte(src))
	var got []string
	if err != nil {
		got = strings.Split(err.Error(), "\n")
	}
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = "p.yaml:" + want[i]
		}
		if g != w {
			t.Errorf("error %d is\n%s\nwant\n%s", i, g, w)
		}
	}
}

func TestServerErrors(t *testing.T) {
	for _, c := range []struct {
		name, servers string
		want          []string
	}{
		{"addresses", "- {name: a, addresses: [x, 192.0.2.1/24, '::ffff:192.0.2.1', 'fe80::1%eth0', 0.0.0.0, 192.0.2.7, 192.0.2.7/32]}", []string{
			`3:25: servers[0].addresses[0]: "x" is neither an address nor a prefix; write one such as 192.0.2.10, 192.0.2.0/24 or 2001:db8::/64`,
			`3:28: servers[0].addresses[1]: "192.0.2.1/24" has host bits set; write 192.0.2.0/24, or the address without a length`,
			`3:42: servers[0].addresses[2]: "::ffff:192.0.2.1" is an IPv4 address in IPv6 form, which never goes over the wire; write 192.0.2.1`,
			`3:62: servers[0].addresses[3]: "fe80::1%eth0" is neither an address nor a prefix; write one such as 192.0.2.10, 192.0.2.0/24 or 2001:db8::/64`,
			`3:78: servers[0].addresses[4]: "0.0.0.0" is no host's address; for every address write 0.0.0.0/0`,
			`3:98: servers[0].addresses[6]: "192.0.2.7/32" is listed twice; remove one`,
		}},
		{"no address", "- {name: a, addresses: []}", []string{"3:24: servers[0].addresses: empty; list at least one address or prefix"}},
		{"two servers", "- {name: a, addresses: 192.0.2.128/25}\n- {name: b, addresses: [192.0.2.200, 192.0.2.1]}", []string{
			`4:25: servers[1].addresses[0]: 192.0.2.200 is an address of server "a" already, in 192.0.2.128/25; an address has one server`,
		}},
		{"two servers, the wider one last", "- {name: a, addresses: '2001:db8::7'}\n- {name: b, addresses: '2001:db8::/64'}", []string{
			`3:24: servers[0].addresses[0]: 2001:db8::7 is an address of server "b" already, in 2001:db8::/64; an address has one server`,
		}},
		{"ports", "- {name: a, addresses: 192.0.2.1, explicit: [0, 21, 65536, 21], implicit: 21}", []string{
			"3:46: servers[0].explicit[0]: 0 is not a TCP port; write 1 to 65535",
			"3:53: servers[0].explicit[2]: 65536 is not a TCP port; write 1 to 65535",
			"3:60: servers[0].explicit[3]: port 21 is listed twice; remove one",
			"3:75: servers[0].implicit: port 21 is under explicit too; TLS either comes first or it does not, remove one",
		}},
		{"no port", "- {name: a, addresses: 192.0.2.1, explicit: [], implicit: []}", []string{"3:3: servers[0]: no control port; list one under explicit or implicit"}},
		{"passive", "- {name: a, addresses: 192.0.2.1, passive: 50100-50000}\n- {name: b, addresses: 192.0.2.2, passive: 1023-2000}\n- {name: c, addresses: 192.0.2.3, passive: '50000'}\n- {name: d, addresses: 192.0.2.4, passive: 050000-50001}\n- {name: e, addresses: 192.0.2.5, passive: 2000-3000, explicit: 2121}\n- {name: f, addresses: 192.0.2.6, passive: 1024-65535}", []string{
			`3:44: servers[0].passive: "50100-50000" runs backwards; write 50000-50100`,
			`4:44: servers[1].passive: "1023-2000" reaches below 1024; begin at 1024, or set privileged-ports: allow`,
			`5:44: servers[2].passive: "50000" is no port range; write it as 50000-50100, or none`,
			`6:44: servers[3].passive: "050000-50001" is no port range; write it as 50000-50100, or none`,
			`7:44: servers[4].passive: 2000-3000 holds control port 2121; keep control and data ports apart`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantErrors(t, "version: 1\nservers:\n"+c.servers+"\nrules: [{name: all, action: inspect}]\n", c.want)
		})
	}
}

func TestCommandErrors(t *testing.T) {
	const noPath = "gives a path to a command that takes none that ftpalg reads; deny the command as a whole"
	for entry, problem := range map[string]string{
		"/etc":              "does not begin with a command name; write it as SITE, SITE CHMOD or STOR /path",
		"1STOR":             "does not begin with a command name; write it as SITE, SITE CHMOD or STOR /path",
		"STOR  /etc":        "has stray spaces or characters that cannot be printed; put one space after the command name",
		"STOR ":             "has stray spaces or characters that cannot be printed; put one space after the command name",
		"SITE /etc":         noPath,
		"NOOP /etc":         noPath,
		"RETR /etc/*":       "has a wild card; a path covers all that is under it, write the directory",
		"RETR etc":          "gives a path that does not begin with /; write it from the root that the client sees",
		"SITE CHMOD 777":    "has more than one word after the command name; write the first only, as in SITE CHMOD",
		"ABCDEFGHIJKLM":     "does not begin with a command name; write it as SITE, SITE CHMOD or STOR /path",
		"STOR /x\u200b/etc": "has stray spaces or characters that cannot be printed; put one space after the command name",
	} {
		src := small(fmt.Sprintf("    commands: {deny: [%q]}", entry), "")
		wantErrors(t, src, []string{fmt.Sprintf("6:23: rules[0].commands.deny[0]: %q %s", entry, problem)})
	}
	wantErrors(t, small("    commands: {allow: [RETR /x, STOR], deny: [stor]}", ""), []string{
		`6:24: rules[0].commands.allow[0]: "RETR /x" is no command name; write one such as RETR, without arguments`,
		`6:47: rules[0].commands.deny[0]: "stor" is allowed and denied; remove one`,
	})
}

func TestTestErrors(t *testing.T) {
	wantErrors(t, small("", `tests:
  - {name: a, from: 192.0.2.0/24, to: files, port: 0, expect: pinhole}
  - {name: a, from: 192.0.2.1, to: 192.0.2.2, command: NOOP, dialogue: "C: NOOP", expect: maybe}
  - name: b
    from: 192.0.2.1
    to: 192.0.2.2/32
    expect: deny
    dialogue: |
      C: USER a
      USER b

      X: y
      C
`), []string{
		`8:21: tests[0].from: "192.0.2.0/24" is not one host's address; write one such as 192.0.2.10 or 2001:db8::10`,
		`8:39: tests[0].to: "files" is not one host's address; write one such as 192.0.2.10 or 2001:db8::10`,
		`8:52: tests[0].port: 0 is not a TCP port; write 1 to 65535`,
		`8:63: tests[0].expect: "pinhole" is not known here; write one of: allow, deny`,
		`9:12: tests[1].name: "a" is the name of tests[0] already; choose another`,
		`9:56: tests[1].command: a test has a dialogue or a command, not both; make two tests of it`,
		`9:91: tests[1].expect: "maybe" is not known here; write one of: allow, deny, pinhole`,
		`12:9: tests[2].to: "192.0.2.2/32" is not one host's address; write one such as 192.0.2.10 or 2001:db8::10`,
		`16:1: tests[2].dialogue: "USER b" is no line of a dialogue; begin it with C: or S: and keep to printable characters`,
		`18:1: tests[2].dialogue: "X: y" is no line of a dialogue; begin it with C: or S: and keep to printable characters`,
		`19:1: tests[2].dialogue: "C" is no line of a dialogue; begin it with C: or S: and keep to printable characters`,
	})
}

// A message can be taken apart, so that `check` may print it as it likes.
func TestErrorIsTyped(t *testing.T) {
	_, err := Parse("p.yaml", []byte("version: 1\nbad: 1\n"))
	var fault *Error
	if !errors.As(err, &fault) {
		t.Fatalf("%v holds no *Error", err)
	}
	if fault.File != "p.yaml" || fault.Line != 1 || fault.Column != 1 || fault.Key != "servers" {
		t.Errorf("first fault: %+v", fault)
	}
}

func TestFaultsAreBounded(t *testing.T) {
	_, err := Parse("p.yaml", []byte(strings.Repeat("x: 1\n", 1000)))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxFaults+1 || lines[maxFaults] != "p.yaml: and 953 more" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestWarnings(t *testing.T) {
	p := parse(t, `version: 1
servers:
  - {name: files, addresses: 198.51.100.2}
  - {name: other, addresses: 203.0.113.2}
  - {name: unused, addresses: 203.0.113.3}
clients:
  - {name: office, addresses: [192.0.2.0/25, 192.0.2.128/25]}
  - {name: desk, addresses: 192.0.2.200}
  - {name: home, addresses: 192.0.2.0/24}
rules:
  - {name: office, from: office, to: files, action: inspect, commands: {allow: [RETR]}}
  - {name: desk, from: desk, to: files, action: deny}
  - {name: desk elsewhere, from: desk, to: [files, other], action: inspect, require: tls, opaque: deny}
  - {name: home, from: home, to: files, action: inspect}
fail: open
`)
	want := []string{
		`test.yaml:11:80: rules[0].commands.allow: rule "office" does not allow USER, so nobody can log in in clear text`,
		`test.yaml:11:72: rules[0].commands: rule "office" inspects and has opaque: pinhole, so what it says of commands ends at AUTH, and on implicit ports it is nothing: nobody sees commands under TLS; set opaque: deny, or action: terminate`,
		`test.yaml:12:5: rules[1]: rule "desk" can never match: rule "office" before it has all its clients and servers; put it first`,
		`test.yaml:13:5: rules[2]: rule "desk elsewhere" demands TLS and gives encrypted sessions no pinhole, so nothing can be transferred`,
		`test.yaml:5:5: servers[2]: no rule names server "unused", so every connection to it is denied`,
		`test.yaml:15:7: fail: open: when the queue is full or ftpalg is gone, control connections pass unread`,
	}
	if got := strings.Join(p.Warnings, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("warnings are\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// What a rule says of commands ends where a session is encrypted and stays so.
func TestUnseenWarnings(t *testing.T) {
	const ends = " ends at AUTH, and on implicit ports it is nothing: nobody sees commands under TLS; set opaque: deny, or action: terminate"
	const begin = `rule "all" inspects and has opaque: pinhole, so what it says of `
	for _, c := range []struct{ rule, implicit, want string }{
		{"users: {allow: anna}", "[]", "4:45: rules[0].users: " + begin + "users" + ends},
		{"users: {deny: anna}", "[]", "4:45: rules[0].users: " + begin + "users" + ends},
		{"files: {deny: '*.exe'}", "[]", "4:45: rules[0].files: " + begin + "files" + ends},
		{"transfers: download", "[]", "4:49: rules[0].transfers: " + begin + "transfers" + ends},
		{"commands: {deny: [SITE, DELE /pub]}, transfers: [download]", "[]", "4:48: rules[0].commands: " + begin + "commands, transfers" + ends},
		{"commands: {deny: [SITE]}, require: tls", "[]", "4:48: rules[0].commands: " + begin + "commands" + ends},
		{"commands: {deny: [SITE]}, opaque: deny", "[]", ""},
		{"commands: {deny: [SITE, AUTH]}", "[]", ""}, // nothing becomes opaque
		{"commands: {deny: [AUTH]}", "990", "4:48: rules[0].commands: " + begin + "commands" + ends},
		{"commands: {allow: [USER, PASS, RETR, PASV]}", "[]", ""},
		{"commands: {allow: [USER, PASS, RETR, PASV, AUTH]}", "[]", "4:48: rules[0].commands: " + begin + "commands" + ends},
		{"require: none", "990", ""},
	} {
		src := "version: 1\nservers:\n  - {name: files, addresses: 198.51.100.2, implicit: " + c.implicit +
			"}\nrules: [{name: all, action: inspect, " + c.rule + "}]\n"
		wantWarnings(t, src, c.want)
	}
}

// What may not be fetched from a path can be renamed out of it, and then be fetched.
func TestRenamedWarnings(t *testing.T) {
	want := func(name string) string {
		return `5:21: rules[0].commands.deny: rule "all" denies RETR ` + name + ", and allows to rename what is there and fetch it by another path; deny RNFR " + name + " too"
	}
	for _, c := range []struct{ deny, more, want string }{
		{"RETR /secret", "", want("/secret")},
		{"RETR /b, RETR /a, RNFR /a, RNTO /a", "", want("/b")},
		{"RETR /secret, RNFR /secret/x", "", want("/secret")}, // the rest can be renamed
		{"RETR /secret, RNFR /secret", "", ""},
		{"RETR /secret, RNFR /SECRET", "", ""},
		{"RETR /pub/secret, RNFR /pub", "", ""},
		{"RETR /secret, RNFR /", "", ""},
		{"RETR /secret, RNFR", "", ""},
		{"RETR /secret, RNTO", "", ""},
		{"RETR /secret, RNTO /secret", "", want("/secret")},
		{"RETR /secret", ", allow: [USER, PASS, PASV, RETR]", ""},
		{"RETR /secret, RETR", "", ""},
		{"STOR /secret", "", ""},
	} {
		wantWarnings(t, "version: 1\nservers:\n  - {name: files, addresses: 198.51.100.2}\nrules:\n- {commands: {deny: ["+c.deny+"]"+c.more+
			"}, name: all, action: inspect, opaque: deny}\n", c.want)
	}
	wantWarnings(t, "version: 1\nservers:\n  - {name: files, addresses: 198.51.100.2}\nrules:\n"+
		"- {commands: {deny: [RETR /secret]}, transfers: upload, name: all, action: inspect, opaque: deny}\n", "")
}

// Where a server is a whole network with most of its ports, SYNs to everything there are queued.
func TestQueuedWarnings(t *testing.T) {
	const passive = ` is more than FTP servers, and rule "all" has opaque: pinhole: every new connection of its clients to those `
	const narrow = " ports is queued; list the servers, narrow passive, or set opaque: deny"
	for _, c := range []struct{ server, rule, want string }{
		{"addresses: 0.0.0.0/0, passive: 1024-65535", "action: inspect",
			"3:50: servers[0].passive: 1024-65535 at 0.0.0.0/0" + passive + "64512" + narrow},
		{"addresses: ['2001:db8:2::/64'], passive: 1024-65535", "action: inspect",
			"3:60: servers[0].passive: 1024-65535 at 2001:db8:2::/64" + passive + "64512" + narrow},
		{"addresses: [198.51.100.2, 203.0.113.0/24], passive: 49152-65535", "action: inspect",
			"3:71: servers[0].passive: 49152-65535 at 203.0.113.0/24" + passive + "16384" + narrow},
		{"addresses: 198.51.100.0/24, passive: 50000-50100", "action: inspect", ""},
		{"addresses: 198.51.100.0/28, passive: 1024-65535", "action: inspect", ""},
		{"addresses: 0.0.0.0/0", "action: inspect", ""}, // no pinholes just in time
		{"addresses: 0.0.0.0/0, passive: 1024-65535", "action: inspect, opaque: deny", ""},
		{"addresses: 0.0.0.0/0, passive: 1024-65535", "action: deny", ""},
		{"addresses: 0.0.0.0/0", "action: inspect, opaque-active: pinhole",
			`3:30: servers[0].addresses: 0.0.0.0/0 is more than FTP servers, and rule "all" has opaque-active: pinhole: ` +
				"every new connection from there to its clients is queued; list the servers, or set opaque-active: deny"},
	} {
		wantWarnings(t, "version: 1\nservers:\n  - {name: files, "+c.server+"}\nrules: [{name: all, "+c.rule+"}]\n", c.want)
	}
}

// wantWarnings wants one warning of a policy, or none.
func wantWarnings(t *testing.T, src, want string) {
	t.Helper()
	if want != "" {
		want = "test.yaml:" + want
	}
	if got := strings.Join(parse(t, src).Warnings, "\n"); got != want {
		t.Errorf("%s\nwarnings are\n%s\nwant\n%s", src, got, want)
	}
}

// A helper that is not used any more does not make an old file wrong.
func TestUnsafeHelper(t *testing.T) {
	p := parse(t, "version: 1\nhelper: irc\n"+"servers: [{name: files, addresses: 198.51.100.2}]\nrules: [{name: all, action: inspect}]\n")
	want := `test.yaml:2:9: helper: "irc" opens ports for what it reads in FTP connections, so it is not used any more, and under NAT ftpalg rewrites PORT and 227 by itself: auto is taken; write auto`
	if len(p.Warnings) != 1 || p.Warnings[0] != want || p.Helper != "auto" {
		t.Errorf("helper %q, warnings %q", p.Helper, p.Warnings)
	}
}

// A file made to hang or to overflow the stack is refused, and soon. The slowest takes two seconds; the bound allows for a busy machine.
func TestBombs(t *testing.T) {
	aliases := "a: &a [x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		aliases += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 8), ","))
	}
	fill := func(s string) string { return strings.Repeat(s, MaxSize/len(s)) }
	for name, src := range map[string]string{
		"aliases": aliases, "brackets": fill("["), "braces": fill("{a: "), "dashes": fill("- "), "questions": fill("? "),
		"colons": fill("a: "), "anchors": fill("&a "), "tags": fill("!a "), "quotes": fill(`"`), "fewer quotes": strings.Repeat(`"`, maxTokens), "keys": fill("a: b\n"), "fewer keys": strings.Repeat("a: b\n", maxTokens/3),
		"words": fill("b\n"), "list": "[" + fill("a,")[:MaxSize-2] + "]", "block": "a: |\n" + fill("  b\n")[:MaxSize-8],
		"staircase": staircase(1400), "spaces": fill(" "), "tabs": fill("\t"), "documents": fill("---\n"),
		"comments": fill("#\n"), "x": fill("x"), "carriage returns": fill("\r"), "percent": fill("%a\n"), "colon": fill(":\n"),
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, err := Parse("bomb", []byte(src))
			if took := time.Since(begin); err == nil || took > 30*time.Second {
				t.Errorf("took %v and gave %.200v", took, err)
			} else {
				t.Logf("%8d bytes, %v: %.120v", len(src), took, err)
			}
		})
	}
}

// staircase nests mappings one column deeper a line.
func staircase(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
