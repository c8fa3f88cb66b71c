package cert

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"

	"ftpalg/policy"
)

// Which certificate a client is shown, by what it asks for and what it can use.
func TestChoice(t *testing.T) {
	ca := newCA(t)
	rsa := rsaKey(t)
	certificates := map[string]*issued{
		"a, RSA":           ca.issue(t, rsa, named("a.example.com")),
		"a, ECDSA":         ca.issue(t, nil, named("a.example.com")),
		"b, ECDSA":         ca.issue(t, nil, named("b.example.com")),
		"wild card, RSA":   ca.issue(t, rsa, named("*.example.com")),
		"wild card, ECDSA": ca.issue(t, nil, named("*.example.com")),
		"common name":      ca.issue(t, nil, func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "old.example.com", nil }),
		"address":          ca.issue(t, nil, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{serverAddr.AsSlice()} }),
	}
	rsaOnly := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	ecdsaOnly := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	for _, c := range []struct {
		name   string
		listed []string
		sni    string
		suites []uint16 // of TLS 1.2; nil: any, and TLS 1.3
		want   string
	}{
		{"one alone, for another name", []string{"b, ECDSA"}, "a.example.com", nil, "b, ECDSA"},
		{"no name: the first", []string{"b, ECDSA", "a, RSA"}, "", nil, "b, ECDSA"},
		{"no name: the first that can be used", []string{"b, ECDSA", "a, RSA"}, "", rsaOnly, "a, RSA"},
		{"no name: ECDSA only", []string{"a, RSA", "b, ECDSA"}, "", ecdsaOnly, "b, ECDSA"},
		{"exact", []string{"b, ECDSA", "a, RSA"}, "a.example.com", nil, "a, RSA"},
		{"exact, whatever the case", []string{"b, ECDSA", "a, RSA"}, "A.Example.COM", nil, "a, RSA"},
		{"exact before a wild card", []string{"wild card, ECDSA", "a, ECDSA"}, "a.example.com", nil, "a, ECDSA"},
		{"a wild card before none", []string{"b, ECDSA", "wild card, ECDSA"}, "c.example.com", nil, "wild card, ECDSA"},
		{"a wild card is for one label", []string{"b, ECDSA", "wild card, ECDSA"}, "a.c.example.com", nil, "b, ECDSA"},
		{"exact twice: the first", []string{"a, RSA", "a, ECDSA"}, "a.example.com", nil, "a, RSA"},
		{"exact twice: what can be used", []string{"a, RSA", "a, ECDSA"}, "a.example.com", ecdsaOnly, "a, ECDSA"},
		{"a wild card that can be used before an exact one that cannot", []string{"a, ECDSA", "wild card, RSA"}, "a.example.com", rsaOnly, "wild card, RSA"},
		{"no name fits: the first", []string{"b, ECDSA", "a, RSA"}, "c.example.com", nil, "b, ECDSA"},
		{"a common name", []string{"b, ECDSA", "common name"}, "old.example.com", nil, "common name"},
		{"no common name beside an address", []string{"b, ECDSA", "address"}, "ftp.example.com", nil, "b, ECDSA"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var pairs []policy.KeyPair
			for _, name := range c.listed {
				pairs = append(pairs, certificates[name].pair(t))
			}
			p := single(pairs...)
			client := anyone()
			if client.ServerName = c.sni; c.suites != nil {
				client.CipherSuites, client.MaxVersion = c.suites, tls.VersionTLS12
			}
			got := shown(t, downstream(t, load(t, p), p, nil), client)
			if !got.Equal(certificates[c.want].cert) {
				t.Errorf("shown %s, %v", got.Subject, got.PublicKeyAlgorithm)
			}
		})
	}
}

// When the client can use none, the handshake ends, and with the policy's certificates, not with minted ones.
func TestNoneCanBeUsed(t *testing.T) {
	ca := newCA(t)
	p := single(ca.issue(t, nil, nil).pair(t))
	p.Authority = ca.pair(t)
	client := anyone()
	client.CipherSuites, client.MaxVersion = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, tls.VersionTLS12
	if o := handshake(t, downstream(t, load(t, p), p, nil), client); o.serverErr == nil {
		t.Error("a handshake with a key that the client cannot use")
	}
}
