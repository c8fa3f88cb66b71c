package policy

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

var update = flag.Bool("update", false, "write the golden files anew")

const policies = "../testdata/policies"

func read(t testing.TB, name string) []byte {
	t.Helper()
	src, err := os.ReadFile(filepath.Join(policies, name))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func parse(t testing.TB, src string) *Policy {
	t.Helper()
	p, err := Parse("test.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// small makes a whole policy: one server, one rule with these lines in it, and what more is given at the top level.
func small(rule, more string) string {
	return `version: 1
servers: [{name: files, addresses: [198.51.100.2, "2001:db8:2::2"]}]
rules:
  - name: all
    action: inspect
` + rule + "\n" + more
}

func TestReferenceHasEveryKey(t *testing.T) {
	p, err := Load(filepath.Join(policies, "reference.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Warnings) > 0 {
		t.Errorf("the reference policy should give no warning: %q", p.Warnings)
	}
	src := read(t, "reference.yaml")
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(src), "\n")
	requireKeys(t, "", file.Docs[0].Body, reflect.TypeFor[rawPolicy](), lines)
}

// requireKeys asserts that a mapping has every key of a raw struct, each under a comment.
func requireKeys(t *testing.T, path string, n ast.Node, typ reflect.Type, lines []string) {
	if s, ok := n.(*ast.SequenceNode); ok && typ.Kind() == reflect.Slice && len(s.Values) > 0 {
		n, typ = s.Values[0], typ.Elem()
	}
	m, ok := n.(*ast.MappingNode)
	if !ok || typ.Kind() != reflect.Struct {
		return
	}
	for i, key := range keys(typ) {
		at := slices.IndexFunc(m.Values, func(v *ast.MappingValueNode) bool { return v.Key.GetToken().Value == key })
		if at < 0 {
			t.Errorf("reference.yaml lacks %s", join(path, key))
			continue
		}
		entry := m.Values[at]
		if above := lines[entry.Key.GetToken().Position.Line-2]; !strings.HasPrefix(strings.TrimSpace(above), "#") {
			t.Errorf("reference.yaml: no comment above %s", join(path, key))
		}
		requireKeys(t, join(path, key), entry.Value, typ.Field(i).Type, lines)
	}
}

// What the reference policy shows as defaults are the defaults: without those keys the policy is the same.
func TestReferenceShowsTheDefaults(t *testing.T) {
	const required = `version: 1
servers: [{name: files, addresses: [198.51.100.2, "2001:db8:2::2"]}]
clients: [{name: office, addresses: [192.0.2.0/24, "2001:db8:1::/64"]}]
rules: [{name: anyone to any server, action: inspect}]
tests: [{name: the office reaches the server, from: 192.0.2.10, to: 198.51.100.2, expect: allow}]
`
	full, bare := parse(t, string(read(t, "reference.yaml"))), parse(t, required)
	if got, want := string(bare.Canonical()), string(full.Canonical()); got != want {
		t.Errorf("defaults give\n%s\nthe reference policy gives\n%s", got, want)
	}
}

func TestCanonicalGolden(t *testing.T) {
	for _, name := range []string{"reference.yaml", "first.yaml", "full.yaml"} {
		t.Run(name, func(t *testing.T) {
			got := parse(t, string(read(t, name))).Canonical()
			golden := filepath.Join("canonical", name)
			if *update {
				if err := os.WriteFile(filepath.Join(policies, golden), got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, golden); !bytes.Equal(got, want) {
				t.Errorf("canonical form is\n%s\nwant\n%s", got, want)
			}
			roundTrip(t, got)
		})
	}
}

// roundTrip asserts that a canonical form parses to an equal policy and is its own canonical form.
func roundTrip(t testing.TB, canonical []byte) {
	t.Helper()
	p, err := Parse("canonical", canonical)
	if err != nil {
		t.Fatalf("the canonical form does not parse: %v\n%s", err, canonical)
	}
	again := p.Canonical()
	if !bytes.Equal(again, canonical) {
		t.Fatalf("canonical form of\n%s\nis\n%s", canonical, again)
	}
	q, err := Parse("canonical", again)
	if err != nil || !reflect.DeepEqual(p, q) {
		t.Fatalf("parsed twice, not equal (%v)", err)
	}
}

func TestFullPolicy(t *testing.T) {
	p := parse(t, string(read(t, "full.yaml")))
	if p.Bounce != BouncePeer || !p.PrivilegedPorts || !p.FailOpen || p.Helper != "sane" ||
		p.PinholeTimeout != time.Minute || p.CreditLifetime != 2*time.Second {
		t.Errorf("settings: %+v", p)
	}
	if want := (Limits{1024, 10, 5, 20, 7, 32768, 8, 1, 16, 6, 5 * time.Second, 90 * time.Minute, 3}); p.Limits != want {
		t.Errorf("limits are %+v, want %+v", p.Limits, want)
	}
	if s := p.Servers[0]; s.Passive != (PortRange{50000, 50100}) || !slices.Equal(s.Explicit, []uint16{21, 2121}) || len(s.Implicit) != 0 {
		t.Errorf("server: %+v", s)
	}
	r := p.Rules[0]
	if !r.RequireTLS || !r.OpaquePinhole || !r.OpaqueActive || r.Modes != 1<<EPSV|1<<EPRT|1<<JIT {
		t.Errorf("rule: %+v", r)
	}
	if want := []string{"DELE /", "MKD", "SITE CHMOD", "STOR /incoming/a b"}; !slices.Equal(r.Deny, want) {
		t.Errorf("deny is %q, want %q", r.Deny, want)
	}
	test := p.Tests[0]
	want := []Line{{false, "220 ready ", 113}, {true, `SITE "x" # no comment`, 115}, {true, "USER a", 116}}
	if !slices.Equal(test.Dialogue, want) || test.Expect != "deny" || test.Line != 109 {
		t.Errorf("test: %+v", test)
	}
}

func TestFullPolicyTerminates(t *testing.T) {
	p := parse(t, string(read(t, "full.yaml")))
	s, r := p.Servers[2], p.Rules[2]
	want := Upstream{
		Control: Explicit, Port: 21, AuthRefused: Plain, Name: "vault.example.com",
		Verify:       Verify{Kind: VerifyPin, Pin: sha256.Sum256([]byte("a key"))},
		Client:       KeyPair{"/etc/ftpalg/client.pem", "/etc/ftpalg/client.key"},
		TLS:          Versions{tls.VersionTLS10, tls.VersionTLS12, true},
		SessionReuse: true,
	}
	if s.Upstream != want {
		t.Errorf("upstream is %+v, want %+v", s.Upstream, want)
	}
	pairs := []KeyPair{{"/etc/ftpalg/vault.pem", "/etc/ftpalg/vault.key"}, {"/etc/ftpalg/old vault.pem", "/etc/ftpalg/old vault.key"}}
	if !slices.Equal(s.Certificates, pairs) || p.Authority != (KeyPair{"/etc/ftpalg/authority.pem", "/etc/ftpalg/authority.key"}) {
		t.Errorf("certificates: %+v, authority %+v", s.Certificates, p.Authority)
	}
	clients := ClientTLS{Versions{tls.VersionTLS11, tls.VersionTLS11, true}, "/etc/ftpalg/clients.pem", true}
	if r.Action != Terminate || r.Data != DataRelay || r.TLS != clients || r.MaxSize != 5e9 || r.NoUpload || !r.NoDownload {
		t.Errorf("rule: %+v", r)
	}
	if s := p.Servers[0]; s.Upstream != (Upstream{TLS: defaultVersions}) || s.Certificates != nil {
		t.Errorf("a server without these keys: %+v", s)
	}
	if r := p.Rules[0]; r.Data != DataAuto || r.TLS != (ClientTLS{Versions: defaultVersions}) || r.MaxSize != 0 || r.NoUpload || r.NoDownload {
		t.Errorf("a rule without these keys: %+v", r)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, append(bytes.Repeat([]byte("#\n"), MaxSize/2), '#'), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("a file of %d bytes gives %v", MaxSize+1, err)
	}
}

func TestAllowAll(t *testing.T) {
	p := AllowAll()
	if len(p.Warnings) > 0 {
		t.Errorf("warnings: %q", p.Warnings)
	}
	for _, server := range []string{"198.51.100.2:21", "[2001:db8::2]:21", "203.0.113.9:2121", "10.1.2.3:65535"} {
		d := p.Decide(netip.MustParseAddr("192.0.2.9"), netip.MustParseAddrPort(server))
		if d.Action != Inspect || d.Implicit || d.Server.Passive != (PortRange{1024, 65535}) {
			t.Errorf("%s: %+v", server, d)
		}
		if r := d.Rule; !r.OpaquePinhole || r.OpaqueActive || r.RequireTLS || r.Modes != 1<<PASV|1<<EPSV|1<<PORT|1<<EPRT|1<<JIT {
			t.Errorf("rule: %+v", r)
		}
		if got := d.Rule.Command("SITE", []byte("EXEC x"), ""); got != Allowed {
			t.Errorf("SITE EXEC: %v", got)
		}
	}
	if d := p.Decide(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddrPort("[2001:db8::2]:990")); !d.Implicit {
		t.Errorf("port 990 is not implicit: %+v", d)
	}
	if !p.IsControlPort(netip.MustParseAddrPort("203.0.113.9:990")) || p.IsControlPort(netip.MustParseAddrPort("203.0.113.9:50000")) {
		t.Error("control ports of a replay without a policy should be 21 and 990")
	}
}

// Editors on Windows begin a file with a byte order mark: it is no part of the policy.
func TestByteOrderMark(t *testing.T) {
	src, err := os.ReadFile("../testdata/policies/first.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Parse("first.yaml", src)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("first.yaml", append([]byte("\xef\xbb\xbf"), src...))
	if err != nil || !bytes.Equal(got.Canonical(), want.Canonical()) {
		t.Errorf("with a byte order mark: %v", err)
	}
}
