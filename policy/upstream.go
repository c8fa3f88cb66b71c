package policy

import (
	"crypto/tls"
	"encoding/base64"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxCertificates bounds the certificates of one server: more names than one has.
const maxCertificates = 64

// The ports of a server that lists none of the wanted kind (IANA).
const (
	explicitPort = 21
	implicitPort = 990
)

// Dial says how the connection to the server begins for a client that came to control port port, and to which of the
// server's ports it goes: Plain stays in clear text, Explicit sends AUTH at once, Implicit begins with TLS, and Same
// begins in clear text and sends AUTH when the client does.
func (s *Server) Dial(port uint16) (Channel, uint16) {
	came, goes := slices.Contains(s.Implicit, port), s.Upstream.Control
	if goes == Same && came {
		goes = Implicit
	}
	switch {
	case s.Upstream.Port != 0:
		return goes, s.Upstream.Port
	case came == (goes == Implicit):
		return goes, port
	case goes == Implicit:
		return goes, firstPort(s.Implicit, implicitPort)
	}
	return goes, firstPort(s.Explicit, explicitPort)
}

func firstPort(ports []uint16, otherwise uint16) uint16 {
	if len(ports) == 0 {
		return otherwise
	}
	return ports[0]
}

// CanShow reports whether there is a certificate for clients whose connection to the server is terminated: its own, or
// one that the authority mints. Without it they are served in clear text alone.
func (p *Policy) CanShow(s *Server) bool { return len(s.Certificates) > 0 || !p.Authority.IsZero() }

func (b *builder) certificates(key string, raw []rawKeyPair) []KeyPair {
	if len(raw) > maxCertificates {
		b.fault(key, "%d certificates; %d is the most, write some with several names", len(raw), maxCertificates)
		return nil
	}
	var pairs []KeyPair
	for i, r := range raw {
		at := index(key, i)
		pair := b.keyPair(at, r)
		switch {
		case pair.IsZero():
			b.fault(at, "no files; write certificate: and key:, two PEM files")
		case slices.Contains(pairs, pair):
			b.fault(at, "%q is listed twice; remove one", pair.Certificate)
		}
		pairs = append(pairs, pair)
	}
	return pairs
}

// keyPair reads the names of a certificate and of its key, which go together or not at all.
func (b *builder) keyPair(key string, raw rawKeyPair) KeyPair {
	switch {
	case raw.Certificate == "" && raw.Key != "":
		b.fault(key+".key", "a key without a certificate; write the certificate's file too, or remove the key")
	case raw.Certificate != "" && raw.Key == "":
		b.fault(key+".certificate", "a certificate without a key; write the key's file too, or remove the certificate")
	}
	return KeyPair{b.absolute(key+".certificate", raw.Certificate), b.absolute(key+".key", raw.Key)}
}

// absolute checks the name of a file, which may be empty. It is not opened here.
func (b *builder) absolute(key, name string) string {
	if name != "" && (!path.IsAbs(name) || !printable(name)) {
		b.fault(key, "%q is no absolute path; write it from / on, so that it does not depend on where ftpalg starts", name)
	}
	return name
}

func (b *builder) upstream(key string, raw *rawUpstream) Upstream {
	u := Upstream{
		Control:      Channel(b.choose(key+".control", raw.Control, channelWords...)),
		Port:         uint16(raw.Port),
		Verify:       b.verify(key+".verify", raw.Verify),
		Name:         raw.Name,
		Client:       b.keyPair(key, rawKeyPair{raw.Certificate, raw.Key}),
		TLS:          b.versions(key, raw.MinVersion, raw.MaxVersion, raw.Legacy),
		SessionReuse: b.choose(key+".session-reuse", raw.SessionReuse, "auto", "required") == 1,
	}
	if b.choose(key+".auth-refused", raw.AuthRefused, "deny", "plain") == 1 {
		u.AuthRefused = Plain
	}
	if raw.Port != 0 && !isPort(raw.Port) {
		b.fault(key+".port", "%d is not a TCP port; write 1 to 65535, or 0 for the one that goes with control", raw.Port)
	}
	if raw.Name != "" && !isHost(raw.Name) {
		b.fault(key+".name", "%q is no name that a certificate can be for; write one such as ftp.example.com, or an address", raw.Name)
	}
	return u
}

// hostName matches what goes into SNI and into a certificate's DNS names: ASCII, dots and no dot at the end (RFC 6066
// section 3). Underscores are no host's, and in use.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?$`)

func isHost(text string) bool {
	addr, err := netip.ParseAddr(text)
	return err == nil && addr.Zone() == "" || hostName.MatchString(text)
}

func (b *builder) verify(key, text string) (v Verify) {
	pin, pinned := strings.CutPrefix(text, pinPrefix)
	switch {
	case text == "system":
	case text == "none":
		v.Kind = VerifyNone
	case pinned:
		sum, err := base64.StdEncoding.Strict().DecodeString(pin)
		if err != nil || len(sum) != len(v.Pin) || strings.ContainsAny(pin, "\r\n") {
			b.fault(key, "%q is no pin; write sha256/ and the base64 of the 32 bytes of SHA-256 over the certificate's SubjectPublicKeyInfo", text)
			break
		}
		v.Kind, v.Pin = VerifyPin, [32]byte(sum)
	case path.IsAbs(text) && printable(text):
		v.Kind, v.CA = VerifyCA, text
	default:
		b.fault(key, "%q is not known here; write system, none, the absolute path of a CA file, or a pin such as sha256/BASE64", text)
	}
	return v
}

// versions reads a range of TLS versions. What is broken takes the operator's word.
func (b *builder) versions(key, least, most, legacy string) Versions {
	v := Versions{
		Min:    b.version(key+".min-version", least),
		Max:    b.version(key+".max-version", most),
		Legacy: b.choose(key+".legacy", legacy, "deny", "allow") == 1,
	}
	if v.Min == 0 || v.Max == 0 {
		return v
	}
	if v.Min > v.Max {
		b.fault(b.given(key+".min-version", key+".max-version"), "min-version %s is above max-version %s; raise one or lower the other", least, most)
	}
	for _, end := range []struct {
		key     string
		version uint16
	}{{"min-version", v.Min}, {"max-version", v.Max}} {
		if end.version < tls.VersionTLS12 && !v.Legacy {
			b.fault(key+"."+end.key, "TLS before 1.2 is broken; write %q or later, or set legacy: allow", "1.2")
		}
	}
	return v
}

// version gives the number of a version, or 0 after a fault.
func (b *builder) version(key, text string) uint16 {
	i := b.choose(key, text, versionWords...)
	if versionWords[i] != text {
		return 0
	}
	return tls.VersionTLS10 + uint16(i)
}

func (b *builder) clientTLS(key string, raw *rawClientTLS) ClientTLS {
	return ClientTLS{
		Versions:     b.versions(key, raw.MinVersion, raw.MaxVersion, raw.Legacy),
		CA:           b.absolute(key+".client-ca", raw.ClientCA),
		RequireReuse: b.choose(key+".session-reuse", raw.SessionReuse, "allow", "require") == 1,
	}
}

// terminated checks what a rule says of terminated connections.
func (b *builder) terminated(key string, r *Rule) {
	if r.MaxSize < 0 {
		b.fault(key+".max-size", "%d is no size; write a number of bytes, or 0 for no limit", r.MaxSize)
	}
	if r.Action == Inspect {
		b.needsTerminate(key+".data", r.Data != DataAuto)
		b.needsTerminate(key+".tls", r.TLS != ClientTLS{Versions: defaultVersions})
		b.needsTerminate(key+".max-size", r.MaxSize > 0)
	}
	if r.Data == DataDirect {
		b.direct(key, r)
	}
}

// direct checks that a rule whose data connections pass ftpalg by asks nothing of them. The versions of TLS before 1.3 are the
// server's to choose there.
func (b *builder) direct(key string, r *Rule) {
	for _, asked := range []struct {
		key string
		is  bool
	}{
		{".tls.session-reuse", r.TLS.RequireReuse},
		{".tls.client-ca", r.TLS.CA != ""},
		{".tls.min-version", r.TLS.Min > defaultVersions.Min},
		{".max-size", r.MaxSize > 0},
	} {
		if asked.is {
			b.fault(key+asked.key, "data: direct passes ftpalg by, so it cannot see to this; write data: auto, or remove one of them")
		}
	}
}

// reusedSessions checks that data connections to servers that want their TLS session resumed are relayed: the client has no
// session of the server's.
func (b *builder) reusedSessions() {
	for i := range b.p.Rules {
		r := &b.p.Rules[i]
		if r.Action != Terminate || r.Data != DataDirect {
			continue
		}
		for j := range b.p.Servers {
			if s := &b.p.Servers[j]; r.servers[j] && s.Upstream.SessionReuse {
				b.fault(index("rules", i)+".data", "direct, and server %q has session-reuse: required, which a relay alone can do; "+
					"write data: auto, or session-reuse: auto", s.Name)
			}
		}
	}
}

func (b *builder) needsTerminate(key string, set bool) {
	if set {
		b.fault(key, "needs action: terminate, since inspect neither opens TLS nor sees data connections; write that, or remove the key")
	}
}

// certificatesToShow checks that TLS can begin where it comes first.
func (b *builder) certificatesToShow() {
	for i := range b.p.Servers {
		s, key := &b.p.Servers[i], index("servers", i)
		if r := b.terminatedBy(i); r != nil && len(s.Implicit) > 0 && !b.p.CanShow(s) {
			b.fault(b.given(key+".implicit", key), "rule %q terminates, and there is no certificate to show on port %d; "+
				"list certificates of the server, set authority, or write implicit: []", r.Name, s.Implicit[0])
		}
	}
}

// terminatedBy gives the first rule that terminates connections to the server at a position, or nil.
func (b *builder) terminatedBy(server int) *Rule {
	for i := range b.p.Rules {
		if r := &b.p.Rules[i]; r.Action == Terminate && r.servers[server] {
			return r
		}
	}
	return nil
}
