package main

import (
	"bufio"
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
	"slices"
	"syscall"
	"time"

	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
)

// defaultSocket is where the running daemon answers root's questions.
const defaultSocket = "/run/ftpalg/ftpalg.sock"

const (
	// socketTimeout bounds one question and its answer.
	socketTimeout = 10 * time.Second
	// questionPause is the wait after a failed accept, most likely for want of descriptors.
	questionPause = time.Second
)

// sessionRecord is a session as `ftpalg sessions --json` prints it.
type sessionRecord struct {
	Session uint64         `json:"session"`
	Client  netip.AddrPort `json:"client"`
	Server  netip.AddrPort `json:"server"`
	Rule    string         `json:"rule"`
	User    string         `json:"user,omitempty"`
	Control string         `json:"control"`
	Data    string         `json:"data"`
	Began   time.Time      `json:"began"`
	Seen    time.Time      `json:"seen"`
	Refused bool           `json:"refused,omitempty"`
}

// shareRecord is what clients use of something that all share, as `ftpalg sessions --shares --json` prints it.
type shareRecord struct {
	Of        string `json:"of"`
	Used      int    `json:"used"`
	Limit     int    `json:"limit"`
	PerClient int    `json:"per_client"`          // limit
	Clients   int    `json:"clients"`             // that have something
	Most      string `json:"most,omitempty"`      // the client that has most
	MostUsed  int    `json:"most_used,omitempty"` // what it has
}

// pinholeRecord is an open pinhole as `ftpalg pinholes --json` prints it: what the kernel expects under a control connection.
type pinholeRecord struct {
	Session uint64    `json:"session"`
	Mode    string    `json:"mode,omitempty"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	Until   time.Time `json:"until"`
	Foreign bool      `json:"foreign,omitempty"` // no session that is followed here asked for it
	Earlier bool      `json:"earlier,omitempty"` // it stood when this process began
}

// listen makes the socket, for root alone. A socket file that nobody answers on is a dead daemon's and is replaced;
// another file is not ours to remove.
func listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: there is something that is not a socket; choose another --socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) { // the latter: more questions wait than there is room for
		return nil, fmt.Errorf("%s: another ftpalg is running; stop it, or choose another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace a dead daemon's socket: %w", err)
	}
	if path == defaultSocket {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("make the directory of the socket for questions: %w", err)
		}
	}
	if err := safeDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	// From its first moment on it is root's alone.
	before := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("make the socket for questions: %w", err)
	}
	return l, nil
}

// safeDirectory refuses a directory in which others could put something in the place of the socket: those whose it is, or one above
// it, and those who may write there. With the sticky bit (as /tmp has it) only the owner of a file can.
func safeDirectory(dir string) error {
	given, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("the directory of the socket for questions: %w", err)
	}
	meant, err := filepath.EvalSymlinks(given)
	if err != nil {
		return fmt.Errorf("the directory of the socket for questions: %w", err)
	}
	for _, dir := range []string{given, meant} { // whoever can write where a link is can have it lead elsewhere
		for ; ; dir = filepath.Dir(dir) {
			if err := notOthers(dir); err != nil {
				return err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

// notOthers refuses one directory.
func notOthers(dir string) error {
	const groupOrOthers = 0o022
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the directory of the socket for questions: %w", err)
	}
	if mode := info.Mode(); mode&groupOrOthers != 0 && mode&os.ModeSticky == 0 {
		return fmt.Errorf("%s: others than its owner can write there (mode %04o), and put something in the place of the socket; "+
			"run chmod go-w, or choose another --socket", dir, mode.Perm())
	}
	if stat, known := info.Sys().(*syscall.Stat_t); known && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: belongs to user %d, who can put something in the place of the socket; choose another --socket", dir, stat.Uid)
	}
	return nil
}

// answer serves questions: one word a connection, answered by one JSON object a line.
func (d *daemon) answer(ctx context.Context, l net.Listener) error {
	defer l.Close() // our successor makes it anew
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			go d.answerOne(c)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("socket for questions: %w", err)
		default:
			d.log.Warn("a question is not answered", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(questionPause):
			}
		}
	}
}

func (d *daemon) answerOne(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(socketTimeout))
	in := bufio.NewScanner(c)
	if !in.Scan() {
		return
	}
	out := bufio.NewWriter(c)
	defer out.Flush()
	enc := json.NewEncoder(out)
	switch in.Text() {
	case "sessions":
		for _, s := range d.allSessions() {
			_ = enc.Encode(newSessionRecord(s))
		}
	case "shares":
		for _, s := range slices.Concat(d.books.Shares(), d.certs.Load().Shares(), d.reporter.shares()) {
			_ = enc.Encode(newShareRecord(s))
		}
	case "pinholes":
		for _, p := range d.pinholes() {
			_ = enc.Encode(p)
		}
	}
}

func newSessionRecord(s audit.SessionInfo) sessionRecord {
	return sessionRecord{
		Session: s.Number, Client: s.Client, Server: s.Server, Rule: s.Rule, User: audit.Printable(s.User), Refused: s.Refused,
		Control: s.Protection.Control.String(), Data: s.Protection.Data.String(), Began: s.Began, Seen: s.LastSeen,
	}
}

func newShareRecord(s ledger.Share) shareRecord {
	r := shareRecord{Of: s.Name, Used: s.Used, Limit: s.Total, PerClient: s.Client, Clients: s.Clients, MostUsed: s.TopUsed}
	switch {
	case s.Top.IsSingleIP():
		r.Most = s.Top.Addr().String()
	case s.Top.IsValid():
		r.Most = s.Top.String()
	}
	return r
}

// ask puts a question to the running daemon and gives its answer to each, line by line.
func ask(path, question string, each func(line []byte) error) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return fmt.Errorf("no answer at %s: is 'ftpalg run' running, and are you root? %w", path, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(socketTimeout))
	if _, err := fmt.Fprintln(c, question); err != nil {
		return err
	}
	answer, err := io.ReadAll(c) // the daemon does not wait for a reader of ours, such as a pager
	if err != nil {
		return fmt.Errorf("the daemon at %s does not answer: %w", path, err)
	}
	for line := range bytes.Lines(answer) {
		if err := each(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return err
		}
	}
	return nil
}
