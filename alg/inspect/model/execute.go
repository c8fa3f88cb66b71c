package model

import (
	"fmt"
	"slices"
	"strings"
)

// execute does what a command says, and answers.
func (s *Server) execute(verb, arg string) {
	probe := s.probe(verb, arg)
	words, known := textbook[verb]
	if !known {
		words = [2]string{"200 ok\r\n", "500 what\r\n"} // TYPE, MODE, NOOP and the like
	}
	in := s.login == "in"
	if in && s.phase == inClear {
		s.world.seen.Commands++
	}
	answer := func(ok bool) string {
		if ok {
			return s.recorded(probe, words[0])
		}
		return s.recorded(probe, words[1])
	}
	switch verb {
	case "USER":
		text := answer(!s.transfer)
		if strings.HasPrefix(text, "331") && !(in && strings.Contains(s.habits.Name, "vsftpd")) {
			s.login = "named"
		}
		s.say(text)
	case "PASS":
		text := answer(s.login != "greeted" && arg != "wrong")
		if strings.HasPrefix(text, "230") {
			s.login, s.everIn = "in", true
		}
		s.say(text)
	case "REIN":
		text := answer(in)
		if strings.HasPrefix(text, "2") {
			s.login, s.cwd = "greeted", "/"
		}
		s.say(text)
	case "AUTH":
		tls := s.habits.TLS && s.phase == inClear && !s.transfer && (strings.EqualFold(arg, "TLS") || strings.EqualFold(arg, "SSL"))
		text := answer(tls)
		if strings.HasPrefix(text, "234") {
			s.phase = inTLS
		}
		s.say(text)
	case "CWD", "XCWD", "CDUP", "XCUP":
		if strings.HasSuffix(verb, "UP") {
			arg = ".."
		}
		to := s.resolve(arg)
		s.judgePath("CWD", to)
		text := answer(in && slices.Contains(directories, to))
		if in && strings.HasPrefix(text, "2") {
			s.cwd = to
		}
		s.say(text)
	case "PWD", "XPWD":
		if in && (!s.transfer || strings.HasPrefix(s.recorded("PWD", "257"), "257")) {
			s.say(fmt.Sprintf("257 \"%s\" here\r\n", s.cwd))
			return
		}
		s.say(answer(false))
	case "PASV", "EPSV":
		s.passive(verb, arg, probe, in)
	case "RETR", "STOR", "LIST", "NLST", "SIZE", "MDTM", "APPE", "MLSD":
		s.touch(verb, arg, in)
	case "MKD":
		s.say(answer(in)) // nobody makes a directory before a login
	case "ABOR":
		s.say(answer(in))
		if s.transfer {
			s.transfer, s.aborted = false, true
			s.resume()
		}
	case "TYPE":
		text := answer(in)
		if strings.HasPrefix(text, "2") {
			s.binary = strings.EqualFold(arg, "I")
		}
		s.say(text)
	case "QUIT":
		s.say(answer(true))
		s.phase = closed
	case "":
		s.say(s.recorded("blank", ""))
	default:
		s.say(answer(known || verb == "NOOP"))
	}
}

// passive opens a port and announces it.
func (s *Server) passive(verb, arg, probe string, in bool) {
	s.asked++
	if probe == "EPSV ALL" {
		s.say(s.recorded(probe, "200 ok\r\n"))
		return
	}
	text := "530 no\r\n"
	if in {
		text = "227 Entering Passive Mode ($ADDRESS,$PORT).\r\n"
		if verb == "EPSV" {
			text = "229 Extended Passive Mode (|||$PORT|)\r\n"
		}
	}
	text = s.recorded(probe, text)
	if !strings.Contains(text, "$PORT") {
		s.say(text)
		return
	}
	s.lastPort++
	if s.lastPort > 50090 {
		s.lastPort = 50001
	}
	text = strings.ReplaceAll(text, "$ADDRESS", "198,51,100,2")
	if strings.Contains(text, "|||") {
		text = strings.ReplaceAll(text, "$PORT", fmt.Sprint(s.lastPort))
	} else {
		text = strings.ReplaceAll(text, "$PORT", fmt.Sprintf("%d,%d", s.lastPort>>8, s.lastPort&0xff))
	}
	s.outbox = append(s.outbox, reply{text: text, port: s.lastPort})
}

// touch is a command with a file or directory.
func (s *Server) touch(verb, arg string, in bool) {
	name := arg
	if verb == "LIST" || verb == "NLST" {
		name = s.listed(arg)
	}
	to := s.resolve(name)
	if s.phase == inClear && in {
		s.judgePath(verb, to)
	}
	there := in && (strings.HasPrefix(to, "/pub") || strings.HasPrefix(to, "/secret") || to == "/big" || to == "/")
	switch {
	case !in:
		s.say("530 no\r\n")
	case s.transfer: // one at a time
		s.say(s.recorded(s.probe(verb, arg), "425 busy\r\n"))
	case !there:
		s.say(s.recorded("RETR nowhere", "550 no\r\n"))
	case verb == "SIZE", verb == "MDTM":
		s.say("213 7\r\n")
	default:
		s.say("150 here\r\n")
		s.transfer, s.aborted = true, false
		s.world.seen.Transfers++
	}
}

// listed finds the path behind the options of LIST.
func (s *Server) listed(arg string) string {
	for strings.HasPrefix(arg, "-") {
		word, rest, _ := strings.Cut(arg, " ")
		if i := strings.IndexByte(word, '/'); i >= 0 && s.habits.gluedPath {
			return arg[i:]
		}
		arg = strings.TrimLeft(rest, " ")
	}
	return arg
}

func (s *Server) judgePath(verb, to string) {
	if s.phase == inClear && s.login == "in" {
		s.world.judgePath(verb, to)
	}
}

// drained ends the transfer: the client has read its data.
func (s *Server) drained() {
	if !s.transfer {
		return
	}
	s.transfer = false
	s.say("226 Transfer complete.\r\n")
	s.resume()
}

// resume executes what waited for the transfer's end.
func (s *Server) resume() {
	waiting := s.deferred
	s.deferred = nil
	for i, line := range waiting {
		if s.transfer {
			s.deferred = append(s.deferred, waiting[i:]...)
			return
		}
		verb, arg, _ := strings.Cut(line, " ")
		s.execute(strings.ToUpper(verb), arg)
	}
}
