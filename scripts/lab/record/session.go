package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"strings"
	"syscall"
	"time"

	"ftpalg/scripts/lab"
)

// scene is what a session is played in.
type scene struct {
	lab    *lab.Lab
	server *lab.FTPServer
}

// recording is one capture: its file and what is said in it.
type recording struct {
	file    string
	server  string
	session func(context.Context, *scene) error
}

// recordings is every capture there is, but for the one that is cut off from another.
var recordings = []recording{
	{"pasv.pcap", "vsftpd", run("curl", job{mode: lab.PASV})},
	{"epsv-ipv6.pcapng", "vsftpd", run("curl", job{mode: lab.EPSV, family: lab.IPv6})},
	{"eprt-ipv6.pcap", "vsftpd", run("ftplib", job{mode: lab.EPRT, family: lab.IPv6})},
	{"explicit-tls13.pcap.gz", "vsftpd", run("curl", job{mode: lab.EPSV, protection: lab.Explicit})},
	{"implicit.pcap", "vsftpd", run("curl", job{mode: lab.PASV, protection: lab.Implicit})},
	{"bounce.pcap", "vsftpd", bounce},
	{"auth-injection.pcap", "vsftpd", injection},
	{"port.pcap", "proftpd", run("lftp", job{mode: lab.PORT})},
	{"explicit-tls12.pcap", "proftpd", run("lftp", job{mode: lab.PASV, protection: lab.Explicit, tls12: true})},
	{"ccc.pcap", "proftpd", ccc},
	{"epsv.pcap", "pure-ftpd", run("tnftp", job{mode: lab.EPSV})},
	{"eprt.pcap", "pure-ftpd", run("curl", job{mode: lab.EPRT})},
}

// job is what a client of the lab is told; the zero family is IPv4 and the zero protection none.
type job struct {
	mode       lab.Mode
	family     lab.Family
	protection lab.Protection
	tls12      bool
}

// run has a client of the lab fetch a file and store one.
func run(client string, j job) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		if j.family == 0 {
			j.family = lab.IPv4
		}
		if j.protection == "" {
			j.protection = lab.Plain
		}
		into, put, err := s.files()
		if err != nil {
			return err
		}
		for _, kind := range lab.Clients {
			if kind.Name != client {
				continue
			}
			proc, err := s.lab.StartClient(ctx, lab.Client, kind, lab.Job{
				Host: lab.Addr(lab.Server, j.family), Mode: j.mode, Protection: j.protection, TLS12: j.tls12,
				CA: s.server.CA, Home: s.lab.Dir, Get: "down.txt", Into: into, Put: put, As: "up.txt",
			})
			if err != nil {
				return err
			}
			<-proc.Exited()
			return s.check(into, put, proc.Output())
		}
		return fmt.Errorf("no client %q", client)
	}
}

// files makes the file to fetch and the one to store; the captures are to be small.
func (s *scene) files() (into, put string, err error) {
	into, put = s.lab.Path("into.txt"), s.lab.Path("put.txt")
	return into, put, errors.Join(
		os.RemoveAll(into), os.RemoveAll(s.server.File("up.txt")),
		os.WriteFile(s.server.File("down.txt"), []byte(strings.Repeat("from the server\n", 20)), 0o644),
		os.WriteFile(put, []byte(strings.Repeat("from the client\n", 20)), 0o644))
}

// check compares what arrived: a capture of a failed transfer would make a poor example.
func (s *scene) check(into, put, output string) error {
	for from, to := range map[string]string{s.server.File("down.txt"): into, put: s.server.File("up.txt")} {
		want, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(to); err != nil || string(got) != string(want) {
			return fmt.Errorf("%s did not arrive: %d bytes, %w; the client printed %q", to, len(got), err, output)
		}
	}
	return nil
}

// ccc: lftp goes back to clear text behind the login (RFC 4217 section 12.3), so that its PASV can be read again. Every
// third time or so lftp takes ProFTPD's close_notify for the end of the connection, with an open firewall as well: the recorder
// tries again.
func ccc(ctx context.Context, s *scene) error {
	into, put, err := s.files()
	if err != nil {
		return err
	}
	script := strings.Join([]string{
		"set cmd:fail-exit yes", "set net:max-retries 1", "set net:timeout 20",
		"set ftp:ssl-force yes", "set ftp:ssl-protect-data yes", "set ftp:ssl-use-ccc yes", "set ssl:ca-file " + s.server.CA,
		fmt.Sprintf("open -u %s,%s ftp://%s", lab.User, lab.Password, lab.Addr(lab.Server, lab.IPv4)),
		"get down.txt -o " + into, "put " + put + " -o up.txt", "bye",
	}, "; ")
	output, err := s.lab.Run(ctx, lab.Client, "lftp", "--norc", "-c", script)
	return errors.Join(err, s.check(into, put, output))
}

// dial opens a control connection from the client host and reads the greeting.
func (s *scene) dial() (net.Conn, *textproto.Conn, error) {
	var conn net.Conn
	err := s.lab.InNS(lab.Client, func() (err error) {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(lab.Addr(lab.Server, lab.IPv4).String(), fmt.Sprint(lab.ExplicitPort)), patience)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	text := textproto.NewConn(conn)
	err = conn.SetDeadline(time.Now().Add(patience))
	if err == nil {
		_, _, err = text.ReadResponse(220)
	}
	return conn, text, err
}

// bounce logs in, sends the server to a third host and to a privileged port of its own, and is refused both times.
func bounce(_ context.Context, s *scene) error {
	conn, text, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, exchange := range []struct {
		command string
		code    int
	}{
		{"USER " + lab.User, 331}, {"PASS " + lab.Password, 230},
		{"PORT 203,0,113,7,0,25", 500}, {"PORT 192,0,2,2,0,25", 500}, {"EPRT |1|203.0.113.7|40000|", 500},
		{"NOOP", 200}, {"QUIT", 221},
	} {
		if err := text.PrintfLine("%s", exchange.command); err != nil {
			return err
		}
		if _, _, err := text.ReadResponse(exchange.code); err != nil {
			return fmt.Errorf("%s: %w", exchange.command, err)
		}
	}
	return nil
}

// injection puts commands behind AUTH into one segment, which a careless server would take for protected, and is reset.
func injection(_ context.Context, s *scene) error {
	conn, _, err := s.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "AUTH TLS\r\nUSER "+lab.User+"\r\nPASS "+lab.Password+"\r\n"); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("got %w, want a reset", err)
	}
	return nil
}
