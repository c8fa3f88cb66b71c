package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The account that exists on the lab's servers, and nowhere else.
const (
	User     = "lab"
	Password = "lab-Passw0rd"
	uid      = 64321
)

// The control ports of the lab's servers.
const (
	ExplicitPort = 21
	ImplicitPort = 990
)

// serverStart bounds the time that a server takes until it listens.
var serverStart = patient(20 * time.Second)

// ServerKind is one of the FTP servers of Debian, as scripts/setup unpacked it.
type ServerKind struct {
	Name     string
	Implicit bool // the server can listen for implicit FTPS
	authSSL  bool // it knows AUTH SSL
	insists  bool // it wants data connections to resume the control connection's TLS session
	setup    Setup
	program  string
	// transferred finds a completed transfer in the server's log, and the client's address in it.
	transferred *regexp.Regexp
	// config returns the text of the configuration file (empty if there is none) and the program's arguments.
	config func(s site, port uint16) (text string, args []string)
}

// site is what a server's configuration needs to know.
type site struct {
	tree string // the unpacked package
	work string // a directory of its own
	cert string
	key  string
	conf string
	Setup
}

// Servers are the FTP servers that the lab can run.
var Servers = []ServerKind{
	{Name: "vsftpd", Implicit: true, authSSL: true, insists: true, program: "usr/sbin/vsftpd", config: vsftpd,
		transferred: regexp.MustCompile(`OK (?:DOWN|UP)LOAD: Client "([^"]+)"`)},
	{Name: "proftpd", Implicit: true, authSSL: true, insists: true, program: "usr/sbin/proftpd", config: proftpd,
		transferred: regexp.MustCompile(`\d{4} \d+ (\S+) \d+ .* c\n`)},
	{Name: "pure-ftpd", program: "usr/sbin/pure-ftpd", config: pureFTPd,
		transferred: regexp.MustCompile(`(?m)^(\S+) - \S+ \[.*\] "(?:GET|PUT) \S*" 200 `)},
}

// vsftpd insists on data connections that resume the control connection's TLS session.
func vsftpd(s site, port uint16) (string, []string) {
	text := fmt.Sprintf(`listen=%s
listen_ipv6=%s
listen_port=%d
background=NO
anonymous_enable=NO
local_enable=YES
write_enable=YES
local_umask=022
connect_from_port_20=YES
pasv_min_port=%d
pasv_max_port=%d
pam_service_name=vsftpd
secure_chroot_dir=%s
vsftpd_log_file=%s
xferlog_enable=YES
xferlog_std_format=NO
ssl_enable=%s
implicit_ssl=%s
force_local_logins_ssl=%[10]s
force_local_data_ssl=%[10]s
require_ssl_reuse=YES
debug_ssl=YES
ssl_ciphers=HIGH
rsa_cert_file=%s
rsa_private_key_file=%s
%s
`, yes(s.Announce.IsValid()), yes(!s.Announce.IsValid()), // on an IPv6 socket it announces 0.0.0.0, whatever it is told
		port, ServerPassive.First, ServerPassive.Last, s.work, s.conf+".log", s.choose("NO", "YES", "YES"), yes(port == ImplicitPort),
		s.choose("NO", "NO", "YES"), s.cert, s.key, s.announced("pasv_address="))
	return text, []string{s.conf}
}

// proftpd insists on session reuse too, which is its default: the option that would lift it is absent.
func proftpd(s site, port uint16) (string, []string) {
	options, versions := "", "TLSv1.2 TLSv1.3"
	if port == ImplicitPort {
		options = "TLSOptions UseImplicitSSL"
	}
	if s.AnySession {
		options += "\nTLSOptions NoSessionReuseRequired"
	}
	if s.TLS12 {
		versions = "TLSv1.2"
	}
	for _, module := range s.Modules {
		options += "\nLoadModule " + module + ".c"
	}
	text := fmt.Sprintf(`ModulePath %s/usr/lib/proftpd
LoadModule mod_tls.c
ServerName lab
ServerType standalone
DefaultServer on
UseIPv6 on
UseReverseDNS off
Port %d
PassivePorts %d %d
User nobody
Group nogroup
AuthOrder mod_auth_unix.c
RequireValidShell off
WtmpLog off
SystemLog %[5]s.log
TransferLog %[5]s.transfers.log
PidFile %[5]s.pid
ScoreboardFile %[5]s.scoreboard
DelayEngine off
ControlsEngine off
AllowOverwrite on
TLSEngine %[6]s
TLSLog %[5]s.tls.log
TLSProtocol %[7]s
TLSRequired %[8]s
TLSVerifyClient off
TLSRSACertificateFile %[9]s
TLSRSACertificateKeyFile %[10]s
%[11]s
%[12]s
`, s.tree, port, ServerPassive.First, ServerPassive.Last, s.conf, s.choose("off", "on", "on"), versions,
		s.choose("off", "off", "on"), s.cert, s.key, options, s.announced("MasqueradeAddress "))
	return text, []string{"-n", "-q", "-c", s.conf}
}

// pureFTPd has no option for implicit FTPS.
func pureFTPd(s site, port uint16) (string, []string) {
	args := []string{
		"--bind", fmt.Sprint(port), "--tls", s.choose("0", "1", "3"), "--certfile", s.cert + "," + s.key,
		"--passiveportrange", fmt.Sprintf("%d:%d", ServerPassive.First, ServerPassive.Last),
		"--login", "unix", "--noanonymous", "--dontresolve", "--pidfile", s.conf + ".pid",
		"--altlog", "clf:" + s.conf + ".log",
	}
	if s.Announce.IsValid() {
		args = append(args, "--forcepassiveip", s.Announce.String())
	}
	return "", args
}

// announced gives the option for another address in 227 than the server's own, if there is to be one.
func (s site) announced(option string) string {
	if !s.Announce.IsValid() {
		return ""
	}
	return option + s.Announce.String()
}

func yes(b bool) string {
	if b {
		return "YES"
	}
	return "NO"
}

// FTPServer is an FTP server that runs in the lab.
type FTPServer struct {
	Kind ServerKind
	// CA is the file with the certificate that clients have to trust: the server's own. Key is the file with its key.
	CA, Key string
	home    string
	procs   []*Proc
}

// File returns the path of a file in the account's home directory.
func (s *FTPServer) File(name string) string { return filepath.Join(s.home, name) }

// Logs returns what the server printed and what it wrote into its log files.
func (s *FTPServer) Logs() string {
	var all strings.Builder
	for _, p := range s.procs {
		all.WriteString(p.Output())
	}
	names, _ := filepath.Glob(filepath.Join(filepath.Dir(s.home), "*.log"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		all.Write(text)
	}
	return all.String()
}

// transfers counts the completed transfers of clients in the server's log.
func (s *FTPServer) transfers(clients netip.Prefix) (n int) {
	for _, match := range s.Kind.transferred.FindAllStringSubmatch(s.Logs(), -1) {
		if addr, err := netip.ParseAddr(match[1]); err == nil && clients.Contains(addr.Unmap()) {
			n++
		}
	}
	return n
}

// StartServer starts an FTP server on the server host: on port 21 for plain and explicit FTPS, and on port 990 for
// implicit FTPS, as far as it can. It returns when the server listens. serversDir is where scripts/setup unpacked the servers.
func (l *Lab) StartServer(ctx context.Context, kind ServerKind, serversDir string) (*FTPServer, error) {
	tree, err := filepath.Abs(filepath.Join(serversDir, kind.Name))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if _, err := os.Stat(filepath.Join(tree, kind.program)); err != nil {
		return nil, fmt.Errorf("lab: %w: run scripts/setup", err)
	}
	dir := l.Path(kind.Name)
	srv := &FTPServer{Kind: kind, CA: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), home: filepath.Join(dir, "home")}
	if err := prepareServer(ctx, dir, srv.home); err != nil {
		return nil, err
	}
	for _, port := range kind.ports() {
		s := site{
			tree: tree, work: filepath.Join(dir, "empty"), cert: srv.CA, key: srv.Key, Setup: kind.setup,
			conf: filepath.Join(dir, fmt.Sprintf("port%d", port)),
		}
		proc, err := l.startServerProcess(ctx, kind, s, port)
		if err != nil {
			return nil, err
		}
		srv.procs = append(srv.procs, proc)
	}
	return srv, nil
}

// withAccount makes the account exist for the program that it starts and for no other: `ip netns exec` gives a program
// mounts of its own, so that these files cover the host's for it alone.
// vsftpd writes what is wrong with its configuration to standard input, hence the last redirection.
const withAccount = `for f in passwd shadow pam.d; do mount --bind "$0/$f" "/etc/$f" || exit 1; done; exec "$@" 0>&1`

func (l *Lab) startServerProcess(ctx context.Context, kind ServerKind, s site, port uint16) (*Proc, error) {
	text, args := kind.config(s, port)
	if text != "" {
		if err := os.WriteFile(s.conf, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
	}
	argv := append([]string{"-c", withAccount, filepath.Dir(s.conf), filepath.Join(s.tree, kind.program)}, args...)
	proc, err := l.Start(ctx, Server, "sh", argv...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, serverStart)
	defer cancel()
	go func() {
		select {
		case <-proc.Exited():
			cancel() // no use in waiting for one that has ended
		case <-ctx.Done():
		}
	}()
	if err := l.WaitListening(ctx, Server, port); err != nil {
		return nil, fmt.Errorf("%w: %s printed %q", err, kind.Name, proc.Output())
	}
	return proc, nil
}

// prepareServer writes what every server needs: the account, its home and a certificate.
func prepareServer(ctx context.Context, dir, home string) error {
	for _, d := range []string{home, filepath.Join(dir, "empty"), filepath.Join(dir, "pam.d")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	if err := os.Chown(home, uid, uid); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	hash, err := run(ctx, "openssl", "passwd", "-6", Password)
	if err != nil {
		return err
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	passwd = fmt.Appendf(passwd, "%s:x:%d:%d::%s:/bin/sh\n", User, uid, uid, home)
	pam := "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n"
	cert, key, err := newCertificate()
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, "passwd"), passwd, 0o644),
		os.WriteFile(filepath.Join(dir, "shadow"), fmt.Appendf(nil, "%s:%s:19000::::::\n", User, strings.TrimSpace(hash)), 0o600),
		os.WriteFile(filepath.Join(dir, "pam.d", "vsftpd"), []byte(pam), 0o644),
		os.WriteFile(filepath.Join(dir, "cert.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(dir, "key.pem"), key, 0o600))
}

// newCertificate makes a self-signed certificate for the server host. RSA, because ProFTPD and vsftpd name their
// options after it.
func newCertificate() (cert, key []byte, err error) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "ftpalg lab"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{Addr(Server, IPv4).AsSlice(), Addr(Server, IPv6).AsSlice(), publicFirst.AsSlice(), publicSecond.AsSlice()},
		// Clients are told to trust this very certificate, and OpenSSL wants a CA for that.
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: %w", err)
	}
	var c, k bytes.Buffer
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	err = errors.Join(err,
		pem.Encode(&c, &pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.Encode(&k, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return c.Bytes(), k.Bytes(), err
}
