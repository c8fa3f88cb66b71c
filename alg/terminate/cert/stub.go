package cert

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"

	"ftpalg/policy"
)

type Store struct{ base *tls.Config }

func Load(p *policy.Policy) (*Store, error) {
	s := &Store{}
	for _, srv := range p.Servers {
		for _, k := range srv.Certificates {
			c, err := tls.LoadX509KeyPair(k.Certificate, k.Key)
			if err != nil {
				return nil, err
			}
			s.base = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }}
			s.base.SetSessionTicketKeys([][32]byte{{1}})
		}
	}
	return s, nil
}
func (s *Store) Stale() bool { return false }
func (s *Store) Downstream(server *policy.Server, rule *policy.Rule, addr netip.Addr, peer *x509.Certificate) (*tls.Config, error) {
	return s.base, nil
}
func (s *Store) Upstream(server *policy.Server, addr netip.Addr) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: addr.String()}
}
func (s *Store) HasCertificate(server *policy.Server) bool { return s.base != nil }
func (s *Store) Warnings() []string                        { return nil }
