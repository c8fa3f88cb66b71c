package terminate

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// secureServer begins TLS with the server. Its sessions are kept for the data connections, which resume them: the name is
// the same, and so is the cache.
func (s *session) secureServer() error {
	config := s.certs.Upstream(s.target, s.real.Addr()).Clone()
	config.ClientSessionCache = keptSession{tls.NewLRUClientSessionCache(1)}
	s.configs[alg.Server] = config
	err := s.handshakeControl(alg.Server, func(c net.Conn) *tls.Conn { return tls.Client(c, config) })
	if err != nil {
		return fmt.Errorf("%w: %w", errUpstreamTLS, err)
	}
	return nil
}

// secureClient begins TLS with the client.
func (s *session) secureClient() error {
	server := s.peers[alg.Server]
	base, err := s.certs.Downstream(s.target, s.rule, s.server.Addr(), server.certificate())
	if err != nil {
		return err
	}
	base.SetSessionTicketKeys([][32]byte{s.key})
	var resumed string
	config := s.tickets.control(base, &resumed)
	err = s.handshakeControl(alg.Client, func(c net.Conn) *tls.Conn { return tls.Server(c, config) })
	if err != nil {
		return err
	}
	if !s.peers[alg.Client].tls.ConnectionState().DidResume {
		resumed = ""
	}
	s.configs[alg.Client] = s.tickets.data(base, resumed)
	s.shown = leafOf(s.peers[alg.Client].tls.ConnectionState())
	return nil
}

// leafOf is the certificate that the peer showed, or nil.
func leafOf(state tls.ConnectionState) *x509.Certificate {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// sameHolder reports whether two certificates are one client's: they have the same key, or, as after a renewal, the same names.
// The names are the subject and the subjectAltName together, as either alone may be empty (RFC 5280 section 4.1.2.6).
func sameHolder(a, b *x509.Certificate) bool {
	if bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) {
		return true
	}
	named := len(a.Subject.Names) > 0 || len(alternativeNames(a)) > 0
	return named && bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(alternativeNames(a), alternativeNames(b))
}

// oidSubjectAltName is the extension of RFC 5280 section 4.2.1.6.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// alternativeNames are a certificate's, in their encoding; nil if it has none.
func alternativeNames(c *x509.Certificate) []byte {
	for _, x := range c.Extensions {
		if x.Id.Equal(oidSubjectAltName) {
			return x.Value
		}
	}
	return nil
}

// keptSession is a cache that forgets no session. crypto/tls drops one whose handshake failed, but that is most often the
// doing of the other half of a data connection, and a server that insists on the session would take none afterwards.
type keptSession struct{ tls.ClientSessionCache }

// Put implements tls.ClientSessionCache.
func (k keptSession) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		k.ClientSessionCache.Put(key, s)
	}
}

func (s *session) handshakeControl(side alg.Side, over func(net.Conn) *tls.Conn) error {
	return s.gateway.handshake(s.client.Addr(), func() error {
		return s.peers[side].secure(time.Now().Add(s.policy.Limits.HandshakeTimeout), over)
	})
}

// ticketMark begins what we write into a ticket. What it is good for follows, and the id of its control connection.
const ticketMark = "ftpalg:"

// tickets binds TLS sessions to their control connection: what a client is given on it, or on its data connections, can be
// resumed on its data connections and on no others.
type tickets struct {
	scope string // begins the marks of all control connections under the same rule to the same server
	own   string // the mark of this control connection
}

func newTickets(scope string) tickets {
	scope = ticketMark + scope + "\x00"
	return tickets{scope: scope, own: scope + rand.Text()}
}

// control gives the configuration of the TLS server that the client meets on the control connection. It accepts the tickets
// of any control connection under the same rule to the same server: a client may come back. The mark of the one that it takes is
// noted.
func (t tickets) control(base *tls.Config, resumed *string) *tls.Config {
	config := base.Clone()
	config.WrapSession = t.wrap(base)
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, mark := openTicket(base, identity, cs)
		if !strings.HasPrefix(mark, t.scope) {
			return nil, nil // a full handshake follows
		}
		*resumed = mark
		return ss, nil
	}
	return config
}

// data gives the configuration of the one that it meets on data connections. It accepts the tickets of this control connection
// alone, and the one that it resumed itself, if it did.
func (t tickets) data(base *tls.Config, resumed string) *tls.Config {
	config := base.Clone()
	config.WrapSession = t.wrap(base)
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, mark := openTicket(base, identity, cs)
		if mark == "" || mark != t.own && mark != resumed {
			return nil, nil
		}
		return ss, nil
	}
	return config
}

// withoutNewTickets returns a configuration for one connection, whose server takes tickets and sends none in TLS 1.3. There they
// follow the handshake (RFC 8446 section 4.6.1), and a client that uploads may never read them: when it closes, what it has not
// read turns the end into a reset, and what it has sent last is lost. crypto/tls asks whether it is to send any after it has
// looked for a session and, without one, for a certificate. In TLS 1.2 tickets are part of the handshake (RFC 5077 section 3.3),
// and the certificate is looked for before the session, so nothing is changed: the session would not be resumed.
func withoutNewTickets(base *tls.Config) *tls.Config {
	config := base.Clone()
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		config.SessionTicketsDisabled = cs.Version >= tls.VersionTLS13
		return base.UnwrapSession(identity, cs)
	}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		config.SessionTicketsDisabled = agreesOnTLS13(base, hello)
		return base.GetCertificate(hello)
	}
	return config
}

// agreesOnTLS13 reports whether a client and a server with a configuration speak TLS 1.3 with one another.
func agreesOnTLS13(config *tls.Config, hello *tls.ClientHelloInfo) bool {
	return slices.Contains(hello.SupportedVersions, tls.VersionTLS13) && (config.MaxVersion == 0 || config.MaxVersion >= tls.VersionTLS13)
}

func (t tickets) wrap(base *tls.Config) func(tls.ConnectionState, *tls.SessionState) ([]byte, error) {
	return func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		ss.Extra = append(slices.DeleteFunc(ss.Extra, isMark), []byte(t.own))
		return base.EncryptTicket(cs, ss)
	}
}

// openTicket decrypts a ticket and gives its mark; empty if it is none of ours.
func openTicket(base *tls.Config, identity []byte, cs tls.ConnectionState) (*tls.SessionState, string) {
	ss, err := base.DecryptTicket(identity, cs)
	if err != nil || ss == nil {
		return nil, ""
	}
	for _, x := range ss.Extra {
		if isMark(x) {
			return ss, string(x)
		}
	}
	return nil, ""
}

func isMark(extra []byte) bool { return strings.HasPrefix(string(extra), ticketMark) }

// maxGreeting bounds the lines of a greeting that is kept until AUTH is through.
const maxGreeting = 64

// errRefused says that the server refused a command that the policy depends on.
var errRefused = fmt.Errorf("%w: the server refuses", errUpstreamTLS)

// errTurnedAway says that the server greeted with a refusal, such as 421 for too many connections.
var errTurnedAway = errors.New("the server turns the client away")

// errGreeting says that a server with which the policy wants TLS did not greet with 220, so that no AUTH can follow (RFC 959
// section 5.4). Whatever else it said is not passed on: the client would go on without TLS to the server.
var errGreeting = fmt.Errorf("%w: the server's greeting is not 220", errUpstreamTLS)

// negotiate speaks to a server that the policy wants TLS with, whatever the client does: greeting, AUTH and handshake in
// their order, and protection of the data connections. It asks for that in implicit mode too, which not every server takes
// for granted. It gives the greeting.
func (s *session) negotiate(channel policy.Channel) (greeting []line, err error) {
	deadline := time.Now().Add(s.greetingTimeout())
	if channel == policy.Implicit {
		if err := s.secureServer(); err != nil {
			return nil, err
		}
	}
	greeting, code, err := s.answer(deadline)
	switch {
	case err != nil:
		return nil, err
	case code >= 400:
		return nil, fmt.Errorf("%w: %q", errTurnedAway, lastText(greeting))
	case code != 220:
		return nil, fmt.Errorf("%w: %q", errGreeting, lastText(greeting))
	}
	if channel == policy.Explicit {
		if err := s.mustAsk(deadline, inClear, beginsTLS, "AUTH TLS", "AUTH SSL"); err != nil {
			return nil, err
		}
		if err := s.secureServer(); err != nil {
			return nil, err
		}
	}
	if err := s.mustAsk(deadline, inTLS, completes, "PBSZ 0"); err != nil {
		return nil, err
	}
	return greeting, s.mustAsk(deadline, inTLS, completes, "PROT P")
}

// beginsTLS reports whether the reply to AUTH says that TLS begins: 234 alone does (RFC 4217 section 4).
func beginsTLS(code int) bool { return code == 234 }

// completes reports whether a command was carried out (RFC 959 section 4.2).
func completes(code int) bool { return code >= 200 && code < 300 }

// mustAsk gives the server a command, and others if it does not know that one. Its reply has to be one that will do.
func (s *session) mustAsk(deadline time.Time, said transport, willDo func(code int) bool, commands ...string) error {
	for _, command := range commands {
		if err := s.peers[alg.Server].send([]byte(command+"\r\n"), said); err != nil {
			return err
		}
		lines, code, err := s.answer(deadline)
		switch {
		case err != nil:
			return err
		case willDo(code):
			return nil
		case code != 500 && code != 502 && code != 504:
			return fmt.Errorf("%w %s: %q", errRefused, command, lastText(lines))
		}
	}
	return fmt.Errorf("%w %s", errRefused, commands[0])
}

// maxQuoted bounds what an error quotes of a reply, in bytes.
const maxQuoted = 200

// lastText is the last line of a reply, as an error quotes it.
func lastText(lines []line) []byte {
	text := lines[len(lines)-1].Text
	return text[:min(len(text), maxQuoted)]
}

// answer reads one final reply of the server's, and with it the lines without a code that some servers have before it.
func (s *session) answer(deadline time.Time) (lines []line, code int, err error) {
	var replies ftp.Replies
	for len(lines) < maxGreeting {
		l, err := s.peers[alg.Server].next(deadline)
		if err != nil {
			return nil, 0, err
		}
		reply, err := replies.Line(ftp.WithoutNegotiation(l.Text))
		if err != nil && (l.Flaws&ftp.Refused != 0 || ftp.OtherServer(l.Text)) {
			return nil, 0, err
		}
		lines = append(lines, l.clone())
		if err == nil && reply.Last && !reply.Preliminary() {
			return lines, reply.Code, nil
		}
	}
	return nil, 0, fmt.Errorf("%w: a reply of more than %d lines", ftp.ErrReply, maxGreeting)
}
