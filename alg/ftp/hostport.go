package ftp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// ErrHostPort is wrapped by every refusal of a host-port form.
var ErrHostPort = errors.New("bad host-port")

// ErrProtocol is wrapped by the refusal of a network protocol that is neither IPv4 nor IPv6. It is an ErrHostPort.
var ErrProtocol = fmt.Errorf("%w: network protocol", ErrHostPort)

func badHostPort(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrHostPort, fmt.Sprintf(format, args...))
}

// ParsePort reads PORT's argument: h1,h2,h3,h4,p1,p2 and nothing else (RFC 959 section 4.1.2).
func ParsePort(arg []byte) (netip.AddrPort, error) {
	to, n, err := sixNumbers(arg)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if n != len(arg) {
		return netip.AddrPort{}, badHostPort("%q follows the six numbers", arg[n:])
	}
	return to, nil
}

// FormatPort gives PORT's argument. The address must be IPv4.
func FormatPort(to netip.AddrPort) string {
	a, p := to.Addr().As4(), to.Port()
	return fmt.Sprintf("%d,%d,%d,%d,%d,%d", a[0], a[1], a[2], a[3], p>>8, p&0xff)
}

// ParsePASV reads the text of a 227 reply. RFC 1123 section 4.1.2.6: the parentheses and the text around them may be
// anything, so the six numbers are looked for. Two groups of them are refused, because clients differ in which they take.
func ParsePASV(text []byte) (netip.AddrPort, error) {
	to, err := parse227(text)
	if err == nil {
		return to, nil
	}
	if to, err := parse227(withoutSpaces(text)); err == nil {
		return to, nil
	}
	return netip.AddrPort{}, err
}

func parse227(text []byte) (netip.AddrPort, error) {
	start := numberGroup(text, 0)
	if start < 0 {
		return netip.AddrPort{}, badHostPort("no six numbers in %q", text)
	}
	to, n, err := sixNumbers(text[start:])
	if err != nil {
		return netip.AddrPort{}, err
	}
	end := start + n
	opened := start > 0 && text[start-1] == '('
	closed := end < len(text) && text[end] == ')'
	if opened != closed {
		return netip.AddrPort{}, badHostPort("unbalanced parenthesis in %q", text)
	}
	if end < len(text) && wordByte(text[end]) {
		return netip.AddrPort{}, badHostPort("%q follows the six numbers", text[end:])
	}
	if numberGroup(text, end) >= 0 {
		return netip.AddrPort{}, badHostPort("two addresses in %q", text)
	}
	return to, nil
}

// withoutSpaces returns the text without the spaces around commas and parentheses, which some servers have. Digits on both sides
// of a space stay apart.
func withoutSpaces(text []byte) []byte {
	var tight []byte
	for i := 0; i < len(text); {
		rest := bytes.TrimLeft(text[i:], " ")
		spaces := text[i : len(text)-len(rest)]
		after := len(tight) > 0 && (tight[len(tight)-1] == ',' || tight[len(tight)-1] == '(')
		if before := len(rest) > 0 && (rest[0] == ',' || rest[0] == ')'); !after && !before {
			tight = append(tight, spaces...)
		}
		if len(rest) > 0 {
			tight = append(tight, rest[0])
		}
		i += len(spaces) + 1
	}
	return tight
}

// FormatPASV gives the text of a 227 reply as most servers send it. The address must be IPv4.
func FormatPASV(to netip.AddrPort) string {
	return "Entering Passive Mode (" + FormatPort(to) + ")."
}

// numberGroup finds where the first "digits,digit" at or after from begins, or -1: the start of a comma-separated group.
func numberGroup(text []byte, from int) int {
	for i := from; i < len(text); i++ {
		if !digit(text[i]) || i > 0 && (wordByte(text[i-1]) || text[i-1] == '-' || text[i-1] == '.') {
			continue
		}
		j := i
		for j < len(text) && digit(text[j]) {
			j++
		}
		if j+1 < len(text) && text[j] == ',' && digit(text[j+1]) {
			return i
		}
		i = j - 1
	}
	return -1
}

// sixNumbers reads six numbers of one to three digits, each at most 255, with commas between, at the start of b. It
// returns how many bytes they took. A seventh number, a port of zero or an octet over 255 is refused; the kernel's own
// helper once took "256" for zero.
func sixNumbers(b []byte) (netip.AddrPort, int, error) {
	var v [6]byte
	at := 0
	for i := range v {
		if i > 0 {
			if at >= len(b) || b[at] != ',' {
				return netip.AddrPort{}, 0, badHostPort("%d numbers of six in %q", i, b)
			}
			at++
		}
		n, width := number(b[at:], 3)
		if width == 0 || n > 255 {
			return netip.AddrPort{}, 0, badHostPort("number %d of %q is not 0 to 255", i+1, b)
		}
		v[i] = byte(n)
		at += width
	}
	if at < len(b) && (b[at] == ',' || digit(b[at])) {
		return netip.AddrPort{}, 0, badHostPort("more than six numbers in %q", b)
	}
	port := uint16(v[4])<<8 | uint16(v[5])
	if port == 0 {
		return netip.AddrPort{}, 0, badHostPort("port 0 in %q", b)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(v[:4])), port), at, nil
}

// number reads up to max decimal digits; width is 0 when there are none or more.
func number(b []byte, max int) (n, width int) {
	for width < len(b) && digit(b[width]) {
		if width == max {
			return 0, 0
		}
		n = n*10 + int(b[width]-'0')
		width++
	}
	return n, width
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func wordByte(c byte) bool { return verbByte(c) || c == ',' || c == '_' || c >= 0x80 }

// ParseEPRT reads EPRT's argument, <d>family<d>address<d>port<d>, for any delimiter of RFC 2428 section 2 (33 to 126),
// family 1 (IPv4) or 2 (IPv6).
func ParseEPRT(arg []byte) (netip.AddrPort, error) {
	fields, err := delimited(arg)
	if err != nil {
		return netip.AddrPort{}, err
	}
	family := string(fields[0])
	if family != "1" && family != "2" {
		return netip.AddrPort{}, fmt.Errorf("%w %q is neither 1 nor 2", ErrProtocol, fields[0])
	}
	addr, err := netip.ParseAddr(string(fields[1]))
	if err != nil || addr.Zone() != "" {
		return netip.AddrPort{}, badHostPort("%q is not an address", fields[1])
	}
	if addr.Is4() != (family == "1") {
		return netip.AddrPort{}, badHostPort("address %s is not of family %s", addr, family)
	}
	port, err := portNumber(fields[2])
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr, port), nil
}

// FormatEPRT gives EPRT's argument with the delimiter that RFC 2428 recommends.
func FormatEPRT(to netip.AddrPort) string {
	family := 1
	if to.Addr().Is6() {
		family = 2
	}
	return fmt.Sprintf("|%d|%s|%d|", family, to.Addr(), to.Port())
}

// ParseEPSV reads the text of a 229 reply: text, then (<d><d><d>port<d>) (RFC 2428 section 3). Protocol and address must
// be empty: the port is the only thing that the server may choose.
func ParseEPSV(text []byte) (port uint16, err error) {
	open := bytes.IndexByte(text, '(')
	if open < 0 {
		return 0, badHostPort("no parenthesis in %q", text)
	}
	inner := text[open+1:]
	// The delimiter may itself be a parenthesis, so the closing one is looked for behind the last delimiter.
	if len(inner) < 6 {
		return 0, badHostPort("%q is too short for (<d><d><d>port<d>)", text)
	}
	last := 3 + bytes.IndexByte(inner[3:], inner[0])
	if last < 3 || last+1 >= len(inner) || inner[last+1] != ')' {
		return 0, badHostPort("%q does not have the form (<d><d><d>port<d>)", text)
	}
	fields, err := delimited(inner[:last+1])
	if err != nil {
		return 0, err
	}
	if len(fields[0]) != 0 || len(fields[1]) != 0 {
		return 0, badHostPort("protocol or address given in %q", text)
	}
	return portNumber(fields[2])
}

// FormatEPSV gives the text of a 229 reply.
func FormatEPSV(port uint16) string {
	return fmt.Sprintf("Entering Extended Passive Mode (|||%d|)", port)
}

// delimited splits <d>a<d>b<d>c<d>.
func delimited(b []byte) (fields [3][]byte, err error) {
	if len(b) < 4 || b[0] < 33 || b[0] > 126 || b[len(b)-1] != b[0] {
		return fields, badHostPort("%q does not begin and end with one delimiter", b)
	}
	rest := b[1:]
	for i := range fields {
		n := bytes.IndexByte(rest, b[0])
		if n < 0 {
			return fields, badHostPort("%d fields of three in %q", i, b)
		}
		fields[i], rest = rest[:n], rest[n+1:]
	}
	if len(rest) != 0 {
		return fields, badHostPort("more than three fields in %q", b)
	}
	return fields, nil
}

func portNumber(b []byte) (uint16, error) {
	n, width := number(b, 5)
	if width == 0 || width != len(b) || n == 0 || n > 65535 {
		return 0, badHostPort("port %q is not 1 to 65535", b)
	}
	return uint16(n), nil
}

// EPSVRequest is what EPSV's argument asks for (RFC 2428 sections 3 and 4).
type EPSVRequest struct {
	All    bool // "EPSV ALL": no other data command will follow on this connection
	Family int  // 1 or 2; 0 when the client leaves it to the server
}

// ParseEPSVRequest reads EPSV's argument.
func ParseEPSVRequest(arg []byte) (EPSVRequest, error) {
	switch s := string(arg); {
	case s == "":
		return EPSVRequest{}, nil
	case s == "1" || s == "2":
		family, _ := strconv.Atoi(s)
		return EPSVRequest{Family: family}, nil
	case len(s) == 3 && bytes.EqualFold(arg, []byte("ALL")):
		return EPSVRequest{All: true}, nil
	}
	return EPSVRequest{}, badHostPort("EPSV %q: nothing, 1, 2 or ALL expected", arg)
}
