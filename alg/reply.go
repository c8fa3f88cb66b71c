package alg

import (
	"fmt"
	"strconv"
)

// The reply codes of the table of reasons, by what RFC 959 section 4.2.2 has them for; RFC 2228 section 3 wants a code that is
// documented for the command, or one that begins with the same digit.
//
//   - 500 is a command that is not recognised, too long lines included, and 501 a bad parameter.
//   - 502 is a command that is not implemented, and so refused whatever comes with it.
//   - 503 is a bad sequence of commands. RFC 2428 section 4 has data commands after EPSV ALL rejected.
//   - 504 is a command that is not implemented for that parameter, and among MODE's replies (section 5.4). RFC 2577 section 3
//     suggests it for PORT with a port that must not be.
//   - 522 to EPRT is RFC 2428 section 2's, with the protocols that will do: see Refusal.
//   - 530 refuses USER, and 550 what has a path (section 5.4).
//   - 533 is for commands that must be protected, under CONF; 534 for AUTH with a mechanism that policy does not want, and 431 where
//     what it needs is not there (RFC 2228 section 3).
//   - 425 is a data connection that cannot be opened; 421 closes the control connection, and may answer any command.
//   - 552 is a transfer that exceeds what is allotted. RFC 4217 section 10.2: 522 is TLS on the data connection that is not as the
//     other end wants it, and 521 a data connection that is not possible with the level of PROT.

// refused stands between a reply's code and the reason.
const refused = " Refused by the gateway: "

// Reply gives the reply line, without its terminator, that refuses a client's line or ends its session for a reason, such
// as "550 Refused by the gateway: path-denied"; empty for reasons that refuse nothing. What is refused in a reply of the
// server's becomes 425, as its Rewrite has it.
func (r Reason) Reply() string {
	if r >= reasonCount || reasons[r].code == 0 {
		return ""
	}
	return strconv.Itoa(reasons[r].code) + refused + r.String()
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
	return fmt.Sprintf("%d Network protocol not supported, use (%d)", reasons[r].code, protocol)
}
