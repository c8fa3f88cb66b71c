package lab

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// forgedRecord is a command that nobody would read inside TLS, in a record that no server asked for.
func forgedRecord(command string) string {
	body := "\r\n" + command + "\r\n"
	return fmt.Sprintf("\x17\x03\x03%c%c%s", len(body)>>8, len(body), body)
}

// TestClearTextStaysClearText: a session in clear text is still one after a restart, a handover and a reload, whatever its first
// bytes look like, with every server.
func TestClearTextStaysClearText(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := unguarded(t, kind)
			policy := policyWith(t, "    opaque-active: pinhole\n", strings.Replace(denials, "SITE", "SITE, MKD", 1))
			serve(t, s, policy)
			pid := s.ready(t, 0)
			for name, interrupt := range map[string]func(){
				"killed": func() {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					waitGone(t, pid)
					serve(t, s, policy)
					pid = s.ready(t, 0)
				},
				"handed over": func() {
					mark, before := s.Daemon.Mark(), pid
					if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
						t.Fatal(err)
					}
					pid = s.ready(t, mark)
					waitGone(t, before)
				},
				"reloaded": func() {
					mark := s.Daemon.Mark()
					if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
						t.Fatal(err)
					}
					waitLog(t, s.Daemon, mark, "policy reloaded", "")
				},
			} {
				c := login(t, s, Scenario{Server: kind, Client: held, Mode: PASV, Family: IPv4, Protection: Plain})
				interrupt()
				mark := s.Daemon.Mark()
				if _, err := fmt.Fprint(c.conn, forgedRecord("MKD evil")); err != nil {
					t.Fatal(err)
				}
				// It is read: denied, or the end of a session in which no TLS can be.
				if _, err := s.Daemon.WaitEvent(t.Context(), mark, func(e Event) bool { return e.Msg == "deny" || e.Msg == "session ended" }); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(s.Server.File("evil")); err == nil {
					t.Fatalf("%s: the command was carried out", name)
				}
			}
			s.stopped(t, pid)
		})
	}
}

// TestForgottenSession: a session that conntrack forgets in the middle is over: what either side says makes no entry, and nothing
// of it goes on, inspected or terminated. New sessions begin.
func TestForgottenSession(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s, policy := halfOpened(t, kind) // IPv4 is terminated, and IPv6 inspected
			serve(t, s, policy)
			s.ready(t, 0)
			for _, scenario := range []Scenario{
				{Server: kind, Client: held, Mode: EPSV, Family: IPv6, Protection: Plain},
				{Server: kind, Client: held, Mode: PASV, Family: IPv4, Protection: Plain},
			} {
				c := login(t, s, scenario)
				do(t, c, 200, "TYPE I")
				if _, err := s.Lab.Run(t.Context(), Gateway, "conntrack", "-D", "-f", "ip"+scenario.Family.String(), "-p", "tcp",
					"--orig-port-dst", fmt.Sprint(ExplicitPort)); err != nil {
					t.Fatal(err)
				}
				if _, err := fmt.Fprint(c.conn, "NOOP\r\n"); err != nil {
					t.Fatal(err)
				}
				if heard, err := hear(c.conn, 1, time.Second); err == nil {
					t.Errorf("%s: the session goes on: %q", scenario, heard)
				}
				list, err := s.Lab.Run(t.Context(), Gateway, "conntrack", "-L", "-f", "ip"+scenario.Family.String(), "-p", "tcp")
				if err != nil || strings.Contains(list, fmt.Sprintf("sport=%d", addrPort(c.conn.LocalAddr()).Port())) {
					t.Errorf("%s: picked up: %v\n%s", scenario, err, list)
				}
				do(t, login(t, s, scenario), 200, "TYPE I")
			}
		})
	}
}
