package lab

import (
	_ "embed"
	"regexp"
	"time"
)

// FileZilla is Debian's FileZilla on a virtual display. It lists the directory before it transfers, sees to it that each data
// connection resumes the control connection's TLS session, and asks its user about whatever it finds suspicious: the scenario fails
// then. It starts slowly, and so is a client of the demo's scenarios and of no other table.
var FileZilla = ClientKind{Name: "filezilla", command: filezilla, cannot: filezillaCannot, listings: 1, start: filezillaStart,
	said: regexp.MustCompile(`(?m) Command:\s+([A-Z]+[^\r\n]*)`), tls: regexp.MustCompile(`(?m)^tls: (\S+)`)}

//go:embed filezilla_client.py
var filezillaScript string

// filezillaStart is how long the display and FileZilla may take until the session begins.
var filezillaStart = patient(40 * time.Second)

// filezillaGrace is what the script leaves of its time to say what it was waiting for.
const filezillaGrace = 3 * time.Second

func filezilla(j Job) ([]string, string) {
	return python(filezillaScript, j, map[string]any{"dir": j.Dir, "limit": int((filezillaStart + sessionTimeout - filezillaGrace).Seconds())}), ""
}

func filezillaCannot(s Scenario) string {
	switch {
	case s.Family == IPv4 && (s.Mode == EPSV || s.Mode == EPRT):
		return "FileZilla sends PASV and PORT over IPv4"
	case s.Protection == AuthSSL:
		return "FileZilla sends AUTH TLS first"
	case s.Protection == CCC:
		return "FileZilla does not know CCC"
	case s.Clear:
		return "FileZilla always protects data connections"
	case s.Data == Direct:
		return "FileZilla wants its own TLS session resumed, and that is ftpalg's: data has to be relayed"
	}
	return ""
}
