package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"ftpalg/scripts/lab"
)

// What a server says, and when it says nothing, is recorded for the model servers of the state machine's tests: each probe is sent
// in each state on a connection of its own, without a gateway that reads along.

const (
	// quiet is how long a server must say nothing for its answer to be over. Its own delays are far shorter.
	quiet = time.Second
	// atOnce bounds the connections at the same time: Pure-FTPd takes eight of one client.
	atOnce = 6
	// stall is how long the rest of bigFile may take.
	stall = 10 * time.Second
	// bigFile is larger than all buffers between a server and a client that reads nothing.
	bigFile = 32 << 20
)

// serverReplies is a file of testdata/servers.
type serverReplies struct {
	Server   string // as its greeting or package has it
	TLS      bool   // it takes AUTH TLS
	Greeting string
	Answers  []answer
}

// answer is what one probe brought about.
type answer struct {
	State string
	Probe string
	Send  string
	Reply string // what came until the server was quiet
	After string `json:",omitempty"` // what came when the transfer's data had been read to its end
	PWD   string `json:",omitempty"` // the answer to PWD then, in states with a login
	Over  bool   `json:",omitempty"` // the server closed the connection
	Stall bool   `json:",omitempty"` // the transfer stopped: ProFTPD waits for the end of a line that it takes for incomplete
}

// recordReplies makes the files of testdata/servers: each server as it is installed, without TLS and with it.
func (r recorder) recordReplies(ctx context.Context) error {
	if err := os.MkdirAll(r.replies, 0o755); err != nil {
		return err
	}
	for _, kind := range lab.Servers {
		if !strings.Contains(kind.Name, r.match) {
			continue
		}
		if err := r.recordServerReplies(ctx, kind.WithoutTLS(), false, kind.Name); err != nil {
			return fmt.Errorf("%s without TLS: %w", kind.Name, err)
		}
		if err := r.recordServerReplies(ctx, kind, true, kind.Name+"-tls"); err != nil {
			return fmt.Errorf("%s: %w", kind.Name, err)
		}
	}
	return nil
}

func (r recorder) recordServerReplies(ctx context.Context, kind lab.ServerKind, tls bool, name string) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.SetForward(ctx, lab.Accept); err != nil {
		return err
	}
	server, err := l.StartServer(ctx, kind, r.servers)
	if err != nil {
		return err
	}
	e := &examiner{lab: l, home: server.File(".")}
	if err := e.furnish(server); err != nil {
		return err
	}
	replies, err := e.askAll()
	if err != nil {
		return err
	}
	replies.TLS = tls
	text, err := json.MarshalIndent(replies, "", " ")
	if err != nil {
		return err
	}
	out := filepath.Join(r.replies, name+".json")
	fmt.Printf("%-28s %6d answers\n", out, len(replies.Answers))
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

// examiner asks one server.
type examiner struct {
	lab  *lab.Lab
	home string
}

// furnish makes the files that the probes name.
func (e *examiner) furnish(server *lab.FTPServer) error {
	var errs []error
	for _, dir := range []string{"pub", "secret", "deep/er"} {
		errs = append(errs, os.MkdirAll(server.File(dir), 0o755))
	}
	errs = append(errs, os.WriteFile(server.File("secret/key"), []byte("secret\n"), 0o644),
		os.WriteFile(server.File("big"), nil, 0o644), os.Truncate(server.File("big"), bigFile))
	return errors.Join(errs...)
}

// askAll sends every probe in every state.
func (e *examiner) askAll() (*serverReplies, error) {
	states := []string{stateGreeted, stateNamed, stateIn, stateTransfer, stateBinary, stateAborted}
	replies := &serverReplies{Answers: make([]answer, len(states)*len(probes))}
	errs := make([]error, len(replies.Answers))
	var wg sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for i := range replies.Answers {
		state, p := states[i/len(probes)], probes[i%len(probes)]
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			replies.Answers[i], errs[i] = e.ask(state, p)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	c, err := e.dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.expect("220"); err != nil {
		return nil, err
	}
	replies.Greeting = e.blur(c.last)
	replies.Server = strings.TrimSpace(replies.Greeting)
	return replies, nil
}

// ask sends one probe in a state that a new connection is brought to.
func (e *examiner) ask(state string, p probe) (answer, error) {
	short := strings.ReplaceAll(p.send, strings.Repeat("A", longLine), fmt.Sprintf("A*%d", longLine))
	a := answer{State: state, Probe: p.name, Send: escape(short)}
	c, err := e.dial()
	if err != nil {
		return a, err
	}
	defer c.close()
	if err := e.reach(c, state); err != nil {
		return a, fmt.Errorf("%s, %s: %w", state, p.name, err)
	}
	c.say(strings.ReplaceAll(p.send, "$HOME", e.home))
	a.Reply = e.blur(c.listen())
	if c.data != nil {
		if a.Stall, err = c.drain(); err != nil {
			return a, fmt.Errorf("%s, %s: %w", state, p.name, err)
		}
		a.After = e.blur(c.listen())
	}
	if state != stateGreeted && state != stateNamed && !c.over {
		c.say("PWD\r\n")
		a.PWD = e.blur(c.listen())
	}
	a.Over = c.over
	return a, nil
}

// reach brings a connection to a state.
func (e *examiner) reach(c *asked, state string) error {
	steps := map[string][]string{
		stateGreeted: {}, stateNamed: {"USER"}, stateIn: {"USER", "PASS", "TYPE", "PASV"},
		stateTransfer: {"USER", "PASS", "PASV", "RETR"}, stateBinary: {"USER", "PASS", "TYPE", "PASV", "RETR"}, stateAborted: {"USER", "PASS", "TYPE", "PASV", "RETR", "ABOR"},
	}[state]
	if err := c.expect("220"); err != nil {
		return err
	}
	lines := map[string][2]string{
		"USER": {"USER " + lab.User, "331"}, "PASS": {"PASS " + lab.Password, "230"},
		"TYPE": {"TYPE I", "200"}, "PASV": {"PASV", "227"}, "RETR": {"RETR " + e.home + "/big", "150"},
	}
	for _, step := range steps {
		if step == "ABOR" {
			c.say("ABOR\r\n")
			c.listen()
			continue
		}
		c.say(lines[step][0] + "\r\n")
		if err := c.expect(lines[step][1]); err != nil {
			return err
		}
		if step == "PASV" {
			if err := e.openData(c); err != nil {
				return err
			}
		}
	}
	if state == stateIn {
		c.data.Close() // the probe may ask for a transfer, which has nowhere to go then
		c.data = nil
	}
	return nil
}

// openData connects to where the last reply says.
func (e *examiner) openData(c *asked) error {
	m := regexp.MustCompile(`(\d+),(\d+)\)`).FindStringSubmatch(c.last)
	if m == nil {
		return fmt.Errorf("no port in %q", c.last)
	}
	var high, low uint16
	if _, err := fmt.Sscan(m[1]+" "+m[2], &high, &low); err != nil {
		return err
	}
	conn, err := e.connect(high<<8 | low)
	c.data = conn
	return err
}

func (e *examiner) connect(port uint16) (conn net.Conn, err error) {
	to := netip.AddrPortFrom(lab.Addr(lab.Server, lab.IPv4), port).String()
	err = e.lab.InNS(lab.Client, func() (err error) {
		conn, err = net.DialTimeout("tcp", to, patience)
		return err
	})
	return conn, err
}

func (e *examiner) dial() (*asked, error) {
	conn, err := e.connect(lab.ExplicitPort)
	if err != nil {
		return nil, err
	}
	return &asked{conn: conn}, nil
}

// Parts of replies that differ from one recording to the next.
var (
	passivePort = regexp.MustCompile(`(227 [^\r]*\()\d+,\d+,\d+,\d+,\d+,\d+\)`)
	passiveEPSV = regexp.MustCompile(`\(\|\|\|\d+\|\)`)
	clockTime   = regexp.MustCompile(`\b\d\d:\d\d(:\d\d)?\b|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b( +\d+)?|\b20\d{6,12}\b`)
	amounts     = regexp.MustCompile(`[0-9.,]+ (seconds|Mbytes|Kbytes|[MKG]?B/s|bytes|kbytes)|user number \d+ of \d+`)
)

// blur takes out what is of one recording alone.
func (e *examiner) blur(text string) string {
	text = strings.ReplaceAll(text, e.home, "$HOME")
	text = passivePort.ReplaceAllString(text, "${1}$$ADDRESS,$$PORT)")
	text = passiveEPSV.ReplaceAllString(text, "(|||$$PORT|)")
	text = clockTime.ReplaceAllString(text, "$$TIME")
	text = amounts.ReplaceAllString(text, "$$AMOUNT")
	return escape(text)
}

// escape writes every byte that is not ASCII as JSON can carry it back: as the rune of the same number.
func escape(text string) string {
	var b strings.Builder
	for i := range len(text) {
		b.WriteRune(rune(text[i]))
	}
	return b.String()
}

// asked is a control connection to a server that is asked.
type asked struct {
	conn net.Conn
	data net.Conn
	last string
	over bool
}

func (c *asked) say(text string) { _, _ = io.WriteString(c.conn, text) } // a closed connection shows in what is read

// expect reads until a whole last line of a reply with a code has come.
func (c *asked) expect(code string) error {
	last := regexp.MustCompile(`(?m)^` + code + ` .*\n`)
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for !last.Match(got.Bytes()) {
		if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := c.conn.Read(buf)
		got.Write(buf[:n])
		if refused := regexp.MustCompile(`(?m)^[45]\d\d .*\n`); err != nil || refused.Match(got.Bytes()) {
			return fmt.Errorf("%q in place of %s: %w", got.String(), code, err)
		}
	}
	c.last = got.String()
	return nil
}

// listen reads until the server has been quiet for a while.
func (c *asked) listen() string {
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(quiet))
		n, err := c.conn.Read(buf)
		got.Write(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got.String()
		}
		if err != nil {
			c.over = true
			return got.String()
		}
	}
}

// drain reads the data connection to its end, and reports whether the server stopped before.
func (c *asked) drain() (stalled bool, err error) {
	if err := c.data.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return false, err
	}
	_, err = io.Copy(io.Discard, c.data)
	c.data.Close() // ProFTPD says 226 only then
	c.data = nil
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return true, nil
	case errors.Is(err, syscall.ECONNRESET): // an aborted transfer
		return false, nil
	}
	return false, err
}

func (c *asked) close() {
	c.conn.Close()
	if c.data != nil {
		c.data.Close()
	}
}
