package lab

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Mode is how a data connection is arranged: the FTP command that announces it.
type Mode string

// The data modes of RFC 959 and RFC 2428.
const (
	PASV Mode = "PASV"
	EPSV Mode = "EPSV"
	PORT Mode = "PORT"
	EPRT Mode = "EPRT"
)

// Active tells whether the server connects to the client.
func (m Mode) Active() bool { return m == PORT || m == EPRT }

// Protection is how the control connection is carried.
type Protection string

// The protections.
const (
	Plain    Protection = "plain"
	Explicit Protection = "explicit" // AUTH TLS (RFC 4217)
	Implicit Protection = "implicit"
	AuthSSL  Protection = "auth-ssl" // the same under its older name
	CCC      Protection = "ccc"      // AUTH TLS, and clear text again behind the login
)

// Port returns the control port.
func (p Protection) Port() uint16 {
	if p == Implicit {
		return ImplicitPort
	}
	return ExplicitPort
}

// Job is what a client is told to do in one session: a download and an upload.
type Job struct {
	Host       netip.Addr
	Port       uint16 // the control port there; 0 is the protection's own
	Mode       Mode
	Protection Protection
	Clear      bool   // PROT C: the data connections are in clear text
	CA         string // file with the certificate to trust
	TLS12      bool   // no newer version than TLS 1.2
	TLS13      bool   // no older version than TLS 1.3
	Get, Into  string // remote name, local path
	Put, As    string // local path, remote name
	PutFirst   bool   // the upload comes before the download
	Dir        string // the remote directory, for a client that does not take it from the server
	Home       string // directory that the client may litter
}

func (j Job) port() uint16 {
	if j.Port == 0 {
		return j.Protection.Port()
	}
	return j.Port
}

// ordered returns what downloads and what uploads in the job's order.
func ordered[T any](j Job, get, put T) []T {
	if j.PutFirst {
		return []T{put, get}
	}
	return []T{get, put}
}

// url returns the address of a remote file.
func (j Job) url(name string) string {
	scheme := "ftp"
	if j.Protection == Implicit {
		scheme = "ftps"
	}
	return fmt.Sprintf("%s://%s/%s", scheme, hostPort(j.Host, j.port()), name)
}

// ClientKind is an FTP client.
type ClientKind struct {
	Name string
	// command returns the client's arguments and what it reads from standard input. The client held has none.
	command func(Job) (argv []string, stdin string)
	// said finds an FTP command, with its argument, in the client's verbose output.
	said *regexp.Regexp
	// tls finds the version of TLS there; nil if the client does not tell.
	tls *regexp.Regexp
	// cannot returns why the client itself cannot do it, or nothing.
	cannot func(Scenario) string
	// listings is how many directory listings the client fetches beside the transfers.
	listings int
	// start is how long the client may take before its session begins.
	start time.Duration
}

// pinholes is how many data connections a session of the client's needs, and so how many pinholes: no more may be opened.
func (k ClientKind) pinholes() int { return transfers + k.listings }

// Clients are the FTP clients that the lab can run.
var Clients = []ClientKind{
	{Name: "curl", command: curl, cannot: curlCannot,
		said: regexp.MustCompile(`(?m)^> ([A-Z]+[^\r\n]*)`), tls: regexp.MustCompile(`SSL connection using (\S+)`)},
	{Name: "lftp", command: lftp, cannot: lftpCannot,
		said: regexp.MustCompile(`(?m)^---> ([A-Z]+[^\r\n]*)`)},
	{Name: "ftplib", command: ftplib, cannot: canAll,
		said: regexp.MustCompile(`(?m)^\*cmd\* '([A-Z]+[^']*)`), tls: regexp.MustCompile(`(?m)^tls: (\S+)`)},
	{Name: "tnftp", command: tnftp, cannot: tnftpCannot,
		said: regexp.MustCompile(`(?m)^---> ([A-Z]+[^\r\n]*)`)},
	held,
}

// Fresh is a client for terminated connections only: it does not resume the control connection's session, and most servers
// do not have that.
var Fresh = ClientKind{Name: "fresh", command: fresh, cannot: freshCannot,
	said: regexp.MustCompile(`(?m)^\*cmd\* '([A-Z]+[^']*)`), tls: regexp.MustCompile(`(?m)^tls: (\S+)`)}

// Credulous is a client that believes the address in 227. Among the others lftp and tnftp do, of which tnftp has no TLS.
var Credulous = ClientKind{Name: "trusting", command: credulous, cannot: canAll, said: Fresh.said, tls: Fresh.tls}

// believes tells whether a client connects to the address in the reply 227 and not to the control connection's peer.
func (k ClientKind) believes() bool {
	return k.Name == Credulous.Name || k.Name == "lftp" || k.Name == "tnftp"
}

func canAll(Scenario) string { return "" }

// curlCannot: curl has no word for AUTH, and sends AUTH SSL before AUTH TLS.
func curlCannot(s Scenario) string {
	if s.Data != Closed && s.Protection == Explicit && s.Server.authSSL {
		return "curl sends AUTH SSL first, and never gets to AUTH TLS"
	}
	return ""
}

func freshCannot(s Scenario) string {
	if s.Clear || s.Protection == Plain {
		return "without TLS on data connections there is nothing to resume: see ftplib"
	}
	return ""
}

func lftpCannot(s Scenario) string {
	switch {
	case s.Mode == EPRT && s.Family == IPv4:
		return "lftp sends PORT over IPv4"
	case s.Mode == EPSV && s.Family == IPv4 && s.Protection == AuthSSL:
		return "lftp takes EPSV over IPv4 only if FEAT says so, and then AUTH as well"
	}
	return ""
}

func tnftpCannot(s Scenario) string {
	if s.Protection != Plain {
		return "tnftp has no FTPS"
	}
	return ""
}

func curl(j Job) ([]string, string) {
	options := []string{"--disable", "--silent", "--show-error", "--verbose", "--user", User + ":" + Password}
	switch j.Mode {
	case PASV:
		options = append(options, "--disable-epsv")
	case PORT:
		options = append(options, "--ftp-port", "-", "--disable-eprt")
	case EPRT:
		options = append(options, "--ftp-port", "-")
	}
	switch {
	case j.Protection == Plain:
	case j.Clear:
		options = append(options, "--ftp-ssl-control", "--cacert", j.CA)
	default:
		options = append(options, "--ssl-reqd", "--cacert", j.CA)
	}
	if j.Protection == CCC {
		options = append(options, "--ftp-ssl-ccc", "--ftp-ssl-ccc-mode", "active")
	}
	if j.TLS12 {
		options = append(options, "--tls-max", "1.2")
	}
	transfers := ordered(j, []string{"--output", j.Into, j.url(j.Get)}, []string{"--upload-file", j.Put, j.url(j.As)})
	return slices.Concat([]string{"curl"}, options, transfers[0], []string{"--next"}, options, transfers[1]), ""
}

func lftp(j Job) ([]string, string) {
	auth, priority := "TLS", "NORMAL"
	if j.Protection == AuthSSL {
		auth = "SSL"
	}
	if j.TLS12 {
		priority += ":-VERS-TLS1.3"
	}
	word := func(b bool) string { return strings.ToLower(yes(b)) }
	tls := word(j.Protection != Plain)
	transfers := ordered(j, fmt.Sprintf("get %s -o %s", j.Get, j.Into), fmt.Sprintf("put %s -o %s", j.Put, j.As))
	script := []string{
		"debug 9", "set cmd:fail-exit yes", "set net:max-retries 1", "set net:timeout 20",
		"set ftp:ssl-allow " + tls, "set ftp:ssl-force " + tls,
		"set ftp:ssl-auth " + auth, "set ftp:use-feat " + word(j.Protection != AuthSSL), // it would choose by FEAT
		"set ftp:ssl-use-ccc " + word(j.Protection == CCC),
		"set ftp:ssl-protect-data " + word(j.Protection != Plain && !j.Clear),
		"set ssl:ca-file " + j.CA, "set ssl:priority " + priority,
		"set ftp:verify-address yes", // that data comes from the server's own address
		"set ftp:passive-mode " + word(!j.Mode.Active()), "set ftp:prefer-epsv " + word(j.Mode == EPSV),
		fmt.Sprintf("open -u %s,%s %s", User, Password, j.url("")),
		transfers[0], transfers[1], "bye",
	}
	return []string{"lftp", "--norc", "-c", strings.Join(script, "; ")}, ""
}

//go:embed ftplib_client.py
var ftplibScript string

// ftplib resumes the control connection's TLS session on data connections, as vsftpd and ProFTPD want it.
func ftplib(j Job) ([]string, string) { return ftplibWith(j, true, false) }

// fresh is ftplib as it comes: each data connection has a TLS session of its own.
func fresh(j Job) ([]string, string) { return ftplibWith(j, false, false) }

// credulous is ftplib as it was before Python 3.9.3: it connects to whatever address the reply 227 gives.
func credulous(j Job) ([]string, string) { return ftplibWith(j, true, true) }

func ftplibWith(j Job, reuse, trust bool) ([]string, string) {
	return python(ftplibScript, j, map[string]any{"clear": j.Clear, "tls13": j.TLS13, "reuse": reuse, "trust": trust}), ""
}

// python returns the command line that runs a script with a job and what else it wants to know.
func python(script string, j Job, more map[string]any) []string {
	arguments := map[string]any{
		"host": j.Host, "port": j.port(), "user": User, "password": Password, "ca": j.CA,
		"protection": j.Protection, "mode": j.Mode, "tls12": j.TLS12,
		"get": j.Get, "into": j.Into, "put": j.Put, "as": j.As, "putfirst": j.PutFirst,
	}
	maps.Copy(arguments, more)
	text, err := json.Marshal(arguments)
	if err != nil {
		panic(err) // a map of strings and numbers always has a JSON form
	}
	return []string{"/usr/bin/python3", "-c", script, string(text)}
}

func tnftp(j Job) ([]string, string) {
	way := "-p"
	if j.Mode.Active() {
		way = "-A"
	}
	script := []string{fmt.Sprintf("user %s %s", User, Password), "binary"}
	if j.Mode == PASV || j.Mode == PORT {
		script = append(script, "epsv4 off")
	}
	script = append(script, ordered(j, fmt.Sprintf("get %s %s", j.Get, j.Into), fmt.Sprintf("put %s %s", j.Put, j.As))...)
	script = append(script, "quit", "")
	return []string{"tnftp", "-n", "-v", "-d", way, j.Host.String(), fmt.Sprint(j.port())}, strings.Join(script, "\n")
}

// withInput feeds a client from a here-document of the shell's: a client that reads a script has no other way to it.
const withInput = `export HOME="$0" INPUTRC=/dev/null; input=$1; shift; printf %s "$input" | "$@"`

// StartClient starts a client on a host, mostly Client.
func (l *Lab) StartClient(ctx context.Context, on Host, kind ClientKind, j Job) (*Proc, error) {
	argv, stdin := kind.command(j)
	return l.Start(ctx, on, "sh", append([]string{"-c", withInput, j.Home, stdin}, argv...)...)
}

// commands returns what a client said to the server, in order.
func (k ClientKind) commands(output string) []string {
	var all []string
	for _, match := range k.said.FindAllStringSubmatch(output, -1) {
		all = append(all, match[1])
	}
	return all
}

// dataVerbs returns the data commands that a client sent, each once, in order.
func (k ClientKind) dataVerbs(output string) []Mode {
	var modes []Mode
	for _, command := range k.commands(output) {
		verb, _, _ := strings.Cut(command, " ")
		mode := Mode(verb)
		if slices.Contains([]Mode{PASV, EPSV, PORT, EPRT}, mode) && !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	return modes
}

// answerToCCC finds the first digit of the reply in the output of curl and lftp. ftplib tells a refusal itself.
var answerToCCC = regexp.MustCompile(`(?s)> CCC\b.*?\n<(?:---)? (\d)`)

// checkProtection compares what a client said about protection with the scenario's.
func (k ClientKind) checkProtection(scenario Scenario, output string) error {
	said := k.commands(output)
	var errs []error
	for command, want := range map[string]bool{
		"AUTH SSL": scenario.Protection == AuthSSL, "CCC": scenario.Protection == CCC,
		"AUTH TLS": scenario.Protection == Explicit || scenario.Protection == CCC,
	} {
		if curlChooses := k.Name == "curl" && scenario.Protection != AuthSSL && strings.HasPrefix(command, "AUTH"); curlChooses {
			continue
		}
		if slices.Contains(said, command) != want {
			errs = append(errs, fmt.Errorf("the client sent %s: %t, not %t", command, !want, want))
		}
	}
	if answer := answerToCCC.FindStringSubmatch(output); answer != nil && answer[1] != "2" {
		errs = append(errs, errors.New("CCC was refused, and the client went on all the same"))
	}
	// RFC 4217 section 9: in clear text is what AUTH begins with; implicit FTPS begins with TLS on data connections.
	level := map[bool]string{false: "PROT C", true: "PROT P"}
	last := level[scenario.Protection == Implicit]
	for _, command := range said {
		if strings.HasPrefix(command, "PROT ") {
			last = command
		}
	}
	if scenario.Protection != Plain && last != level[!scenario.Clear] {
		errs = append(errs, fmt.Errorf("the client sent %s", last))
	}
	return errors.Join(errs...)
}

// checkTLS compares the version of TLS that a client says it used with the scenario's.
func (k ClientKind) checkTLS(scenario Scenario, output string) error {
	if k.tls == nil || scenario.Protection == Plain {
		return nil
	}
	want := "TLSv1.3"
	if scenario.TLS12() {
		want = "TLSv1.2"
	}
	if match := k.tls.FindStringSubmatch(output); match == nil || match[1] != want {
		return fmt.Errorf("the client used %q, not %s", match, want)
	}
	return nil
}
