package cert

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ftpalg/policy"
)

// plainServer is an FTP server's TLS, that of crypto/tls with its defaults.
func plainServer(i *issued, chain ...*issued) *tls.Config {
	c := tls.Certificate{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key}
	for _, more := range chain {
		c.Certificate = append(c.Certificate, more.cert.Raw)
	}
	return &tls.Config{Certificates: []tls.Certificate{c}}
}

func pinOf(c *x509.Certificate) policy.Verify {
	return policy.Verify{Kind: policy.VerifyPin, Pin: sha256.Sum256(c.RawSubjectPublicKeyInfo)}
}

// Each case is a server's certificate, what the policy says of it, and the reason of the refusal, if there is one.
func TestVerification(t *testing.T) {
	ca := newCA(t)
	intermediate := ca.issue(t, nil, func(c *x509.Certificate) {
		c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.DNSNames = true, true, x509.KeyUsageCertSign, nil
		c.Subject.CommonName = "Intermediate"
	})
	behind := intermediate.issue(t, nil, nil)
	leaf := ca.issue(t, nil, nil)
	forAddress := ca.issue(t, nil, func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(198, 51, 100, 2), net.ParseIP("2001:db8::2")}
	})
	forLink := ca.issue(t, nil, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.ParseIP("fe80::1")} })
	expired := ca.issue(t, nil, func(c *x509.Certificate) {
		c.NotAfter = time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)
		c.NotBefore = c.NotAfter.AddDate(-1, 0, 0)
	})
	self := (*issued)(nil).issue(t, nil, nil)
	forClients := ca.issue(t, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	short := ca.issue(t, weak, nil)
	byCA := policy.Verify{Kind: policy.VerifyCA, CA: write(t, "ca", ca.certPEM(), 0o644)}
	bySelf := policy.Verify{Kind: policy.VerifyCA, CA: write(t, "self", self.certPEM(), 0o644)}
	none := policy.Verify{Kind: policy.VerifyNone}
	const unknown = "x509: certificate signed by unknown authority"
	for _, c := range []struct {
		name   string
		server *tls.Config
		verify policy.Verify
		as     string // name
		addr   string
		want   string
	}{
		{"by CA and name", plainServer(leaf), byCA, "ftp.example.com", "198.51.100.2", ""},
		{"through an intermediate", plainServer(behind, intermediate), byCA, "ftp.example.com", "198.51.100.2", ""},
		{"its intermediate missing", plainServer(behind), byCA, "ftp.example.com", "198.51.100.2", unknown},
		{"another name", plainServer(leaf), byCA, "other.example.com", "198.51.100.2", "x509: certificate is valid for ftp.example.com, not other.example.com"},
		{"a short RSA key, by CA", plainServer(short), byCA, "ftp.example.com", "198.51.100.2", "its RSA key has 1024 bits; 2048 is the least"},
		{"a short RSA key, pinned", plainServer(short), pinOf(short.cert), "", "198.51.100.2", "its RSA key has 1024 bits; 2048 is the least"},
		{"a short RSA key, not verified", plainServer(short), none, "", "198.51.100.2", "its RSA key has 1024 bits; 2048 is the least"},
		{"no name, for a name", plainServer(leaf), byCA, "", "198.51.100.2", "x509: cannot validate certificate for 198.51.100.2 because it doesn't contain any IP SANs"},
		{"no name, for the address", plainServer(forAddress), byCA, "", "198.51.100.2", ""},
		{"the address in IPv6 form", plainServer(forAddress), byCA, "", "::ffff:198.51.100.2", ""},
		{"a link's address", plainServer(forLink), byCA, "", "fe80::1%eth0", ""},
		{"IPv6", plainServer(forAddress), byCA, "", "2001:db8::2", ""},
		{"another address", plainServer(forAddress), byCA, "", "198.51.100.3", "x509: certificate is valid for 198.51.100.2, 2001:db8::2, not 198.51.100.3"},
		{"an address as the name", plainServer(forAddress), byCA, "198.51.100.2", "203.0.113.1", ""},
		{"expired", plainServer(expired), byCA, "ftp.example.com", "198.51.100.2", "x509: certificate has expired or is not yet valid: current time "},
		{"of a client", plainServer(forClients), byCA, "ftp.example.com", "198.51.100.2", "x509: certificate specifies an incompatible key usage"},
		{"self-signed, and the CA file", plainServer(self), bySelf, "ftp.example.com", "198.51.100.2", ""},
		{"self-signed", plainServer(self), byCA, "ftp.example.com", "198.51.100.2", unknown},
		{"the CA file is all there is", plainServer(leaf), bySelf, "ftp.example.com", "198.51.100.2", unknown},
		{"system", plainServer(leaf), policy.Verify{}, "ftp.example.com", "198.51.100.2", unknown},
		{"none", plainServer(expired), none, "other.example.com", "198.51.100.2", ""},
		{"pin", plainServer(leaf), pinOf(leaf.cert), "", "198.51.100.2", ""},
		{"pin of what has expired, for another name", plainServer(expired), pinOf(expired.cert), "other.example.com", "198.51.100.2", ""},
		{"pin of another", plainServer(leaf), pinOf(expired.cert), "ftp.example.com", "198.51.100.2", "its key is sha256/" + pinText(leaf.cert) + " and not the pinned one"},
		{"pin of the issuer", plainServer(behind, intermediate), pinOf(intermediate.cert), "ftp.example.com", "198.51.100.2", "its key is sha256/" + pinText(behind.cert) + " and not the pinned one"},
		{"nothing", plainServer(leaf), policy.Verify{Kind: 99}, "ftp.example.com", "198.51.100.2", "the policy does not say what vouches for it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := single()
			p.Servers[0].Upstream.Verify, p.Servers[0].Upstream.Name = c.verify, c.as
			s := load(t, p)
			o := handshake(t, c.server, s.Upstream(&p.Servers[0], netip.MustParseAddr(c.addr)))
			var refusal *VerifyError
			switch {
			case c.want == "" && o.err() != nil:
				t.Errorf("client %v, server %v", o.clientErr, o.serverErr)
			case c.want == "":
			case !errors.Is(o.clientErr, ErrVerify) || !errors.As(o.clientErr, &refusal):
				t.Errorf("%v is no ErrVerify", o.clientErr)
			case !strings.HasPrefix(refusal.Reason.Error(), c.want):
				t.Errorf("reason %q", refusal.Reason)
			}
		})
	}
}

func pinText(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// The pin that an operator makes with openssl, as the manuals say, is the pin here.
func TestPinAsOpenSSLMakesIt(t *testing.T) {
	leaf := newCA(t).issue(t, nil, nil)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "openssl x509 -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl base64")
	cmd.Stdin = bytes.NewReader(leaf.certPEM())
	out, err := cmd.Output()
	must(t, err)
	sum, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(out)))
	must(t, err)
	p := single()
	p.Servers[0].Upstream.Verify = policy.Verify{Kind: policy.VerifyPin, Pin: [32]byte(sum)}
	if o := handshake(t, plainServer(leaf), load(t, p).Upstream(&p.Servers[0], serverAddr)); o.err() != nil {
		t.Error(o.err())
	}
}

// The system's roots, as far as the process has been told which they are. It reads them once, so another process does it.
func TestSystemRoots(t *testing.T) {
	if os.Getenv("CERT_TEST_CHILD") == "" {
		ca := newCA(t)
		leaf := ca.issue(t, nil, nil)
		pair := leaf.pair(t)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSystemRoots$", "-test.v")
		cmd.Env = append(os.Environ(), "CERT_TEST_CHILD="+pair.Certificate+":"+pair.Key, "SSL_CERT_FILE="+write(t, "roots", ca.certPEM(), 0o644))
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestSystemRoots")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	cert, key, _ := strings.Cut(os.Getenv("CERT_TEST_CHILD"), ":")
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	p := single()
	p.Servers[0].Upstream.Name = "ftp.example.com"
	if o := handshake(t, &tls.Config{Certificates: []tls.Certificate{pair}}, load(t, p).Upstream(&p.Servers[0], serverAddr)); o.err() != nil {
		t.Error(o.err())
	}
}

// Data connections resume the control connection's session, and what the policy says holds for them again.
func TestVerificationOfResumedSessions(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, nil, nil)
	for name, verify := range map[string]policy.Verify{
		"pin": pinOf(leaf.cert), "CA": {Kind: policy.VerifyCA, CA: write(t, "ca", ca.certPEM(), 0o644)}, "none": {Kind: policy.VerifyNone},
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, version uint16) {
				p := single()
				p.Servers[0].Upstream.Verify, p.Servers[0].Upstream.Name = verify, "ftp.example.com"
				server := plainServer(leaf)
				server.MaxVersion = version
				client := load(t, p).Upstream(&p.Servers[0], serverAddr)
				client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
				if resumed(t, server, client) || !resumed(t, server, client) || !resumed(t, server, client.Clone()) {
					t.Fatal("data connections do not resume")
				}
				for other, verify := range map[string]policy.Verify{
					"pin": pinOf(ca.cert), "CA": {Kind: policy.VerifyCA, CA: write(t, "ca", newCA(t).certPEM(), 0o644)},
				} {
					resumed(t, server, client) // a session that ends in a refusal is not kept
					p := single()
					p.Servers[0].Upstream.Verify, p.Servers[0].Upstream.Name = verify, "ftp.example.com"
					strict := load(t, p).Upstream(&p.Servers[0], serverAddr)
					strict.ClientSessionCache = client.ClientSessionCache
					o := handshake(t, server, strict)
					if !errors.Is(o.clientErr, ErrVerify) || !o.client.DidResume {
						t.Errorf("%s: %v, resumed %v", other, o.clientErr, o.client.DidResume)
					}
				}
			})
		})
	}
}

// A server of another policy gets no connection, instead of one that nobody verifies.
func TestUpstreamOfOtherPolicy(t *testing.T) {
	p := single()
	p.Servers[0].Upstream.Verify.Kind = policy.VerifyNone
	o := handshake(t, plainServer(newCA(t)), load(t, single()).Upstream(&p.Servers[0], serverAddr))
	if !errors.Is(o.clientErr, ErrVerify) || !errors.Is(o.clientErr, errNotLoaded) {
		t.Error(o.clientErr)
	}
}

// SNI is the name, or none: addresses are never sent (RFC 6066 section 3).
func TestUpstreamSNI(t *testing.T) {
	for name, want := range map[string]string{"": "", "ftp.example.com": "ftp.example.com", "198.51.100.7": ""} {
		p := single()
		p.Servers[0].Upstream.Verify.Kind, p.Servers[0].Upstream.Name = policy.VerifyNone, name
		o := handshake(t, plainServer(newCA(t)), load(t, p).Upstream(&p.Servers[0], serverAddr))
		if o.err() != nil || o.server.ServerName != want {
			t.Errorf("%q: sent %q, %v", name, o.server.ServerName, o.err())
		}
	}
}

// The client's certificate is shown when the server asks, whatever CAs it names, and not if none is configured.
func TestUpstreamClientCertificate(t *testing.T) {
	ca := newCA(t)
	us := ca.issue(t, nil, named("gateway"))
	eachVersion(t, func(t *testing.T, version uint16) {
		for _, shown := range []bool{true, false} {
			p := single()
			p.Servers[0].Upstream.Verify.Kind = policy.VerifyNone
			if shown {
				p.Servers[0].Upstream.Client = us.pair(t, ca)
			}
			server := plainServer(ca)
			server.MaxVersion, server.ClientAuth, server.ClientCAs = version, tls.RequestClientCert, newCA(t).pool()
			o := handshake(t, server, load(t, p).Upstream(&p.Servers[0], serverAddr))
			if o.err() != nil {
				t.Fatal(o.err())
			}
			if got := o.server.PeerCertificates; shown && (len(got) != 2 || !got[0].Equal(us.cert)) || !shown && len(got) > 0 {
				t.Errorf("%d certificates shown, configured: %v", len(got), shown)
			}
		}
	})
}

// What a server's certificate says goes into the error as one short line.
func TestVerifyErrorText(t *testing.T) {
	hostile := newCA(t).issue(t, nil, func(c *x509.Certificate) {
		c.Subject.CommonName = "a\nlevel=ERROR \x1b[31m" + strings.Repeat("x", 5000)
		c.DNSNames = []string{"a\nb", strings.Repeat("y", 5000)}
	})
	p := single()
	p.Servers[0].Upstream.Verify = policy.Verify{Kind: policy.VerifyCA, CA: write(t, "ca", newCA(t).certPEM(), 0o644)}
	p.Servers[0].Upstream.Name = "ftp.example.com"
	o := handshake(t, plainServer(hostile), load(t, p).Upstream(&p.Servers[0], serverAddr))
	text := o.clientErr.Error()
	if len(text) > 2*maxSubject+maxReason+100 || strings.ContainsAny(text, "\n\x1b") {
		t.Errorf("%d bytes: %q", len(text), text)
	}
	e := &VerifyError{Subject: "CN=a", Issuer: "CN=b", Reason: errors.New("because\nof that")}
	if want := `the server's certificate is refused: subject "CN=a", issuer "CN=b": because?of that`; e.Error() != want {
		t.Errorf("%q, want %q", e.Error(), want)
	}
}

// What the policy allows towards old servers, which openssl plays.
func TestUpstreamVersions(t *testing.T) {
	ca := newCA(t)
	pair := ca.issue(t, rsaKey(t), nil).pair(t)
	for _, c := range []struct {
		versions policy.Versions
		server   string
		version  uint16 // 0: refused
	}{
		{versions, "-tls1_3", tls.VersionTLS13},
		{versions, "-tls1_2", tls.VersionTLS12},
		{versions, "-tls1_1 -cipher ALL:@SECLEVEL=0", 0},
		{versions, "-tls1_2 -cipher AES128-SHA", 0},
		{policy.Versions{}, "-tls1_1 -cipher ALL:@SECLEVEL=0", 0},
		{policy.Versions{Min: tls.VersionTLS10, Max: tls.VersionTLS12, Legacy: true}, "-tls1_1 -cipher ALL:@SECLEVEL=0", tls.VersionTLS11},
		{policy.Versions{Min: tls.VersionTLS10, Max: tls.VersionTLS12, Legacy: true}, "-tls1_2 -cipher AES128-SHA", tls.VersionTLS12},
	} {
		p := single()
		p.Servers[0].Upstream.Verify.Kind, p.Servers[0].Upstream.TLS = policy.VerifyNone, c.versions
		conn, err := net.Dial("tcp", opensslServer(t, pair, c.server))
		must(t, err)
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		client := tls.Client(conn, load(t, p).Upstream(&p.Servers[0], serverAddr))
		err = client.Handshake()
		if got := client.ConnectionState().Version; (err == nil) != (c.version != 0) || err == nil && got != c.version {
			t.Errorf("%+v, %s: %s, %v", c.versions, c.server, tls.VersionName(got), err)
		}
		conn.Close()
	}
}

// opensslServer starts one and gives its address, which it prints when it listens.
func opensslServer(t *testing.T, pair policy.KeyPair, more string) string {
	t.Helper()
	args := append([]string{"s_server", "-accept", "127.0.0.1:0", "-cert", pair.Certificate, "-key", pair.Key, "-naccept", "1"}, strings.Fields(more)...)
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	out, err := cmd.StdoutPipe()
	must(t, err)
	_, err = cmd.StdinPipe() // stays open, or the server would close the connection
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if addr, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			return addr
		}
	}
	t.Fatalf("openssl %v does not listen", args)
	return ""
}
