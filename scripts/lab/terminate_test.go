package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// opened is a real server on a stage whose ftpalg terminates by a policy.
func opened(t *testing.T, kind ServerKind, policy Termination) *Stage {
	t.Helper()
	s := unguarded(t, kind)
	s.Daemon = startFTPAlg(t, s.Lab, policy.Policy(s.Server))
	return s
}

// unguarded is a real server on a stage without a daemon.
func unguarded(t *testing.T, kind ServerKind) *Stage {
	t.Helper()
	requireRoot(t)
	t.Parallel()
	s, err := newStage(t.Context(), kind, Config{ServersDir: serversDir}, func(*Stage, context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ftpClient is an FTP client of the tests' own, whose data connections resume the control connection's TLS session.
type ftpClient struct {
	*control
	t        *testing.T
	stage    *Stage
	scenario Scenario
	config   *tls.Config
}

var (
	explicitPASV = Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Explicit, Data: Relay}
	implicitEPSV = Scenario{Client: held, Mode: EPSV, Family: IPv4, Protection: Implicit, Data: Relay}
)

// clientConfig is TLS as a client wants it that keeps sessions.
func (s *Stage) clientConfig(t *testing.T, scenario Scenario) *tls.Config {
	t.Helper()
	config, err := s.tlsConfig(scenario)
	if err != nil {
		t.Fatal(err)
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return config
}

func (s *Stage) connect(t *testing.T, scenario Scenario) *ftpClient {
	t.Helper()
	return s.connectWith(t, scenario, s.clientConfig(t, scenario))
}

func (s *Stage) connectWith(t *testing.T, scenario Scenario, config *tls.Config) *ftpClient {
	t.Helper()
	c, err := s.dialWith(scenario, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	do(t, c, 200, "TYPE I")
	return &ftpClient{control: c, t: t, stage: s, scenario: scenario, config: config}
}

// open announces a data connection, gives a command and returns the connection, protected as the scenario has it.
func (c *ftpClient) open(command string) net.Conn {
	c.t.Helper()
	raw := c.openRaw(command)
	if c.scenario.protectsData() {
		return tls.Client(raw, c.config)
	}
	return raw
}

// openRaw is open without TLS.
func (c *ftpClient) openRaw(command string) net.Conn {
	c.t.Helper()
	at, err := c.arrange(c.scenario)
	if err != nil {
		c.t.Fatal(err)
	}
	var listener *net.TCPListener
	if c.scenario.Mode.Active() {
		listener = listen(c.t, c.stage.Lab, Client, at)
		defer listener.Close()
	}
	if err := c.PrintfLine("%s", command); err != nil {
		c.t.Fatal(err)
	}
	var raw *net.TCPConn
	if listener == nil {
		raw = dial(c.t, c.stage.Lab, Client, at)
	} else if raw, err = acceptSoon(listener); err != nil {
		c.t.Fatal(err)
	}
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { raw.Close() })
	return raw
}

func acceptSoon(l *net.TCPListener) (*net.TCPConn, error) {
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	return l.AcceptTCP()
}

// final returns the code and text of a transfer's final reply.
func (c *ftpClient) final() (code int, text string) {
	c.t.Helper()
	for {
		code, text, err := c.ReadResponse(0)
		if err != nil {
			c.t.Fatalf("the final reply: %v", err)
		}
		if code >= 200 {
			return code, text
		}
	}
}

// get downloads what a command asks for.
func (c *ftpClient) get(command string) (got []byte, code int) {
	c.t.Helper()
	data := c.open(command)
	got, err := io.ReadAll(data)
	if err != nil {
		c.t.Errorf("%s: %v", command, err)
	}
	data.Close()
	code, _ = c.final()
	return got, code
}

// put uploads, and says whether the data connection took it all.
func (c *ftpClient) put(command string, contents []byte) (code int, err error) {
	c.t.Helper()
	data := c.open(command)
	_, err = data.Write(contents)
	err = errors.Join(err, data.Close())
	code, _ = c.final()
	return code, err
}

// alive fails the test unless the control connection works.
func (c *ftpClient) alive() {
	c.t.Helper()
	if _, err := c.do(200, "NOOP"); err != nil {
		c.t.Error(err)
	}
}

// write puts a file where the server has its files.
func (s *Stage) write(t *testing.T, name string, contents []byte) {
	t.Helper()
	if err := os.WriteFile(s.Server.File(name), contents, 0o644); err != nil {
		t.Fatal(err)
	}
}

var contents = bytes.Repeat([]byte("contents\n"), 10000)

// Outcome: listings, uploads and downloads in every mode, at both levels, direct and relayed.
func TestTerminatedLists(t *testing.T) {
	for _, data := range []DataPath{Direct, Relay} {
		t.Run(string(data), func(t *testing.T) {
			s := opened(t, Servers[2], Termination{Rule: []string{"data: " + string(data)}})
			s.write(t, "down.bin", contents)
			scenario := Scenario{Client: held, Protection: Explicit, Data: data}
			for _, scenario.Clear = range []bool{false, true} {
				for _, scenario := range scenario.inEachMode() {
					c := s.connect(t, scenario)
					if got, code := c.get("LIST"); code != 226 || !bytes.Contains(got, []byte("down.bin")) {
						t.Errorf("%s %s %s: LIST: %d, %q", scenario.Level(), scenario.Mode, scenario.Family, code, got)
					}
					if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
						t.Errorf("%s %s %s: RETR: %d, %d bytes", scenario.Level(), scenario.Mode, scenario.Family, code, len(got))
					}
					if code, err := c.put("STOR up.bin", contents); code != 226 || err != nil {
						t.Errorf("%s %s %s: STOR: %d, %v", scenario.Level(), scenario.Mode, scenario.Family, code, err)
					}
					if err := sameSum("upload", s.Server.File("up.bin"), contents); err != nil {
						t.Error(err)
					}
					do(t, c.control, 221, "QUIT")
				}
			}
		})
	}
}

// Outcome: a client that comes back resumes the TLS session of its earlier control connection; on it each data connection
// resumes a session, and many in a row find tickets.
func TestTerminatedSessionReuse(t *testing.T) {
	s := opened(t, Servers[0], Termination{Rule: []string{"data: auto", "tls: {session-reuse: require}"}})
	s.write(t, "down.bin", contents)
	for _, scenario := range []Scenario{explicitPASV, implicitEPSV, {Client: held, Mode: EPRT, Family: IPv6, Protection: Explicit, Data: Relay}} {
		config := s.clientConfig(t, scenario)
		for round := range 2 {
			c := s.connectWith(t, scenario, config)
			if resumed := c.conn.(*tls.Conn).ConnectionState().DidResume; resumed != (round > 0) {
				t.Errorf("%s: the control connection resumed a session: %t in round %d", scenario.Protection, resumed, round)
			}
			for range 6 {
				data := c.open("RETR down.bin")
				got, err := io.ReadAll(data)
				if err != nil || !bytes.Equal(got, contents) {
					t.Fatalf("%s: %d bytes, %v", scenario.Protection, len(got), err)
				}
				if !data.(*tls.Conn).ConnectionState().DidResume {
					t.Errorf("%s: a data connection resumed no session", scenario.Protection)
				}
				data.Close()
				if code, text := c.final(); code != 226 {
					t.Fatalf("%d %s", code, text)
				}
			}
			do(t, c.control, 221, "QUIT")
		}
	}
}

// Outcome: a data connection that comes with another control connection's ticket resumes nothing. It ends with 522 where
// the policy demands reuse; elsewhere the transfer goes on under a session of its own.
func TestTerminatedWrongTicket(t *testing.T) {
	for rule, want := range map[string]int{"tls: {session-reuse: require}": 522, "tls: {session-reuse: allow}": 226} {
		t.Run(rule, func(t *testing.T) {
			s := opened(t, Servers[0], Termination{Rule: []string{"data: relay", rule}})
			s.write(t, "down.bin", contents)
			mine, other := s.connect(t, explicitPASV), s.connect(t, explicitPASV)
			if _, code := mine.get("RETR down.bin"); code != 226 {
				t.Fatalf("with its own ticket: %d", code)
			}
			if _, code := other.get("LIST"); code != 226 { // so that its tickets have been read
				t.Fatalf("the other: %d", code)
			}
			mine.config = other.config
			data := mine.open("RETR down.bin").(*tls.Conn)
			_, _ = io.ReadAll(data) // the reply tells
			data.Close()
			if data.ConnectionState().DidResume {
				t.Error("another control connection's session was resumed")
			}
			if code, text := mine.final(); code != want {
				t.Errorf("got %d %s, want %d", code, text, want)
			}
			mine.alive()
		})
	}
}

// Outcome: the policy's rules hold inside TLS, with replies of their own, and the session lives.
func TestTerminatedRules(t *testing.T) {
	s := opened(t, Servers[2], Termination{Rule: []string{
		"data: relay", "users: {deny: [root, \"adm*\"]}", "files: {deny: [\"*.exe\"]}",
		"commands: {deny: [SITE, RETR /secret]}", "transfers: [download]",
	}})
	s.write(t, "down.bin", contents)
	mark := s.Daemon.Mark()
	c := s.connect(t, explicitPASV)
	for command, reason := range map[string]string{
		"SITE HELP": "command-denied", "RETR /secret/x": "path-denied", "RETR virus.EXE": "file-denied",
		"STOR up.bin": "direction-denied", "APPE up.bin": "direction-denied",
	} {
		if err := c.PrintfLine("%s", command); err != nil {
			t.Fatal(err)
		}
		if code, text, err := c.ReadResponse(0); err != nil || code < 500 || code > 559 {
			t.Errorf("%s: %d %s, %v", command, code, text, err)
		}
		waitLog(t, s.Daemon, mark, "deny", reason)
	}
	do(t, c.control, 257, "PWD") // so that a path rule can tell what is meant
	if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
		t.Errorf("what is allowed: %d, %d bytes", code, len(got))
	}
	if code, text, err := s.tryUser(t, "admin"); err != nil || code != 530 && code != 550 {
		t.Errorf("USER admin: %d %s, %v", code, text, err)
	}
	waitLog(t, s.Daemon, mark, "deny", "user-denied")
}

// tryUser connects and says who it is.
func (s *Stage) tryUser(t *testing.T, user string) (int, string, error) {
	t.Helper()
	c := s.bare(t, Plain, nil)
	if err := c.PrintfLine("USER %s", user); err != nil {
		t.Fatal(err)
	}
	return c.ReadResponse(0)
}

// bare is a control connection behind its greeting, with TLS first where that is implicit.
func (s *Stage) bare(t *testing.T, protection Protection, config *tls.Config) *control {
	t.Helper()
	c := newControl(dial(t, s.Lab, Client, netip.AddrPortFrom(Addr(Server, IPv4), protection.Port())))
	t.Cleanup(func() { c.conn.Close() })
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if protection == Implicit {
		c.upgrade(config)
	}
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	return c
}

// Outcome: a transfer over the limit ends with 552 either way, one at the limit passes, and the session lives.
func TestTerminatedMaxSize(t *testing.T) {
	s := opened(t, Servers[0], Termination{Rule: []string{fmt.Sprintf("max-size: %d", len(contents))}})
	for _, scenario := range []Scenario{explicitPASV, implicitEPSV, {Client: held, Mode: PORT, Family: IPv4, Protection: Explicit, Clear: true, Data: Relay}} {
		name := fmt.Sprintf("%s %s %s", scenario.Protection, scenario.Level(), scenario.Mode)
		c := s.connect(t, scenario)
		if code, err := c.put("STOR up.bin", contents); code != 226 || err != nil {
			t.Errorf("%s: at the limit, up: %d, %v", name, code, err)
		}
		if got, code := c.get("RETR up.bin"); code != 226 || !bytes.Equal(got, contents) {
			t.Errorf("%s: at the limit, down: %d, %d bytes", name, code, len(got))
		}
		before := s.Server.transfers(NAT{}.seen(IPv4))
		if code, _ := c.put("STOR large.bin", append([]byte("x"), contents...)); code != 552 {
			t.Errorf("%s: over it, up: %d", name, code)
		}
		if n := s.Server.transfers(NAT{}.seen(IPv4)); n != before {
			t.Errorf("%s: the server takes the upload for complete", name)
		}
		s.write(t, "large", append([]byte("x"), contents...))
		data := c.open("RETR large")
		got, _ := io.ReadAll(data) // it is cut
		if len(got) > len(contents) {
			t.Errorf("%s: %d bytes passed", name, len(got))
		}
		data.Close()
		if code, text := c.final(); code != 552 {
			t.Errorf("%s: over it, down: %d %s", name, code, text)
		}
		c.alive()
	}
}

// Outcome: logins fail as often as the policy allows, and then the session ends with 421.
func TestLoginFailures(t *testing.T) {
	s := opened(t, Servers[2], Termination{Limits: []string{"login-failures: 2"}})
	mark := s.Daemon.Mark()
	c := s.bare(t, Plain, nil)
	for _, want := range []int{530, 421} {
		do(t, c, 331, "USER "+User)
		if err := c.PrintfLine("PASS wrong"); err != nil {
			t.Fatal(err)
		}
		code, _, err := c.ReadResponse(0)
		if code == 530 && want == 421 { // the server's own, and then ours
			code, _, err = c.ReadResponse(0)
		}
		if code != want {
			t.Errorf("got %d, %v, want %d", code, err, want)
		}
	}
	if line, err := c.ReadLine(); err == nil {
		t.Errorf("the session goes on: %q", line)
	}
	waitLog(t, s.Daemon, mark, "session ended", "login-limit")
}

// Outcome: a transfer is given up by ABOR, with and without TCP urgent data, and by closing the data connection; the session
// lives, and the next transfer is whole.
func TestTerminatedAbort(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := opened(t, kind, Termination{Rule: []string{"data: relay"}})
			s.write(t, "down.bin", contents)
			s.write(t, "long.bin", nil)
			if err := os.Truncate(s.Server.File("long.bin"), 64<<20); err != nil {
				t.Fatal(err)
			}
			for name, scenario := range map[string]Scenario{"clear control": {Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Relay}, "TLS": explicitPASV} {
				c := s.connect(t, scenario)
				for way, abort := range map[string]func(net.Conn) error{
					"ABOR":     func(net.Conn) error { return c.PrintfLine("ABOR") },
					"urgent":   func(net.Conn) error { return c.urgentABOR() },
					"closed":   func(data net.Conn) error { return data.Close() },
					"and ABOR": func(data net.Conn) error { return errors.Join(data.Close(), c.PrintfLine("ABOR")) },
				} {
					if kind.Name == "proftpd" && name == "TLS" && (way == "closed" || way == "and ABOR") {
						continue // mod_tls ends the session if it gets EPIPE in time, gateway or not
					}
					data := c.open("RETR long.bin")
					if _, err := io.ReadFull(data, make([]byte, 1<<20)); err != nil {
						t.Fatal(err)
					}
					if err := abort(data); err != nil {
						t.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, data) // what is on its way, or all of it: not every server minds ABOR at once
					data.Close()
					c.settle(name + ", " + way)
				}
				if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
					t.Errorf("%s: afterwards: %d, %d bytes", name, code, len(got))
				}
			}
		})
	}
}

// urgentABOR is ABOR behind Telnet's interrupt and synch, as RFC 959 section 4.1.3 has it: in TLS there is no urgent data.
func (c *ftpClient) urgentABOR() error {
	if raw, ok := c.conn.(*net.TCPConn); ok {
		if err := sendUrgent(raw, []byte{0xff, 0xf4, 0xff}); err != nil {
			return err
		}
		_, err := raw.Write([]byte("\xf2ABOR\r\n"))
		return err
	}
	_, err := c.conn.Write([]byte("\xff\xf4\xff\xf2ABOR\r\n"))
	return err
}

// settle reads the replies to a transfer that was given up, and to ABOR if the server has one, until the answer to HELP
// behind them comes, which shows that the session lives.
func (c *ftpClient) settle(what string) {
	c.t.Helper()
	if err := c.PrintfLine("HELP"); err != nil {
		c.t.Fatal(err)
	}
	for {
		code, text, err := c.ReadResponse(0)
		switch {
		case err != nil:
			c.t.Fatalf("%s: %v", what, err)
		case code == 214:
			return
		case code == 421:
			c.t.Fatalf("%s: %d %s", what, code, text)
		}
	}
}

// sendUrgent sends TCP urgent data.
func sendUrgent(c *net.TCPConn, b []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), b, unix.MSG_OOB, nil)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	return errors.Join(err, sendErr)
}
