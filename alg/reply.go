package alg

import (
	"fmt"
	"strconv"
)

// replyCodes are what a front end that answers clients itself says for each reason to deny a client's line or to end its
// session. RFC 2228 section 3 wants a code that is documented for the command, or one that begins with the same digit.
var replyCodes = [reasonCount]int{
	// RFC 959 section 4.2.2: 500 is a command that is not recognised, too long lines included, and 501 a bad parameter.
	BadCommand:    500,
	LineTooLong:   500,
	PartialLine:   500,
	BlankLine:     500,
	BadCharacters: 501,
	BareLineFeed:  501,
	BadHostPort:   501,
	// The same: 502 is a command that is not implemented, and so refused whatever comes with it.
	CommandDenied: 502,
	ModeDenied:    502,
	// The same: 503 is a bad sequence of commands. RFC 2428 section 4 has data commands behind EPSV ALL rejected.
	AfterEPSVAll: 503,
	AUTHTooLate:  503,
	OutOfStep:    503,
	// The same: 504 is a command that is not implemented for that parameter.
	StatListing: 504,
	// The same: the line is one only if nothing of it was read before.
	StartUnknown: 503,
	// RFC 2428 section 2, with the protocols that will do: see Refusal.
	OtherProtocol: 522,
	// The same: 504 is a command that is not implemented for that parameter, and among MODE's replies (section 5.4).
	TransferMode: 504,
	// RFC 2577 section 3 suggests 504 for PORT with a port that must not be.
	ForeignAddress: 504,
	PrivilegedPort: 504,
	// RFC 959 section 5.4: USER is refused with 530, and what has a path with 550.
	UserDenied:      530,
	NotLoggedIn:     530,
	PathDenied:      550,
	PathUnknown:     550,
	DirectionDenied: 550,
	FileDenied:      550,
	// RFC 2228 section 3: 533 (under CONF) where commands must be protected; 534 to AUTH with a mechanism that policy
	// does not want, 431 where what it needs is not there.
	TLSRequired:   533,
	OpaqueDenied:  534,
	NoCertificate: 431,
	// RFC 959 section 4.2.2: 425 is a data connection that cannot be opened.
	ExpectationFailed: 425,
	PinholeLimit:      425,
	NoRoom:            425,
	OutsideRange:      425,
	UnsolicitedReply:  425,
	// The same: 421 closes the control connection, and may answer any command.
	NotFTP:             421,
	NotTLS:             421,
	TextAroundAUTH:     421,
	TooManyOutstanding: 421,
	NoConnection:       421,
	PolicyDenied:       421,
	SessionUnknown:     421,
	LabelFailed:        421,
	SessionLimit:       421,
	InternalError:      421,
	SplitLine:          421,
	LoginLimit:         421,
	IdleTimeout:        421,
	ServerUnreachable:  421,
	UpstreamTLS:        421,
	ClientTLS:          421,
	GatewayStopped:     421,
	ForeignExpectation: 421,
	// The same: 552 is a transfer that exceeds what is allotted. RFC 4217 section 10.2: 522 is TLS on the data connection
	// that is not as the other end wants it, and 521 a data connection that is not possible with the level of PROT.
	TooLarge:          552,
	ReuseRequired:     522,
	OtherCertificate:  522,
	DataUnprotected:   521,
	ProtectionDiffers: 425,
	DataFailed:        425,
}

// refused stands between a reply's code and the reason.
const refused = " Refused by the gateway: "

// Reply gives the reply line, without its terminator, that refuses a client's line or ends its session for a reason, such
// as "550 Refused by the gateway: path-denied"; empty for reasons that refuse nothing. What is refused in a reply of the
// server's becomes 425, as its Rewrite has it.
func (r Reason) Reply() string {
	if r >= reasonCount || replyCodes[r] == 0 {
		return ""
	}
	return strconv.Itoa(replyCodes[r]) + refused + r.String()
}

// Refusal is Reason.Reply where what is said depends on the connection: RFC 2428 section 2 has the reply to an EPRT of another
// network protocol tell which will do.
func (c *Control) Refusal(r Reason) string {
	if r != OtherProtocol {
		return r.Reply()
	}
	protocol := 1
	if c.client.Addr().Is6() {
		protocol = 2
	}
	return fmt.Sprintf("%d Network protocol not supported, use (%d)", replyCodes[r], protocol)
}
