package cert

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftpalg/policy"
)

var (
	serverAddr = netip.MustParseAddr("198.51.100.2")
	versions   = policy.Versions{Min: tls.VersionTLS12, Max: tls.VersionTLS13}
)

// issued is a certificate and its key.
type issued struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate for key, or for a new ECDSA key if that is nil, signed by ca, or by itself if that is nil.
// edit changes what it says.
func (ca *issued) issue(t testing.TB, key crypto.Signer, edit func(*x509.Certificate)) *issued {
	t.Helper()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "ftp.example.com"},
		DNSNames:  []string{"ftp.example.com"},
		NotBefore: time.Now().Add(-time.Hour).Truncate(time.Second),
		NotAfter:  time.Now().Add(24 * time.Hour).Truncate(time.Second),
	}
	if edit != nil {
		edit(template)
	}
	if key == nil {
		key = ecKey(t)
	}
	if ca == nil {
		ca = &issued{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{c, key}
}

func named(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = name, []string{name} }
}

// newCA makes a CA that is valid for a week.
func newCA(t testing.TB) *issued {
	t.Helper()
	return (*issued)(nil).issue(t, nil, func(c *x509.Certificate) {
		c.Subject, c.DNSNames = pkix.Name{CommonName: "Test CA"}, nil
		c.BasicConstraintsValid, c.IsCA, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.NotAfter = c.NotAfter.Add(6 * 24 * time.Hour)
	})
}

// pool gives the roots that have i alone.
func (i *issued) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return pool
}

func (i *issued) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateLabel, Bytes: i.cert.Raw})
}

func (i *issued) keyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyLabel, Bytes: der})
}

// pair writes the certificate, those behind it, and the key into files.
func (i *issued) pair(t testing.TB, chain ...*issued) policy.KeyPair {
	t.Helper()
	text := i.certPEM()
	for _, c := range chain {
		text = append(text, c.certPEM()...)
	}
	return policy.KeyPair{Certificate: write(t, "cert.pem", text, 0o644), Key: write(t, "key.pem", i.keyPEM(t), 0o600)}
}

// write makes a file in a directory of its own.
func write(t testing.TB, name string, data []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever umask says
		t.Fatal(err)
	}
	return path
}

// single gives a policy with one server, at serverAddr, and one rule.
func single(pairs ...policy.KeyPair) *policy.Policy {
	return &policy.Policy{
		Servers: []policy.Server{{Name: "files", Certificates: pairs, Upstream: policy.Upstream{TLS: versions}}},
		Rules:   []policy.Rule{{Name: "all", Action: policy.Terminate, TLS: policy.ClientTLS{Versions: versions}}},
	}
}

// minting gives a policy whose server has no certificates.
func minting(t testing.TB, ca *issued) *policy.Policy {
	t.Helper()
	p := single()
	p.Authority = ca.pair(t)
	return p
}

func load(t testing.TB, p *policy.Policy) *Store {
	t.Helper()
	s, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// downstream gives a configuration of the only server and rule.
func downstream(t testing.TB, s *Store, p *policy.Policy, peer *x509.Certificate) *tls.Config {
	t.Helper()
	c, err := s.Downstream(&p.Servers[0], &p.Rules[0], serverAddr, peer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// outcome is what the two ends of a handshake made of it.
type outcome struct {
	client, server       tls.ConnectionState
	clientErr, serverErr error
}

func (o *outcome) err() error {
	if o.clientErr != nil {
		return o.clientErr
	}
	return o.serverErr
}

// handshake runs one over loopback. The client reads a byte behind it, because the tickets of TLS 1.3 come there.
func handshake(t testing.TB, server, client *tls.Config) (o outcome) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			o.serverErr = err
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		c := tls.Server(conn, server)
		if o.serverErr = c.Handshake(); o.serverErr == nil {
			_, o.serverErr = c.Write([]byte{'.'})
		}
		o.server = c.ConnectionState()
		c.Close()
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(conn, client)
	if o.clientErr = c.Handshake(); o.clientErr == nil {
		_, o.clientErr = io.ReadFull(c, make([]byte, 1)) // a client's certificate is refused no earlier
	}
	o.client = c.ConnectionState()
	conn.Close()
	<-done
	return o
}

// shown gives the leaf certificate that a client is shown.
func shown(t testing.TB, server, client *tls.Config) *x509.Certificate {
	t.Helper()
	o := handshake(t, server, client)
	if err := o.err(); err != nil {
		t.Fatalf("handshake: client %v, server %v", o.clientErr, o.serverErr)
	}
	return o.client.PeerCertificates[0]
}

// anyone is a client that takes whatever certificate it is shown.
func anyone() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// openssl runs the program without input and gives what it says.
func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// mustOpenSSL is openssl for what has to work; words are split at spaces.
func mustOpenSSL(t testing.TB, line string) {
	t.Helper()
	if out, err := openssl(t, strings.Fields(line)...); err != nil {
		t.Fatalf("openssl %s: %v\n%s", line, err, out)
	}
}

// serve answers one connection with a handshake and gives where.
func serve(t testing.TB, config *tls.Config) (addr string, result <-chan outcome) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() { done <- o }()
		conn, err := l.Accept()
		if err != nil {
			o.serverErr = err
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		c := tls.Server(conn, config)
		o.serverErr = c.Handshake()
		o.server = c.ConnectionState()
		io.Copy(io.Discard, c) // until the client goes
	}()
	return l.Addr().String(), done
}
