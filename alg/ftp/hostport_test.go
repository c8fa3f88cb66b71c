package ftp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	for _, test := range []struct{ arg, want string }{
		// RFC 959 section 4.1.2: h1,h2,h3,h4,p1,p2.
		{"192,0,2,2,4,1", "192.0.2.2:1025"},
		{"0,0,0,0,0,1", "0.0.0.0:1"},
		{"255,255,255,255,255,255", "255.255.255.255:65535"},
		{"192,000,002,02,004,001", "192.0.2.2:1025"}, // leading zeros are decimal to every server
		// The kernel's helper took 256 for 0.
		{"192,0,2,256,4,1", ""},
		{"192,0,2,2,256,22", ""},
		{"192,0,2,2,0,0", ""}, // port 0
		{"192,0,2,2,4", ""},
		{"192,0,2,2,4,1,7", ""},
		{"192,0,2,2,4,1 ", ""},
		{"192,0,2,2,4,1x", ""},
		{" 192,0,2,2,4,1", ""},
		{"192,0,2,2,4,0001", ""},
		{"192,0,2,2,,1", ""},
		{"192,0,2,2,-4,1", ""},
		{"192.0.2.2.4.1", ""},
		{"(192,0,2,2,4,1)", ""},
		{"", ""},
	} {
		got, err := ParsePort([]byte(test.arg))
		check(t, "PORT "+test.arg, got, err, test.want)
	}
}

func TestParsePASV(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		// RFC 1123 section 4.1.2.6: the numbers are to be looked for.
		{"Entering Passive Mode (192,0,2,2,4,1)", "192.0.2.2:1025"},
		{"Entering Passive Mode (192,0,2,2,4,1).", "192.0.2.2:1025"},
		{"Entering Passive Mode 192,0,2,2,4,1", "192.0.2.2:1025"},
		{"Entering Passive Mode. 192,0,2,2,4,1.", "192.0.2.2:1025"},
		{"=192,0,2,2,4,1", "192.0.2.2:1025"},
		{"Passive mode on 2 ports: (192,0,2,2,4,1) since 10:30", "192.0.2.2:1025"},
		{"192,0,2,2,4,1 is where I listen", "192.0.2.2:1025"},
		{"Ok (192,0,2,2,4,256)", ""},
		{"Ok (192,0,2,2,4,1,5)", ""},
		{"Ok (192,0,2,2,4)", ""},
		{"Ok (192,0,2,2,4,1", ""},
		{"Ok 192,0,2,2,4,1)", ""},
		{"Ok (192,0,2,2,4,1x)", ""},
		{"Ok 192,0,2,2,4,1x", ""},
		{"Ok x192,0,2,2,4,1", ""},
		{"Ok -192,0,2,2,4,1", ""},
		{"Ok (192,0,2,2,0,0)", ""},
		{"Ok (192,0,2,2,4,1) (192,0,2,2,4,2)", ""}, // which one would a client take?
		{"Ok 1,2 (192,0,2,2,4,1)", ""},
		{"Logout.", ""},
		// Spaces that leave no doubt.
		{"Entering Passive Mode( 198, 51, 100, 2, 195,80).", "198.51.100.2:50000"},
		{"(198 ,51 , 100,2,195, 80 )", "198.51.100.2:50000"},
		{"(198,51,100,2,19 5,80)", ""},
		{"(198, 51, 100, 2, 195, 80) (198, 51, 100, 2, 195, 81)", ""},
		{"198, 51, 100, 2, 195", ""},
		{"", ""},
	} {
		got, err := ParsePASV([]byte(test.text))
		check(t, "227 "+test.text, got, err, test.want)
	}
}

func TestParseEPRT(t *testing.T) {
	for _, test := range []struct{ arg, want string }{
		// RFC 2428 section 2.
		{"|1|132.235.1.2|6275|", "132.235.1.2:6275"},
		{"|2|1080::8:800:200C:417A|5282|", "[1080::8:800:200c:417a]:5282"},
		{"!1!192.0.2.2!1025!", "192.0.2.2:1025"},
		{"|1|192.0.2.2|65535|", "192.0.2.2:65535"},
		{"|1|192.0.2.2|65536|", ""},
		{"|1|192.0.2.2|0|", ""},
		{"|1|192.0.2.2||", ""},
		{"|1|192.0.2.2|1025", ""},
		{"|1|192.0.2.2|1025|x", ""},
		{"|1|192.0.2.2|1025||", ""},
		{"|1|192.0.2.02|1025|", ""},
		{"|1|192.0.2.256|1025|", ""},
		{"|1|2001:db8::1|1025|", ""}, // the family is not the address's
		{"|2|192.0.2.2|1025|", ""},
		{"|2|fe80::1%eth0|1025|", ""},
		{"|3|192.0.2.2|1025|", ""},
		{"||192.0.2.2|1025|", ""},
		{" 1 192.0.2.2 1025 ", ""}, // the delimiter is 33 to 126
		{"|1|192.0.2.2|+1025|", ""},
		{"", ""},
	} {
		got, err := ParseEPRT([]byte(test.arg))
		check(t, "EPRT "+test.arg, got, err, test.want)
	}
}

// TestDelimiters: RFC 2428 section 2 allows any of ASCII 33 to 126; those that the fields themselves need cannot work.
func TestDelimiters(t *testing.T) {
	for d := byte(33); d <= 126; d++ {
		arg := []byte("|2|2001:db8::1|1025|")
		text := []byte("Entering (|||1025|)")
		for _, b := range [][]byte{arg, text} {
			for i := range b {
				if b[i] == '|' {
					b[i] = d
				}
			}
		}
		_, err := ParseEPRT(arg)
		if inField := strings.IndexByte("22001:db8::11025", d) >= 0; (err != nil) != inField {
			t.Errorf("EPRT %s: %v", arg, err)
		}
		_, err = ParseEPSV(text)
		if inField := strings.IndexByte("1025", d) >= 0; (err != nil) != inField {
			t.Errorf("229 %s: %v", text, err)
		}
	}
}

func TestParseEPSV(t *testing.T) {
	for _, test := range []struct {
		text string
		want uint16 // 0: refused
	}{
		// RFC 2428 section 3.
		{"Entering Extended Passive Mode (|||6446|)", 6446},
		{"Entering Extended Passive Mode (|||6446|).", 6446},
		{"(!!!1!)", 1},
		{"(|||65536|)", 0},
		{"(|||0|)", 0},
		{"(|||6446)", 0},
		{"(||6446|)", 0},
		{"(|||6446||)", 0},
		{"(|||6446|", 0},
		{"|||6446|", 0},
		{"(|||6446|x)", 0},
		{"(|1|192.0.2.2|6446|)", 0}, // only the port is the server's to choose
		{"()", 0},
		{"", 0},
	} {
		got, err := ParseEPSV([]byte(test.text))
		if got != test.want || (err == nil) != (test.want != 0) || err != nil && !errors.Is(err, ErrHostPort) {
			t.Errorf("229 %s: got %d, %v; want %d", test.text, got, err, test.want)
		}
	}
}

func TestParseEPSVRequest(t *testing.T) {
	for arg, want := range map[string]EPSVRequest{"": {}, "1": {Family: 1}, "2": {Family: 2}, "ALL": {All: true}, "all": {All: true}} {
		if got, err := ParseEPSVRequest([]byte(arg)); got != want || err != nil {
			t.Errorf("EPSV %s: got %+v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"3", "ALLES", " ", "1 "} {
		if got, err := ParseEPSVRequest([]byte(arg)); !errors.Is(err, ErrHostPort) {
			t.Errorf("EPSV %q: got %+v, %v", arg, got, err)
		}
	}
}

// check compares a parser's answer with the address that was wanted; "" means that a refusal was.
func check(t *testing.T, what string, got netip.AddrPort, err error, want string) {
	t.Helper()
	switch {
	case want == "" && !errors.Is(err, ErrHostPort):
		t.Errorf("%s: got %v, %v; a refusal was wanted", what, got, err)
	case want != "" && (err != nil || got.String() != want):
		t.Errorf("%s: got %v, %v; want %s", what, got, err, want)
	}
}
