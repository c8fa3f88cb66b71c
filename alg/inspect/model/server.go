package model

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// Server is a server that executes what reaches it. Its state is the truth that the gateway is judged by.
type Server struct {
	habits *Habits
	world  *World

	phase      phase
	everTLS    bool
	login      string // "greeted", "named", "in"
	everIn     bool
	cwd        string
	transfer   bool
	binary     bool // TYPE I
	aborted    bool
	in         []byte
	deferred   []string // commands that wait for the transfer's end
	outbox     []reply
	asked      int    // PASV and EPSV executed
	announced  int    // and answered
	lastPort   uint16 // of the last 227 or 229
	ports      map[uint16]bool
	credits    int  // requests under real TLS that were answered
	handshaken bool // the client's first record was one
}

type phase int

const (
	inClear phase = iota
	inTLS
	closed
)

// reply is one that has not been sent yet.
type reply struct {
	text  string
	port  uint16 // that it announces
	begun bool   // a part of it was sent
}

func newServer(h *Habits, w *World) *Server {
	s := &Server{habits: h, world: w, login: "greeted", cwd: "/", ports: map[uint16]bool{}, lastPort: 50000}
	s.outbox = append(s.outbox, reply{text: h.Greeting})
	return s
}

// read takes bytes in stream order.
func (s *Server) read(b []byte) {
	if s.phase == inClear && len(b) > 0 {
		s.world.judgeRead()
	}
	s.in = append(s.in, b...)
	for s.phase != closed {
		if s.phase == inTLS {
			if !s.readRecord() {
				return
			}
			continue
		}
		end := bytes.IndexByte(s.in, '\n')
		if end < 0 {
			return
		}
		line := string(bytes.TrimRight(s.in[:end], "\r"))
		s.in = s.in[end+1:]
		s.line(line)
	}
	s.in = nil
}

// readRecord reads a TLS record, if a whole one is there. A real client's begin with a ClientHello, and its data has a mark that
// stands for the keys: what has not ends the connection.
func (s *Server) readRecord() bool {
	if len(s.in) < 5 {
		return false
	}
	n := int(s.in[3])<<8 | int(s.in[4])
	if len(s.in) < 5+n {
		return false
	}
	kind, body := s.in[0], s.in[5:5+n]
	switch {
	case !s.handshaken && (kind != 22 || s.in[1] != 3 || n < 4 || body[0] != 1):
		s.phase = closed
	case !s.handshaken:
		s.handshaken, s.everTLS = true, true
		s.world.seen.TLS++
		s.outbox = append(s.outbox, reply{text: serverHello})
	case kind == 20, kind == 23 && bytes.Equal(body, finished):
	case kind == 23 && bytes.HasPrefix(body, secret):
		s.in = s.in[5+n:]
		before := len(s.outbox)
		for _, line := range strings.Split(strings.TrimSuffix(hide(string(body[len(secret):])), "\r\n"), "\r\n") {
			s.line(line)
		}
		for i := before; i < len(s.outbox); i++ {
			s.outbox[i] = reply{text: Record(23, string(secret)+hide(s.outbox[i].text))}
			s.credits++
		}
		return true
	default:
		s.phase = closed
	}
	if s.phase != closed {
		s.in = s.in[5+n:]
	}
	return s.phase != closed
}

// line executes a command line.
func (s *Server) line(raw string) {
	if len(raw) > s.habits.long {
		a, ok := s.habits.find(s.state(), "long")
		if s.say(a.Reply); ok && a.Over {
			s.phase = closed
		}
		return
	}
	line := s.withoutIAC(raw)
	verb, arg, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	if s.phase == inClear {
		s.world.judgeVerb(verb, line)
	}
	switch {
	case line == "" && raw != "":
		s.say(s.recorded("IAC NOP", ""))
	case s.transfer && s.waits(verb, arg):
		s.deferred = append(s.deferred, line)
	default:
		s.execute(verb, arg)
	}
}

// withoutIAC takes Telnet's commands out as the server does (RFC 854). All know them before ABOR.
func (s *Server) withoutIAC(line string) string {
	const interrupt = "\xff\xf4\xff\xf2"
	if rest, ok := strings.CutPrefix(line, interrupt); ok && rest != "" {
		line = rest
	}
	if strings.IndexByte(line, 0xff) < 0 {
		return line
	}
	var out []byte
	for i := 0; i < len(line); i++ {
		skip := 0
		if line[i] == 0xff && i+1 < len(line) {
			switch c := line[i+1]; {
			case c >= 251 && c <= 254 && s.habits.skipsWill:
				skip = 3
			case c >= 240 && c <= 250 && s.habits.skipsIAC:
				skip = 2
			case c == 0xff && s.habits.skipsIAC:
				skip = 1
			}
		}
		if skip == 1 {
			out = append(out, 0xff)
		}
		if skip > 0 {
			i += max(skip, 2) - 1
			continue
		}
		out = append(out, line[i])
	}
	return string(out)
}

// waits says whether a command is looked at only when the transfer is over.
func (s *Server) waits(verb, arg string) bool {
	a, recorded := s.habits.find(s.state(), s.probe(verb, arg))
	if !recorded {
		return verb != "ABOR" && verb != "STAT" && verb != "NOOP"
	}
	return a.Reply == ""
}

// directories of the model server's disk.
var directories = []string{"/", "/pub", "/pub/deep", "/secret"}

// probe is the name that the recorder has for a command and what comes of it.
func (s *Server) probe(verb, arg string) string {
	switch verb {
	case "CWD", "XCWD":
		if !slices.Contains(directories, s.resolve(arg)) {
			return "CWD nowhere"
		}
		return "CWD"
	case "AUTH":
		return "AUTH " + strings.ToUpper(arg)
	case "EPSV":
		if strings.EqualFold(arg, "ALL") {
			return "EPSV ALL"
		}
	case "PASS":
		if arg == "wrong" {
			return "PASS wrong"
		}
	case "RETR", "STOR":
		if !strings.HasPrefix(s.resolve(arg), "/secret/key") && !strings.HasPrefix(s.resolve(arg), "/pub/") && s.resolve(arg) != "/big" {
			return "RETR nowhere"
		}
	case "":
		return "blank"
	case "SITE", "MKD", "DELE":
		return map[string]string{"SITE": "SITE HELP", "MKD": "MKD exists", "DELE": "DELE nowhere"}[verb]
	case "XPWD":
		return "PWD"
	case "XCUP":
		return "CDUP"
	}
	return verb
}

func (s *Server) resolve(arg string) string {
	if strings.HasPrefix(arg, "/") {
		return path.Clean(arg)
	}
	return path.Join(s.cwd, arg)
}

func (s *Server) state() string {
	switch {
	case s.transfer && s.binary:
		return "binary"
	case s.transfer:
		return "transfer"
	case s.aborted:
		return "aborted"
	}
	return s.login
}

// recorded is the reply to a probe in the state at hand; if nothing was recorded it is the given one.
func (s *Server) recorded(probe, otherwise string) string {
	a, ok := s.habits.find(s.state(), probe)
	if !ok && s.state() == "aborted" {
		a, ok = s.habits.find("in", probe)
	}
	if !ok {
		return otherwise
	}
	return a.Reply
}

func (s *Server) say(text string) {
	if text != "" {
		s.outbox = append(s.outbox, reply{text: text})
	}
}
