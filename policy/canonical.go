package policy

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/token"
)

// Canonical gives the policy as YAML in its one form: every key with its value, defaults filled in, in the order of
// the reference policy. Lists whose order has no meaning are sorted. Parsing it gives an equal policy.
func (p *Policy) Canonical() []byte {
	var b bytes.Buffer
	raw := p.raw()
	encode(&b, "", reflect.ValueOf(raw))
	return b.Bytes()
}

// raw is build the other way round.
func (p *Policy) raw() rawPolicy {
	raw := rawPolicy{
		Version:         1,
		Bounce:          p.Bounce.String(),
		PrivilegedPorts: choice(p.PrivilegedPorts, "allow", "deny"),
		Fail:            choice(p.FailOpen, "open", "closed"),
		Helper:          p.Helper,
		PinholeTimeout:  p.PinholeTimeout,
		CreditLifetime:  p.CreditLifetime,
		Authority:       rawKeyPair(p.Authority),
		Limits:          rawLimits(p.Limits),
	}
	for i := range p.Servers {
		raw.Servers = append(raw.Servers, p.Servers[i].raw())
	}
	for _, c := range p.Clients {
		raw.Clients = append(raw.Clients, rawClient{c.Name, texts(c.Addresses)})
	}
	for i := range p.Rules {
		raw.Rules = append(raw.Rules, p.Rules[i].raw())
	}
	for i := range p.Tests {
		raw.Tests = append(raw.Tests, p.Tests[i].raw())
	}
	return raw
}

func (s *Server) raw() rawServer {
	raw := rawServer{
		Name: s.Name, Addresses: texts(s.Addresses), Explicit: ints(s.Explicit), Implicit: ints(s.Implicit),
		Passive: s.Passive.String(), Upstream: s.Upstream.raw(),
	}
	for _, p := range s.Public {
		raw.Public = append(raw.Public, rawPublic{texts(p.Addresses), ints(p.Explicit), ints(p.Implicit)})
	}
	for _, pair := range s.Certificates {
		raw.Certificates = append(raw.Certificates, rawKeyPair(pair))
	}
	return raw
}

func (u *Upstream) raw() rawUpstream {
	return rawUpstream{
		Control:      u.Control.String(),
		Port:         int(u.Port),
		AuthRefused:  choice(u.AuthRefused == Plain, "plain", "deny"),
		Verify:       u.Verify.String(),
		Name:         u.Name,
		Certificate:  u.Client.Certificate,
		Key:          u.Client.Key,
		MinVersion:   versionWord(u.TLS.Min),
		MaxVersion:   versionWord(u.TLS.Max),
		Legacy:       choice(u.TLS.Legacy, "allow", "deny"),
		SessionReuse: choice(u.SessionReuse, "required", "auto"),
	}
}

func (r *Rule) raw() rawRule {
	raw := rawRule{
		Name: r.Name, From: r.From, To: r.To, Action: r.Action.String(),
		Require:      choice(r.RequireTLS, "tls", "none"),
		Opaque:       choice(r.OpaquePinhole, "pinhole", "deny"),
		OpaqueActive: choice(r.OpaqueActive, "pinhole", "deny"),
		Data:         r.Data.String(),
		TLS:          r.TLS.raw(),
		Commands:     rawNames{r.Allow, r.Deny},
		Users:        rawNames(r.Users),
		Files:        rawNames(r.Files),
		MaxSize:      r.MaxSize,
	}
	if !r.NoUpload {
		raw.Transfers = append(raw.Transfers, transferWords[0])
	}
	if !r.NoDownload {
		raw.Transfers = append(raw.Transfers, transferWords[1])
	}
	for m := range JIT { // all that can be listed come before JIT
		if r.Modes.Has(m) {
			raw.Modes = append(raw.Modes, m.String())
		}
	}
	return raw
}

func (t *ClientTLS) raw() rawClientTLS {
	return rawClientTLS{
		MinVersion:   versionWord(t.Min),
		MaxVersion:   versionWord(t.Max),
		Legacy:       choice(t.Legacy, "allow", "deny"),
		ClientCA:     t.CA,
		SessionReuse: choice(t.RequireReuse, "require", "allow"),
	}
}

func (t *Test) raw() rawTest {
	var dialogue strings.Builder
	for _, l := range t.Dialogue {
		dialogue.WriteString(choice(l.FromClient, "C: ", "S: ") + l.Text + "\n")
	}
	return rawTest{t.Name, t.From.String(), t.To.String(), int(t.Port), dialogue.String(), t.Command, t.Expect}
}

func choice(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func texts(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, show(p))
	}
	return out
}

func ints(list []uint16) []int {
	var out []int
	for _, port := range list {
		out = append(out, int(port))
	}
	return out
}

// encode writes a raw struct, one key a line, indented.
func encode(b *bytes.Buffer, indent string, v reflect.Value) {
	for i, key := range keys(v.Type()) {
		if i > 0 {
			b.WriteString(indent)
		}
		b.WriteString(key + ":")
		encodeValue(b, indent, v.Field(i))
	}
}

func encodeValue(b *bytes.Buffer, indent string, v reflect.Value) {
	deeper := indent + "  "
	switch {
	case v.Kind() == reflect.Struct:
		b.WriteString("\n" + deeper)
		encode(b, deeper, v)
	case v.Kind() == reflect.Slice && v.Len() > 0 && v.Type().Elem().Kind() == reflect.Struct:
		b.WriteString("\n")
		for i := range v.Len() {
			b.WriteString(deeper + "- ")
			encode(b, deeper+"  ", v.Index(i))
		}
	case v.Kind() == reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = scalar(v.Index(i))
		}
		b.WriteString(" [" + strings.Join(items, ", ") + "]\n")
	case v.Kind() == reflect.String && strings.Contains(v.String(), "\n"):
		b.WriteString(" |\n")
		for line := range strings.Lines(v.String()) {
			b.WriteString(deeper + line)
		}
	default:
		b.WriteString(" " + scalar(v) + "\n")
	}
}

// bare matches text that needs no quotes in YAML, together with what the library knows of reserved words and numbers.
var bare = regexp.MustCompile(`^[A-Za-z0-9/]([A-Za-z0-9 ._/-]*[A-Za-z0-9._/-])?$`)

func scalar(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return x.String()
	case string:
		if bare.MatchString(x) && !token.IsNeedQuoted(x) {
			return x
		}
		return strconv.Quote(x) // all text of a policy is printable, so that Go's quotes are YAML's
	}
	return fmt.Sprint(v.Interface())
}
