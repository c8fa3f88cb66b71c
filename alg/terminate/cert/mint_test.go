package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ftpalg/policy"
)

func newAuthority(t testing.TB) *authority {
	t.Helper()
	return load(t, minting(t, newCA(t))).authority
}

// rsaClient cannot use ECDSA certificates.
func rsaClient() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
}

// A minted certificate says of names and dates what the server's own says, and is the authority's.
func TestMintedFromPeer(t *testing.T) {
	ca := newCA(t)
	p := minting(t, ca)
	s := load(t, p)
	peer := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "ftp.example.com", Organization: []string{"Example, Inc."}}
		c.DNSNames, c.IPAddresses = []string{"ftp.example.com", "*.files.example.com"}, []net.IP{net.IPv4(198, 51, 100, 2), net.ParseIP("2001:db8::2")}
		c.EmailAddresses, c.BasicConstraintsValid, c.IsCA = []string{"x@example.com"}, true, true
	}).cert
	for kind, client := range map[x509.PublicKeyAlgorithm]*tls.Config{x509.ECDSA: anyone(), x509.RSA: rsaClient()} {
		c := shown(t, downstream(t, s, p, peer), client)
		if !bytes.Equal(c.RawSubject, peer.RawSubject) || !slices.Equal(c.DNSNames, peer.DNSNames) ||
			!slices.EqualFunc(c.IPAddresses, peer.IPAddresses, net.IP.Equal) || len(c.EmailAddresses) > 0 {
			t.Errorf("%v: minted for %s, %q, %v, %q", kind, c.Subject, c.DNSNames, c.IPAddresses, c.EmailAddresses)
		}
		if !c.NotBefore.Equal(peer.NotBefore) || !c.NotAfter.Equal(peer.NotAfter) {
			t.Errorf("%v: valid from %v to %v", kind, c.NotBefore, c.NotAfter)
		}
		usage := map[x509.PublicKeyAlgorithm]x509.KeyUsage{
			x509.ECDSA: x509.KeyUsageDigitalSignature, x509.RSA: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		}[kind]
		if c.PublicKeyAlgorithm != kind || c.KeyUsage != usage || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) ||
			c.IsCA || !c.BasicConstraintsValid {
			t.Errorf("a key of %v for %v, %v, CA %v, instead of %v", c.PublicKeyAlgorithm, c.KeyUsage, c.ExtKeyUsage, c.IsCA, kind)
		}
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() != rsaBits {
			t.Errorf("an RSA key of %d bits", key.N.BitLen())
		}
		if !bytes.Equal(c.AuthorityKeyId, ca.cert.SubjectKeyId) || len(c.SubjectKeyId) == 0 {
			t.Errorf("%v: key identifiers %x, %x", kind, c.AuthorityKeyId, c.SubjectKeyId)
		}
		if c.SerialNumber.BitLen() < 100 || c.SerialNumber.Cmp(peer.SerialNumber) == 0 {
			t.Errorf("%v: serial number %v", kind, c.SerialNumber)
		}
	}
}

// Both crypto/x509, in the client, and openssl accept what is minted, for the server's names and for no others, with an
// authority that is an intermediate CA too.
func TestMintedIsAccepted(t *testing.T) {
	root := newCA(t)
	intermediate := root.issue(t, nil, func(c *x509.Certificate) {
		c.Subject, c.DNSNames = pkix.Name{CommonName: "Gateway CA"}, nil
		c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.MaxPathLenZero = true, true, x509.KeyUsageCertSign, true
	})
	p := single()
	p.Authority = intermediate.pair(t, root)
	s := load(t, p)
	peer := (*issued)(nil).issue(t, nil, nil).cert
	for name, accepted := range map[string]bool{"ftp.example.com": true, "other.example.com": false} {
		o := handshake(t, downstream(t, s, p, peer), &tls.Config{RootCAs: root.pool(), ServerName: name})
		if (o.clientErr == nil) != accepted {
			t.Errorf("crypto/x509, %s: %v", name, o.clientErr)
		}
		if n := len(o.client.PeerCertificates); accepted && n != 3 {
			t.Errorf("a chain of %d", n)
		}
		for _, more := range [][]string{{"-tls1_3"}, {"-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"}} {
			addr, done := serve(t, downstream(t, s, p, peer))
			out, err := openssl(t, append([]string{"s_client", "-connect", addr, "-verify_return_error", "-brief", "-x509_strict",
				"-CAfile", write(t, "root", root.certPEM(), 0o644), "-verify_hostname", name, "-servername", name}, more...)...)
			if (err == nil) != accepted || accepted != strings.Contains(out, "Verification: OK") {
				t.Errorf("openssl, %s %v: %v, server %v\n%s", name, more, err, (<-done).serverErr, out)
			}
		}
	}
}

// When the server's own certificate has expired, or is about to, so has the minted one; and the authority's bounds hold.
func TestMintedValidity(t *testing.T) {
	ca := newCA(t)
	p := minting(t, ca)
	s := load(t, p)
	year := func(n int) time.Time { return time.Now().AddDate(n, 0, 0).Truncate(time.Second).UTC() }
	for _, c := range []struct {
		name                string
		from, to            time.Time
		wantFrom, wantUntil time.Time // zero: refused
	}{
		{"longer than the authority", year(-5), year(5), ca.cert.NotBefore, ca.cert.NotAfter},
		{"within", ca.cert.NotBefore.Add(time.Second), ca.cert.NotAfter.Add(-time.Second), ca.cert.NotBefore.Add(time.Second), ca.cert.NotAfter.Add(-time.Second)},
		{"expired", year(-5), ca.cert.NotBefore.Add(time.Second), ca.cert.NotBefore, ca.cert.NotBefore.Add(time.Second)},
		{"expired before the authority was made", year(-5), year(-4), time.Time{}, time.Time{}},
		{"not valid before the authority expires", year(4), year(5), time.Time{}, time.Time{}},
	} {
		peer := (*issued)(nil).issue(t, nil, func(t *x509.Certificate) { t.NotBefore, t.NotAfter = c.from, c.to }).cert
		o := handshake(t, downstream(t, s, p, peer), anyone())
		if c.wantFrom.IsZero() {
			const want = "no certificate could be minted: the authority's is not valid while it would be; renew the authority"
			if o.serverErr == nil || o.serverErr.Error() != want {
				t.Errorf("%s: %v", c.name, o.serverErr)
			}
			continue
		}
		if o.err() != nil {
			t.Fatalf("%s: %v", c.name, o.err())
		}
		if got := o.client.PeerCertificates[0]; !got.NotBefore.Equal(c.wantFrom) || !got.NotAfter.Equal(c.wantUntil) {
			t.Errorf("%s: valid from %v to %v, want %v to %v", c.name, got.NotBefore, got.NotAfter, c.wantFrom, c.wantUntil)
		}
	}
	expired := (*issued)(nil).issue(t, nil, func(t *x509.Certificate) { t.NotBefore, t.NotAfter = year(-5), ca.cert.NotBefore.Add(time.Second) }).cert
	o := handshake(t, downstream(t, s, p, expired), &tls.Config{RootCAs: ca.pool(), ServerName: "ftp.example.com"})
	if o.clientErr == nil || !strings.Contains(o.clientErr.Error(), "expired") {
		t.Errorf("a client that verifies takes a certificate minted from an expired one: %v", o.clientErr)
	}
}

// Where nobody has verified the server, or its key alone, the certificate is for its address and the name that the policy lists, whatever the client
// asks for and whatever the server shows.
func TestMintedWithoutVerifiedPeer(t *testing.T) {
	ca := newCA(t)
	p := minting(t, ca)
	s := load(t, p)
	peer := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "www.bank.example"}
		c.DNSNames, c.IPAddresses = []string{"www.bank.example", "*.corp.example", "*"}, []net.IP{net.IPv4(203, 0, 113, 80)}
	}).cert
	for _, c := range []struct {
		addr, name, sni string
		names           []string
		more            []net.IP
	}{
		{"198.51.100.2", "", "", nil, nil},
		{"198.51.100.2", "", "www.bank.example", nil, nil},
		{"::ffff:198.51.100.2", "FTP.example.com", "www.bank.example", []string{"ftp.example.com"}, nil},
		{"2001:db8::2", "host_1", "", []string{"host_1"}, nil},
		{"fe80::1%eth0", "a..example.com", "", nil, nil},
		{"198.51.100.2", "203.0.113.9", "203.0.113.80", nil, []net.IP{net.IPv4(203, 0, 113, 9)}},
		{"198.51.100.2", "198.51.100.2", "a\nb", nil, nil},
		{"198.51.100.2", strings.Repeat("a", 64) + ".example.com", "*.example.com", nil, nil},
		{"198.51.100.2", strings.Repeat("a.", 127) + "com", strings.Repeat("a", 300), nil, nil},
	} {
		addr := netip.MustParseAddr(c.addr)
		p.Servers[0].Upstream.Name = c.name
		for verify, peer := range map[policy.Verify]*x509.Certificate{{Kind: policy.VerifySystem}: nil, {Kind: policy.VerifyNone}: peer, pinOf(peer): peer} {
			p.Servers[0].Upstream.Verify = verify
			config, err := s.Downstream(&p.Servers[0], &p.Rules[0], addr, peer)
			must(t, err)
			client := anyone()
			client.ServerName = c.sni
			got := shown(t, config, client)
			plain := addr.Unmap().WithZone("")
			addrs := append([]net.IP{plain.AsSlice()}, c.more...)
			if !slices.Equal(got.DNSNames, c.names) || !slices.EqualFunc(got.IPAddresses, addrs, net.IP.Equal) || got.Subject.CommonName != plain.String() {
				t.Errorf("%s, %q, %q: minted for %s, %q, %v", c.addr, c.name, c.sni, got.Subject, got.DNSNames, got.IPAddresses)
			}
			if err := got.CheckSignatureFrom(ca.cert); err != nil {
				t.Error(err)
			}
		}
	}
}

// Of a verified server's names only those go into the minted certificate that are host names.
func TestMintedNames(t *testing.T) {
	p := minting(t, newCA(t))
	s := load(t, p)
	for name, want := range map[string]bool{
		"ftp.example.com":          true,
		"localhost":                true,
		"*.example.com":            true,
		"*":                        false,
		"*.":                       false,
		"*.com":                    false,
		"*.*.example.com":          false,
		"a.*.example.com":          false,
		"f*.example.com":           false,
		"example.com.":             false,
		".example.com":             false,
		"a b.example.com":          false,
		"a\n.example.com":          false,
		"198.51.100.9":             false,
		strings.Repeat("a", 64):    false,
		strings.Repeat("a.b", 100): false,
	} {
		peer := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{name}, nil }).cert
		got := shown(t, downstream(t, s, p, peer), anyone())
		if slices.Equal(got.DNSNames, []string{name}) != want {
			t.Errorf("%q: minted for %q, %v", name, got.DNSNames, got.IPAddresses)
		}
		if !want && (len(got.DNSNames) > 0 || len(got.IPAddresses) != 1 || !got.IPAddresses[0].Equal(serverAddr.AsSlice())) {
			t.Errorf("%q: minted for %q, %v, and not for the address", name, got.DNSNames, got.IPAddresses)
		}
	}
}

// shows gives what an identity shows to a client that can use everything, and asks for name.
func shows(t *testing.T, i *identity, name string) *tls.Certificate {
	t.Helper()
	c, err := i.choose(&tls.ClientHelloInfo{
		Conn: &net.TCPConn{}, ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A certificate is minted once, until its place is needed or, without one of the server's, a period is over; all have the
// same key. A control connection shows one certificate whatever happens, and whatever name its data connections ask for.
func TestMintedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.NotAfter = true, true, c.NotAfter.AddDate(10, 0, 0)
		})
		a := load(t, minting(t, ca)).authority
		peer := ca.issue(t, nil, func(c *x509.Certificate) { c.NotAfter = c.NotAfter.AddDate(1, 0, 0) }).cert
		same := func(x, y *tls.Certificate) bool { return bytes.Equal(x.Certificate[0], y.Certificate[0]) }

		control, controlPeer := a.identity(serverAddr, "", nil), a.identity(serverAddr, "", peer)
		first, firstPeer := shows(t, control, "a.example.com"), shows(t, controlPeer, "")
		if !same(first, shows(t, a.identity(serverAddr, "", nil), "b.example.com")) || !same(firstPeer, shows(t, a.identity(serverAddr, "", peer), "x")) {
			t.Error("minted twice")
		}
		for name, other := range map[string]*tls.Certificate{
			"a name":          shows(t, a.identity(serverAddr, "a.example.com", nil), ""),
			"another address": shows(t, a.identity(netip.MustParseAddr("198.51.100.3"), "", nil), "a.example.com"),
			"a peer":          firstPeer,
			"another peer":    shows(t, a.identity(serverAddr, "", ca.issue(t, nil, nil).cert), "a.example.com"),
		} {
			if same(first, other) {
				t.Errorf("%s, and the same certificate", name)
			}
			if other.PrivateKey != first.PrivateKey {
				t.Errorf("%s, and another key", name)
			}
		}
		time.Sleep(period)
		next := shows(t, a.identity(serverAddr, "", nil), "a.example.com")
		if same(first, next) || !same(next, shows(t, a.identity(serverAddr, "", nil), "a.example.com")) {
			t.Error("not one certificate a period")
		}
		if c, err := x509.ParseCertificate(next.Certificate[0]); err != nil || time.Until(c.NotAfter) < period || time.Since(c.NotBefore) < 24*time.Hour {
			t.Errorf("valid from %v to %v: %v", c.NotBefore, c.NotAfter, err)
		}
		if !same(first, shows(t, control, "b.example.com")) || !same(firstPeer, shows(t, a.identity(serverAddr, "", peer), "")) {
			t.Error("a control connection, or a server with a certificate, has another one in the next period")
		}
	})
}

func TestPeerTooLarge(t *testing.T) {
	p := minting(t, newCA(t))
	peer := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) {
		for i := range 1000 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("host%d.example.com", i))
		}
	}).cert
	o := handshake(t, downstream(t, load(t, p), p, peer), anyone())
	if want := fmt.Sprintf("no certificate could be minted: the server's own has %d bytes; 16384 is the most that one is minted from", len(peer.Raw)); o.serverErr == nil || o.serverErr.Error() != want {
		t.Errorf("%v, want %s", o.serverErr, want)
	}
}

// A server whose certificate has the authority's own name cannot confuse the two.
func TestMintedForTheAuthoritysName(t *testing.T) {
	ca := newCA(t)
	p := minting(t, ca)
	peer := (*issued)(nil).issue(t, nil, func(c *x509.Certificate) { c.Subject = ca.cert.Subject }).cert
	o := handshake(t, downstream(t, load(t, p), p, peer), &tls.Config{RootCAs: ca.pool(), ServerName: "ftp.example.com"})
	if o.clientErr != nil {
		t.Fatal(o.clientErr)
	}
	if c := o.client.PeerCertificates[0]; !bytes.Equal(c.AuthorityKeyId, ca.cert.SubjectKeyId) || bytes.Equal(c.SubjectKeyId, c.AuthorityKeyId) {
		t.Errorf("key identifiers %x, %x", c.AuthorityKeyId, c.SubjectKeyId)
	}
}

// Authorities with keys of each kind.
func TestAuthorityKeys(t *testing.T) {
	_, ed25519Key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	peer := (*issued)(nil).issue(t, nil, nil).cert
	for _, key := range []crypto.Signer{ecKey(t), rsaKey(t), ed25519Key} {
		ca := (*issued)(nil).issue(t, key, func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.Subject.CommonName = true, true, "Test CA"
		})
		p := minting(t, ca)
		o := handshake(t, downstream(t, load(t, p), p, peer), &tls.Config{RootCAs: ca.pool(), ServerName: "ftp.example.com"})
		if o.err() != nil {
			t.Errorf("%v: %v", ca.cert.PublicKeyAlgorithm, o.err())
		}
	}
}

// An authority without a key identifier of its own still gives one to what it mints.
func TestAuthorityWithoutKeyID(t *testing.T) {
	dir := t.TempDir()
	pair := policy.KeyPair{Certificate: dir + "/ca.pem", Key: dir + "/ca.key"}
	mustOpenSSL(t, "ecparam -name prime256v1 -genkey -noout -out "+pair.Key)
	mustOpenSSL(t, "req -x509 -key "+pair.Key+" -subj /CN=CA -addext subjectKeyIdentifier=none -addext authorityKeyIdentifier=none -out "+pair.Certificate)
	p := single()
	p.Authority = pair
	s := load(t, p)
	if len(s.authority.issuer.SubjectKeyId) > 0 {
		t.Fatal("openssl has made a key identifier")
	}
	if c := shown(t, downstream(t, s, p, nil), anyone()); len(c.AuthorityKeyId) != 20 {
		t.Errorf("authority key identifier %x", c.AuthorityKeyId)
	}
}

func TestCache(t *testing.T) {
	c := newCache(2, 2)
	at := func(n int64) origin { return origin{from: n} }
	one, two, three, again := &tls.Certificate{}, &tls.Certificate{}, &tls.Certificate{}, &tls.Certificate{}
	c.add(at(1), one, alice)
	c.add(at(2), two, alice)
	if c.add(at(1), again, bob) != one {
		t.Error("the later of two stays")
	}
	if c.get(at(1)) != one { // used last now
		t.Error("1 is not there")
	}
	c.add(at(3), three, bob)
	if c.get(at(1)) != one || c.get(at(2)) != nil || c.get(at(3)) != three {
		t.Error("not the one that was not used longest has gone")
	}
	if len(c.at) != 2 || c.order.Len() != 2 {
		t.Errorf("%d and %d entries", len(c.at), c.order.Len())
	}
}

var alice, bob = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// A client that asks for ever more has its own replaced, the one first that it used longest ago, and no other client's.
func TestCacheIsShared(t *testing.T) {
	c := newCache(9, 3)
	at := func(n int64) origin { return origin{from: n} }
	c.add(at(0), &tls.Certificate{}, bob)
	for n := range int64(20) {
		c.add(at(n+1), &tls.Certificate{}, alice)
	}
	if c.get(at(0)) == nil {
		t.Error("the other client's is gone")
	}
	for n := range int64(20) {
		if kept := c.get(at(n+1)) != nil; kept != (n >= 17) {
			t.Errorf("%d is there: %v", n, kept)
		}
	}
	if u := c.kept.Use(); u.Used != 4 || u.TopUsed != 3 || c.order.Len() != 4 || len(c.at) != 4 {
		t.Errorf("%+v, %d and %d entries", u, c.order.Len(), len(c.at))
	}
}

// Whatever names clients ask for, the store holds maxMinted certificates at most.
func TestCacheIsBounded(t *testing.T) {
	c := newCache(maxMinted, maxMintedOfClient)
	for i := range 2 * maxMinted {
		client := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 32)})
		c.add(origin{from: int64(i)}, &tls.Certificate{}, client)
	}
	if n := c.order.Len(); n != maxMinted || len(c.at) != n || c.kept.Used() != n {
		t.Errorf("%d certificates", n)
	}
}

// Many clients of both kinds at once get one certificate of each.
func TestMintedConcurrently(t *testing.T) {
	p := minting(t, newCA(t))
	s := load(t, p)
	peer := (*issued)(nil).issue(t, nil, nil).cert
	var mu sync.Mutex
	serials := map[string]bool{}
	var wg sync.WaitGroup
	for i := range 16 {
		client := anyone()
		if i%2 == 0 {
			client = rsaClient()
		}
		wg.Go(func() {
			c := shown(t, downstream(t, s, p, peer), client)
			mu.Lock()
			defer mu.Unlock()
			_, ec := c.PublicKey.(*ecdsa.PublicKey)
			serials[fmt.Sprint(ec, c.SerialNumber)] = true
		})
	}
	wg.Wait()
	if len(serials) != 2 {
		t.Errorf("%d certificates", len(serials))
	}
	if list := s.Shares(); len(list) != 1 || list[0].Used != 2 || list[0].Total != maxMinted || list[0].Client != maxMintedOfClient {
		t.Errorf("shares: %+v, want two minted certificates", list)
	}
	if list := load(t, single()).Shares(); list != nil {
		t.Errorf("shares where nothing is minted: %+v", list)
	}
}

func TestHasCertificate(t *testing.T) {
	ca := newCA(t)
	own, none, minted := single(ca.issue(t, nil, nil).pair(t)), single(), minting(t, ca)
	for _, c := range []struct {
		name string
		p    *policy.Policy
		want bool
	}{{"its own", own, true}, {"none", none, false}, {"minted", minted, true}} {
		s := load(t, c.p)
		if got := s.HasCertificate(&c.p.Servers[0]); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		_, err := s.Downstream(&c.p.Servers[0], &c.p.Rules[0], serverAddr, nil)
		if (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
		if !c.want && err.Error() != `no certificate to show for server "files"; list its certificates, or set authority` {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if load(t, minted).HasCertificate(&own.Servers[0]) {
		t.Error("a certificate for a server of another policy")
	}
}
