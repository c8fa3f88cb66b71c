// Package policy is the operator's one YAML file: who may speak FTP to whom, and what a session may then do. It parses
// and checks the file, answers the engine's questions about it, and prints it in its canonical form.
//
// The package is pure: Load reads a file and nothing here touches anything else. Every zero value denies.
//
// testdata/policies/reference.yaml explains each key, and a test holds it to the code.
package policy

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
)

// Action says how a control connection is carried. The zero value denies.
type Action uint8

const (
	Deny      Action = iota // the connection is refused
	Inspect                 // packets pass through the queue and are read there
	Terminate               // its bytes pass through ftpalg's own sockets, which open TLS
)

var actionWords = []string{Deny: "deny", Inspect: "inspect", Terminate: "terminate"}

// String gives the word of the policy file.
func (a Action) String() string { return Word(actionWords, a) }

// Mode is a way to set up a data connection.
type Mode uint8

const (
	PASV Mode = iota // RFC 959 section 4.1.2: the server listens
	EPSV             // RFC 2428 section 3: the same, either address family
	PORT             // RFC 959 section 4.1.2: the client listens
	EPRT             // RFC 2428 section 2: the same, either address family
	JIT              // just in time: the announcement is encrypted, so the data connection's own SYN is what is seen
)

var modeWords = []string{PASV: "PASV", EPSV: "EPSV", PORT: "PORT", EPRT: "EPRT", JIT: "JIT"}

// String gives the command's name, or JIT.
func (m Mode) String() string { return Word(modeWords, m) }

// Modes is a set of modes.
type Modes uint8

// Has reports whether m is in the set.
func (s Modes) Has(m Mode) bool { return s>>m&1 == 1 }

// Bounce says what becomes of an address in PORT, EPRT or a 227 that is not the control connection's own peer. Such
// an address is never obeyed (RFC 2577 section 3).
type Bounce uint8

const (
	BounceDeny Bounce = iota // the command or reply is refused
	BouncePeer               // the address is ignored and the peer's own is used
)

var bounceWords = []string{BounceDeny: "deny", BouncePeer: "peer"}

// String gives the word of the policy file.
func (b Bounce) String() string { return Word(bounceWords, b) }

// Word is the word of a value of an enumeration, or its number where it has none.
func Word[T ~uint8](words []string, v T) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("%T(%d)", v, uint8(v))
}

// PortRange is a range of ports, both ends included. The zero value holds none.
type PortRange struct{ First, Last uint16 }

// Contains reports whether port is in the range. Port 0 is in no range.
func (r PortRange) Contains(port uint16) bool { return port != 0 && r.First <= port && port <= r.Last }

// IsZero reports whether the range is empty.
func (r PortRange) IsZero() bool { return r == PortRange{} }

// String gives the form of the policy file.
func (r PortRange) String() string {
	if r.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Policy is a whole policy file, checked. It is not to be changed after Parse: its index would not follow.
type Policy struct {
	Servers         []Server
	Clients         []Client
	Rules           []Rule // in order: the first that matches decides
	Bounce          Bounce
	PrivilegedPorts bool   // data ports below 1024 are allowed
	FailOpen        bool   // let packets pass when the queue is full or nobody reads it
	Helper          string // conntrack helper that carries expectations, or "auto"
	PinholeTimeout  time.Duration
	CreditLifetime  time.Duration
	Limits          Limits
	Tests           []Test
	Authority       KeyPair  // the CA that mints certificates for servers without their own; zero: none
	Warnings        []string // what is allowed but hardly meant, each with its position

	index     prefixes // every address of servers, their own and public ones, ascending and disjoint
	faces     []face   // faces[i] is whose index[i] is
	everyPort bool     // AllowAll: any port may be a control port
}

// face is one of the views that clients may have of a server: its own addresses, or one of its public ones.
type face struct {
	server int // by position in Policy.Servers
	public int // by position in Server.Public; -1: its own addresses
}

// Server is a named FTP server, or a named group of them.
type Server struct {
	Name      string
	Addresses []netip.Prefix
	Explicit  []uint16  // control ports that begin in clear text; AUTH may follow (RFC 4217)
	Implicit  []uint16  // control ports that begin with TLS
	Passive   PortRange // where just-in-time pinholes may lead; zero means nowhere
	Public    []Public  // where clients reach it by the gateway's DNAT

	Certificates []KeyPair // shown to clients whose connection is terminated; SNI chooses
	Upstream     Upstream  // how a terminated connection goes on
}

// Public is where clients reach a server whose own address they do not see: the gateway's DNAT leads from there to it.
type Public struct {
	Addresses          []netip.Prefix // of single hosts
	Explicit, Implicit []uint16       // control ports there
}

// Client is a named set of client addresses.
type Client struct {
	Name      string
	Addresses []netip.Prefix
}

// Rule says what holds between some clients and some servers. From and To are names as the file has them, or the one
// word "any".
type Rule struct {
	Name          string
	From, To      []string
	Action        Action
	Modes         Modes    // the data modes allowed; has JIT exactly when OpaquePinhole is set
	RequireTLS    bool     // USER before AUTH is refused
	OpaquePinhole bool     // FTPS that stays encrypted gets just-in-time pinholes, client to server
	OpaqueActive  bool     // and server to client as well
	Allow         []string // if not empty, the only verbs allowed
	Deny          []string // denied: "VERB", "VERB WORD" or "VERB /path"
	Users         Names    // user names, '*' and '?' as wild cards
	Files         Names    // patterns of file names, as of path.Match, of the last element of a path
	NoUpload      bool
	NoDownload    bool
	Data          DataPath  // where Action is Terminate
	TLS           ClientTLS // the same
	MaxSize       int64     // bytes of one transfer, 0: no limit; the same

	clients prefixes
	servers []bool // by position in Policy.Servers
	allow   map[string]bool
	denied  map[string]*restriction
	users   patterns
	files   patterns
}

// Limits bound what one policy can make the gateway hold or write.
type Limits struct {
	Line              int // bytes of one command or reply line
	Sessions          int // control connections followed at once
	SessionsPerClient int // the same, of one client: an IPv4 address or an IPv6 network of 64 bits
	Pinholes          int // open pinholes in all
	PinholesPerClient int // the same, of one client
	Gap               int // bytes that one session may hold while a segment is missing
	Outstanding       int // commands of one session without a reply yet
	AuditRate         int // log lines a second about refusals and what is audited

	// Of terminated connections.
	Handshakes          int           // TLS handshakes in flight
	HandshakesPerClient int           // the same, of one client
	HandshakeTimeout    time.Duration // from the connection to the end of its handshake
	IdleTimeout         time.Duration // without a command and without a transfer
	LoginFailures       int           // of one control connection
}

// Test is one entry of the file's own tests. Running it takes the engine, which package alg has.
type Test struct {
	Name     string
	From, To netip.Addr
	Port     uint16
	Dialogue []Line
	Command  string // one command after a login that the runner supplies; never together with Dialogue
	Expect   string // allow or deny; pinhole only with a dialogue or a command
	Line     int    // where the test begins in the file
}

// Line is one line of a test's dialogue.
type Line struct {
	FromClient bool
	Text       string
	Line       int // where it stands in the file
}

// MaxSize bounds a policy file in bytes. The largest policies in sight have thousands of addresses, not millions, and
// the parser's memory is some hundred times the file.
const MaxSize = 1 << 20

// Load reads and parses the policy file at path.
func Load(path string) (*Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return Parse(path, src)
}

// Parse parses and checks a policy; name stands for the file in messages. An error joins every fault found, each an
// *Error.
func Parse(name string, src []byte) (*Policy, error) {
	d := newDocument(name)
	raw := defaults()
	d.decode(src, &raw)
	if len(d.faults) > 0 { // values that did not decode would only give rise to more complaints
		return nil, d.err()
	}
	p := build(d, &raw)
	if err := d.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// AllowAll is the policy of a replay without a policy file: every pair of hosts, inspected, with every data mode. Any
// port may be a control port as far as Decide goes, so that a capture with an odd one can be read; IsControlPort knows
// 21 and 990 alone, because in such a capture any other port may as well carry data.
func AllowAll() *Policy {
	raw := defaults()
	server, rule := defaultServer(), defaultRule()
	server.Name, server.Addresses, server.Passive = "everything", []string{"0.0.0.0/0", "::/0"}, "1024-65535"
	rule.Name, rule.Action = "everything", Inspect.String()
	raw.Servers, raw.Rules = []rawServer{server}, []rawRule{rule}
	p := build(newDocument("built in"), &raw)
	p.everyPort = true
	p.Warnings = nil // nothing is queued in a replay
	return p
}
