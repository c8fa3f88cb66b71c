package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"sync"
	"time"
)

// certificate is the one that everything here shows: the benchmark's server, and what terminates TLS before it. Nobody
// checks it. The key is of the kind that costs least, so that a handshake's other costs are not hidden behind it.
var certificate = sync.OnceValues(newCertificate)

// newCertificate makes a self-signed certificate.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ftpalg bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// The PEM files in a lab's directory. The last has both, as HAProxy wants it.
const (
	certificateFile = "cert.pem"
	keyFile         = "key.pem"
	bothFile        = "both.pem"
)

// writeCertificate puts the certificate and its key into the lab's directory.
func (g *gateway) writeCertificate() error {
	c, err := certificate()
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(
		os.WriteFile(g.Path(certificateFile), chain, 0o600),
		os.WriteFile(g.Path(keyFile), key, 0o600),
		os.WriteFile(g.Path(bothFile), append(chain, key...), 0o600))
}

// pinned leaves TLS one version and so, on machines with AES in hardware, one cipher suite: TLS_AES_128_GCM_SHA256. The key
// exchange is X25519, which every program here has (vsftpd has only P-256). Each would choose its own otherwise.
func pinned(c *tls.Config) *tls.Config {
	c.MinVersion, c.CurvePreferences = tls.VersionTLS13, []tls.CurveID{tls.X25519, tls.CurveP256}
	return c
}

// serverTLS sends full records from the first byte on, as those who do not adapt their size do.
func serverTLS(certificateFile, keyFile string) (*tls.Config, error) {
	c, err := tls.LoadX509KeyPair(certificateFile, keyFile)
	return pinned(&tls.Config{Certificates: []tls.Certificate{c}, DynamicRecordSizingDisabled: true}), err
}

// clientTLS is for one control connection and its data connections, which resume its session.
func clientTLS() *tls.Config {
	return pinned(&tls.Config{
		InsecureSkipVerify: true, ServerName: "bench", ClientSessionCache: tls.NewLRUClientSessionCache(1),
	})
}
