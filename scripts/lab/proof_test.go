package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuer is a CA of a test's own.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{file: filepath.Join(t.TempDir(), "ca.pem")}
	pair := i.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "a test's CA"}, IsCA: true, BasicConstraintsValid: true})
	i.cert, i.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
	if err := os.WriteFile(i.file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return i
}

// issue makes a certificate, which signs itself if there is no CA yet.
func (i *issuer) issue(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := i.cert, i.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Outcome: a server with which the policy wants TLS, or whoever stands before it, gets nothing of a session in clear text for a
// greeting that no AUTH can follow. The client is told in FTP where it can be.
func TestGreetingWithoutAUTH(t *testing.T) {
	s := newTheatre(t, Termination{Upstream: []string{"control: explicit"}})
	for _, port := range []uint16{ExplicitPort, ImplicitPort} {
		for _, greeting := range []string{"200 ok", "230 in", "232 in", "234 go on", "331 password", "421 later", "530 no", "600 what", "120 soon\r\n230 in"} {
			t.Run(fmt.Sprintf("%d/%.3s", port, greeting), func(t *testing.T) {
				client, server := s.meet(port, ExplicitPort)
				if port == ImplicitPort {
					client.upgrade(s.clientConfig(t, implicitEPSV))
					go client.conn.(*tls.Conn).Handshake()
				} else if err := client.PrintfLine("AUTH TLS\r\nUSER %s\r\nPASS %s", User, Password); err != nil {
					t.Fatal(err)
				}
				if err := server.PrintfLine("%s", greeting); err != nil {
					t.Fatal(err)
				}
				heard, err := io.ReadAll(server.conn)
				if len(heard) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
					t.Errorf("the server heard %q, %v", heard, err)
				}
				if port == ExplicitPort {
					s.hears(client, "421 *")
				} else if line, err := client.ReadLine(); err == nil {
					t.Errorf("the client heard %q", line)
				}
			})
		}
	}
}

// Outcome: the authority vouches for no name that the server has not proved to be its own: neither for one that the client asks
// for, nor for one in a certificate that nobody has verified.
func TestAuthorityVouchesForProvedNames(t *testing.T) {
	ca := newIssuer(t)
	at := Addr(Server, IPv4)
	pair := ca.issue(t, &x509.Certificate{
		DNSNames: []string{"ftp.example", "www.bank.example", "*.corp.example"}, IPAddresses: []net.IP{at.AsSlice(), net.IPv4(203, 0, 113, 80)},
	})
	for _, c := range []struct {
		verify, control string
		proved          bool
	}{
		{"", "plain", false}, {"none", "implicit", false}, {ca.file, "implicit", true},
	} {
		t.Run(c.control+" "+filepath.Base(c.verify), func(t *testing.T) {
			s := newTheatreUnder(t, func(server *FTPServer) string {
				return minting(server, c.verify, Termination{Upstream: []string{"control: " + c.control}})
			})
			s.pair = pair
			for _, name := range []string{"ftp.example", "www.bank.example", "payroll.corp.example", "localhost", "203.0.113.80"} {
				leaf := s.minted(c.control == "implicit", name)
				own := name != "localhost"
				if err := leaf.VerifyHostname(name); (err == nil) != (c.proved && own) {
					t.Errorf("%s: the certificate is for %q and %v: %v", name, leaf.DNSNames, leaf.IPAddresses, err)
				}
				if err := leaf.VerifyHostname(at.String()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// minting is a policy whose certificates come from an authority.
func minting(s *FTPServer, verify string, policy Termination) string {
	text := policy.Policy(s)
	pair := fmt.Sprintf("{certificate: %s, key: %s}\n", s.CA, s.Key)
	text = strings.Replace(text, "    certificates:\n      - "+pair, "", 1) + "authority: " + pair
	if verify != "" {
		text = strings.Replace(text, "verify: "+s.CA, "verify: "+verify, 1)
	}
	return text
}

// minted begins a session, and returns the certificate that a client gets who asks for a name.
func (s *theatre) minted(upstreamTLS bool, name string) *x509.Certificate {
	s.t.Helper()
	var client, server *control
	if upstreamTLS {
		client, server = s.meet(ExplicitPort, ImplicitPort)
		s.serverTLS(server)
		for _, line := range []string{"220 ready", "200 PBSZ=0", "200 private"} {
			if err := server.PrintfLine("%s", line); err != nil {
				s.t.Fatal(err)
			}
		}
		s.hears(client, "220 ready")
	} else {
		client, server = s.greet()
	}
	if err := client.PrintfLine("AUTH TLS"); err != nil {
		s.t.Fatal(err)
	}
	s.hears(client, "234 *")
	conn := tls.Client(client.conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.clientConfig(s.t, explicitPASV).RootCAs}); err != nil {
		s.t.Errorf("%s: the certificate is not the authority's: %v", name, err)
	}
	client.conn.Close()
	server.conn.Close()
	return leaf
}

// Outcome: where the policy asks for a client's certificate, a data connection shows the same client's, and where it asks for the
// control connection's TLS session there is no data connection without TLS.
func TestDataConnectionProves(t *testing.T) {
	ca, other := newIssuer(t), newIssuer(t)
	client := func(i *issuer, name string) []tls.Certificate {
		return []tls.Certificate{i.issue(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})}
	}
	alice := client(ca, "alice")
	s := opened(t, Servers[1], Termination{Rule: []string{"require: tls", "tls: {client-ca: " + ca.file + ", session-reuse: allow}"}})
	s.write(t, "down.bin", contents)
	for name, shown := range map[string][]tls.Certificate{
		"the same": alice, "renewed": client(ca, "alice"), "another": client(ca, "bob"), "none": nil, "of another CA": client(other, "alice"),
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(fmt.Sprintf("%s/%x", name, version), func(t *testing.T) {
				config := s.clientConfig(t, explicitPASV)
				config.Certificates, config.MinVersion, config.MaxVersion = alice, version, version
				c := s.connectWith(t, explicitPASV, config)
				do(t, c.control, 534, "PROT C")
				c.config = config.Clone()
				c.config.Certificates, c.config.ClientSessionCache = shown, nil // so that nothing is resumed
				data := c.open("RETR down.bin")
				got, _ := io.ReadAll(data)
				data.Close()
				code, text := c.final()
				if passes := name == "the same" || name == "renewed"; passes && (code != 226 || !bytes.Equal(got, contents)) || !passes && (code < 400 || len(got) > 0) {
					t.Errorf("%d %s, %d bytes", code, text, len(got))
				}
			})
		}
	}
}

// Outcome: PROT C is refused where the control connection's TLS session has to be resumed, and a data connection without TLS has
// nothing of the file.
func TestPROTCWithSessionReuse(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := opened(t, kind, Termination{Rule: []string{"tls: {session-reuse: require}"}})
			s.write(t, "down.bin", contents)
			c := s.connect(t, explicitPASV)
			do(t, c.control, 534, "PROT C")
			raw := c.openRaw("RETR down.bin")
			_ = raw.SetDeadline(time.Now().Add(silence))
			if got, _ := io.ReadAll(raw); bytes.Contains(got, contents[:9]) {
				t.Error("a client without TLS got the file")
			}
			raw.Close()
		})
	}
}
