package ftp

import (
	"net/netip"
	"testing"
)

func TestFit(t *testing.T) {
	to := netip.MustParseAddrPort("203.0.113.1:50000")
	for _, c := range []struct {
		name, was, want string
		fit             func(netip.AddrPort, int) []byte
	}{
		{"vsftpd's", "227 Entering Passive Mode (10,0,0,2,195,80).", "227 Passive Mode        (203,0,113,1,195,80)", FitPASV},
		{"longer before", "227 Entering Passive Mode (198,51,100,22,195,80)", "227 Entering Passive Mode   (203,0,113,1,195,80)", FitPASV},
		{"terse", "227 =10,0,0,2,195,80", "", FitPASV},
		{"terse with room", "227 = 192,168,100,2,195,80", "227   (203,0,113,1,195,80)", FitPASV},
		{"same length", "10,0,0,200,195,80", "", FitPort},
		{"same length", "198,0,113,2,195,80", "203,0,113,1,195,80", FitPort},
		{"shorter", "198,51,100,200,195,80", "203,000,113,01,195,80", FitPort},
		{"no such length", "203,000,113,001,195,080,0", "", FitPort},
		{"EPRT", "|1|192.51.100.2|50000|", "", FitEPRT},
		{"EPRT", "|1|203.0.113.2|50001|", "|1|203.0.113.1|50000|", FitEPRT},
		{"EPRT, shorter", "|1|10.0.0.2|50000|", "", FitEPRT},
	} {
		if got := string(c.fit(to, len(c.was))); got != c.want || got != "" && len(got) != len(c.was) {
			t.Errorf("%s: %q became %q, want %q", c.name, c.was, got, c.want)
		}
	}
	if got := string(FitEPRT(netip.MustParseAddrPort("203.0.113.1:1024"), len("|1|203.0.113.1|01024|"))); got != "|1|203.0.113.1|01024|" {
		t.Errorf("a port of four digits became %q", got)
	}
}

// FuzzFit: whatever fits is read back as the address that it was made of, and has the length asked for.
func FuzzFit(f *testing.F) {
	f.Add(uint32(0xcb007101), uint16(50000), uint8(20))
	f.Add(uint32(0), uint16(1), uint8(60))
	f.Fuzz(func(t *testing.T, a uint32, port uint16, n uint8) {
		if port == 0 {
			return
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), port)
		for _, c := range []struct {
			fit   func(netip.AddrPort, int) []byte
			parse func([]byte) (netip.AddrPort, error)
		}{
			{FitPort, ParsePort}, {FitEPRT, ParseEPRT},
			{FitPASV, func(b []byte) (netip.AddrPort, error) { return ParsePASV(b[4:]) }},
		} {
			b := c.fit(to, int(n))
			if b == nil {
				continue
			}
			if back, err := c.parse(b); err != nil || back != to || len(b) != int(n) {
				t.Errorf("%q of %v in %d: %v, %v", b, to, n, back, err)
			}
		}
	})
}
