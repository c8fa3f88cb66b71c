package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ftpalg/conntrack"
)

// step is what one end says, in so many segments. The next step waits until all of it has arrived, or has not.
type step struct {
	from     side
	segments []string
}

func client(line string) step { return step{fromClient, []string{line + "\r\n"}} }
func server(line string) step { return step{fromServer, []string{line + "\r\n"}} }

func split(s side, segments ...string) step { return step{s, segments} }

// dialogue is said over a control connection behind a login, once with nothing but the kernel's nf_conntrack_ftp on the
// gateway and once with nothing but ftpalg. ftpalg is what must be expected in the end: a data connection from an
// address to an address and port, or nothing. kernel is what the kernel's helper makes of it, where that differs, and
// why says which of the two is wrong, and how.
type dialogue struct {
	name   string
	family Family
	before []step // said over another control connection between the same hosts, which stays open
	steps  []step
	ftpalg string
	kernel string
	why    string
}

const (
	nothing = "nothing"
	stalled = "stalled, " // what comes before it did not arrive, however often TCP repeated it
	reset   = "reset, "
)

var (
	passive50000 = "192.0.2.2 → 198.51.100.2:50000"
	active40000  = "198.51.100.2 → 192.0.2.2:40000"
)

// dialogues is the list of everything that the two agree on, and of everything that they do not.
var dialogues = []dialogue{
	// What both must do.
	{name: "PASV", steps: []step{client("PASV"), server(pasv(50000))}, ftpalg: passive50000},
	{name: "PASV without parentheses (RFC 1123 section 4.1.2.6)", ftpalg: passive50000,
		steps: []step{client("PASV"), server("227 Entering Passive Mode 198,51,100,2,195,80")}},
	{name: "PASV in lower case", steps: []step{client("pasv"), server(pasv(50000))}, ftpalg: passive50000},
	{name: "EPSV", steps: []step{client("EPSV"), server("229 Extended (|||50000|)")}, ftpalg: passive50000},
	{name: "EPSV with another delimiter (RFC 2428 section 3)", ftpalg: passive50000,
		steps: []step{client("EPSV"), server("229 Extended (!!!50000!)")}},
	{name: "EPSV over IPv6", family: IPv6, steps: []step{client("EPSV"), server("229 Extended (|||50000|)")},
		ftpalg: "2001:db8:1::2 → [2001:db8:2::2]:50000"},
	{name: "PORT", steps: []step{client("PORT 192,0,2,2,156,64")}, ftpalg: active40000},
	{name: "PORT in lower case", steps: []step{client("port 192,0,2,2,156,64")}, ftpalg: active40000},
	{name: "EPRT", steps: []step{client("EPRT |1|192.0.2.2|40000|")}, ftpalg: active40000},
	{name: "EPRT with another delimiter", steps: []step{client("EPRT !1!192.0.2.2!40000!")}, ftpalg: active40000},
	{name: "EPRT over IPv6", family: IPv6, steps: []step{client("EPRT |2|2001:db8:1::2|40000|")},
		ftpalg: "2001:db8:2::2 → [2001:db8:1::2]:40000"},
	{name: "a second PASV", ftpalg: "192.0.2.2 → 198.51.100.2:50001",
		steps: []step{client("PASV"), server(pasv(50000)), client("PASV"), server(pasv(50001))}},
	{name: "PORT with a foreign address", steps: []step{client("PORT 192,0,2,3,156,64")}, ftpalg: nothing},
	{name: "227 with a foreign address", ftpalg: nothing,
		steps: []step{client("PASV"), server("227 Entering Passive Mode (198,51,100,3,195,80).")}},
	{name: "no announcement", steps: []step{client("PWD"), server(`257 "/" is it`)}, ftpalg: nothing},

	// Where the kernel's helper does not see what both ends see.
	{name: "227 as the second reply of a segment", ftpalg: passive50000, kernel: nothing,
		steps: []step{client("NOOP"), client("PASV"), server("200 ok\r\n" + pasv(50000))},
		why:   "the kernel looks at the start of a segment only"},
	{name: "PORT as the second command of a segment", ftpalg: active40000, kernel: nothing,
		steps: []step{client("TYPE I\r\nPORT 192,0,2,2,156,64")},
		why:   "the kernel looks at the start of a segment only"},
	{name: "227 split in its address", ftpalg: passive50000, kernel: stalled + nothing,
		steps: []step{client("PASV"), split(fromServer, "227 Entering Passive Mode (198,51,1", "00,2,195,80).\r\n")},
		why:   "the kernel drops a partial match, and TCP repeats the same part for ever"},
	{name: "PORT split in its name", ftpalg: active40000, kernel: stalled + nothing,
		steps: []step{split(fromClient, "PO", "RT 192,0,2,2,156,64\r\n")},
		why:   "the kernel drops a partial match, and TCP repeats the same part for ever"},
	{name: "PORT that ends in a bare LF", ftpalg: active40000, kernel: stalled + nothing,
		steps: []step{split(fromClient, "PORT 192,0,2,2,156,64\n")},
		why:   "the kernel wants CR behind the digits, and drops what it takes for a partial match; servers take LF"},
	{name: "227 Logout.", ftpalg: nothing, kernel: stalled + nothing,
		steps: []step{client("QUIT"), server("227 Logout.")},
		why:   "to the kernel this is a partial match, so it is dropped and both ends hang"},

	{name: "a port that another session announced before", ftpalg: passive50000, kernel: stalled + nothing,
		before: []step{client("PASV"), server(pasv(50000))},
		steps:  []step{client("PASV"), server(pasv(50000))},
		why:    "the kernel refuses the expectation and drops the reply; who announces last is who listens there, so ftpalg replaces it"},

	// Where the kernel's helper opens what nobody asked for.
	{name: "227 without PASV", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("NOOP"), server(pasv(50000))},
		why:   "the kernel does not tie replies to commands (reply spoofing)"},
	{name: "229 for PASV", ftpalg: passive50000, // the client's own request is answered, as some servers do
		steps: []step{client("PASV"), server("229 Extended (|||50000|)")}},
	{name: "227 within a multi-line reply", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("PASV"), server("211-this is text:"), server(pasv(50000)), server("211 end")},
		why:   "the kernel does not know multi-line replies: the text of a 211 promises nothing (RFC 959 section 4.2)"},
	{name: "PORT with an octet over 255", ftpalg: nothing, kernel: "198.51.100.2 → 192.0.2.2:1046",
		steps: []step{client("PORT 192,0,2,2,260,22")},
		why:   "the kernel does not check octets: 260 overflows into a port that was not named"},
	{name: "229 with a port over 65535", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("EPSV"), server("229 Extended (|||115536|)")},
		why:   "the kernel reads ports modulo 65536"},
	{name: "PORT with a privileged port", ftpalg: nothing, kernel: "198.51.100.2 → 192.0.2.2:22",
		steps: []step{client("PORT 192,0,2,2,0,22")},
		why:   "the kernel opens privileged ports (RFC 2577 section 3)"},
	{name: "PASV after EPSV ALL", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("EPSV ALL"), server("200 ok"), client("PASV"), server(pasv(50000))},
		why:   "the kernel does not know EPSV ALL (RFC 2428 section 4); ftpalg denies the PASV, so the 227 is not asked for"},
	{name: "PORT with text behind it", ftpalg: nothing, kernel: stalled + nothing,
		steps: []step{client("PORT 192,0,2,2,156,64 x")},
		why:   "the kernel drops what it takes for a partial match; ftpalg has the server refuse it"},
	{name: "PORT behind AUTH", ftpalg: reset + nothing, kernel: active40000,
		steps: []step{client("AUTH TLS"), client("PORT 192,0,2,2,156,64")},
		why:   "to the kernel clear text between AUTH and its reply is commands (injection)"},

	// Where the kernel's helper leaves open what is over.
	{name: "the transfer was done elsewhere", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("PASV"), server(pasv(50000)), client("RETR a"), server("425 no"), client("NOOP"), server("200 ok")},
		why:   "the kernel does not follow transfers: an unused expectation stands for 300 s"},
	{name: "PORT refused by the server", ftpalg: nothing, kernel: active40000,
		steps: []step{client("PORT 192,0,2,2,156,64"), server("530 log in first")},
		why:   "the kernel does not read what became of a command"},
	{name: "another data command", ftpalg: nothing, kernel: passive50000,
		steps: []step{client("PASV"), server(pasv(50000)), client("EPSV")},
		why:   "the kernel replaces an expectation when the next is announced, ftpalg withdraws it when it is asked for"},
}

// TestKernelOracle compares ftpalg with the kernel's own helper on the same dialogues over real connections.
func TestKernelOracle(t *testing.T) {
	requireRoot(t)
	t.Run("kernel", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		helper := []string{"-w", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", fmt.Sprint(ExplicitPort), "-j", "CT", "--helper", "ftp"}
		for _, tool := range []string{"iptables", "ip6tables"} {
			if _, err := l.Run(t.Context(), Gateway, tool, helper...); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.SetForward(t.Context(), Accept); err != nil {
			t.Fatal(err)
		}
		playAll(t, l, func(d dialogue) string {
			if d.kernel != "" {
				return d.kernel
			}
			return d.ftpalg
		})
	})
	t.Run("ftpalg", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		startFTPAlg(t, l, Policy())
		playAll(t, l, func(d dialogue) string { return d.ftpalg })
	})
}

// TestOracleTable holds the table to its own rules: a difference has a reason, and what is listed as one is one.
func TestOracleTable(t *testing.T) {
	for _, d := range dialogues {
		if (d.kernel == "") != (d.why == "") || d.kernel == d.ftpalg {
			t.Errorf("%s: a difference needs both what the kernel does and why, and has to be one", d.name)
		}
	}
}

func playAll(t *testing.T, l *Lab, want func(dialogue) string) {
	kernel := dialConntrack(t, l)
	for _, d := range dialogues {
		t.Run(d.name, func(t *testing.T) {
			// An expectation lives as long as its master, and the kernel refuses another control connection the same one.
			defer l.flushConntrack(t)
			if got := d.play(t, l, kernel); got != want(d) {
				t.Errorf("got %q, want %q (ftpalg: %q; kernel: %q, because %s)", got, want(d), d.ftpalg, d.kernel, d.why)
			}
		})
	}
}

// dialConntrack speaks to the gateway's connection tracking.
func dialConntrack(t *testing.T, l *Lab) *conntrack.Conn {
	t.Helper()
	var kernel *conntrack.Conn
	err := l.InNS(Gateway, func() (err error) {
		kernel, err = conntrack.Dial()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close() })
	return kernel
}

// flushConntrack makes the gateway forget every connection.
func (l *Lab) flushConntrack(t *testing.T) {
	t.Helper()
	if _, err := l.Run(t.Context(), Gateway, "conntrack", "-F"); err != nil {
		t.Error(err)
	}
}

// play says a dialogue and gives what is expected at its end. Whatever stood between the ends has done its work when a
// segment arrives, so there is nothing to wait for then.
func (d dialogue) play(t *testing.T, l *Lab, kernel *conntrack.Conn) string {
	family := d.family
	if family == 0 {
		family = IPv4
	}
	if d.before != nil {
		other := scripted(t, l, family)
		other.login(t)
		for _, s := range d.before {
			if trouble := other.perform(t, s); trouble != "" {
				t.Fatal(trouble)
			}
		}
	}
	e := scripted(t, l, family)
	e.login(t)
	for _, s := range d.steps {
		if trouble := e.perform(t, s); trouble != "" {
			return trouble + expected(t, kernel, e)
		}
	}
	return expected(t, kernel, e)
}

// perform says one step and gives what went wrong on its way, if anything did.
func (e *ends) perform(t *testing.T, s step) string {
	speaker, listener := e.from(s.from)
	for _, segment := range s.segments {
		if _, err := speaker.Write([]byte(segment)); err != nil {
			t.Fatal(err)
		}
	}
	// What has not come in this time was repeated by TCP at least twice, and dropped each time.
	const stall = 2 * time.Second
	text, err := hear(listener, len(strings.Join(s.segments, "")), stall)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return stalled
	case text == "":
		return reset
	}
	t.Fatalf("%q arrived of %q: %v", text, s.segments, err)
	return ""
}

// expected lists what conntrack expects of a control connection.
func expected(t *testing.T, kernel *conntrack.Conn, e *ends) string {
	all, err := kernel.Expectations()
	if err != nil {
		t.Fatal(err)
	}
	from, to := e.master()
	var list []string
	for _, x := range all {
		if x.Master == (conntrack.Tuple{Src: from, Dst: to}) {
			list = append(list, host(x.From)+" → "+x.To.String())
		}
	}
	slices.Sort(list)
	if len(list) == 0 {
		return nothing
	}
	return strings.Join(list, ", ")
}

// host is an address with its port if that matters.
func host(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}
