package policy

import (
	"fmt"
	"strings"
	"testing"
)

// terminating makes a policy that terminates connections to one server.
func terminating(server, rule, more string) string {
	return fmt.Sprintf(`version: 1
servers:
  - name: files
    addresses: 198.51.100.2
    implicit: []
%s
rules:
  - name: all
    action: terminate
%s
%s`, server, rule, more)
}

const pairOfFiles = "    certificates: [{certificate: /c.pem, key: /c.key}]"

func TestDial(t *testing.T) {
	for _, c := range []struct {
		control, ports string
		came           uint16
		want           Channel
		goes           uint16
	}{
		// What the client does, at the port that it came to.
		{"same", "", 21, Same, 21},
		{"same", "", 2121, Same, 2121},
		{"same", "", 990, Implicit, 990},
		// The wanted kind is the kind of that port.
		{"plain", "", 2121, Plain, 2121},
		{"explicit", "", 2121, Explicit, 2121},
		{"implicit", "", 9990, Implicit, 9990},
		// It is not: the first port of that kind.
		{"plain", "", 990, Plain, 21},
		{"explicit", "", 990, Explicit, 21},
		{"implicit", "", 2121, Implicit, 990},
		// The server has none: the usual one.
		{"plain", "explicit: []", 990, Plain, 21},
		{"explicit", "explicit: []", 990, Explicit, 21},
		{"implicit", "implicit: []", 21, Implicit, 990},
		// The operator's word goes before all.
		{"same", "upstream.port: 5021", 21, Same, 5021},
		{"same", "upstream.port: 5021", 990, Implicit, 5021},
		{"plain", "upstream.port: 5021", 990, Plain, 5021},
		{"implicit", "upstream.port: 5021", 21, Implicit, 5021},
	} {
		ports := map[string]string{"explicit": "[2121, 21]", "implicit": "[9990, 990]", "upstream.port": "0"}
		if key, value, ok := strings.Cut(c.ports, ": "); ok {
			ports[key] = value
		}
		p := parse(t, fmt.Sprintf(`version: 1
servers: [{name: files, addresses: 198.51.100.2, explicit: %s, implicit: %s, upstream: {control: %s, port: %s}}]
rules: [{name: all, action: inspect}]
`, ports["explicit"], ports["implicit"], c.control, ports["upstream.port"]))
		if got, goes := p.Servers[0].Dial(c.came); got != c.want || goes != c.goes {
			t.Errorf("control: %s, %q, from port %d: %v at %d, want %v at %d", c.control, c.ports, c.came, got, goes, c.want, c.goes)
		}
	}
}

func TestCanShow(t *testing.T) {
	for _, c := range []struct {
		server, more string
		want         bool
	}{
		{"", "", false}, {pairOfFiles, "", true}, {"", "authority: {certificate: /c.pem, key: /c.key}", true},
	} {
		p := parse(t, terminating(c.server, "", c.more))
		if got := p.CanShow(&p.Servers[0]); got != c.want {
			t.Errorf("%q and %q: %v", c.server, c.more, got)
		}
	}
}

func TestUpstreamErrors(t *testing.T) {
	const badPin = `is no pin; write sha256/ and the base64 of the 32 bytes of SHA-256 over the certificate's SubjectPublicKeyInfo`
	for _, c := range []struct {
		key, value string
		want       string // the fault behind its key; the place is that of the value
	}{
		{"control", "tls", `"tls" is not known here; write one of: same, plain, explicit, implicit`},
		{"port", "65536", "65536 is not a TCP port; write 1 to 65535, or 0 for the one that goes with control"},
		{"port", "-1", "-1 is not a TCP port; write 1 to 65535, or 0 for the one that goes with control"},
		{"auth-refused", "allow", `"allow" is not known here; write one of: deny, plain`},
		{"verify", "ca.pem", `"ca.pem" is not known here; write system, none, the absolute path of a CA file, or a pin such as sha256/BASE64`},
		{"verify", "''", `"" is not known here; write system, none, the absolute path of a CA file, or a pin such as sha256/BASE64`},
		{"verify", "sha256/", `"sha256/" ` + badPin},
		{"verify", "sha256/AAAA", `"sha256/AAAA" ` + badPin},
		// One bit is set behind the last byte, no padding, a line end within.
		{"verify", "sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0R=", `"sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0R=" ` + badPin},
		{"verify", "sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0Q", `"sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0Q" ` + badPin},
		{"verify", `"sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0Q=\n"`, `"sha256/BCBVGXxrT2Sp2vx73hAAZpmwDcfYfDaP47ntHwoTp0Q=\n" ` + badPin},
		{"name", "-x", `"-x" is no name that a certificate can be for; write one such as ftp.example.com, or an address`},
		{"name", "a b", `"a b" is no name that a certificate can be for; write one such as ftp.example.com, or an address`},
		{"name", "x.example.", `"x.example." is no name that a certificate can be for; write one such as ftp.example.com, or an address`},
		{"certificate", "/c.pem", "a certificate without a key; write the key's file too, or remove the certificate"},
		{"key", "/c.key", "a key without a certificate; write the certificate's file too, or remove the key"},
		{"min-version", "1.2", "the number 1.2 where text is wanted; put quotes around it"},
		{"min-version", `"1.4"`, `"1.4" is not known here; write one of: 1.0, 1.1, 1.2, 1.3`},
		{"min-version", `"1.1"`, `TLS before 1.2 is broken; write "1.2" or later, or set legacy: allow`},
		{"legacy", "yes", `"yes" is not known here; write one of: deny, allow`},
		{"session-reuse", "require", `"require" is not known here; write one of: auto, required`},
	} {
		at := fmt.Sprintf("7:%d", len("      : ")+len(c.key)+1)
		src := terminating("    upstream:\n      "+c.key+": "+c.value, "", "")
		wantErrors(t, src, []string{at + ": servers[0].upstream." + c.key + ": " + c.want})
	}
	const absolute = "is no absolute path; write it from / on, so that it does not depend on where ftpalg starts"
	wantErrors(t, terminating("    upstream: {certificate: c.pem, key: ../c.key}", "", "authority: {certificate: /c, key: k}"), []string{
		`6:29: servers[0].upstream.certificate: "c.pem" ` + absolute,
		`6:41: servers[0].upstream.key: "../c.key" ` + absolute,
		`11:35: authority.key: "k" ` + absolute,
	})
	wantErrors(t, terminating(`    upstream: {min-version: "1.3", max-version: "1.1"}`, "", ""), []string{
		`6:29: servers[0].upstream.min-version: min-version 1.3 is above max-version 1.1; raise one or lower the other`,
		`6:49: servers[0].upstream.max-version: TLS before 1.2 is broken; write "1.2" or later, or set legacy: allow`,
	})
	wantErrors(t, terminating(`    upstream: {max-version: "1.1", legacy: allow}`, "", ""), []string{
		`6:29: servers[0].upstream.max-version: min-version 1.2 is above max-version 1.1; raise one or lower the other`,
	})
}

func TestCertificateErrors(t *testing.T) {
	wantErrors(t, terminating("    certificates:\n      - {}\n      - {certificate: /c.pem}\n      - {key: /c.key}\n"+
		"      - {certificate: /d.pem, key: /d.key}\n      - {certificate: /d.pem, key: /d.key}\n      - {certificate: e.pem, key: /d\u200b.key}\n", "",
		"authority: {key: /ca.key}"), []string{
		"7:9: servers[0].certificates[0]: no files; write certificate: and key:, two PEM files",
		"8:23: servers[0].certificates[1].certificate: a certificate without a key; write the key's file too, or remove the certificate",
		"9:15: servers[0].certificates[2].key: a key without a certificate; write the certificate's file too, or remove the key",
		`11:9: servers[0].certificates[4]: "/d.pem" is listed twice; remove one`,
		`12:23: servers[0].certificates[5].certificate: "e.pem" is no absolute path; write it from / on, so that it does not depend on where ftpalg starts`,
		`12:35: servers[0].certificates[5].key: "/d\u200b.key" is no absolute path; write it from / on, so that it does not depend on where ftpalg starts`,
		"18:18: authority.key: a key without a certificate; write the certificate's file too, or remove the key",
	})
	wantErrors(t, terminating("    certificates: ["+strings.Repeat("{},", maxCertificates+1)+"]", "", ""), []string{
		"6:19: servers[0].certificates: 65 certificates; 64 is the most, write some with several names",
	})
	// TLS cannot begin without a certificate: where implicit ports are written, and where they are the default.
	const problem = `rule "all" terminates, and there is no certificate to show on port 990; list certificates of the server, set authority, or write implicit: []`
	wantErrors(t, strings.Replace(terminating("", "", ""), "implicit: []", "implicit: [9990, 990]", 1), []string{
		"5:15: servers[0].implicit: " + problem,
	})
	wantErrors(t, strings.Replace(terminating("", "", ""), "implicit: []", "", 1), []string{"3:5: servers[0]: " + problem})
	for _, good := range []string{
		strings.Replace(terminating(pairOfFiles, "", ""), "implicit: []", "", 1),
		strings.Replace(terminating("", "", "authority: {certificate: /ca.pem, key: /ca.key}"), "implicit: []", "", 1),
		strings.Replace(terminating("", "", ""), "terminate", "deny", 1),
	} {
		wantErrors(t, good, nil)
	}
}

func TestTerminateErrors(t *testing.T) {
	const data = "data: direct passes ftpalg by, so it cannot see to this; write data: auto, or remove one of them"
	for _, c := range []struct {
		rule string
		want []string
	}{
		{"    data: tunnel", []string{`10:11: rules[0].data: "tunnel" is not known here; write one of: auto, direct, relay`}},
		{"    data: direct\n    max-size: 1\n    tls: {session-reuse: require}", []string{
			"11:15: rules[0].max-size: " + data, "12:26: rules[0].tls.session-reuse: " + data,
		}},
		{"    data: direct\n    tls: {client-ca: /ca.pem, min-version: \"1.3\"}", []string{
			"11:22: rules[0].tls.client-ca: " + data, "11:44: rules[0].tls.min-version: " + data,
		}},
		{"    data: direct\n    tls: {legacy: allow, min-version: \"1.0\"}", nil},
		{"    tls: {client-ca: ca.pem}", []string{
			`10:22: rules[0].tls.client-ca: "ca.pem" is no absolute path; write it from / on, so that it does not depend on where ftpalg starts`,
		}},
		{`    tls: {min-version: "1.0"}`, []string{`10:24: rules[0].tls.min-version: TLS before 1.2 is broken; write "1.2" or later, or set legacy: allow`}},
		{"    tls: {session-reuse: required}", []string{`10:26: rules[0].tls.session-reuse: "required" is not known here; write one of: allow, require`}},
		{"    max-size: -1", []string{"10:15: rules[0].max-size: -1 is no size; write a number of bytes, or 0 for no limit"}},
		{"    max-size: 2GiB", []string{`10:15: rules[0].max-size: the text "2GiB" where a whole decimal number is wanted; write digits without quotes`}},
		{"    max-size: 9223372036854775808", []string{
			"10:15: rules[0].max-size: the number 9223372036854775808 where a whole decimal number is wanted; write digits without quotes",
		}},
		{"    max-size: 9223372036854775807\n    data: relay\n    tls: {session-reuse: require}", nil},
	} {
		wantErrors(t, terminating("", c.rule, ""), c.want)
	}
	wantErrors(t, terminating("    upstream: {session-reuse: required}", "    data: direct", ""), []string{
		`10:11: rules[0].data: direct, and server "files" has session-reuse: required, which a relay alone can do; write data: auto, or session-reuse: auto`,
	})
	const needs = "needs action: terminate, since inspect neither opens TLS nor sees data connections; write that, or remove the key"
	wantErrors(t, small("    data: relay\n    tls: {legacy: allow}\n    max-size: 5", ""), []string{
		"6:11: rules[0].data: " + needs, "7:10: rules[0].tls: " + needs, "8:15: rules[0].max-size: " + needs,
	})
	wantErrors(t, strings.Replace(small("    data: relay\n    tls: {legacy: allow}\n    max-size: 5", ""), "inspect", "deny", 1), nil)
}

func TestTerminateWarnings(t *testing.T) {
	const port = "    upstream: {port: 2121, verify: none}"
	const unproved = `: authority vouches for server "files", and nothing proves who that is; what it mints has the server's address and upstream.name alone`
	for _, c := range []struct {
		name, src string
		want      []string
	}{
		{"nothing to say", terminating(pairOfFiles, "", ""), nil},
		{"no certificate", terminating("", "", ""), []string{
			`3:5: servers[0]: rule "all" terminates, and there is no certificate to show, so AUTH is refused; list certificates or set authority`,
		}},
		{"no certificate for what needs it", terminating("", "    require: tls", ""), []string{
			`3:5: servers[0]: rule "all" demands TLS, and there is no certificate to show, so nobody can log in; list certificates or set authority`,
		}},
		{"one kind of port", terminating(pairOfFiles+"\n    upstream: {port: 2121}", "", ""), nil},
		{"two kinds of ports, not verified", strings.Replace(terminating(pairOfFiles+"\n"+port, "", ""), "[]", "990", 1), []string{
			"7:22: servers[0].upstream.port: 2121 is for clients of explicit and of implicit ports alike, and the server's can be one of them only; set control: explicit or implicit, or port: 0",
			`7:36: servers[0].upstream.verify: none: whoever stands between ftpalg and server "files" can read and change all`,
		}},
		{"names that nobody proves, not verified", terminating("    upstream: {verify: none}", "", "authority: {certificate: /c.pem, key: /c.key}"), []string{
			`6:24: servers[0].upstream.verify: none: whoever stands between ftpalg and server "files" can read and change all`,
			`6:24: servers[0].upstream.verify: none` + unproved,
		}},
		{"names that nobody proves, without TLS", terminating("    upstream: {control: plain}", "", "authority: {certificate: /c.pem, key: /c.key}"), []string{
			`6:25: servers[0].upstream.control: plain` + unproved,
		}},
		{"names that a CA proves", terminating("    upstream: {verify: /ca.pem}", "", "authority: {certificate: /c.pem, key: /c.key}"), nil},
		{"the same where nothing is terminated", strings.Replace(terminating(port, "", ""), "terminate", "inspect", 1), nil},
		{"opaque", terminating(pairOfFiles, "    opaque: deny", ""), []string{
			`10:13: rules[0].opaque: rule "all" terminates, so nothing stays encrypted, and opaque and opaque-active mean nothing`,
		}},
		{"opaque-active", terminating(pairOfFiles, "    opaque-active: pinhole", ""), []string{
			`10:20: rules[0].opaque-active: rule "all" terminates, so nothing stays encrypted, and opaque and opaque-active mean nothing`,
		}},
		{"client certificates", terminating(pairOfFiles, "    tls: {client-ca: /ca.pem}", ""), []string{
			`10:22: rules[0].tls.client-ca: rule "all" asks for certificates in TLS, and lets clients do without TLS; set require: tls`,
		}},
		{"client certificates demanded", terminating(pairOfFiles, "    tls: {client-ca: /ca.pem}\n    require: tls", ""), nil},
		{"no login", terminating(pairOfFiles, "    commands: {allow: RETR}", ""), []string{
			`10:23: rules[0].commands.allow: rule "all" does not allow USER, so nobody can log in`,
		}},
	} {
		p, err := Parse("p.yaml", []byte(c.src))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for i, w := range c.want {
			c.want[i] = "p.yaml:" + w
		}
		if got, want := strings.Join(p.Warnings, "\n"), strings.Join(c.want, "\n"); got != want {
			t.Errorf("%s: warnings are\n%s\nwant\n%s", c.name, got, want)
		}
	}
}
