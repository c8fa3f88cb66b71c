package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"ftpalg/scripts/lab"

	"golang.org/x/sys/unix"
)

// The control ports of the benchmark's own FTP server, for plain and explicit and for implicit FTPS. vsftpd has port 21
// beside it.
const (
	benchPort    = 2121
	implicitPort = 2990
)

// serverReady is what the server prints when it listens.
const serverReady = "serving"

// block is what a data connection sends at a time: large enough that system calls are not what is measured.
var block = make([]byte, 256<<10)

// ftpServer is an FTP server that does as little as a server can: so that a gateway's cost is not hidden behind it. It
// knows one user, has a file of N bytes under each name N, and answers every command with one reply.
type ftpServer struct {
	tls  *tls.Config
	next atomic.Uint32 // numbers the passive ports, all of lab.NeverPassive in turn
}

// serve is the program `bench serve CERTIFICATE KEY`, which runs on the lab's server.
func serve(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench serve CERTIFICATE KEY")
	}
	config, err := serverTLS(args[0], args[1])
	if err != nil {
		return err
	}
	s := &ftpServer{tls: config}
	var listeners [2]int
	for i, port := range []uint16{benchPort, implicitPort} {
		if listeners[i], err = listen(netip.AddrPortFrom(lab.Addr(lab.Server, lab.IPv4), port)); err != nil {
			return err
		}
	}
	fmt.Println(serverReady)
	failed := make(chan error)
	for i, listener := range listeners {
		go func() { failed <- s.accept(listener, i == 1) }()
	}
	return <-failed
}

// accept serves what connects to one control port.
func (s *ftpServer) accept(listener int, implicit bool) error {
	for {
		c, err := accept(listener)
		if err != nil {
			return err
		}
		go func() {
			if err := s.session(c, implicit); err != nil && err != io.EOF {
				fmt.Fprintln(os.Stderr, "session:", err)
			}
			_ = c.Close()
		}()
	}
}

// plainReplies are those that depend on nothing.
var plainReplies = map[string]string{
	"USER": "331 Password required.\r\n", "PASS": "230 Logged in.\r\n", "NOOP": "200 NOOP ok.\r\n",
	"TYPE": "200 Type set.\r\n", "PWD": "257 \"/\" is the current directory.\r\n", "PBSZ": "200 PBSZ=0.\r\n",
	"PROT": "200 Protection set.\r\n", "FEAT": "211-Features:\r\n AUTH TLS\r\n PBSZ\r\n PROT\r\n211 End\r\n",
}

// session serves one control connection.
func (s *ftpServer) session(c *stream, private bool) error {
	var rw io.ReadWriter = c
	if private {
		rw = tls.Server(c, s.tls)
	}
	in := &lines{from: rw}
	data := -1 // the listener that the last PASV opened
	defer func() { _ = unix.Close(data) }()
	_, err := io.WriteString(rw, "220 Ready.\r\n")
	for err == nil {
		var line []byte
		if line, err = in.next(); err != nil {
			return err
		}
		verb, argument, _ := bytes.Cut(line, []byte(" "))
		switch string(verb) {
		case "AUTH":
			_, err = io.WriteString(rw, "234 Go on with TLS.\r\n")
			rw = tls.Server(c, s.tls)
			in = &lines{from: rw}
		case "PROT":
			private = string(argument) == "P"
			_, err = io.WriteString(rw, plainReplies["PROT"])
		case "PASV":
			_ = unix.Close(data)
			data, err = s.passive(rw)
		case "RETR":
			err = s.retrieve(rw, data, string(argument), private)
		case "QUIT":
			if _, err = io.WriteString(rw, "221 Goodbye.\r\n"); err == nil {
				err = closeNotify(rw)
			}
			return err
		default:
			reply, known := plainReplies[string(verb)]
			if !known {
				reply = "502 Not implemented.\r\n"
			}
			_, err = io.WriteString(rw, reply)
		}
	}
	return err
}

// closeNotify says in TLS, if that is in use, that nothing follows: some wait for it (RFC 8446 section 6.1).
func closeNotify(rw io.ReadWriter) error {
	if over, ok := rw.(*tls.Conn); ok {
		return over.CloseWrite()
	}
	return nil
}

// passive opens the next free passive port and announces it.
func (s *ftpServer) passive(w io.Writer) (listener int, err error) {
	ports := lab.NeverPassive
	for range ports.Last - ports.First + 1 {
		n := s.next.Add(1) % uint32(ports.Last-ports.First+1)
		at := netip.AddrPortFrom(lab.Addr(lab.Server, lab.IPv4), ports.First+uint16(n))
		if listener, err = listen(at); err == nil {
			_, err = io.WriteString(w, announcement(at))
			return listener, err
		}
	}
	return -1, fmt.Errorf("no passive port is free: %w", err)
}

// announcement is the reply to PASV (RFC 959 section 4.1.2).
func announcement(at netip.AddrPort) string {
	host := strings.ReplaceAll(at.Addr().String(), ".", ",")
	return fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d).\r\n", host, at.Port()>>8, at.Port()&0xff)
}

// retrieve sends a file of as many bytes as its name says.
func (s *ftpServer) retrieve(w io.Writer, listener int, name string, private bool) error {
	size, err := strconv.Atoi(name)
	if err != nil {
		return err
	}
	if _, err = io.WriteString(w, "150 Here it comes.\r\n"); err != nil {
		return err
	}
	conn, err := accept(listener)
	if err != nil {
		return err
	}
	var data io.WriteCloser = conn
	if private {
		data = tls.Server(conn, s.tls)
	}
	for err == nil && size > 0 {
		var n int
		n, err = data.Write(block[:min(size, len(block))])
		size -= n
	}
	if e := data.Close(); err == nil {
		err = e
	}
	if err == nil {
		_, err = io.WriteString(w, "226 Done.\r\n")
	}
	return err
}
