// Package cert turns what a policy says of keys into configurations of crypto/tls: what clients of a terminated
// connection are shown, which is the server's certificate as the policy lists it or one minted by the policy's authority,
// and how the server's own certificate is verified.
//
// Load reads every file that the policy names, once; nothing is read afterwards.
package cert

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"ftpalg/alg/ledger"
	"ftpalg/policy"
)

// Store holds the keys and certificates of one policy. All its methods are safe for concurrent use.
type Store struct {
	files     map[string]fs.FileInfo // of every file that was read, as it was then
	warnings  []string
	authority *authority // nil: nothing is minted
	servers   map[*policy.Server]*material
	rules     map[*policy.Rule]*tls.Config // what Downstream's configurations of a rule have in common
}

// material is what the policy's files hold for one server.
type material struct {
	certificates []tls.Certificate // shown to clients
	roots        *x509.CertPool    // nil unless the policy names a CA file
	upstream     *tls.Config       // what Upstream's configurations have in common
}

// Load reads every file that p names. An error joins all that is wrong, a line each: the key of the policy, the file, what
// is wrong and what to do.
func Load(p *policy.Policy) (*Store, error) {
	l := newLoader()
	s := &Store{servers: map[*policy.Server]*material{}, rules: map[*policy.Rule]*tls.Config{}}
	s.authority = l.authority("authority", p.Authority)
	for i := range p.Servers {
		s.servers[&p.Servers[i]] = l.server(fmt.Sprintf("servers[%d]", i), &p.Servers[i])
	}
	for i := range p.Rules {
		s.rules[&p.Rules[i]] = l.rule(fmt.Sprintf("rules[%d]", i), &p.Rules[i])
	}
	if len(l.faults) > 0 {
		return nil, errors.Join(l.faults...)
	}
	s.files, s.warnings = l.infos(), l.warnings
	return s, nil
}

// Warnings lists what can be used and is hardly meant, such as certificates that have expired, in the form of Load's
// errors.
func (s *Store) Warnings() []string { return slices.Clone(s.warnings) }

// Stale reports whether any file was changed, replaced or removed since Load read it, a change of its mode included.
func (s *Store) Stale() bool {
	for path, then := range s.files {
		info, err := os.Stat(path)
		if err != nil || changed(then, info) {
			return true
		}
	}
	return false
}

// Shares describes what clients use of the minted certificates that are kept: nothing where none are minted.
func (s *Store) Shares() []ledger.Share {
	if s.authority == nil {
		return nil
	}
	return []ledger.Share{{Name: "minted certificates", Use: s.authority.minted.kept.Use()}}
}

// HasCertificate reports whether clients can be shown any certificate for a server: one of its own, or a minted one.
func (s *Store) HasCertificate(server *policy.Server) bool {
	m, known := s.servers[server]
	return known && (len(m.certificates) > 0 || s.authority != nil)
}

// Downstream gives the configuration of the TLS server that clients of a rule meet at a server. peer is the leaf
// certificate that the server itself has shown, nil when there is no TLS to the server; if the policy lists no
// certificates of the server, one with the names of peer is minted during the handshake. Without peer, or where the policy has
// nobody verify it or pins its key, which says nothing of its names, the certificate is for addr, the server's address, and for
// the name that the policy lists (upstream.name): the authority vouches for no name that nobody has proved.
//
// It is to be called once for each control connection. The configuration is the caller's own to change, and serves the
// data connections of that control connection too: all of them show the same certificate, as clients demand. Its key for
// session tickets is set and new, so Clone keeps it, EncryptTicket and DecryptTicket of the configuration or of any clone
// can be called from WrapSession and UnwrapSession, and no other control connection can open the tickets.
func (s *Store) Downstream(server *policy.Server, rule *policy.Rule, addr netip.Addr, peer *x509.Certificate) (*tls.Config, error) {
	m, base := s.servers[server], s.rules[rule]
	if m == nil || base == nil {
		return nil, errNotLoaded
	}
	c := base.Clone()
	switch {
	case len(m.certificates) > 0:
		c.GetCertificate = m.choose
	case s.authority != nil:
		if kind := server.Upstream.Verify.Kind; kind == policy.VerifyNone || kind == policy.VerifyPin {
			peer = nil
		}
		c.GetCertificate = s.authority.identity(addr, strings.ToLower(server.Upstream.Name), peer).choose
	default:
		return nil, fmt.Errorf("no certificate to show for server %q; list its certificates, or set authority", server.Name)
	}
	var key [32]byte
	rand.Read(key[:])
	c.SetSessionTicketKeys([][32]byte{key})
	return c, nil
}

// errNotLoaded is a mistake of the caller: it keeps a policy together with the store of another.
var errNotLoaded = errors.New("the server or the rule is not of the policy whose keys were loaded")

// rule reads what a rule demands of its clients. Renegotiation stays refused, as crypto/tls has it for servers: FTP has no
// use for it, and it would let a client change who it is behind the policy's back.
func (l *loader) rule(key string, r *policy.Rule) *tls.Config {
	c := &tls.Config{}
	setVersions(c, r.TLS.Versions)
	if r.TLS.CA != "" {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = l.pool(key+".tls.client-ca", r.TLS.CA)
	}
	return c
}

// server reads the files of a server.
func (l *loader) server(key string, server *policy.Server) *material {
	m := &material{upstream: &tls.Config{}}
	for i, names := range server.Certificates {
		if pair := l.pair(fmt.Sprintf("%s.certificates[%d]", key, i), names); pair != nil {
			m.certificates = append(m.certificates, *pair)
		}
	}
	key += ".upstream"
	setVersions(m.upstream, server.Upstream.TLS)
	if server.Upstream.Verify.Kind == policy.VerifyCA {
		m.roots = l.pool(key+".verify", server.Upstream.Verify.CA)
	}
	if !server.Upstream.Client.IsZero() {
		pair := l.pair(key, server.Upstream.Client)
		// By the operator's word, whatever CAs the server names in its request.
		m.upstream.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return m
}
