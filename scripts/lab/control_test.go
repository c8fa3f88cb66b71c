package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"testing"
	"time"

	"ftpalg/alg/ftp"
)

// Outcome: a user who has logged in before AUTH, in clear text, is not in the session that goes on in TLS where the server does
// not hear of it: AUTH is refused. One whom the server refused may begin anew.
func TestAUTHFromUser(t *testing.T) {
	for _, kind := range Servers {
		for _, upstream := range []string{"control: plain", "control: explicit"} {
			t.Run(fmt.Sprintf("%s/%s", kind.Name, upstream), func(t *testing.T) {
				s := opened(t, kind, Termination{Upstream: []string{upstream}})
				mark := s.Daemon.Mark()
				c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto})
				do(t, c.control, 503, "AUTH TLS")
				waitLog(t, s.Daemon, mark, "deny", "auth-too-late")
				do(t, c.control, 257, "PWD") // and nothing has changed
				for _, again := range []string{"USER other", "ACCT x"} {
					c.say(again) // it keeps its user, most often with a refusal
					do(t, c.control, 503, "AUTH TLS")
				}
				do(t, c.control, 257, "PWD")
				do(t, c.control, 221, "QUIT")

				refused := s.connect(t, explicitPASV)
				do(t, refused.control, 257, "PWD")
				do(t, refused.control, 503, "AUTH TLS")
			})
		}
	}
}

// Outcome: PASV over IPv6, which vsftpd answers with 0,0,0,0, has its pinhole where the session is terminated too.
func TestPASVOverIPv6(t *testing.T) {
	for _, kind := range Servers {
		for _, data := range []string{"data: direct", "data: relay"} {
			t.Run(fmt.Sprintf("%s/%s", kind.Name, data), func(t *testing.T) {
				s := opened(t, kind, Termination{Rule: []string{data}})
				s.write(t, "down.bin", contents)
				c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv6, Protection: Plain, Data: Auto})
				code, text := c.say("PASV")
				if code >= 400 {
					t.Logf("%s refuses PASV over IPv6: %d %s", kind.Name, code, text)
					return
				}
				announced, err := ftp.ParsePASV([]byte(text))
				if err != nil {
					t.Fatalf("PASV: %d %s: %v", code, text, err)
				}
				data := dial(t, s.Lab, Client, netip.AddrPortFrom(Addr(Server, IPv6), announced.Port()))
				defer data.Close()
				if err := c.PrintfLine("RETR down.bin"); err != nil {
					t.Fatal(err)
				}
				_ = data.SetDeadline(time.Now().Add(patience))
				if got, err := io.ReadAll(data); err != nil || !bytes.Equal(got, contents) {
					t.Errorf("RETR: %d bytes, %v", len(got), err)
				}
				if code, text := c.final(); code != 226 {
					t.Errorf("RETR: %d %s", code, text)
				}
				do(t, c.control, 221, "QUIT")
			})
		}
	}
}

// Outcome: names are bytes. One in Windows-1251 with the letter 0xFF is the file's own name at the server, or the command is
// refused; another file is never touched.
func TestNamesInWindows1251(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := opened(t, kind, Termination{})
			for _, name := range []string{"\xcc\xee\xff", "\xcc\xee\xff\xe1", "\xcc\xee", "\xcc\xee\xe1"} {
				s.write(t, name, contents)
			}
			c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto})
			c.say("DELE \xcc\xee\xff")
			c.say("DELE \xcc\xee\xff\xe1")
			for _, other := range []string{"\xcc\xee", "\xcc\xee\xe1"} {
				if _, err := os.Stat(s.Server.File(other)); errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%q is gone, which nobody has deleted", other)
				}
			}
			do(t, c.control, 221, "QUIT")
		})
	}
}

// say gives a command, and returns its final reply.
func (c *ftpClient) say(command string) (code int, text string) {
	c.t.Helper()
	if err := c.PrintfLine("%s", command); err != nil {
		c.t.Fatal(err)
	}
	return c.final()
}

// Outcome: a NOOP during an upload is answered when the server answers it, and the transfer and its reply are what they would be
// without it, one transfer after another.
func TestNOOPDuringTransfer(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := opened(t, kind, Termination{Rule: []string{"data: relay", "max-size: 100000000"}})
			c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto})
			for i := range 3 {
				name := fmt.Sprintf("up%d.bin", i)
				data := c.open("STOR " + name)
				if code, text, err := c.ReadResponse(1); err != nil {
					t.Fatalf("STOR: %d %s, %v", code, text, err)
				}
				if err := c.PrintfLine("NOOP"); err != nil {
					t.Fatal(err)
				}
				sent := contents
				if kind.Name == "vsftpd" { // it reads no command during a transfer
					if _, err := data.Write(contents); err != nil {
						t.Fatal(err)
					}
				} else {
					sent = c.uploadUntilAnswered(data)
				}
				if err := data.Close(); err != nil {
					t.Fatal(err)
				}
				if code, text := c.final(); code != 226 {
					t.Errorf("%s: %d %s", name, code, text)
				}
				if kind.Name == "vsftpd" {
					if code, text := c.final(); code != 200 {
						t.Errorf("NOOP: %d %s", code, text)
					}
				}
				if err := sameSum(name, s.Server.File(name), sent); err != nil {
					t.Error(err)
				}
			}
			do(t, c.control, 221, "QUIT")
		})
	}
}

// uploadUntilAnswered sends data until the command that was given meanwhile is answered, as servers look for commands between two
// reads of data. It returns what it sent.
func (c *ftpClient) uploadUntilAnswered(data io.Writer) (sent []byte) {
	c.t.Helper()
	answered := make(chan string, 1)
	go func() {
		code, text, err := c.ReadResponse(0)
		answered <- fmt.Sprint(code, " ", text, " ", err)
	}()
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		select {
		case got := <-answered:
			if got[:3] != "200" && got[:3] != "500" { // Pure-FTPd knows no NOOP then
				c.t.Errorf("NOOP during a transfer: %s", got)
			}
			return sent
		default:
		}
		if _, err := data.Write(contents); err != nil {
			c.t.Fatal(err)
		}
		sent = append(sent, contents...)
	}
}

// Outcome: a command that ends in LF alone, which ProFTPD does not read as a line, is answered at once: refused where packets are
// inspected and the rule rests on state, and carried out where the session is terminated.
func TestLineFeedAlone(t *testing.T) {
	inspect := policyWith(t, "    opaque-active: pinhole\n", "    opaque-active: pinhole\n    commands:\n      deny: [SITE]\n")
	for _, kind := range Servers {
		for action, code := range map[string]int{"inspect": 5, "terminate": 200} {
			t.Run(kind.Name+"/"+action, func(t *testing.T) {
				s := unguarded(t, kind)
				text := inspect
				if action == "terminate" {
					text = Termination{}.Policy(s.Server)
				}
				s.Daemon = startFTPAlg(t, s.Lab, text)
				c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto})
				began := time.Now()
				if _, err := io.WriteString(c.conn, "NOOP\n"); err != nil {
					t.Fatal(err)
				}
				if _, answer, err := c.ReadResponse(code); err != nil {
					t.Errorf("NOOP: %s, %v", answer, err)
				}
				do(t, c.control, 257, "PWD")
				if took := time.Since(began); took > patient(3*time.Second) {
					t.Errorf("the two replies took %v", took)
				}
				do(t, c.control, 221, "QUIT")
			})
		}
	}
}
