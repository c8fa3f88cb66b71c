package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"ftpalg/policy"
)

const (
	// maxMinted bounds the minted certificates that are kept: more than the servers and names of most gateways. With
	// maxLeaf it bounds their memory to some 20 MB.
	maxMinted = 1024
	// maxMintedOfClient bounds those that one client brings about: by the names that it asks for, or the servers it goes to.
	maxMintedOfClient = 64
	// maxLeaf bounds the server's certificate that one is minted from, in bytes. A hundred names make about 4 kB.
	maxLeaf = 16 << 10
	// period is for how long the certificate of a server that shows none itself stays the same, as far as it is kept.
	// It is valid from a day before its period, since clocks differ, to the end of the next one.
	period = 30 * 24 * time.Hour
	// rsaBits is the size of the key for old clients; they are slow with longer ones, or cannot use them.
	rsaBits = 2048
)

// authority mints certificates. All have the same two keys: what a key is for is in the certificate.
type authority struct {
	issuer *x509.Certificate
	id     []byte   // the issuer's key identifier
	chain  [][]byte // what follows a minted certificate: the issuer, and what its file has behind it
	key    crypto.Signer
	ecdsa  *ecdsa.PrivateKey
	rsa    func() (*rsa.PrivateKey, error) // made when the first client needs it: that takes a tenth of a second
	minted *cache
}

// authority reads the CA that mints, or gives nil where none is named or after a fault.
func (l *loader) authority(key string, names policy.KeyPair) *authority {
	if names.IsZero() {
		return nil
	}
	pair := l.pair(key, names)
	if pair == nil {
		return nil
	}
	if err := mayIssue(pair.Leaf); err != nil {
		l.fault(key+".certificate", names.Certificate, err)
		return nil
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.fault(key+".key", names.Key, fmt.Errorf("the key of minted certificates: %w", err))
		return nil
	}
	return &authority{
		issuer: pair.Leaf,
		id:     issuerID(pair.Leaf),
		chain:  pair.Certificate,
		key:    pair.PrivateKey.(crypto.Signer),
		ecdsa:  own,
		rsa:    sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits) }),
		minted: newCache(maxMinted, maxMintedOfClient),
	}
}

// mayIssue checks that clients accept what a certificate's key signs for servers (RFC 5280 sections 4.2.1.3 and 4.2.1.9).
func mayIssue(c *x509.Certificate) error {
	const remedy = "make a CA with basicConstraints = critical,CA:true and keyUsage = critical,keyCertSign"
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("is not the certificate of a CA; " + remedy)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("is the certificate of a CA that may not sign certificates; " + remedy)
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return errors.New("is the certificate of a CA that is not for servers; make one without extendedKeyUsage")
	}
	return nil
}

// issuerID gives the key identifier of an issuer; where it has none itself, any will do (RFC 5280 section 4.2.1.1).
func issuerID(c *x509.Certificate) []byte {
	if len(c.SubjectKeyId) > 0 {
		return c.SubjectKeyId
	}
	return keyID(c.RawSubjectPublicKeyInfo)
}

// keyID makes a key identifier (RFC 7093 section 2, method 4).
func keyID(publicKeyInfo []byte) []byte {
	sum := sha256.Sum256(publicKeyInfo)
	return sum[:20]
}

// origin says what a minted certificate is for, and names it in the cache.
type origin struct {
	leaf [sha256.Size]byte // of the server's own certificate, which was verified; or zero, and:
	from int64             // the period in which it was minted
	addr netip.Addr
	name string // that the policy lists for the server, may be empty
	rsa  bool   // and not ECDSA
}

// identity is what one control connection shows to its client. Its data connections show the same again, when the cache
// has dropped it or a new period has begun too, because clients compare the two (FileZilla).
type identity struct {
	by   *authority
	addr netip.Addr
	name string            // of the server, by the policy
	peer *x509.Certificate // nil unless it was verified

	mu    sync.Mutex
	shown [2]*tls.Certificate // ECDSA, RSA
}

func (a *authority) identity(addr netip.Addr, name string, peer *x509.Certificate) *identity {
	return &identity{by: a, addr: addr.Unmap().WithZone(""), name: name, peer: peer}
}

// choose gives a certificate with an ECDSA key, and one with an RSA key to a client that cannot use it. What name the client asks
// for makes no difference: nobody has proved that the server has it.
func (i *identity) choose(hello *tls.ClientHelloInfo) (c *tls.Certificate, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	kind, o := 0, origin{addr: i.addr, name: i.name}
	if !supports(hello, &tls.Certificate{PrivateKey: i.by.ecdsa}) {
		kind, o.rsa = 1, true
	}
	if i.shown[kind] != nil {
		return i.shown[kind], nil
	}
	if i.peer != nil {
		o.leaf = sha256.Sum256(i.peer.Raw)
	} else {
		o.from = time.Now().Unix() / int64(period/time.Second)
	}
	if c = i.by.minted.get(o); c == nil {
		if c, err = i.by.mint(o, i.peer); err != nil {
			return nil, fmt.Errorf("no certificate could be minted: %w", err)
		}
		c = i.by.minted.add(o, c, remote(hello))
	}
	i.shown[kind] = c
	return c, nil
}

// remote is the address of the client that says hello.
func remote(hello *tls.ClientHelloInfo) netip.Addr {
	if a, ok := hello.Conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// hostName matches what may be a DNS name of a certificate: letters, digits, hyphens, and underscores as some have them.
var hostName = regexp.MustCompile(`^(` + label + `\.)*` + label + `$`)

const label = `[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?`

func isHostName(name string) bool {
	_, err := netip.ParseAddr(name)
	return err != nil && len(name) <= 253 && hostName.MatchString(name)
}

// isReference reports whether a name of a server's certificate is one that the authority repeats: a host name, or a wildcard that
// is the whole of the first label and stands above two others at least (RFC 6125 section 6.4.3, and what public CAs issue).
func isReference(name string) bool {
	parent, wildcard := strings.CutPrefix(name, "*.")
	return isHostName(parent) && (!wildcard || strings.Contains(parent, "."))
}

// mint makes a certificate for o; peer is the one that it stands for, or nil.
func (a *authority) mint(o origin, peer *x509.Certificate) (*tls.Certificate, error) {
	t, err := a.template(o, peer)
	if err != nil {
		return nil, err
	}
	key := crypto.Signer(a.ecdsa)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if o.rsa {
		if key, err = a.rsa(); err != nil {
			return nil, err
		}
		t.KeyUsage |= x509.KeyUsageKeyEncipherment // RSA key exchange, which legacy allows
	}
	info, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	t.SubjectKeyId = keyID(info)
	der, err := x509.CreateCertificate(rand.Reader, t, a.issuer, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, a.chain...), PrivateKey: key}, nil
}

// template gives what does not depend on the key. The serial number is left out: CreateCertificate makes one of 159 random
// bits. What else the peer's certificate says is about its own key and issuer, or nothing that clients of FTP look at.
func (a *authority) template(o origin, peer *x509.Certificate) (*x509.Certificate, error) {
	t := &x509.Certificate{
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		AuthorityKeyId:        a.id, // of which CreateCertificate itself forgets when subject and issuer have the same name
	}
	switch {
	case peer == nil:
		from := time.Unix(o.from*int64(period/time.Second), 0)
		t.NotBefore, t.NotAfter = from.Add(-24*time.Hour), from.Add(2*period)
		t.Subject = pkix.Name{CommonName: o.addr.String()}
	case len(peer.Raw) > maxLeaf:
		return nil, fmt.Errorf("the server's own has %d bytes; %d is the most that one is minted from", len(peer.Raw), maxLeaf)
	default:
		t.NotBefore, t.NotAfter = peer.NotBefore, peer.NotAfter
		t.RawSubject = peer.RawSubject
		t.IPAddresses = peer.IPAddresses
		t.DNSNames = slices.DeleteFunc(slices.Clone(peer.DNSNames), func(name string) bool { return !isReference(name) })
	}
	if len(t.IPAddresses)+len(t.DNSNames) == 0 {
		// Where there is no name at all, old clients take the subject's (RFC 6125 section 6.4.4).
		t.IPAddresses = []net.IP{o.addr.AsSlice()}
		if named, err := netip.ParseAddr(o.name); err == nil && named != o.addr {
			t.IPAddresses = append(t.IPAddresses, named.AsSlice())
		} else if isHostName(o.name) {
			t.DNSNames = []string{o.name}
		}
	}
	if a.issuer.NotBefore.After(t.NotBefore) {
		t.NotBefore = a.issuer.NotBefore
	}
	if a.issuer.NotAfter.Before(t.NotAfter) {
		t.NotAfter = a.issuer.NotAfter
	}
	if t.NotAfter.Before(t.NotBefore) {
		return nil, errors.New("the authority's is not valid while it would be; renew the authority")
	}
	return t, nil
}
