package cert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"ftpalg/policy"
)

// eachVersion runs a test with clients of TLS 1.2 and 1.3.
func eachVersion(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, version) })
	}
}

// resumer is a client that can resume its sessions, wherever it connects to.
func resumer(version uint16) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, ServerName: "ftp.example.com", MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
}

func resumed(t *testing.T, server, client *tls.Config) bool {
	t.Helper()
	o := handshake(t, server, client)
	if o.err() != nil {
		t.Fatalf("client %v, server %v", o.clientErr, o.serverErr)
	}
	return o.server.DidResume
}

// Data connections resume the session of their control connection with its configuration, or a clone from before or after
// the first handshake; the configuration of another control connection, of the same server and rule, does not know it.
func TestTicketsAreOfOneControlConnection(t *testing.T) {
	ca := newCA(t)
	own, minted := single(ca.issue(t, nil, nil).pair(t)), minting(t, ca)
	for name, p := range map[string]*policy.Policy{"its own": own, "minted": minted} {
		s := load(t, p)
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, version uint16) {
				control, client := downstream(t, s, p, nil), resumer(version)
				before := control.Clone()
				if resumed(t, control, client) {
					t.Fatal("resumed, and none was there")
				}
				for which, config := range map[string]*tls.Config{"itself": control, "a clone": control.Clone(), "a clone from before": before} {
					if !resumed(t, config, client) {
						t.Errorf("%s does not resume", which)
					}
				}
				if resumed(t, downstream(t, s, p, nil), client) {
					t.Error("another control connection's ticket was taken")
				}
			})
		})
	}
}

// The caller binds tickets as Downstream's comment says.
func TestTicketsCanBeBound(t *testing.T) {
	p := single(newCA(t).issue(t, nil, nil).pair(t))
	s := load(t, p)
	eachVersion(t, func(t *testing.T, version uint16) {
		base := downstream(t, s, p, nil)
		bound := func(session string) *tls.Config {
			c := base.Clone()
			c.WrapSession = func(state tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				ss.Extra = append(ss.Extra, []byte(session))
				return c.EncryptTicket(state, ss)
			}
			c.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
				ss, err := c.DecryptTicket(ticket, state)
				if err != nil || ss == nil || !slices.ContainsFunc(ss.Extra, func(b []byte) bool { return bytes.Equal(b, []byte(session)) }) {
					return nil, err
				}
				return ss, nil
			}
			return c
		}
		client := resumer(version)
		one, two := bound("1"), bound("2")
		resumed(t, one, client)
		if !resumed(t, one, client) {
			t.Error("its own ticket was not taken")
		}
		if resumed(t, two, client) {
			t.Error("another's ticket was taken")
		}
		indirect := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return two, nil }}
		if !resumed(t, indirect, client) {
			t.Error("GetConfigForClient does not resume")
		}
	})
}

// What is changed in one configuration shows in no other.
func TestConfigurationsAreTheCallers(t *testing.T) {
	p := single(newCA(t).issue(t, nil, nil).pair(t))
	s := load(t, p)
	one, two := downstream(t, s, p, nil), s.Upstream(&p.Servers[0], serverAddr)
	one.MinVersion, two.MinVersion = tls.VersionTLS13, tls.VersionTLS13
	if downstream(t, s, p, nil).MinVersion != tls.VersionTLS12 || s.Upstream(&p.Servers[0], serverAddr).MinVersion != tls.VersionTLS12 {
		t.Error("a configuration is shared")
	}
}

func TestOtherPolicy(t *testing.T) {
	p := single(newCA(t).issue(t, nil, nil).pair(t))
	s, other := load(t, p), single()
	for name, pair := range map[string]struct {
		server *policy.Server
		rule   *policy.Rule
	}{"server": {&other.Servers[0], &p.Rules[0]}, "rule": {&p.Servers[0], &other.Rules[0]}, "neither": {nil, nil}} {
		if _, err := s.Downstream(pair.server, pair.rule, serverAddr, nil); !errors.Is(err, errNotLoaded) {
			t.Errorf("%s of another policy: %v", name, err)
		}
	}
}

// A rule's CA: only clients with a certificate of it are let in, whether they resume or not.
func TestClientCertificates(t *testing.T) {
	ca, stranger := newCA(t), newCA(t)
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	certificate := func(i *issued) []tls.Certificate {
		return []tls.Certificate{{Certificate: [][]byte{i.cert.Raw}, PrivateKey: i.key}}
	}
	p := single(ca.issue(t, nil, nil).pair(t))
	p.Rules[0].TLS.CA = write(t, "ca", ca.certPEM(), 0o644)
	s := load(t, p)
	eachVersion(t, func(t *testing.T, version uint16) {
		for name, c := range map[string]struct {
			certificates []tls.Certificate
			want         string
		}{
			"of the CA":    {certificate(ca.issue(t, nil, forClients)), ""},
			"none":         {nil, "tls: client didn't provide a certificate"},
			"of another":   {certificate(stranger.issue(t, nil, forClients)), "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
			"a server's":   {certificate(ca.issue(t, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), "tls: failed to verify certificate: x509: certificate specifies an incompatible key usage"},
			"self-signed":  {certificate((*issued)(nil).issue(t, nil, forClients)), "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
			"of the CA, 2": {certificate(ca.issue(t, rsaKey(t), forClients)), ""},
		} {
			config, client := downstream(t, s, p, nil), resumer(version)
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if c.certificates == nil {
					return &tls.Certificate{}, nil
				}
				return &c.certificates[0], nil
			}
			o := handshake(t, config, client)
			if (o.serverErr == nil) != (c.want == "") || o.serverErr != nil && !strings.HasPrefix(o.serverErr.Error(), c.want) {
				t.Errorf("%s: %v", name, o.serverErr)
			}
			if c.want == "" && !resumed(t, config, client) {
				t.Errorf("%s: not resumed", name)
			}
		}
	})
}

// The versions that a rule allows, as openssl sees them.
func TestVersions(t *testing.T) {
	ca := newCA(t)
	pair := ca.issue(t, rsaKey(t), nil).pair(t)
	legacy := policy.Versions{Min: tls.VersionTLS10, Max: tls.VersionTLS13, Legacy: true}
	for _, c := range []struct {
		versions policy.Versions
		client   string
		want     string // of openssl's brief report; empty: refused
	}{
		{versions, "-tls1_3", "Protocol version: TLSv1.3"},
		{versions, "-tls1_2", "Protocol version: TLSv1.2"},
		{versions, "-tls1_1 -cipher ALL:@SECLEVEL=0", ""},
		{versions, "-tls1 -cipher ALL:@SECLEVEL=0", ""},
		{versions, "-tls1_2 -cipher AES128-SHA", ""}, // RSA key exchange
		{versions, "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "Ciphersuite: ECDHE-RSA-AES128-GCM-SHA256"},
		{policy.Versions{Min: tls.VersionTLS13, Max: tls.VersionTLS13}, "-tls1_2", ""},
		{policy.Versions{Min: tls.VersionTLS12, Max: tls.VersionTLS12}, "-tls1_3", ""},
		{policy.Versions{}, "-tls1_1 -cipher ALL:@SECLEVEL=0", ""}, // what was forgotten is not allowed
		{legacy, "-tls1_3", "Protocol version: TLSv1.3"},
		{legacy, "-tls1_1 -cipher ALL:@SECLEVEL=0", "Protocol version: TLSv1.1"},
		{legacy, "-tls1 -cipher ALL:@SECLEVEL=0", "Protocol version: TLSv1"},
		{legacy, "-tls1_2 -cipher AES128-SHA", "Ciphersuite: AES128-SHA"},
		{legacy, "-tls1_2 -cipher AES128-SHA:ECDHE-RSA-AES128-GCM-SHA256", "Ciphersuite: ECDHE-RSA-AES128-GCM-SHA256"}, // the better one
	} {
		p := single(pair)
		p.Rules[0].TLS.Versions = c.versions
		addr, done := serve(t, downstream(t, load(t, p), p, nil))
		out, err := openssl(t, append([]string{"s_client", "-brief", "-connect", addr}, strings.Fields(c.client)...)...)
		o := <-done
		switch {
		case c.want == "" && (err == nil || o.serverErr == nil):
			t.Errorf("%+v took %s:\n%s", c.versions, c.client, out)
		case c.want != "" && (err != nil || o.serverErr != nil || !slices.Contains(strings.Split(out, "\n"), c.want)):
			t.Errorf("%+v, %s: %v, %v, want %q:\n%s", c.versions, c.client, err, o.serverErr, c.want, out)
		}
	}
}

// 3DES, which openssl here no longer has, and never RC4.
func TestOldCiphers(t *testing.T) {
	for _, c := range []struct {
		suite        uint16
		legacy, want bool
	}{
		{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, true, true},
		{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, false, false},
		{tls.TLS_RSA_WITH_RC4_128_SHA, true, false},
		{tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA, true, false},
	} {
		p := single(newCA(t).issue(t, rsaKey(t), nil).pair(t))
		p.Rules[0].TLS.Versions.Legacy = c.legacy
		client := anyone()
		client.CipherSuites, client.MaxVersion = []uint16{c.suite}, tls.VersionTLS12
		o := handshake(t, downstream(t, load(t, p), p, nil), client)
		if got := o.err() == nil; got != c.want {
			t.Errorf("%s, legacy %v: %v", tls.CipherSuiteName(c.suite), c.legacy, o.err())
		}
	}
}

// Neither a client nor a server may renegotiate: it could become another behind the policy's back.
func TestNoRenegotiation(t *testing.T) {
	p := single(newCA(t).issue(t, nil, nil).pair(t))
	s := load(t, p)
	addr, done := serve(t, downstream(t, s, p, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", addr, "-tls1_2")
	cmd.Stdin = strings.NewReader("R\n") // which is no data, but has openssl ask for it
	out, err := cmd.CombinedOutput()
	if o := <-done; o.serverErr != nil || err == nil || !bytes.Contains(out, []byte("RENEGOTIATING\n")) || !bytes.Contains(out, []byte("alert unexpected message")) {
		t.Errorf("client %v, server %v:\n%s", err, o.serverErr, out)
	}
	if r := s.Upstream(&p.Servers[0], serverAddr).Renegotiation; r != tls.RenegotiateNever {
		t.Errorf("upstream: %v", r)
	}
}

func BenchmarkDownstream(b *testing.B) {
	p := minting(b, newCA(b))
	s := load(b, p)
	peer := (*issued)(nil).issue(b, nil, nil).cert
	for b.Loop() {
		if _, err := s.Downstream(&p.Servers[0], &p.Rules[0], serverAddr, peer); err != nil {
			b.Fatal(err)
		}
	}
}
