package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"ftpalg/scripts/lab"
)

// dialect is how a client speaks to a server.
type dialect struct {
	port     uint16
	implicit bool // TLS comes first
	auth     bool // AUTH TLS comes before the login (RFC 4217 section 4)
	private  bool // data connections have TLS as well
	located  bool // the client asks where it is, which a gateway that looks at paths may want to know
}

// plain is FTP without TLS, located is the same of a client that asks where it is, and opaque is FTPS whose data connections are clear.
var (
	plain   = dialect{port: benchPort}
	located = dialect{port: benchPort, located: true}
	opaque  = dialect{port: benchPort, auth: true}
)

// ftpClient is one control connection, seen from the client.
type ftpClient struct {
	conn    *stream
	rw      io.ReadWriter
	in      *lines
	tls     *tls.Config
	to      netip.Addr // what takes the data connections
	private bool
}

// connect opens a control connection from the network namespace of the calling thread, up to where the client would log in.
func (g *gateway) connect(d dialect) (*ftpClient, error) {
	conn, err := dial(uint16(g.nextPort.Add(1)), netip.AddrPortFrom(g.to, d.port))
	if err != nil {
		return nil, err
	}
	c := &ftpClient{conn: conn, rw: conn, in: &lines{from: conn}, to: g.to, private: d.private}
	if d.implicit {
		err = c.secure()
	}
	if err == nil {
		_, err = c.reply("220")
	}
	if err == nil && d.auth {
		if err = c.command("AUTH TLS", "234"); err == nil {
			err = c.secure()
		}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// secure puts the control connection inside TLS.
func (c *ftpClient) secure() error {
	c.tls = clientTLS()
	over := tls.Client(c.conn, c.tls)
	c.rw, c.in = over, &lines{from: over}
	return over.Handshake()
}

// login is connect, and the client logs in.
func (g *gateway) login(d dialect) (*ftpClient, error) {
	c, err := g.connect(d)
	if err != nil {
		return nil, err
	}
	err = errors.Join(c.command("USER "+lab.User, "331"), c.command("PASS "+lab.Password, "230"), c.command("TYPE I", "200"))
	switch {
	case d.auth && d.private:
		err = errors.Join(err, c.command("PBSZ 0", "200"), c.command("PROT P", "200"))
	case d.implicit && !d.private: // MS-FTPS 1.3: P unless something else is said
		err = errors.Join(err, c.command("PROT C", "200"))
	}
	if d.located {
		err = errors.Join(err, c.command("PWD", "257"))
	}
	if err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	return c, nil
}

// command sends a command and checks the code of its reply.
func (c *ftpClient) command(line, code string) error {
	_, err := io.WriteString(c.rw, line+"\r\n")
	if err == nil {
		_, err = c.reply(code)
	}
	return err
}

// reply reads a reply of one line and checks its code.
func (c *ftpClient) reply(code string) ([]byte, error) {
	line, err := c.in.next()
	if err == nil && !bytes.HasPrefix(line, []byte(code)) {
		err = fmt.Errorf("the server answered %q where %s was expected", line, code)
	}
	return line, err
}

// open asks for a file in passive mode and opens the data connection.
func (c *ftpClient) open(name string) (data *stream, err error) {
	if _, err := io.WriteString(c.rw, "PASV\r\n"); err != nil {
		return nil, err
	}
	line, err := c.reply("227")
	if err != nil {
		return nil, err
	}
	port, err := announced(string(line))
	if err != nil {
		return nil, err
	}
	if _, err = io.WriteString(c.rw, "RETR "+name+"\r\n"); err != nil {
		return nil, err
	}
	return dial(0, netip.AddrPortFrom(c.to, port))
}

// fetch retrieves a file in passive mode and checks its length. The buffer is for the data.
func (c *ftpClient) fetch(name string, size int, buf []byte) error {
	return c.retrieve(name, size, func(data io.Reader) (int, error) { return drain(data, buf) })
}

// retrieve is fetch with a reader of the data of one's own, which says how much it was.
func (c *ftpClient) retrieve(name string, size int, read func(io.Reader) (int, error)) error {
	data, err := c.open(name)
	if err != nil {
		return err
	}
	var from io.ReadWriter = data
	if c.private {
		from = tls.Client(data, c.tls)
	}
	if _, err = c.reply("150"); err != nil {
		return errors.Join(err, data.Close())
	}
	got, err := read(from)
	_ = closeNotify(from) // who is gone already does not wait for it
	if err == nil && got != size {
		err = fmt.Errorf("%d bytes arrived of the %d of file %s", got, size, name)
	}
	if err = errors.Join(err, data.Close()); err != nil {
		return err
	}
	_, err = c.reply("226")
	return err
}

// drain reads a data connection to its end.
func drain(data io.Reader, buf []byte) (total int, err error) {
	for {
		n, err := data.Read(buf)
		total += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// announced finds the port in a reply to PASV (RFC 959 section 4.1.2).
func announced(reply string) (uint16, error) {
	_, numbers, _ := strings.Cut(reply, "(")
	numbers, _, _ = strings.Cut(numbers, ")")
	parts := strings.Split(numbers, ",")
	if len(parts) != 6 {
		return 0, fmt.Errorf("no address in %q", reply)
	}
	high, err1 := strconv.ParseUint(parts[4], 10, 8)
	low, err2 := strconv.ParseUint(parts[5], 10, 8)
	return uint16(high<<8 | low), errors.Join(err1, err2)
}

// quit ends the session. The server closes first, so that it is the one to keep TIME_WAIT and the client's port is free.
func (c *ftpClient) quit() error {
	err := c.command("QUIT", "221")
	if err == nil {
		_, err = drain(c.rw, make([]byte, 64))
	}
	_ = closeNotify(c.rw) // who is gone already does not wait for it
	return errors.Join(err, c.conn.Close())
}

// wholeSession connects, logs in, fetches one small file and quits.
func (g *gateway) wholeSession(d dialect) error {
	c, err := g.login(d)
	if err != nil {
		return err
	}
	if err := c.fetch(strconv.Itoa(small), small, make([]byte, 4<<10)); err != nil {
		return errors.Join(err, c.conn.Close())
	}
	return c.quit()
}
