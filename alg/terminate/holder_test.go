package terminate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// A data connection's certificate is the control connection's holder's if it has its key or all its names. Where the subject is
// empty the subjectAltName alone tells two clients apart, and where both are empty the key does.
func TestSameHolder(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	issue := func(k *ecdsa.PrivateKey, name, mail string) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: name}}
		if mail != "" {
			template.EmailAddresses = []string{mail}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two := key(), key()
	for name, c := range map[string]struct {
		a, b *x509.Certificate
		same bool
	}{
		"the same names, renewed":            {issue(one, "alice", ""), issue(two, "alice", ""), true},
		"the same key":                       {issue(one, "alice", ""), issue(one, "alice b", ""), true},
		"the same key, no names":             {issue(one, "", ""), issue(one, "", ""), true},
		"no subject, the same other name":    {issue(one, "", "alice@example.com"), issue(two, "", "alice@example.com"), true},
		"another subject":                    {issue(one, "alice", ""), issue(two, "bob", ""), false},
		"no subject, another name":           {issue(one, "", "alice@example.com"), issue(two, "", "bob@example.com"), false},
		"the same subject, another name":     {issue(one, "staff", "alice@example.com"), issue(two, "staff", "bob@example.com"), false},
		"the same subject, one without name": {issue(one, "staff", "alice@example.com"), issue(two, "staff", ""), false},
		"no names":                           {issue(one, "", ""), issue(two, "", ""), false},
	} {
		if sameHolder(c.a, c.b) != c.same || sameHolder(c.b, c.a) != c.same {
			t.Errorf("%s: %t, want %t", name, !c.same, c.same)
		}
	}
}
