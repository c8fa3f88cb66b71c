package ftp

// Flaw is what a line has that the grammar does not allow, or allows as a named leniency. A line may have several.
type Flaw uint8

const (
	// BareLF: the line ended in LF without CR. RFC 959 section 5.3 asks for CR LF. Several clients send LF alone, and most
	// servers take it for the end of a line; ProFTPD 1.3.8 does not.
	BareLF Flaw = 1 << iota
	// BareCR: a CR that no LF follows (CR NUL included). Servers differ in whether it ends a line.
	BareCR
	// NUL: a zero byte. Some servers read it as the end of the text, some as a line feed.
	NUL
	// Telnet: an IAC sequence that servers read differently to where the line ends: a subnegotiation, an option byte
	// that is a line terminator, or IAC before one.
	Telnet
	// RawIAC: IAC in the text, which has it as it came. It is a letter of Windows-1251, doubled or not, or begins one of
	// Telnet's sequences; some servers keep the bytes, some drop one or all. Where the line ends is the same.
	RawIAC
	// Signals: Telnet's signals in front of the text, as before ABOR (RFC 959 section 4.1.3). The text is without them.
	Signals
	// TooLong: the line went over the limit; its text is cut there.
	TooLong
)

// Refused are the flaws that no reading can be trusted with.
const Refused = BareCR | NUL | Telnet | TooLong

// Telnet's command bytes (RFC 854). Everything from SE up is a command when it follows IAC.
const (
	telnetSE   = 240
	telnetSB   = 250
	telnetWILL = 251
	telnetDONT = 254
	telnetIAC  = 255
)

// Line is one line of the control connection.
type Line struct {
	Text  []byte // without Telnet's signals in front and the terminator; good until the next call of Next
	Start uint64 // offset of the line's first byte in its direction's stream
	Len   int    // bytes on the wire, Telnet sequences and terminator included
	EOL   int    // how many of those bytes are the terminator: 2 for CR LF, 1 for LF
	Flaws Flaw
}

// Lines cuts one direction of a control connection into lines. The zero value is at the start of a stream. It keeps a
// copy only of a line that is not complete yet.
type Lines struct {
	text  []byte // of the incomplete line, signals removed
	start uint64 // offset of the incomplete line
	raw   int    // bytes of it seen so far
	state telnetState
	flaws Flaw
	cr    bool // the last byte was CR
}

type telnetState uint8

const (
	inText   telnetState = iota
	afterIAC             // IAC seen, its command is the next byte
	inOption             // IAC WILL/WONT/DO/DONT seen, the option is the next byte
)

// Offset is the stream offset of the next byte that Next will take.
func (l *Lines) Offset() uint64 { return l.start + uint64(l.raw) }

// Partial is how many bytes of an incomplete line have been taken.
func (l *Lines) Partial() int { return l.raw }

// PartialText is the text of the incomplete line so far.
func (l *Lines) PartialText() []byte { return l.text }

// PartialFlaws are the flaws of the incomplete line so far.
func (l *Lines) PartialFlaws() Flaw { return l.flaws }

// PartialStart is the stream offset at which the incomplete line begins.
func (l *Lines) PartialStart() uint64 { return l.start }

// Skip passes over n bytes that are not lines (TLS records) and forgets an incomplete line.
func (l *Lines) Skip(n int) {
	*l = Lines{start: l.Offset() + uint64(n)}
}

// Clone returns a copy that can be tried without effect on l.
func (l *Lines) Clone() Lines {
	c := *l
	c.text = append([]byte(nil), l.text...)
	return c
}

// Next takes bytes from b up to and including the end of the first line. It returns how many bytes it took; if the line
// is not complete, that is all of b and ok is false. A line's text is at most limit bytes; what is over is dropped and
// the line flawed.
func (l *Lines) Next(b []byte, limit int) (line Line, n int, ok bool) {
	if l.raw == 0 {
		if line, n, ok = l.whole(b, limit); ok {
			return line, n, true
		}
	}
	for i, c := range b {
		l.raw++
		if l.take(c, limit) {
			return l.finish(), i + 1, true
		}
	}
	return Line{}, len(b), false
}

// whole is the way of nearly every line: complete in one segment, without Telnet, NUL or a stray CR. Its text is not
// copied.
func (l *Lines) whole(b []byte, limit int) (Line, int, bool) {
	for i, c := range b {
		switch {
		case c == '\n':
			n := i + 1
			line := Line{Text: b[:i], Start: l.start, Len: n, EOL: 1, Flaws: BareLF}
			if i > 0 && b[i-1] == '\r' {
				line.Text, line.EOL, line.Flaws = b[:i-1], 2, 0
			}
			if len(line.Text) > limit {
				return Line{}, 0, false
			}
			l.start += uint64(n)
			return line, n, true
		case c == telnetIAC, c == 0, c == '\r' && i+1 < len(b) && b[i+1] != '\n':
			return Line{}, 0, false
		}
	}
	return Line{}, 0, false
}

// take adds one byte to the incomplete line and says whether it ended it.
func (l *Lines) take(c byte, limit int) (ended bool) {
	switch l.state {
	case afterIAC:
		l.afterIAC(c, limit)
		return false
	case inOption:
		l.state = inText
		if c == '\r' || c == '\n' || c == 0 {
			l.flaws |= Telnet
		} else {
			l.add(c, limit)
		}
		return false
	}
	if c == '\n' {
		if !l.cr {
			l.flaws |= BareLF
		}
		return true
	}
	if l.cr {
		l.flaws |= BareCR
		l.cr = false
	}
	switch c {
	case telnetIAC:
		l.state = afterIAC
	case '\r':
		l.cr = true
	case 0:
		l.flaws |= NUL
	default:
		l.add(c, limit)
	}
	return false
}

// afterIAC reads the byte behind IAC. BSD's ftpd swallows whatever follows, ProFTPD understands negotiations, and others have
// no Telnet at all: all agree on signals in front of the text, and on where the line ends in what is not flawed as Telnet.
func (l *Lines) afterIAC(c byte, limit int) {
	l.state = inText
	switch {
	case c == telnetSB, c == '\n', c == 0:
		l.flaws |= Telnet
		return
	case len(l.text) == 0 && c >= telnetSE && c < telnetWILL:
		l.flaws |= Signals
		return
	}
	l.flaws |= RawIAC
	l.add(telnetIAC, limit)
	switch {
	case c == '\r':
		l.cr = true
		return
	case c >= telnetWILL && c <= telnetDONT:
		l.state = inOption
	}
	l.add(c, limit)
}

// WithoutNegotiation returns a server's text without Telnet's negotiations in front: ProFTPD answers those of its client so.
func WithoutNegotiation(text []byte) []byte {
	for len(text) > 2 && text[0] == telnetIAC && text[1] >= telnetWILL && text[1] <= telnetDONT {
		text = text[3:]
	}
	return text
}

func (l *Lines) add(c byte, limit int) {
	if len(l.text) >= limit {
		l.flaws |= TooLong
		return
	}
	l.text = append(l.text, c)
}

func (l *Lines) finish() Line {
	line := Line{Text: l.text, Start: l.start, Len: l.raw, EOL: 2, Flaws: l.flaws}
	if l.flaws&BareLF != 0 {
		line.EOL = 1
	}
	*l = Lines{start: l.start + uint64(l.raw)}
	return line
}
