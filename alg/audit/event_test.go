package audit

import (
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"STOR Яндекс.txt":      "STOR Яндекс.txt",
		`DIR\a "b"`:            `DIR\a "b"`,
		"a\tb\x1b[2J\x7f":      `a\tb\x1b[2J\x7f`,
		"\u009b31m":            `\u009b31m`,
		"\x9b31m \xcc\xee\xff": `\x9b31m \xcc\xee\xff`,
		"exe.\u202etxt\u2069":  `exe.\u202etxt\u2069`,
		"\\\u202e\"":           `\\\u202e"`,
	} {
		if got := Printable(s); got != want {
			t.Errorf("Printable(%q) = %s, want %s", s, got, want)
		}
	}
}

// Wire text is bounded, and has no secrets.
func TestWireText(t *testing.T) {
	long := make([]byte, 1000)
	for line, want := range map[string]string{
		"STOR a": "STOR a", "pass secret": "pass ****", "227 Entering Passive Mode": "227 Entering Passive Mode",
		"PA\bSS secret": "PA\bSS ****", "P\xff\xf1ASS secret": "P\xff\xf1ASS ****", "PASS IVEsecret": "PASS ****",
		"227 Passive; PASS secret": "227 Passive; PASS ****", strings.Repeat(" ", 70) + "pass x": strings.Repeat(" ", 70) + "pass ****",
		"SITE PSWD old new": "SITE PSWD ****", "mic UEFTUyB4": "mic ****", "ENC UEFTUyB4": "ENC ****", "CONF UEFTUyB4": "CONF ****",
		"STOR mic": "STOR mic", "PAS": "PAS", "": "",
		string(long): Cut(string(long), maxText),
	} {
		if got := WireText([]byte(line)); got != want {
			t.Errorf("WireText(%q) = %q, want %q", line, got, want)
		}
	}
}
