// Package audit is what the front ends tell the operator: events, and the sessions that there are.
package audit

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"ftpalg/alg"
	"ftpalg/policy"
)

// EventKind is what an Event tells.
type EventKind uint8

const (
	EventSession    EventKind = iota + 1 // a session began
	EventLogin                           // Text is the user's name
	EventProtection                      // Protection changed
	EventPinhole                         // From may connect to To
	EventClosed                          // that pinhole is gone; Reason says why
	EventDeny                            // a line, a packet or a session was refused; Reason says why
	EventAudit                           // worth a line, nothing was refused
	EventEnd                             // a session is over; Reason says why
)

var eventNames = []string{"", "session", "login", "protection", "pinhole", "pinhole-closed", "deny", "audit", "end"}

func (k EventKind) String() string { return policy.Word(eventNames, k) }

// Event is one thing worth telling. Session is 0 where there is none.
type Event struct {
	Time       time.Time
	Session    uint64
	Client     netip.Addr // of the session
	Kind       EventKind
	Reason     alg.Reason
	Mode       policy.Mode
	From, To   netip.AddrPort // of a pinhole; of a session, its client and server
	Protection alg.Protection
	Text       string // wire text by WireText: not quoted, with secrets taken out
	Err        error
}

// maxText bounds the wire text of an event.
const maxText = 200

// Printable returns s with an escape in place of each character that a terminal could obey or a reader would not see: control
// characters of C0 and C1 (ECMA-48), those that change the direction of text (UAX #9), and bytes that are not UTF-8. The
// escapes are those of Go and of the text log; where there are any, a backslash is doubled.
func Printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Cut returns at most so many bytes of s, and says so where there were more.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:most], len(s))
}

// secretWords mark lines whose rest must never be shown: a password, an account, security data. A line with one of them
// anywhere near its start is cut there, because a malformed line may have its command anywhere.
var secretWords = [][]byte{[]byte("PASS"), []byte("PSWD"), []byte("ACCT"), []byte("ADAT")}

// wrappers are the commands whose argument is another command, in base64 (RFC 2228 section 4).
var wrappers = [][]byte{[]byte("MIC"), []byte("CONF"), []byte("ENC")}

// secretWithin is how far from its start a line is searched for them.
const secretWithin = 64

// WireText gives a line for a log: bounded, without secrets.
func WireText(line []byte) string {
	if end := beforeSecret(line); end >= 0 {
		return string(line[:end]) + " ****"
	}
	return Cut(string(line), maxText)
}

// beforeSecret is where what a log may show of a line ends, or -1. What cannot be seen hides no word: blanks, backspaces, bytes of
// Telnet's.
func beforeSecret(line []byte) int {
	verb, _, _ := bytes.Cut(line, []byte{' '})
	if slices.ContainsFunc(wrappers, func(w []byte) bool { return bytes.EqualFold(w, verb) }) {
		return len(verb)
	}
	upper, at := make([]byte, 0, secretWithin), make([]int, 0, secretWithin) // visible bytes, and where they are
	for i := 0; i < len(line) && len(upper) < secretWithin; i++ {
		if c := line[i]; c > ' ' && c < 0x7f {
			upper, at = append(upper, bytes.ToUpper(line[i : i+1])[0]), append(at, i)
		}
	}
	for _, word := range secretWords {
		for i := range upper {
			if !bytes.HasPrefix(upper[i:], word) {
				continue
			}
			// "PASSIVE" in a reply's text is no secret; the command ends with its name.
			if end := at[i+len(word)-1] + 1; !bytes.HasPrefix(bytes.ToUpper(line[end:min(end+3, len(line))]), []byte("IVE")) {
				return end
			}
		}
	}
	return -1
}
