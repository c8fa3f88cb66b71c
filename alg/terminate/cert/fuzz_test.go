package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net"
	"slices"
	"testing"
	"time"
)

// FuzzPEM: nothing panics; what is read can be written, and is then read as the same; a pair that is accepted belongs
// together.
func FuzzPEM(f *testing.F) {
	ca := newCA(f)
	leaf, old := ca.issue(f, nil, nil), ca.issue(f, rsaKey(f), nil)
	both := slices.Concat(leaf.certPEM(), leaf.keyPEM(f))
	f.Add(both)
	f.Add(slices.Concat(both, ca.certPEM(), []byte("the end")))
	f.Add(slices.Concat(ca.certPEM(), both[10:]))
	f.Add(slices.Concat([]byte("\xef\xbb\xbftext\r\n"), bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n"))))
	f.Add(slices.Concat(old.certPEM(), pem.EncodeToMemory(&pem.Block{Type: pkcs1Label, Bytes: x509.MarshalPKCS1PrivateKey(old.key.(*rsa.PrivateKey))})))
	sec1, err := x509.MarshalECPrivateKey(leaf.key.(*ecdsa.PrivateKey))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slices.Concat(leaf.certPEM(), pem.EncodeToMemory(&pem.Block{Type: sec1Label, Bytes: sec1})))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: sec1Label, Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: sec1}))
	f.Fuzz(func(t *testing.T, data []byte) {
		blocks, err := decode(data)
		if err != nil {
			return
		}
		if len(blocks) == 0 || len(blocks) != bytes.Count(data, []byte("-----BEGIN ")) {
			t.Fatalf("%d blocks of %q", len(blocks), data)
		}
		again(t, blocks)
		chain, errChain := certificates(blocks)
		key, errKey := privateKey(blocks)
		if (errChain == nil) != (len(chain) > 0) || (errKey == nil) != (key != nil) {
			t.Fatalf("%d certificates with %v, key %T with %v", len(chain), errChain, key, errKey)
		}
		if errChain != nil || errKey != nil || match(chain, key) != nil {
			return
		}
		if !holdsKey(blocks) || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(chain[0].PublicKey) {
			t.Fatal("a pair that does not belong together")
		}
	})
}

// again writes blocks and reads them.
func again(t *testing.T, blocks []*pem.Block) {
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: b.Type, Bytes: b.Bytes})...)
	}
	got, err := decode(text)
	if err != nil || len(got) != len(blocks) {
		t.Fatalf("%d blocks became %d: %v", len(blocks), len(got), err)
	}
	for i, b := range blocks {
		if got[i].Type != b.Type || !bytes.Equal(got[i].Bytes, b.Bytes) {
			t.Fatalf("block %d, %q, became another", i, b.Type)
		}
	}
}

// FuzzMint: whatever certificate a server shows, what is minted from it parses, is signed by the authority, and says no
// more than the server's own.
func FuzzMint(f *testing.F) {
	a := newAuthority(f)
	ca := newCA(f)
	f.Add(ca.issue(f, nil, nil).cert.Raw)
	f.Add(ca.cert.Raw)
	f.Add(ca.issue(f, nil, func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses, c.EmailAddresses = []string{"*.example.com", "a"}, []net.IP{{192, 0, 2, 1}, net.ParseIP("2001:db8::1")}, []string{"a@b"}
		c.NotAfter = c.NotAfter.AddDate(100, 0, 0)
	}).cert.Raw)
	f.Add(ca.issue(f, nil, func(c *x509.Certificate) { c.RawSubject = a.issuer.RawSubject }).cert.Raw)
	f.Add(ca.issue(f, nil, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Unix(0, 0), time.Unix(1, 0) }).cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		peer, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		pair, err := a.mint(origin{leaf: sha256.Sum256(der), addr: serverAddr}, peer)
		if err != nil {
			return
		}
		c, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckSignatureFrom(a.issuer); err != nil {
			t.Fatal(err)
		}
		if c.IsCA || c.NotAfter.After(peer.NotAfter) || c.NotBefore.Before(peer.NotBefore) || !bytes.Equal(c.RawSubject, peer.RawSubject) {
			t.Fatalf("%+v became %+v", peer, c)
		}
		for _, name := range c.DNSNames {
			if !slices.Contains(peer.DNSNames, name) || !isReference(name) {
				t.Fatalf("%q became %q", peer.DNSNames, c.DNSNames)
			}
		}
		for _, ip := range c.IPAddresses {
			if !slices.ContainsFunc(peer.IPAddresses, ip.Equal) && !ip.Equal(serverAddr.AsSlice()) {
				t.Fatalf("%v became %v", peer.IPAddresses, c.IPAddresses)
			}
		}
	})
}
