package alg

import "fmt"

// Reason says why something was done. It is a closed set, shared by logs, metrics, replay reports and tests.
type Reason uint8

const (
	// NoReason is the zero value: nothing was decided.
	NoReason Reason = iota

	// Why a line is denied. The control connection lives on.
	ForeignAddress    // an announced address is not the peer's own (FTP bounce, RFC 2577)
	PrivilegedPort    // an announced port is below 1024
	BadHostPort       // PORT, EPRT, 227 or 229 that cannot be read one way only
	OtherProtocol     // EPRT of another network protocol than the control connection's (RFC 2428 section 2)
	ModeDenied        // a data mode that the policy does not allow, or that cannot be followed (LPRT, LPSV, SPSV)
	TransferMode      // MODE other than S, or STRU other than F, where bytes are counted: what hides how many they are
	OutOfStep         // AUTH while something is without a reply, or replies and commands may have parted
	StatListing       // STAT with options or patterns, whose reply has file names where its own lines are
	StartUnknown      // what a resumed session's line begins with may be old bytes, and what follows would be denied
	AfterEPSVAll      // a data command other than EPSV after EPSV ALL (RFC 2428 section 4)
	CommandDenied     // the policy's command lists
	PathDenied        // the policy's path rules
	PathUnknown       // a relative path under a path rule while the working directory is not known
	UserDenied        // the policy's user names
	DirectionDenied   // an upload or download that the policy does not allow
	FileDenied        // the policy's file names
	TLSRequired       // USER outside TLS where the policy requires TLS
	OpaqueDenied      // AUTH where the policy has no room for FTPS that stays encrypted
	NoCertificate     // AUTH where the connection is terminated and there is no certificate to show
	BadCommand        // not a command by RFC 959 section 5.3
	BadCharacters     // NUL, a stray CR, or a Telnet sequence that servers read differently
	BareLineFeed      // a line that ends without CR; only audited where the policy rests on no state
	BlankLine         // an empty line, or one of Telnet signals alone, which is refused
	LineTooLong       // over the limit for one line
	UnsolicitedReply  // 227 or 229 without the command that asks for it
	ExpectationFailed // the kernel did not take the pinhole
	PinholeLimit      // the limit on pinholes is reached
	AUTHTooLate       // AUTH from a user who is logged in, or on the way to it
	NotLoggedIn       // a data connection announced before a login (design rule 15)
	PartialLine       // a restricted command's line that the client did not complete
	NoRoom            // the address that NAT asks for does not fit into the line

	// Why a session ends by our decision.
	NotFTP             // the server's clear text is not FTP
	NotTLS             // no TLS record where one must be
	TextAroundAUTH     // clear text between AUTH and the handshake (injection)
	TooManyOutstanding // more commands without a reply than the limit
	NoConnection       // a segment of no connection that conntrack knows
	SessionUnknown     // it began before us, nobody has read it, and the policy rests on who logged in
	LabelFailed        // whether it is in TLS could not be written to its conntrack entry
	PolicyDenied       // the policy allows nothing between these two hosts
	SessionLimit       // the limit on sessions, or on one client's sessions
	InternalError      // a mistake of ours: the packet is dropped and its session ended
	SplitLine          // a line must be denied of which a part has gone on already
	LoginLimit         // too many failed logins
	IdleTimeout        // nothing was said for too long, or a line was not completed
	ServerUnreachable  // the server of a terminated session does not answer
	UpstreamTLS        // TLS with it failed, or its certificate could not be verified
	ClientTLS          // TLS with the client failed
	ForeignExpectation // conntrack was made to expect a connection under it that ftpalg did not ask for
	GatewayStopped     // ftpalg ends, and the terminated sessions with it

	// What becomes of a relayed transfer.
	ProtectionDiffers // data would have to be relayed, and the policy says direct
	DataUnprotected   // data would be in clear text, and the policy asks for a client's certificate or TLS session on it
	ReuseRequired     // the data connection does not resume the control connection's TLS session
	OtherCertificate  // the data connection's certificate is of another holder than the control connection's
	TooLarge          // over the policy's max-size
	DataFailed        // the data connection could not be made, or its TLS failed

	// Why a pinhole goes away.
	Used            // the data connection came
	TransferDone    // the transfer's final reply
	NextDataCommand // another data command came
	RefusedByServer // the server did not accept PORT or EPRT
	SessionOver     // the control connection ended
	TimedOut        // nobody used it in time

	// Why a session is over by itself.
	ConnectionClosed

	// What becomes of a SYN to a passive range, or from a server to a client.
	CreditSpent  // a just-in-time pinhole
	SYNRepeated  // the same four-tuple again
	NoSession    // no encrypted control connection between the two hosts
	NoCredit     // none of them has an unspent request and reply
	OutsideRange // the policy promises no pinhole for that port or direction

	// What is only audited.
	StrayLine         // a server's line without a reply code, let pass
	AUTHRefused       // the server refused AUTH: the session stays in clear text
	OverlapRewritten  // a retransmission with other content: the first content goes on
	UrgentCleared     // TCP urgent data, let pass as ordinary data
	OutOfWindow       // a segment far from the stream, dropped
	StreamGap         // too much waited for a missing segment, dropped
	Undecodable       // a packet that is not whole TCP over IP, dropped
	ReplyUnreadable   // a reply with bad characters, let pass because it announces nothing
	SessionResumed    // picked up in the middle, after a restart
	UnverifiedDropped // an old retransmission of the client's that nothing is kept of, dropped
	Duplicate         // a copy of a segment that is held already, dropped
	DataInSYN         // a SYN with payload (TCP Fast Open), dropped: its sender repeats it without

	reasonCount
)

var reasonNames = [reasonCount]string{
	NoReason:           "none",
	ForeignAddress:     "foreign-address",
	PrivilegedPort:     "privileged-port",
	BadHostPort:        "bad-host-port",
	OtherProtocol:      "other-protocol",
	ModeDenied:         "mode-denied",
	TransferMode:       "transfer-mode",
	OutOfStep:          "out-of-step",
	StatListing:        "stat-listing",
	StartUnknown:       "start-unknown",
	AfterEPSVAll:       "after-epsv-all",
	CommandDenied:      "command-denied",
	PathDenied:         "path-denied",
	PathUnknown:        "path-unknown",
	UserDenied:         "user-denied",
	DirectionDenied:    "direction-denied",
	FileDenied:         "file-denied",
	TLSRequired:        "tls-required",
	OpaqueDenied:       "opaque-denied",
	NoCertificate:      "no-certificate",
	BadCommand:         "bad-command",
	BadCharacters:      "bad-characters",
	LineTooLong:        "line-too-long",
	UnsolicitedReply:   "unsolicited-reply",
	ExpectationFailed:  "expectation-failed",
	PinholeLimit:       "pinhole-limit",
	AUTHTooLate:        "auth-too-late",
	NotLoggedIn:        "not-logged-in",
	PartialLine:        "partial-line",
	NoRoom:             "no-room",
	NotFTP:             "not-ftp",
	NotTLS:             "not-tls",
	TextAroundAUTH:     "text-around-auth",
	TooManyOutstanding: "too-many-outstanding",
	NoConnection:       "no-connection",
	SessionUnknown:     "session-unknown",
	LabelFailed:        "label-failed",
	PolicyDenied:       "policy-denied",
	SessionLimit:       "session-limit",
	InternalError:      "internal-error",
	SplitLine:          "split-line",
	LoginLimit:         "login-limit",
	IdleTimeout:        "idle-timeout",
	ServerUnreachable:  "server-unreachable",
	UpstreamTLS:        "upstream-tls",
	ClientTLS:          "client-tls",
	GatewayStopped:     "gateway-stopped",
	ForeignExpectation: "foreign-expectation",
	ProtectionDiffers:  "protection-differs",
	DataUnprotected:    "data-unprotected",
	ReuseRequired:      "reuse-required",
	OtherCertificate:   "other-certificate",
	TooLarge:           "too-large",
	DataFailed:         "data-failed",
	Used:               "used",
	TransferDone:       "transfer-done",
	NextDataCommand:    "next-data-command",
	RefusedByServer:    "refused-by-server",
	SessionOver:        "session-over",
	TimedOut:           "timed-out",
	ConnectionClosed:   "connection-closed",
	CreditSpent:        "credit-spent",
	SYNRepeated:        "syn-repeated",
	NoSession:          "no-session",
	NoCredit:           "no-credit",
	OutsideRange:       "outside-range",
	BareLineFeed:       "bare-line-feed",
	BlankLine:          "blank-line",
	StrayLine:          "stray-line",
	AUTHRefused:        "auth-refused",
	OverlapRewritten:   "overlap-rewritten",
	UrgentCleared:      "urgent-cleared",
	OutOfWindow:        "out-of-window",
	StreamGap:          "stream-gap",
	Undecodable:        "undecodable",
	ReplyUnreadable:    "reply-unreadable",
	SessionResumed:     "session-resumed",
	UnverifiedDropped:  "unverified-dropped",
	Duplicate:          "duplicate",
	DataInSYN:          "data-in-syn",
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
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}
