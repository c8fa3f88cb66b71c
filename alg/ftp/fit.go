package ftp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// A line that has to name another address must keep its length where it goes through a queue: no sequence number may move.

// FitPASV gives a 227 reply's line for an address, in n bytes without the line's end, or nil if there is no room for it. The
// text of RFC 959's example is what gives way. The address must be IPv4.
func FitPASV(to netip.AddrPort, n int) []byte {
	numbers := "(" + FormatPort(to) + ")"
	for _, text := range []string{"227 Entering Passive Mode", "227 Passive Mode", "227 Passive", "227"} {
		if room := n - len(text) - len(numbers); room > 0 {
			return []byte(text + strings.Repeat(" ", room) + numbers)
		}
	}
	return nil
}

// FitPort gives PORT's argument in n bytes, or nil. A number may have three digits, however small it is.
func FitPort(to netip.AddrPort, n int) []byte {
	numbers := strings.Split(FormatPort(to), ",")
	room := n - len(FormatPort(to))
	for i, number := range numbers {
		zeros := max(0, min(room, 3-len(number)))
		numbers[i] = strings.Repeat("0", zeros) + number
		room -= zeros
	}
	if room != 0 {
		return nil
	}
	return []byte(strings.Join(numbers, ","))
}

// FitEPRT gives EPRT's argument in n bytes, or nil. The port may have five digits.
func FitEPRT(to netip.AddrPort, n int) []byte {
	arg := []byte(FormatEPRT(to))
	width := len(fmt.Sprint(to.Port())) + n - len(arg)
	if len(arg) > n || width > 5 {
		return nil
	}
	port := fmt.Appendf(nil, "|%0*d|", width, to.Port())
	return append(arg[:bytes.LastIndexByte(arg[:len(arg)-1], '|')], port...)
}
