package cert

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"ftpalg/policy"
)

// ErrVerify is what every error of a server's verification wraps. As a *VerifyError it has the particulars.
var ErrVerify = errors.New("the server's certificate is refused")

// VerifyError says whose certificate was refused, and why.
type VerifyError struct {
	Subject, Issuer string // in the form of RFC 2253, as the certificate has them
	Reason          error
}

// maxSubject and maxReason bound what a server's certificate can write into a log, in bytes.
const (
	maxSubject = 256
	maxReason  = 512
)

// Error gives one line of printable text.
func (e *VerifyError) Error() string {
	return fmt.Sprintf("%v: subject %q, issuer %q: %s", ErrVerify, line(e.Subject, maxSubject), line(e.Issuer, maxSubject), line(e.Reason.Error(), maxReason))
}

// Unwrap gives ErrVerify and the reason.
func (e *VerifyError) Unwrap() []error { return []error{ErrVerify, e.Reason} }

// line cuts s to at most most bytes of printable characters.
func line(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// Upstream gives the configuration of the TLS client towards a server at addr. It is to be called once for each control
// connection; the caller sets ClientSessionCache and uses the configuration for the data connections too, which then can
// resume the control connection's session. A certificate that the policy does not accept ends the handshake with an error
// that wraps ErrVerify, whether a session is resumed or not.
//
// crypto/tls itself resumes no session whose certificate has expired meanwhile, whatever the policy accepts. Renegotiation
// stays refused, as crypto/tls has it: FTP has no use for it.
func (s *Store) Upstream(server *policy.Server, addr netip.Addr) *tls.Config {
	m := s.servers[server]
	if m == nil {
		return refuse(errNotLoaded)
	}
	c := m.upstream.Clone()
	if c.ServerName = server.Upstream.Name; c.ServerName == "" {
		c.ServerName = addr.Unmap().WithZone("").String() // not sent as SNI, which has names only (RFC 6066 section 3)
	}
	// Not crypto/tls itself verifies, but this, in VerifyConnection: it runs on resumed sessions too, knows pins, and its
	// errors say what is to be audited.
	c.InsecureSkipVerify = true
	name := c.ServerName
	c.VerifyConnection = func(state tls.ConnectionState) error { return m.verify(&server.Upstream.Verify, name, state) }
	return c
}

// refuse gives a configuration that accepts no server.
func refuse(err error) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return refused(state, err)
		},
	}
}

func refused(state tls.ConnectionState, reason error) error {
	leaf := state.PeerCertificates[0] // TLS servers without a certificate are not spoken to by crypto/tls
	return &VerifyError{leaf.Subject.String(), leaf.Issuer.String(), reason}
}

// verify decides about the certificates that a server shows under a name or address.
func (m *material) verify(v *policy.Verify, name string, state tls.ConnectionState) error {
	leaf := state.PeerCertificates[0]
	var reason error
	switch v.Kind {
	case policy.VerifyNone:
	case policy.VerifyPin:
		// The pin vouches for the key alone: names and dates do not count, as in RFC 7671 section 5.1.
		if sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo); sum != v.Pin {
			reason = fmt.Errorf("its key is sha256/%s and not the pinned one", base64.StdEncoding.EncodeToString(sum[:]))
		}
	case policy.VerifySystem, policy.VerifyCA:
		options := x509.VerifyOptions{Roots: m.roots, DNSName: name, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		_, reason = leaf.Verify(options)
	default:
		reason = errors.New("the policy does not say what vouches for it")
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && reason == nil && key.N.BitLen() < minRSA {
		reason = fmt.Errorf("its RSA key has %d bits; %d is the least", key.N.BitLen(), minRSA)
	}
	if reason != nil {
		return refused(state, reason)
	}
	return nil
}
