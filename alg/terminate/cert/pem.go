package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Labels of PEM blocks (RFC 7468). Those of private keys end in keyLabel, whatever form they have.
const (
	certificateLabel = "CERTIFICATE"
	keyLabel         = "PRIVATE KEY"
	encryptedLabel   = "ENCRYPTED PRIVATE KEY" // PKCS #8
	pkcs1Label       = "RSA PRIVATE KEY"
	sec1Label        = "EC PRIVATE KEY"
)

// maxChain bounds a certificate chain: TLS clients follow no more than about ten.
const maxChain = 16

// minRSA is the shortest RSA key that is used or accepted, in bits (RFC 9325 section 4.5).
const minRSA = 2048

// decode gives the PEM blocks of a file, at least one. Text around them is allowed (RFC 7468 section 5.2). A block that
// cannot be read is a fault, because without it a chain or a CA would be missing silently.
func decode(data []byte) (blocks []*pem.Block, err error) {
	begin, byteOrderMark := []byte("-----BEGIN "), []byte("\xef\xbb\xbf")
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("is empty; write the PEM text into it, or name another file")
	}
	rest, line := bytes.TrimPrefix(data, byteOrderMark), 1
	for {
		block, after := pem.Decode(rest)
		read := rest[:len(rest)-len(after)]
		if block == nil {
			read = rest
		}
		// Decode passes over what it cannot read, so that more than one block may begin in what it went through.
		if n := bytes.Count(read, begin); block == nil && n > 0 || n > 1 {
			line += bytes.Count(read[:bytes.Index(read, begin)], []byte("\n"))
			return nil, fmt.Errorf("has a damaged PEM block in line %d; copy the file again", line)
		}
		if block == nil {
			break
		}
		line += bytes.Count(read, []byte("\n"))
		blocks, rest = append(blocks, block), after
	}
	if len(blocks) == 0 {
		return nil, errors.New("holds no PEM block; convert it with openssl x509 or openssl pkey (DER), or openssl pkcs12 (PKCS #12)")
	}
	return blocks, nil
}

func isKey(b *pem.Block) bool { return strings.HasSuffix(b.Type, keyLabel) }

func holdsKey(blocks []*pem.Block) bool { return slices.ContainsFunc(blocks, isKey) }

// certificates parses all certificates among blocks, at least one.
func certificates(blocks []*pem.Block) (list []*x509.Certificate, err error) {
	for _, b := range blocks {
		if b.Type != certificateLabel {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it cannot be parsed: %w; have it issued again, or remove it", len(list)+1, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("holds no certificate, but %s; name the file with the certificate", labels(blocks))
	}
	return list, nil
}

// privateKey parses the one private key among blocks, of a kind that TLS can use.
func privateKey(blocks []*pem.Block) (crypto.Signer, error) {
	i := slices.IndexFunc(blocks, isKey)
	if i < 0 {
		return nil, fmt.Errorf("holds no private key, but %s; name the file with the key", labels(blocks))
	}
	if holdsKey(blocks[i+1:]) {
		return nil, errors.New("holds more than one private key; keep the certificate's")
	}
	key, err := parseKey(blocks[i])
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < minRSA {
			return nil, fmt.Errorf("holds an RSA key of %d bits; make one of 2048", bits)
		}
		return key, nil
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P224() { // the one curve of crypto/x509 that crypto/tls lacks
			return key, nil
		}
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, errors.New("holds a private key that TLS cannot use; make one for RSA, ECDSA (P-256, P-384, P-521) or Ed25519")
}

// parseKey parses a key in the form that its label says.
func parseKey(b *pem.Block) (key any, err error) {
	switch {
	case b.Type == encryptedLabel || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED"): // RFC 1421 section 4.6.1.1
		return nil, errors.New("holds an encrypted private key, and ftpalg cannot ask for the passphrase; decrypt it with openssl pkey")
	case b.Type == keyLabel:
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case b.Type == pkcs1Label:
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case b.Type == sec1Label:
		key, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("holds a private key in the form %.40q; convert it to PKCS #8 with openssl pkey", b.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("holds a private key that cannot be parsed: %w; convert it to PKCS #8 with openssl pkey, or make a new one", err)
	}
	return key, nil
}

// labels tells what a file has instead of what was looked for.
func labels(blocks []*pem.Block) string {
	if holdsKey(blocks) {
		return "a private key"
	}
	return fmt.Sprintf("%.40q", blocks[0].Type)
}

// match checks that chain is one that can be shown with key: the key's own certificate comes first.
func match(chain []*x509.Certificate, key crypto.Signer) error {
	if len(chain) > maxChain {
		return fmt.Errorf("holds %d certificates; %d is the most of a chain, keep the key's own and its intermediates", len(chain), maxChain)
	}
	public := key.Public().(interface{ Equal(crypto.PublicKey) bool }) // as all public keys of the library
	own := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return public.Equal(c.PublicKey) })
	switch {
	case own < 0:
		return errors.New("is not the certificate of the key; name the two files that belong together")
	case own > 0:
		return fmt.Errorf("has the certificate of the key as number %d; put it first, and each one's issuer behind it", own+1)
	}
	return nil
}
