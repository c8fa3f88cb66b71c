package alg

import "fmt"

// Reason says why something was done. It is a closed set, shared by logs, metrics, replay reports and tests.
type Reason uint8

const (
	// NoReason is the zero value: nothing was decided.
	NoReason Reason = iota

	// Why a line is denied. The control connection lives on.
	ForeignAddress
	PrivilegedPort
	BadHostPort
	OtherProtocol
	ModeDenied
	TransferMode
	OutOfStep
	StatListing
	StartUnknown
	AfterEPSVAll
	CommandDenied
	PathDenied
	PathUnknown
	UserDenied
	DirectionDenied
	FileDenied
	TLSRequired
	OpaqueDenied
	NoCertificate
	BadCommand
	BadCharacters
	BareLineFeed
	BlankLine
	LineTooLong
	UnsolicitedReply
	ExpectationFailed
	PinholeLimit
	AUTHTooLate
	NotLoggedIn
	PartialLine
	NoRoom

	// Why a session ends by our decision.
	NotFTP
	NotTLS
	TextAroundAUTH
	TooManyOutstanding
	NoConnection
	SessionUnknown
	LabelFailed
	PolicyDenied
	SessionLimit
	InternalError
	SplitLine
	LoginLimit
	IdleTimeout
	ServerUnreachable
	UpstreamTLS
	ClientTLS
	ForeignExpectation
	GatewayStopped

	// What becomes of a relayed transfer.
	ProtectionDiffers
	DataUnprotected
	ReuseRequired
	OtherCertificate
	TooLarge
	DataFailed

	// Why a pinhole goes away.
	Used
	TransferDone
	NextDataCommand
	RefusedByServer
	SessionOver
	TimedOut

	// Why a session is over by itself.
	ConnectionClosed

	// What becomes of a SYN to a passive range, or from a server to a client.
	CreditSpent
	SYNRepeated
	NoSession
	NoCredit
	OutsideRange

	// What is only audited.
	StrayLine
	AUTHRefused
	OverlapRewritten
	UrgentCleared
	OutOfWindow
	StreamGap
	Undecodable
	ReplyUnreadable
	SessionResumed
	UnverifiedDropped
	Duplicate
	DataInSYN

	reasonCount
)

// reasons tells of each reason its name in logs and reports, the reply that terminated sessions get for it, if it refuses something, and
// what it means to an operator: the section REASONS of the manual is made of it.
var reasons = [reasonCount]struct {
	name  string
	code  int
	means string
}{
	NoReason: {"none", 0, ""},

	// Why a line is denied. The control connection lives on.
	ForeignAddress:    {"foreign-address", 504, "PORT, EPRT or 227 names an address that is not the host's own (FTP bounce, RFC 2577). See bounce in the policy."},
	PrivilegedPort:    {"privileged-port", 504, "A data port below 1024. See privileged-ports."},
	BadHostPort:       {"bad-host-port", 501, "PORT, EPRT, 227 or 229 that cannot be read in one way only."},
	OtherProtocol:     {"other-protocol", 522, "EPRT of another network protocol than the control connection's."},
	ModeDenied:        {"mode-denied", 502, "A data mode that the rule does not allow, or that cannot be followed (LPRT, LPSV, SPSV)."},
	TransferMode:      {"transfer-mode", 504, "MODE other than S, or STRU other than F, where max-size is counted: what they do to data hides how large a file is."},
	OutOfStep:         {"out-of-step", 503, "AUTH while a command has no reply, or after replies and commands may have parted. The client may try again, or connect again."},
	StatListing:       {"stat-listing", 504, "STAT with options or a pattern: names of files would be lines of its reply, and a client could make one that is a reply itself. LIST lists as well."},
	StartUnknown:      {"start-unknown", 503, "The first line after a restart may begin with bytes that went on before, and what follows them would be denied."},
	AfterEPSVAll:      {"after-epsv-all", 503, "A data command other than EPSV after EPSV ALL."},
	CommandDenied:     {"command-denied", 502, "The rule's commands do not allow it."},
	PathDenied:        {"path-denied", 550, "The rule's commands do not allow it on this path."},
	PathUnknown:       {"path-unknown", 550, "A relative path where the rule is about paths and the working directory is not known: until CWD to an absolute path, or PWD, was answered; and after a restart, or out of step, for the rest of the session."},
	UserDenied:        {"user-denied", 530, "The rule's users do not have this one."},
	DirectionDenied:   {"direction-denied", 550, "The rule's transfers do not have this direction."},
	FileDenied:        {"file-denied", 550, "The rule's files do not allow the name."},
	TLSRequired:       {"tls-required", 533, "The rule has require: tls, and this is USER outside TLS; or CCC, or PROT C where data has to be in TLS."},
	OpaqueDenied:      {"opaque-denied", 534, "TLS that would stay closed where the rule has opaque: deny, or another mechanism than TLS that would hide commands."},
	NoCertificate:     {"no-certificate", 431, "AUTH where the rule terminates and the server has neither certificates nor an authority."},
	BadCommand:        {"bad-command", 500, "Not a command (RFC 959 section 5.3)."},
	BadCharacters:     {"bad-characters", 501, "NUL, a CR without LF, or a Telnet sequence that servers read differently."},
	BareLineFeed:      {"bare-line-feed", 501, "A line that ends in LF without CR. Not every server takes that for its end, so it is refused where the rule rests on state, and else let pass."},
	BlankLine:         {"blank-line", 500, "A line without text. One of Telnet signals alone is refused."},
	LineTooLong:       {"line-too-long", 500, "A line over limits.line."},
	UnsolicitedReply:  {"unsolicited-reply", 425, "227 or 229 to a command that does not ask for it. It opens nothing."},
	ExpectationFailed: {"expectation-failed", 425, "The kernel did not take the expectation. Another line of the same reason has the kernel's error."},
	PinholeLimit:      {"pinhole-limit", 425, "limits.pinholes, the client's share of them, or the bound on relayed data connections is reached."},
	AUTHTooLate:       {"auth-too-late", 503, "AUTH that ftpalg answers itself, from a user who is logged in, or whose login the server has begun, or out of step: in TLS nothing of what was said before may count."},
	NotLoggedIn:       {"not-logged-in", 530, "PORT, EPRT, PASV or EPSV before a login that the server has accepted."},
	PartialLine:       {"partial-line", 500, "The beginning of a restricted command whose end did not come in time."},
	NoRoom:            {"no-room", 425, "NAT asks for an address that is longer or shorter than the announced one, and the sequence numbers cannot be moved again yet."},

	// Why a session ends by our decision.
	NotFTP:             {"not-ftp", 421, "What the server or the client says is not FTP: another protocol's first line, several bad commands before a login, or lines without a code that do not end."},
	NotTLS:             {"not-tls", 421, "No TLS record where one is due, or another success than 234 to AUTH."},
	TextAroundAUTH:     {"text-around-auth", 421, "Clear text between AUTH and the handshake (command injection)."},
	TooManyOutstanding: {"too-many-outstanding", 421, "More commands without a reply than limits.outstanding."},
	NoConnection:       {"no-connection", 421, "A segment of no connection that conntrack knows; or conntrack has another entry for a terminated session than the one it began with."},
	SessionUnknown:     {"session-unknown", 421, "A session that ftpalg has not seen from its beginning and knows nothing of, under a rule with users or require. The client connects again."},
	LabelFailed:        {"label-failed", 421, "The kernel did not store in the conntrack entry whether the session is in TLS."},
	PolicyDenied:       {"policy-denied", 421, "No rule allows anything between the two hosts."},
	SessionLimit:       {"session-limit", 421, "limits.sessions, or the client's share of it, is reached."},
	InternalError:      {"internal-error", 421, "A fault of ftpalg ended this session alone. A line at level ERROR has the stack; please report it."},
	SplitLine:          {"split-line", 421, "A line has to be denied of which a part has gone on already."},
	LoginLimit:         {"login-limit", 421, "limits.login-failures."},
	IdleTimeout:        {"idle-timeout", 421, "limits.idle-timeout, or a line that was not completed in time."},
	ServerUnreachable:  {"server-unreachable", 421, "The server of a terminated session does not answer."},
	UpstreamTLS:        {"upstream-tls", 421, "TLS with the server of a terminated session failed, or its certificate could not be verified, or it did not greet with 220 before AUTH."},
	ClientTLS:          {"client-tls", 421, "TLS with the client of a terminated session failed."},
	ForeignExpectation: {"foreign-expectation", 421, "Conntrack was made to expect a connection under this session that ftpalg did not ask for. The expectation was removed and the session ended. An alarm."},
	GatewayStopped:     {"gateway-stopped", 421, "ftpalg ends, and its terminated sessions with it."},

	// What becomes of a relayed transfer.
	ProtectionDiffers: {"protection-differs", 425, "The two sides protect data differently, which takes a relay, and the rule has data: direct."},
	DataUnprotected:   {"data-unprotected", 521, "A data connection in clear text where client-ca or session-reuse: require ask for TLS on it."},
	ReuseRequired:     {"reuse-required", 522, "session-reuse: require, and the data connection does not resume its control connection's TLS session."},
	OtherCertificate:  {"other-certificate", 522, "client-ca, and the data connection's certificate has neither the key nor the names of the control connection's."},
	TooLarge:          {"too-large", 552, "The transfer is over max-size."},
	DataFailed:        {"data-failed", 425, "The other half of a relayed data connection could not be made, or TLS on it failed."},

	// Why a pinhole goes away.
	Used:            {"used", 0, "The data connection came."},
	TransferDone:    {"transfer-done", 0, "The transfer is over."},
	NextDataCommand: {"next-data-command", 0, "Another data command took its place."},
	RefusedByServer: {"refused-by-server", 0, "The server refused PORT or EPRT."},
	SessionOver:     {"session-over", 0, "The control connection ended."},
	TimedOut:        {"timed-out", 0, "Nobody used it within pinhole-timeout."},

	// Why a session is over by itself.
	ConnectionClosed: {"connection-closed", 0, "The session ended by itself."},

	// What becomes of a SYN to a passive range, or from a server to a client.
	CreditSpent:  {"credit-spent", 0, "A SYN got a just-in-time pinhole for a credit."},
	SYNRepeated:  {"syn-repeated", 0, "The SYN that got a pinhole before was sent again."},
	NoSession:    {"no-session", 0, "A SYN to a data port without a control connection in closed TLS between the two hosts."},
	NoCredit:     {"no-credit", 0, "A SYN without a credit, or credits are spent faster than the rate allows."},
	OutsideRange: {"outside-range", 425, "A port outside the server's passive range, or a SYN from the server where opaque-active is deny."},

	// What is only audited.
	StrayLine:         {"stray-line", 0, "A server's line without a reply code, let pass."},
	AUTHRefused:       {"auth-refused", 0, "The server refused AUTH."},
	OverlapRewritten:  {"overlap-rewritten", 0, "A segment was sent again with other content; the first content goes on."},
	UrgentCleared:     {"urgent-cleared", 0, "TCP urgent data, let pass as ordinary data."},
	OutOfWindow:       {"out-of-window", 0, "A segment far from the stream, dropped."},
	StreamGap:         {"stream-gap", 0, "Too much waited for a missing segment, and was dropped."},
	Undecodable:       {"undecodable", 0, "A packet that is not whole TCP over IP, dropped."},
	ReplyUnreadable:   {"reply-unreadable", 0, "A reply with bad characters, let pass as it announces nothing."},
	SessionResumed:    {"session-resumed", 0, "A session was picked up in the middle, after a restart: see SESSIONS."},
	UnverifiedDropped: {"unverified-dropped", 0, "A segment that was sent again so late that nothing is kept to compare it with, dropped."},
	Duplicate:         {"duplicate", 0, "A copy of a segment that is held already, dropped."},
	DataInSYN:         {"data-in-syn", 0, "A SYN with payload (TCP Fast Open), dropped: its sender repeats it without."},
}

// Reasons returns every reason that a log may name, in the order above.
func Reasons() (all []Reason) {
	for r := NoReason + 1; r < reasonCount; r++ {
		all = append(all, r)
	}
	return all
}

// String gives the reason's name as logs and reports have it.
func (r Reason) String() string {
	if r < reasonCount {
		return reasons[r].name
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Means is what the reason means to an operator, in a sentence or two.
func (r Reason) Means() string {
	if r < reasonCount {
		return reasons[r].means
	}
	return ""
}
