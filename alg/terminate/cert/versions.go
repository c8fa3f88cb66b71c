package cert

import (
	"crypto/tls"
	"slices"
	"strings"

	"ftpalg/policy"
)

// setVersions sets what both sides take from the policy. Without legacy the cipher suites are those that crypto/tls has by
// default, all with forward secrecy.
func setVersions(c *tls.Config, v policy.Versions) {
	c.MinVersion, c.MaxVersion = v.Min, v.Max
	if v.Legacy {
		c.CipherSuites = legacySuites
	}
}

// legacySuites are all that crypto/tls knows, with RSA key exchange and 3DES, but without RC4, which RFC 7465 forbids.
// crypto/tls has an order of its own for them, in which the weak ones come last.
var legacySuites = func() (ids []uint16) {
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if !strings.Contains(suite.Name, "_RC4_") {
			ids = append(ids, suite.ID)
		}
	}
	return ids
}()
