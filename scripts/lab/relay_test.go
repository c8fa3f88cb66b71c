package lab

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// Outcome: the first transfer after a start works, an upload at that, with servers as they are installed: they want the control
// connection's TLS session resumed, and nothing in the policy says so.
func TestFirstTransfers(t *testing.T) {
	for _, kind := range Servers {
		for _, protection := range []Protection{Explicit, Implicit} {
			if protection == Implicit && !kind.Implicit {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", kind.Name, protection), func(t *testing.T) {
				s := opened(t, kind, Termination{Rule: []string{"data: auto"}})
				s.write(t, "down.bin", contents)
				for _, mode := range []Mode{PASV, EPSV, PORT, EPRT} {
					for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
						s.firstTransfer(t, Scenario{Server: kind, Client: held, Mode: mode, Family: IPv4, Protection: protection, Data: Auto}, version)
					}
				}
			})
		}
	}
}

// firstTransfer begins a session whose first transfer is an upload.
func (s *Stage) firstTransfer(t *testing.T, scenario Scenario, version uint16) {
	t.Helper()
	config := s.clientConfig(t, scenario)
	config.MinVersion, config.MaxVersion = version, version
	c := s.connectWith(t, scenario, config)
	name := fmt.Sprintf("up-%s-%x.bin", scenario.Mode, version)
	if code, err := c.put("STOR "+name, contents); code != 226 || err != nil {
		t.Errorf("%s, TLS %#x: STOR: %d, %v", scenario.Mode, version, code, err)
	}
	if err := sameSum("the first upload", s.Server.File(name), contents); err != nil {
		t.Error(err)
	}
	if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
		t.Errorf("%s, TLS %#x: RETR: %d, %d bytes", scenario.Mode, version, code, len(got))
	}
	do(t, c.control, 221, "QUIT")
}

// Outcome: what a transfer may do is what its own command says, and not that of one before it that the server refused: a
// listing that is refused does not lift the limit from the download that follows on the same data connection.
func TestRefusedTransferLeavesNothing(t *testing.T) {
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			s := opened(t, kind, Termination{Rule: []string{"max-size: 1000"}})
			s.write(t, "down.bin", contents)
			for _, command := range []string{"RETR down.bin", "STOR up.bin"} {
				if !s.refusedFirst(t, command) {
					continue // this server answers nothing else on the same data connection
				}
				if info, err := os.Stat(s.Server.File("up.bin")); err == nil && info.Size() > 1000 {
					t.Errorf("%d bytes were kept of an upload over the limit", info.Size())
				}
			}
		})
	}
}

// refusedFirst connects, has a listing refused, and gives a command for more than the policy allows. It reports whether the server
// went as far.
func (s *Stage) refusedFirst(t *testing.T, command string) bool {
	t.Helper()
	c := s.connect(t, Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto})
	at, err := c.arrange(c.scenario)
	if err != nil {
		t.Fatal(err)
	}
	data := dial(t, s.Lab, Client, at)
	defer data.Close()
	if err := c.PrintfLine("MLSD /nowhere"); err != nil {
		t.Fatal(err)
	}
	if code, text := c.final(); code < 500 {
		t.Fatalf("MLSD of nothing: %d %s", code, text)
	}
	if err := c.PrintfLine("%s", command); err != nil {
		t.Fatal(err)
	}
	if code, text, err := c.ReadResponse(0); err != nil || code >= 200 {
		t.Logf("%s: %d %s, %v", command, code, text, err)
		return false
	}
	_ = data.SetDeadline(time.Now().Add(patience))
	if command[:4] == "STOR" {
		_, _ = data.Write(contents) // it may be reset at any time
		_ = data.CloseWrite()
	} else if got, _ := io.ReadAll(data); len(got) > 1000 {
		t.Errorf("%d bytes came over a data connection that may carry 1000", len(got))
	}
	if code, text := c.final(); code != 552 {
		t.Errorf("%s: %d %s, want 552", command, code, text)
	}
	return true
}

// Outcome: a transfer over the limit ends with 552, whatever the server makes of its data connection's end (Pure-FTPd says nothing),
// and the session goes on.
func TestTooLargeIsTold(t *testing.T) {
	for _, kind := range Servers {
		for _, scenario := range []Scenario{explicitPASV, {Client: held, Mode: PORT, Family: IPv4, Protection: Plain, Data: Auto}} {
			t.Run(fmt.Sprintf("%s/%s", kind.Name, scenario.Protection), func(t *testing.T) {
				s := opened(t, kind, Termination{Rule: []string{"max-size: 1000"}})
				s.write(t, "down.bin", bytes.Repeat(contents, 20))
				s.write(t, "small.bin", contents[:1000])
				c := s.connect(t, scenario)
				data := c.open("RETR down.bin")
				got, _ := io.ReadAll(data)
				data.Close()
				if code, text := c.final(); code != 552 || len(got) > 1000 {
					t.Errorf("download: %d %s, %d bytes", code, text, len(got))
				}
				if code, _ := c.put("STOR up.bin", bytes.Repeat(contents, 20)); code != 552 {
					t.Errorf("upload: %d", code)
				}
				if got, code := c.get("RETR small.bin"); code != 226 || len(got) != 1000 {
					t.Errorf("afterwards: %d, %d bytes", code, len(got))
				}
			})
		}
	}
}

// Outcome: PROT after EPSV decides how data is carried, where the server has no TLS: the client gets TLS, as it was told.
func TestPROTAfterEPSV(t *testing.T) {
	s := opened(t, Servers[2], Termination{Upstream: []string{"control: plain"}, Rule: []string{"data: auto"}})
	s.write(t, "down.bin", contents)
	c := s.connect(t, Scenario{Client: held, Mode: EPSV, Family: IPv4, Protection: Explicit, Data: Auto, Clear: true})
	for _, level := range []string{"P", "C", "P"} {
		at, err := c.arrange(c.scenario)
		if err != nil {
			t.Fatal(err)
		}
		do(t, c.control, 200, "PROT "+level)
		if err := c.PrintfLine("RETR down.bin"); err != nil {
			t.Fatal(err)
		}
		raw := dial(t, s.Lab, Client, at)
		_ = raw.SetDeadline(time.Now().Add(patience))
		var data io.ReadCloser = raw
		if level == "P" {
			data = tls.Client(raw, c.config)
		}
		got, err := io.ReadAll(data)
		data.Close()
		if code, text := c.final(); code != 226 || err != nil || !bytes.Equal(got, contents) {
			t.Errorf("PROT %s after EPSV: %d %s, %d bytes, %v", level, code, text, len(got), err)
		}
	}
}

// Outcome: a transfer that takes longer than conntrack keeps connections in which nothing is sent costs no session: where packets are
// inspected, and where ftpalg carries the control connection.
func TestTransfersLongerThanConntracksPatience(t *testing.T) {
	const patience, transfer = 4 * time.Second, 8 * time.Second
	for name, c := range map[string]struct {
		scenario Scenario
		policy   func(*FTPServer) string
	}{
		"inspected":         {Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain}, func(*FTPServer) string { return Policy() }},
		"inspected, active": {Scenario{Client: held, Mode: PORT, Family: IPv4, Protection: Plain}, func(*FTPServer) string { return Policy() }},
		"opaque":            {Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Explicit}, func(*FTPServer) string { return Policy() }},
		"opaque, active":    {Scenario{Client: held, Mode: PORT, Family: IPv4, Protection: Explicit}, func(*FTPServer) string { return Policy() }},
		"relayed":           {explicitPASV, Termination{}.Policy},
		"direct":            {Scenario{Client: held, Mode: PASV, Family: IPv4, Protection: Plain, Data: Auto}, Termination{}.Policy},
	} {
		t.Run(name, func(t *testing.T) {
			s := unguarded(t, Servers[2])
			setting := fmt.Sprintf("net.netfilter.nf_conntrack_tcp_timeout_established=%d", int(patience.Seconds()))
			if _, err := s.Lab.Run(t.Context(), Gateway, "sysctl", "-w", setting); err != nil {
				t.Fatal(err)
			}
			s.Daemon = startFTPAlg(t, s.Lab, c.policy(s.Server))
			session := s.connect(t, c.scenario)
			data := session.open("STOR up.bin")
			pace := time.NewTicker(transfer / 16)
			defer pace.Stop()
			for range 16 {
				if _, err := data.Write(contents[:1000]); err != nil {
					t.Fatal(err)
				}
				<-pace.C
			}
			data.Close()
			if code, text := session.final(); code != 226 {
				t.Errorf("%d %s", code, text)
			}
			session.alive()
		})
	}
}
