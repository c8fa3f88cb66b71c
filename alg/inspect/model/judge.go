package model

import (
	"slices"
	"strings"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/conntrack"
)

// session is what the inspector thinks of the connection.
func (w *World) session() (audit.SessionInfo, bool) {
	for _, s := range w.in.Sessions() {
		if s.Client == client && s.Server == server && !s.Refused {
			return s, true
		}
	}
	return audit.SessionInfo{}, false
}

// judgeRead: what the server reads as clear text must have been read here, and not taken for TLS. Where the policy rests on
// nothing, the first bytes of a connection that was met in the middle may say what it is.
func (w *World) judgeRead() {
	if w.server.everTLS || w.met && len(w.Denied)+len(w.Secret) == 0 {
		return
	}
	s, there := w.session()
	switch {
	case !there && !w.passedOn():
		w.fault("the server reads clear text of a connection that the gateway does not follow")
	case there && s.Protection.Control == alg.TLS:
		w.fault("the server reads as clear text what the gateway takes for TLS")
	}
}

// passedOn says whether a session that is refused just now still had bytes that went on before.
func (w *World) passedOn() bool {
	return slices.ContainsFunc(w.in.Sessions(), func(s audit.SessionInfo) bool { return s.Client == client })
}

// judgeVerb: no verb that the policy denies reaches a server outside TLS.
func (w *World) judgeVerb(verb, line string) {
	if slices.Contains(w.Denied, verb) {
		w.fault("the server executes %.40q outside TLS", line)
	}
}

// judgePath: nor does a command with a path that it denies.
func (w *World) judgePath(verb, to string) {
	if slices.Contains(w.Secret, verb) && (to == "/secret" || strings.HasPrefix(to, "/secret/")) {
		w.fault("the server executes %s of %s", verb, to)
	}
}

// judgePinhole: an expectation leads to where one of the two has said that it listens, after a login.
func (w *World) judgePinhole(x conntrack.Expectation) {
	w.seen.Pinholes++
	switch {
	case x.Master != tuple:
		w.fault("an expectation under another master: %v", x.Master)
	case !w.server.everIn:
		w.fault("an expectation to %v before a login", x.To)
	case x.To.Addr() == client.Addr() && x.From.Addr() == server.Addr():
		if !w.active[x.To.Port()] {
			w.fault("an expectation to %v, where the client never said that it listens", x.To)
		}
	case x.To.Addr() != server.Addr() || x.From.Addr() != client.Addr():
		w.fault("an expectation between others: %v to %v", x.From, x.To)
	case w.server.everTLS && w.server.credits > w.jit:
		w.jit++
	case !w.server.ports[x.To.Port()]:
		w.fault("an expectation to %v, which the server never announced to a request", x.To)
	}
}

// judgePinholes: there is one at most, and none under a session that we ended.
func (w *World) judgePinholes() {
	open := len(w.kernel.Open())
	if open == 0 || w.killed {
		return
	}
	if _, there := w.session(); open > 1 || !there {
		w.fault("%d pinholes stand, session followed: %v", open, there)
	}
}
