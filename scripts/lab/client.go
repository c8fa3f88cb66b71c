package lab

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
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

// The protections. The gateway holds no key for the two with TLS, so they stay opaque to it.
const (
	Plain    Protection = "plain"
	Explicit Protection = "explicit"
	Implicit Protection = "implicit"
)

// Port returns the control port.
func (p Protection) Port() uint16 {
	if p == Implicit {
		return ImplicitPort
	}
	return ExplicitPort
}

// Job is what a client is told to do in one session: a download, then an upload.
type Job struct {
	Host       netip.Addr
	Mode       Mode
	Protection Protection
	CA         string // file with the certificate to trust
	TLS12      bool   // no newer version than TLS 1.2
	Get, Into  string // remote name, local path
	Put, As    string // local path, remote name
	Home       string // directory that the client may litter
}

// url returns the address of a remote file.
func (j Job) url(name string) string {
	scheme := "ftp"
	if j.Protection == Implicit {
		scheme = "ftps"
	}
	return fmt.Sprintf("%s://%s/%s", scheme, hostPort(j.Host, j.Protection.Port()), name)
}

// ClientKind is an FTP client.
type ClientKind struct {
	Name string
	// command returns the client's arguments and what it reads from standard input. The client held has none.
	command func(Job) (argv []string, stdin string)
	// verb finds an FTP command in the client's verbose output.
	verb *regexp.Regexp
	// tls finds the version of TLS there; nil if the client does not tell.
	tls *regexp.Regexp
	// cannot returns why the client itself cannot do it, or nothing.
	cannot func(Scenario) string
}

// Clients are the FTP clients that the lab can run.
var Clients = []ClientKind{
	{Name: "curl", command: curl, cannot: canAll,
		verb: regexp.MustCompile(`(?m)^> ([A-Z]+)`), tls: regexp.MustCompile(`SSL connection using (\S+)`)},
	{Name: "lftp", command: lftp, cannot: lftpCannot,
		verb: regexp.MustCompile(`(?m)^---> ([A-Z]+)`)},
	{Name: "ftplib", command: ftplib, cannot: canAll,
		verb: regexp.MustCompile(`(?m)^\*cmd\* '([A-Z]+)`), tls: regexp.MustCompile(`(?m)^tls: (\S+)`)},
	{Name: "tnftp", command: tnftp, cannot: tnftpCannot,
		verb: regexp.MustCompile(`(?m)^---> ([A-Z]+)`)},
	held,
}

func canAll(Scenario) string { return "" }

func lftpCannot(s Scenario) string {
	if s.Mode == EPRT && s.Family == IPv4 {
		return "lftp sends PORT over IPv4"
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
	if j.Protection != Plain {
		options = append(options, "--ssl-reqd", "--cacert", j.CA)
	}
	if j.TLS12 {
		options = append(options, "--tls-max", "1.2")
	}
	argv := append([]string{"curl"}, options...)
	argv = append(argv, "--output", j.Into, j.url(j.Get), "--next")
	argv = append(argv, options...)
	return append(argv, "--upload-file", j.Put, j.url(j.As)), ""
}

func lftp(j Job) ([]string, string) {
	tls, priority := "no", "NORMAL"
	if j.Protection != Plain {
		tls = "yes"
	}
	if j.TLS12 {
		priority += ":-VERS-TLS1.3"
	}
	script := []string{
		"debug 9", "set cmd:fail-exit yes", "set net:max-retries 1", "set net:timeout 20",
		"set ftp:ssl-allow " + tls, "set ftp:ssl-force " + tls, "set ftp:ssl-protect-data " + tls,
		"set ssl:ca-file " + j.CA, "set ssl:priority " + priority,
		"set ftp:passive-mode " + strings.ToLower(yes(!j.Mode.Active())),
		"set ftp:prefer-epsv " + strings.ToLower(yes(j.Mode == EPSV)),
		fmt.Sprintf("open -u %s,%s %s", User, Password, j.url("")),
		fmt.Sprintf("get %s -o %s", j.Get, j.Into),
		fmt.Sprintf("put %s -o %s", j.Put, j.As),
		"bye",
	}
	return []string{"lftp", "--norc", "-c", strings.Join(script, "; ")}, ""
}

//go:embed ftplib_client.py
var ftplibScript string

func ftplib(j Job) ([]string, string) {
	arguments, err := json.Marshal(map[string]any{
		"host": j.Host, "port": j.Protection.Port(), "user": User, "password": Password, "ca": j.CA,
		"protection": j.Protection, "mode": j.Mode, "tls12": j.TLS12,
		"get": j.Get, "into": j.Into, "put": j.Put, "as": j.As,
	})
	if err != nil {
		panic(err) // a map of strings and numbers always has a JSON form
	}
	return []string{"/usr/bin/python3", "-c", ftplibScript, string(arguments)}, ""
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
	script = append(script, fmt.Sprintf("get %s %s", j.Get, j.Into), fmt.Sprintf("put %s %s", j.Put, j.As), "quit", "")
	return []string{"tnftp", "-n", "-v", "-d", way, j.Host.String(), fmt.Sprint(j.Protection.Port())}, strings.Join(script, "\n")
}

// withInput feeds a client from a here-document of the shell's: a client that reads a script has no other way to it.
const withInput = `export HOME="$0" INPUTRC=/dev/null; input=$1; shift; printf %s "$input" | "$@"`

// StartClient starts a client on the client host.
func (l *Lab) StartClient(ctx context.Context, kind ClientKind, j Job) (*Proc, error) {
	argv, stdin := kind.command(j)
	return l.Start(ctx, Client, "sh", append([]string{"-c", withInput, j.Home, stdin}, argv...)...)
}

// dataVerbs returns the data commands that a client sent, each once, in order.
func (k ClientKind) dataVerbs(output string) []Mode {
	var modes []Mode
	for _, match := range k.verb.FindAllStringSubmatch(output, -1) {
		mode := Mode(match[1])
		if slices.Contains([]Mode{PASV, EPSV, PORT, EPRT}, mode) && !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	return modes
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
