package cert

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// choose gives the certificate that serves a client best: one that the client can use, then one for the name that it asks
// for, exactly or by a wild card, then the first. Clients of FTP often name none.
func (m *material) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	best, most := 0, -1
	for i := range m.certificates {
		if n := suits(hello, &m.certificates[i]); n > most {
			best, most = i, n
		}
	}
	return &m.certificates[best], nil
}

// suits gives a number that is the greater the better a certificate suits a client. The wrong name is a warning to the
// user at worst, but a key that the client cannot use is the end of the handshake.
func suits(hello *tls.ClientHelloInfo, c *tls.Certificate) int {
	const usable, exact, wildcard = 4, 2, 1
	n := 0
	if supports(hello, c) {
		n = usable
	}
	switch name := hello.ServerName; {
	case name == "":
	case slices.ContainsFunc(names(c.Leaf), func(s string) bool { return strings.EqualFold(s, name) }):
		n += exact
	case c.Leaf.VerifyHostname(name) == nil:
		n += wildcard
	}
	return n
}

// supports reports whether a client can use a certificate's key, whatever name it asks for.
func supports(hello *tls.ClientHelloInfo, c *tls.Certificate) bool {
	nameless := *hello
	nameless.ServerName = ""
	return nameless.SupportsCertificate(c) == nil
}

// names gives the DNS names of a certificate, or the common name of one that is so old that it has none (RFC 6125 section
// 6.4.4).
func names(c *x509.Certificate) []string {
	if len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 {
		return []string{c.Subject.CommonName}
	}
	return c.DNSNames
}
