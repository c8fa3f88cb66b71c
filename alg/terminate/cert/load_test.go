package cert

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftpalg/policy"
)

// Keys as openssl writes them: each is loaded and serves a client.
func TestKeyForms(t *testing.T) {
	for name, command := range map[string]string{
		"RSA, PKCS #1":           "genrsa -traditional -out KEY 2048",
		"RSA, PKCS #8":           "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out KEY",
		"ECDSA P-256, SEC1":      "ecparam -name prime256v1 -genkey -out KEY", // its parameters come first, in a block of their own
		"ECDSA P-384, PKCS #8":   "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out KEY",
		"ECDSA P-521, SEC1 bare": "ecparam -name secp521r1 -genkey -noout -out KEY",
		"Ed25519":                "genpkey -algorithm ED25519 -out KEY",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			pair := policy.KeyPair{Certificate: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
			mustOpenSSL(t, strings.Replace(command, "KEY", pair.Key, 1))
			mustOpenSSL(t, "req -x509 -key "+pair.Key+" -subj /CN=ftp.example.com -addext subjectAltName=DNS:ftp.example.com -out "+pair.Certificate)
			p := single(pair)
			s := load(t, p)
			if w := s.Warnings(); len(w) > 0 {
				t.Errorf("warnings: %q", w)
			}
			text, err := os.ReadFile(pair.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(text)
			o := handshake(t, downstream(t, s, p, nil), &tls.Config{RootCAs: roots, ServerName: "ftp.example.com"})
			if o.err() != nil {
				t.Errorf("client: %v, server: %v", o.clientErr, o.serverErr)
			}
		})
	}
}

// One file for all, text around the blocks, line ends and a byte order mark of another system: all are common.
func TestFilesAsTheyCome(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, nil, nil)
	cert, key := string(leaf.certPEM()), string(leaf.keyPEM(t))
	for name, text := range map[string]string{
		"certificate first":  cert + string(ca.certPEM()) + key,
		"key first":          key + cert,
		"text around":        "Bag Attributes\n  friendlyName: ftp\n" + key + "\nsubject=CN = ftp\n" + cert + "\nthe end",
		"CR LF":              strings.ReplaceAll(cert+key, "\n", "\r\n"),
		"byte order mark":    "\xef\xbb\xbf" + cert + key,
		"no line end at end": cert + strings.TrimSuffix(key, "\n"),
	} {
		path := write(t, "both.pem", []byte(text), 0o600)
		p := single(policy.KeyPair{Certificate: path, Key: path})
		if s, err := Load(p); err != nil || len(s.Warnings()) > 0 {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Each case is a policy of one certificate and every message that it must give. @CERT and @KEY stand for the files.
func TestErrors(t *testing.T) {
	ca := newCA(t)
	leaf, other := ca.issue(t, nil, nil), ca.issue(t, nil, nil)
	cert, key := string(leaf.certPEM()), string(leaf.keyPEM(t))
	damaged := strings.Replace(cert, "\nMI", "\n!!", 1)
	generated := func(command string) string {
		out := filepath.Join(t.TempDir(), "out")
		mustOpenSSL(t, strings.Replace(command, "OUT", out, 1))
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const (
		inCert  = "servers[0].certificates[0].certificate: @CERT: "
		inKey   = "servers[0].certificates[0].key: @KEY: "
		noKey   = "; name the file with the key"
		unfit   = "holds a private key that TLS cannot use; make one for RSA, ECDSA (P-256, P-384, P-521) or Ed25519"
		convert = "holds no PEM block; convert it with openssl x509 or openssl pkey (DER), or openssl pkcs12 (PKCS #12)"
	)
	for _, c := range []struct {
		name, cert, key string
		want            []string
	}{
		{"in order", cert, key, nil},
		{"both empty", "", " \n", []string{
			inCert + "is empty; write the PEM text into it, or name another file",
			inKey + "is empty; write the PEM text into it, or name another file",
		}},
		{"no PEM", "hello\n", "hello\n", []string{inCert + convert, inKey + convert}},
		{"DER", string(leaf.cert.Raw), key, []string{inCert + convert}},
		{"too large", cert + strings.Repeat("\n", maxFile), key, []string{inCert + "has more than 1048576 bytes; name a file with PEM certificates or a key"}},
		{"exchanged", key, cert, []string{
			inCert + "holds a private key and has mode 0644, so that group or others can read or write it; run: chmod go-rw @CERT",
			inKey + `holds no private key, but "CERTIFICATE"` + noKey,
		}},
		{"no certificate", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", key, []string{inCert + `holds no certificate, but "X509 CRL"; name the file with the certificate`}},
		{"a damaged block", "text\n" + cert + "more\n" + damaged, key, []string{
			fmt.Sprintf("%shas a damaged PEM block in line %d; copy the file again", inCert, 3+strings.Count(cert, "\n")),
		}},
		{"a damaged block first", damaged + cert, key, []string{inCert + "has a damaged PEM block in line 1; copy the file again"}},
		{"cut off", cert, key[:len(key)-10], []string{inKey + "has a damaged PEM block in line 1; copy the file again"}},
		{"an indented block", cert + "  " + cert, key, []string{fmt.Sprintf("%shas a damaged PEM block in line %d; copy the file again", inCert, 1+strings.Count(cert, "\n"))}},
		{"no certificate inside", cert + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", key, []string{
			inCert + "certificate 2 in it cannot be parsed: x509: malformed certificate; have it issued again, or remove it",
		}},
		{"another form than its label says", cert, strings.ReplaceAll(generated("ecparam -name prime256v1 -genkey -noout -out OUT"), "EC PRIVATE", "PRIVATE"), []string{
			inKey + "holds a private key that cannot be parsed: x509: failed to parse private key (use ParseECPrivateKey instead for this key format); convert it to PKCS #8 with openssl pkey, or make a new one",
		}},
		{"another's key", cert, string(other.keyPEM(t)), []string{inCert + "is not the certificate of the key; name the two files that belong together"}},
		{"wrong order", string(ca.certPEM()) + cert, key, []string{inCert + "has the certificate of the key as number 2; put it first, and each one's issuer behind it"}},
		{"a bundle", strings.Repeat(cert, 17), key, []string{inCert + "holds 17 certificates; 16 is the most of a chain, keep the key's own and its intermediates"}},
		{"two keys", cert, key + key, []string{inKey + "holds more than one private key; keep the certificate's"}},
		{"encrypted, PKCS #8", cert, generated("genpkey -algorithm ED25519 -aes256 -pass pass:x -out OUT"), []string{
			inKey + "holds an encrypted private key, and ftpalg cannot ask for the passphrase; decrypt it with openssl pkey",
		}},
		{"encrypted, PKCS #1", cert, generated("genrsa -traditional -aes128 -passout pass:x -out OUT 2048"), []string{
			inKey + "holds an encrypted private key, and ftpalg cannot ask for the passphrase; decrypt it with openssl pkey",
		}},
		{"OpenSSH", cert, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", []string{
			inKey + `holds a private key in the form "OPENSSH PRIVATE KEY"; convert it to PKCS #8 with openssl pkey`,
		}},
		{"short RSA", cert, generated("genrsa -out OUT 512"), []string{inKey + "holds an RSA key of 512 bits; make one of 2048"}},
		{"RSA that is nearly long enough", cert, generated("genrsa -out OUT 2040"), []string{inKey + "holds an RSA key of 2040 bits; make one of 2048"}},
		{"P-224", cert, generated("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-224 -out OUT"), []string{inKey + unfit}},
		{"X25519", cert, generated("genpkey -algorithm X25519 -out OUT"), []string{inKey + unfit}},
		{"a curve that Go lacks", cert, generated("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out OUT"), []string{
			inKey + "holds a private key that cannot be parsed: x509: failed to parse EC private key embedded in PKCS#8: x509: unknown elliptic curve; convert it to PKCS #8 with openssl pkey, or make a new one",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair := policy.KeyPair{Certificate: write(t, "c", []byte(c.cert), 0o644), Key: write(t, "k", []byte(c.key), 0o600)}
			_, err := Load(single(pair))
			wantErrors(t, err, c.want, "@CERT", pair.Certificate, "@KEY", pair.Key)
		})
	}
}

// wantErrors compares the lines of an error. places are names and what they stand for.
func wantErrors(t *testing.T, err error, want []string, places ...string) {
	t.Helper()
	var got []string
	if err != nil {
		got = strings.Split(err.Error(), "\n")
	}
	for i, w := range want {
		want[i] = strings.NewReplacer(places...).Replace(w)
	}
	if !slices.Equal(got, want) {
		t.Errorf("errors are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Every key of the policy that names a file is named in its error, and all at once.
func TestEveryKeyIsNamed(t *testing.T) {
	path := func(name string) string { return filepath.Join("/nonexistent", name) }
	pair := func(name string) policy.KeyPair {
		return policy.KeyPair{Certificate: path(name), Key: path(name + ".key")}
	}
	p := single(pair("a"), pair("b"))
	p.Authority = pair("ca")
	p.Servers = append(p.Servers, policy.Server{Upstream: policy.Upstream{
		Verify: policy.Verify{Kind: policy.VerifyCA, CA: path("roots")}, Client: pair("client"),
	}})
	p.Rules[0].TLS.CA = path("clients")
	_, err := Load(p)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v does not wrap fs.ErrNotExist", err)
	}
	var want []string
	for _, at := range [][2]string{
		{"authority.certificate", "ca"}, {"authority.key", "ca.key"},
		{"servers[0].certificates[0].certificate", "a"}, {"servers[0].certificates[0].key", "a.key"},
		{"servers[0].certificates[1].certificate", "b"}, {"servers[0].certificates[1].key", "b.key"},
		{"servers[1].upstream.verify", "roots"}, {"servers[1].upstream.certificate", "client"}, {"servers[1].upstream.key", "client.key"},
		{"rules[0].tls.client-ca", "clients"},
	} {
		want = append(want, at[0]+": "+path(at[1])+": no such file or directory; correct the name, or make the file readable by ftpalg")
	}
	wantErrors(t, err, want)
}

// What the policy may name and is no regular file must not hang or be read.
func TestNoRegularFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), "/dev/zero"} {
		_, err := Load(single(policy.KeyPair{Certificate: path, Key: path}))
		wantErrors(t, err, []string{
			"servers[0].certificates[0].certificate: AT: is no regular file; name a PEM file",
			"servers[0].certificates[0].key: AT: is no regular file; name a PEM file",
		}, "AT", path)
	}
}

// Root can read everything, so it is the mode that counts, of the file behind a symbolic link and not of the link.
func TestModes(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, nil, nil)
	for mode, refused := range map[os.FileMode]bool{
		0o600: false, 0o400: false, 0o700: false, 0o711: false,
		0o640: true, 0o604: true, 0o620: true, 0o602: true, 0o644: true, 0o660: true, 0o666: true, 0o777: true,
	} {
		key := write(t, "it's a key", leaf.keyPEM(t), mode)
		link := filepath.Join(t.TempDir(), "link.pem")
		if err := os.Symlink(key, link); err != nil {
			t.Fatal(err)
		}
		p := single(policy.KeyPair{Certificate: write(t, "c", leaf.certPEM(), 0o666), Key: link})
		var want []string
		if refused {
			want = []string{fmt.Sprintf("servers[0].certificates[0].key: LINK: holds a private key and has mode %04o, so that group or others can read or write it; run: chmod go-rw LINK", mode)}
		}
		_, err := Load(p)
		wantErrors(t, err, want, "LINK", link)
	}
}

// Whoever owns a key can change its mode, and so read it.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: files of others need root")
	}
	const stranger = 64321
	leaf := newCA(t).issue(t, nil, nil)
	pair := leaf.pair(t)
	must(t, os.Chown(pair.Certificate, stranger, stranger)) // which holds no key
	_, err := Load(single(pair))
	wantErrors(t, err, nil)
	must(t, os.Chown(pair.Key, stranger, stranger))
	_, err = Load(single(pair))
	wantErrors(t, err, []string{fmt.Sprintf("servers[0].certificates[0].key: KEY: holds a private key and belongs to user %d; run: chown root KEY", stranger)}, "KEY", pair.Key)
	if !mayOwn(stranger, 0, stranger) || !mayOwn(stranger, stranger, -1) || !mayOwn(0, stranger, -1) || mayOwn(stranger, 1, 2) || mayOwn(stranger, 1, -1) {
		t.Error("a key may belong to root, to the user that runs this and to the service, and to nobody else")
	}
}

// The rule is for every private key, wherever the policy has it.
func TestModesOfEveryKey(t *testing.T) {
	ca := newCA(t)
	leaf := ca.issue(t, nil, nil)
	open := write(t, "it's open", append(leaf.certPEM(), leaf.keyPEM(t)...), 0o640)
	pair, good := policy.KeyPair{Certificate: leaf.pair(t).Certificate, Key: open}, leaf.pair(t)
	for key, p := range map[string]*policy.Policy{
		"authority.key":                          {Authority: policy.KeyPair{Certificate: ca.pair(t).Certificate, Key: open}},
		"servers[0].certificates[0].key":         single(pair),
		"servers[0].certificates[0].certificate": single(policy.KeyPair{Certificate: open, Key: good.Key}),
		"servers[0].upstream.key":                {Servers: []policy.Server{{Upstream: policy.Upstream{Client: pair}}}},
		"servers[0].upstream.verify":             {Servers: []policy.Server{{Upstream: policy.Upstream{Verify: policy.Verify{Kind: policy.VerifyCA, CA: open}}}}},
		"rules[0].tls.client-ca":                 {Rules: []policy.Rule{{TLS: policy.ClientTLS{CA: open}}}},
	} {
		_, err := Load(p)
		wantErrors(t, err, []string{key + ": OPEN: holds a private key and has mode 0640, so that group or others can read or write it; run: chmod go-rw '" +
			strings.ReplaceAll(open, "'", `'\''`) + "'"}, "OPEN", open)
	}
}

func TestAuthorityErrors(t *testing.T) {
	ca := newCA(t)
	for name, c := range map[string]struct {
		edit func(*x509.Certificate)
		want string
	}{
		"a server's": {nil, "is not the certificate of a CA; make a CA with basicConstraints = critical,CA:true and keyUsage = critical,keyCertSign"},
		"CA:false":   {func(c *x509.Certificate) { c.BasicConstraintsValid = true }, "is not the certificate of a CA; make a CA with basicConstraints = critical,CA:true and keyUsage = critical,keyCertSign"},
		"may not sign": {func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.KeyUsage = true, true, x509.KeyUsageCRLSign
		}, "is the certificate of a CA that may not sign certificates; make a CA with basicConstraints = critical,CA:true and keyUsage = critical,keyCertSign"},
		"for clients only": {func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.ExtKeyUsage = true, true, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, "is the certificate of a CA that is not for servers; make one without extendedKeyUsage"},
		"no key usage": {func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = true, true }, ""},
		"for servers": {func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.ExtKeyUsage = true, true, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := &policy.Policy{Authority: ca.issue(t, nil, c.edit).pair(t)}
			_, err := Load(p)
			var want []string
			if c.want != "" {
				want = []string{"authority.certificate: " + p.Authority.Certificate + ": " + c.want}
			}
			wantErrors(t, err, want)
		})
	}
}

func TestWarnings(t *testing.T) {
	ca := newCA(t)
	day := func(n int) time.Time { return time.Date(2020, 1, n, 0, 0, 0, 0, time.UTC) }
	expired := ca.issue(t, nil, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = day(1), day(2) })
	future := ca.issue(t, nil, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = day(1).AddDate(100, 0, 0), day(2).AddDate(100, 0, 0)
	})
	p := single(expired.pair(t), future.pair(t), ca.issue(t, nil, nil).pair(t, expired))
	p.Rules[0].TLS.CA = write(t, "old", append(expired.certPEM(), future.certPEM()...), 0o644)
	p.Servers[0].Upstream.Verify = policy.Verify{Kind: policy.VerifyCA, CA: write(t, "new", append(expired.certPEM(), ca.certPEM()...), 0o644)}
	s := load(t, p)
	at := func(i int, text string) string {
		return fmt.Sprintf("servers[0].certificates[%d].certificate: %s: certificate %s", i, p.Servers[0].Certificates[i].Certificate, text)
	}
	want := []string{
		at(0, `1, of "CN=ftp.example.com", expired on 2020-01-02T00:00:00Z; renew it`),
		at(1, `1, of "CN=ftp.example.com", is not valid before 2120-01-01T00:00:00Z; wait, or set the clock`),
		at(2, `2, of "CN=ftp.example.com", expired on 2020-01-02T00:00:00Z; renew it`),
		at(2, "2 is not of the issuer of certificate 1; put each one's issuer behind it"),
		"rules[0].tls.client-ca: " + p.Rules[0].TLS.CA + ": no certificate in it is valid now; get the CA's current one",
	}
	if got := s.Warnings(); !slices.Equal(got, want) {
		t.Errorf("warnings are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Renewals as they are done: written over, renamed into place, a link turned, and what only may be one.
func TestStale(t *testing.T) {
	ca := newCA(t)
	for name, change := range map[string]func(t *testing.T, cert, link string){
		"written over": func(t *testing.T, cert, _ string) {
			must(t, os.WriteFile(cert, ca.issue(t, nil, named("another.example.com")).certPEM(), 0o644))
		},
		"renamed": func(t *testing.T, cert, _ string) {
			text, err := os.ReadFile(cert)
			must(t, err)
			info, err := os.Stat(cert)
			must(t, err)
			must(t, os.WriteFile(cert+"~", text, 0o644))
			must(t, os.Chtimes(cert+"~", info.ModTime(), info.ModTime()))
			must(t, os.Rename(cert+"~", cert))
		},
		"link turned": func(t *testing.T, cert, link string) {
			must(t, os.WriteFile(cert+"2", nil, 0o644))
			must(t, os.Symlink(cert+"2", link+"2"))
			must(t, os.Rename(link+"2", link))
		},
		"mode":    func(t *testing.T, cert, _ string) { must(t, os.Chmod(cert, 0o600)) },
		"touched": func(t *testing.T, cert, _ string) { must(t, os.Chtimes(cert, time.Unix(1, 0), time.Unix(1, 0))) },
		"removed": func(t *testing.T, cert, _ string) { must(t, os.Remove(cert)) },
	} {
		t.Run(name, func(t *testing.T) {
			pair := ca.issue(t, nil, nil).pair(t)
			link := filepath.Join(t.TempDir(), "link")
			must(t, os.Symlink(pair.Certificate, link))
			s := load(t, single(policy.KeyPair{Certificate: link, Key: pair.Key}))
			if s.Stale() {
				t.Fatal("stale without a change")
			}
			change(t, pair.Certificate, link)
			if !s.Stale() {
				t.Error("not stale")
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
