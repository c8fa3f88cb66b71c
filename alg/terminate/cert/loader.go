package cert

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"time"

	"ftpalg/policy"
)

// loader reads a policy's files and notes what is wrong with them. It goes on after a fault, so that one run names all.
type loader struct {
	files    map[string]*file
	pools    map[string]*x509.CertPool
	now      time.Time
	warnings []string
	faults   []error
}

func newLoader() *loader {
	return &loader{files: map[string]*file{}, pools: map[string]*x509.CertPool{}, now: time.Now()}
}

// fault notes that the file at path, which key of the policy names, cannot be used. err says why and what to do.
func (l *loader) fault(key, path string, err error) {
	l.faults = append(l.faults, fmt.Errorf("%s: %s: %w", key, path, err))
}

func (l *loader) warn(key, path, format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf("%s: %s: %s", key, path, fmt.Sprintf(format, args...)))
}

func (l *loader) infos() map[string]fs.FileInfo {
	infos := make(map[string]fs.FileInfo, len(l.files))
	for path, f := range l.files {
		infos[path] = f.info
	}
	return infos
}

// read gives the file at path, or nil after a fault.
func (l *loader) read(key, path string) *file {
	f := l.files[path]
	if f == nil {
		read := readFile(path)
		f = &read
		l.files[path] = f
	}
	if f.err != nil {
		l.fault(key, path, f.err)
		return nil
	}
	return f
}

// certificates gives the certificates of the file at path, or nil after a fault.
func (l *loader) certificates(key, path string) []*x509.Certificate {
	f := l.read(key, path)
	if f == nil {
		return nil
	}
	list, err := certificates(f.blocks)
	if err != nil {
		l.fault(key, path, err)
	}
	return list
}

// privateKey gives the private key in the file at path, or nil after a fault.
func (l *loader) privateKey(key, path string) crypto.Signer {
	f := l.read(key, path)
	if f == nil {
		return nil
	}
	private, err := privateKey(f.blocks)
	if err != nil {
		l.fault(key, path, err)
	}
	return private
}

// pair gives a certificate chain with its key, or nil after a fault.
func (l *loader) pair(key string, names policy.KeyPair) *tls.Certificate {
	chain := l.certificates(key+".certificate", names.Certificate)
	private := l.privateKey(key+".key", names.Key)
	if chain == nil || private == nil {
		return nil
	}
	key += ".certificate"
	if err := match(chain, private); err != nil {
		l.fault(key, names.Certificate, err)
		return nil
	}
	l.warnChain(key, names.Certificate, chain)
	pair := &tls.Certificate{PrivateKey: private, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair
}

// pool gives the CAs in the file at path, or nil after a fault.
func (l *loader) pool(key, path string) *x509.CertPool {
	if pool := l.pools[path]; pool != nil {
		return pool
	}
	list := l.certificates(key, path)
	if list == nil {
		return nil
	}
	pool := x509.NewCertPool()
	valid := false
	for _, c := range list {
		pool.AddCert(c)
		valid = valid || l.outdated(c) == ""
	}
	if !valid {
		l.warn(key, path, "no certificate in it is valid now; get the CA's current one")
	}
	l.pools[path] = pool
	return pool
}

// warnChain notes what clients are likely to refuse.
func (l *loader) warnChain(key, path string, chain []*x509.Certificate) {
	for i, c := range chain {
		if when := l.outdated(c); when != "" {
			l.warn(key, path, "certificate %d, of %q, %s", i+1, c.Subject, when)
		}
		if i > 0 && string(chain[i-1].RawIssuer) != string(c.RawSubject) {
			l.warn(key, path, "certificate %d is not of the issuer of certificate %d; put each one's issuer behind it", i+1, i)
		}
	}
}

// outdated says in what way a certificate is not valid now.
func (l *loader) outdated(c *x509.Certificate) string {
	switch {
	case l.now.After(c.NotAfter):
		return "expired on " + c.NotAfter.UTC().Format(time.RFC3339) + "; renew it"
	case l.now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339) + "; wait, or set the clock"
	}
	return ""
}
