package alg

import "encoding/binary"

// TLS record layer (RFC 8446 section 5, RFC 5246 section 6). Only the headers are read, and the ServerHello, because in
// TLS 1.3 the end of the handshake and the alerts look like application data.
const (
	recordHeader     = 5
	maxRecord        = 1<<14 + 2048 // TLS 1.2's bound, the larger one
	typeCCS          = 20
	typeAlert        = 21
	typeHandshake    = 22
	typeData         = 23
	typeHeartbeat    = 24
	typeClientHello  = 1
	typeServerHello  = 2
	tls13            = 0x0304
	extVersions      = 43
	aeadTag          = 16 // of every TLS 1.3 suite in use
	closeNotify13    = 2 + 1 + aeadTag
	finishedOverhead = 4 + 1 + aeadTag
	maxServerHello   = 512      // what is kept to find the version in; a ServerHello has about 120 bytes
	maxClientHello   = 16 << 10 // bytes of the client's until the ServerHello; with post-quantum key shares it has about 2,000
)

// event is what a feed has seen; several may come at once.
type event uint8

const (
	badRecord   event = 1 << iota // not TLS
	backToClear                   // this side's next byte is clear text
	replySeen                     // application data from the server after a request from the client
)

// follower follows the TLS records of both directions without opening them. It is a part of Memory.
type follower struct {
	Side    [2]recordSide
	Hello   []byte // the server's first handshake record, until the version is known
	Version uint16 // 0 until the ServerHello; tls13 or lower
	FinLen  int    // length of a client's Finished record in TLS 1.3
	State   handshake
	Request bool    // the client sent application data that no reply followed yet
	Cleared [2]bool // this side is clear text again
	Adrift  int     // where the server's next record begins is not known; it does within so many bytes
	Shown   bool    // the server has shown that it speaks TLS, by a ServerHello
	Failed  bool    // the server has refused the handshake
	Early   int     // bytes of the client's before that
}

// recordSide is where one direction stands in its current record.
type recordSide struct {
	Header  [recordHeader]byte
	Have    uint8 // bytes of the header so far
	Started bool
	Secret  bool // ChangeCipherSpec seen: what follows is encrypted (TLS 1.2)
	Closing bool // close_notify seen
	Left    int  // bytes of the record still to come
}

// handshake is how far the handshake is, as far as it matters for credits.
type handshake uint8

const (
	shaking  handshake = iota
	finished           // TLS 1.3: some of the client's last flight was seen, its Finished was not recognised
	open               // application data is application data
)

// resume takes the handshake as done. The server's next byte may be within a record. The client's must begin one: its records
// are short, and what is skipped might be commands, if CCC was on its way.
func (f *follower) resume() {
	f.Adrift = maxRecord + recordHeader
	f.State, f.Shown = open, true
	f.Side[Client].Started, f.Side[Server].Started = true, true
	f.Side[Client].Secret, f.Side[Server].Secret = true, true
}

// untouched says whether no TLS byte has come from either side.
func (f *follower) untouched() bool { return !f.Side[Client].Started && !f.Side[Server].Started }

// skip passes over the rest of a server's record that began before us, up to a segment that begins with a record.
func (f *follower) skip(b []byte) bool {
	if f.Adrift < len(b) || beginsRecord(b) {
		f.Adrift = 0
		return false
	}
	f.Adrift -= len(b)
	return true
}

// feed takes the next bytes of one side. It stops before the first byte that is clear text again.
func (f *follower) feed(from Side, b []byte) (n int, ev event) {
	s := &f.Side[from]
	if from == Server && f.Adrift > 0 && f.skip(b) {
		return len(b), 0
	}
	for n < len(b) {
		if s.Left > 0 {
			take := min(s.Left, len(b)-n)
			if !f.body(from, b[n:n+take]) {
				return n + take, ev | badRecord
			}
			s.Left -= take
			n += take
			if s.Left == 0 {
				ev |= f.recordEnds(from)
			}
			continue
		}
		if s.Have == 0 && f.mayClear(from) && !looksLikeTLS(b[n:]) {
			f.Cleared[from] = true
			return n, ev | backToClear
		}
		s.Header[s.Have] = b[n]
		s.Have++
		n++
		if !s.plausible() || from == Server && !f.Side[Client].Started {
			return n, ev | badRecord
		}
		if s.Have == recordHeader {
			if !f.due(from) {
				return n, ev | badRecord
			}
			s.Started = true
			s.Left = s.length()
		}
	}
	return n, ev
}

// mayClear reports whether one side may go on in clear text (CCC, RFC 4217 section 12.3). The server's does after its own
// close_notify and nothing else: what the client sends says nothing about it. Clients in use go on without a close_notify of
// their own once they have the server's.
func (f *follower) mayClear(from Side) bool {
	return f.Side[Server].Closing || from == Client && f.Side[Client].Closing
}

// due reports whether a record may come here, now that its header is known. TLS is believed on evidence: until the server has
// answered with a ServerHello the client says its own and nothing else, and when the server has ended TLS only the client's
// own close_notify is left to come.
func (f *follower) due(from Side) bool {
	s := &f.Side[from]
	switch {
	case s.kind() == typeCCS && s.length() != 1:
		return false
	case from == Client && f.Failed:
		return false
	case from == Client && f.Side[Server].Closing:
		return !s.Closing && (s.kind() == typeAlert || s.kind() == typeData && s.length() == closeNotify13)
	case from == Client && !f.Shown:
		f.Early += recordHeader + s.length()
		return s.kind() != typeData && s.kind() != typeHeartbeat && f.Early <= maxClientHello
	case !f.Shown:
		return s.kind() == typeHandshake || s.kind() == typeAlert
	case s.kind() == typeData && f.Version != 0 && f.Version < tls13:
		return s.Secret
	}
	return true
}

func (s *recordSide) kind() byte  { return s.Header[0] }
func (s *recordSide) length() int { return int(binary.BigEndian.Uint16(s.Header[3:])) }

// plausible checks the header's bytes so far.
func (s *recordSide) plausible() bool {
	h := s.Header
	switch s.Have {
	case 1:
		// A handshake begins with handshake records or, when it fails, with an alert.
		return h[0] >= typeCCS && h[0] <= typeHeartbeat &&
			(s.Started || h[0] == typeHandshake || h[0] == typeAlert)
	case 2:
		return h[1] == 3
	case 3:
		return h[2] <= 4
	case recordHeader:
		return s.length() <= maxRecord && s.length() > 0
	}
	return true
}

// looksLikeTLS says whether b could be the start of a record; no line of FTP begins with such a byte.
func looksLikeTLS(b []byte) bool { return b[0] >= typeCCS && b[0] <= typeHeartbeat }

// beginsRecord says whether b begins with a whole and plausible record header.
func beginsRecord(b []byte) bool {
	if len(b) < recordHeader {
		return false
	}
	s := recordSide{Started: true}
	for i := range recordHeader {
		s.Header[i] = b[i]
		if s.Have++; !s.plausible() {
			return false
		}
	}
	return true
}

// body reads the hellos, and reports whether they may be ones. It keeps the ServerHello until the version is known.
func (f *follower) body(from Side, b []byte) bool {
	s := &f.Side[from]
	if f.Shown || s.kind() != typeHandshake {
		return true
	}
	if from == Client {
		first := f.Early == recordHeader+s.length() && s.Left == s.length()
		return !first || b[0] == typeClientHello
	}
	f.Hello = append(f.Hello, b[:min(len(b), maxServerHello-len(f.Hello))]...)
	if f.Hello[0] != typeServerHello {
		return false
	}
	f.readServerHello()
	f.Shown = f.Version != 0
	return true
}

// recordEnds draws what a whole record tells.
func (f *follower) recordEnds(from Side) (ev event) {
	s := &f.Side[from]
	s.Have = 0
	switch s.kind() {
	case typeCCS:
		s.Secret = true
	case typeHandshake:
		s.Closing = false
	case typeAlert:
		f.Failed = f.Failed || from == Server && !f.Shown
		// In TLS 1.2 the alert is encrypted by then; after a handshake it can only be close_notify, or fatal, and
		// behind a fatal one nothing comes.
		s.Closing = s.Closing || s.Secret
	case typeData:
		// Two bytes of text would look the same, but then more records follow.
		s.Closing = (f.Version == tls13 || f.Version == 0) && f.State == open && s.length() == closeNotify13
		if !s.Closing {
			ev = f.data(from, s.length())
		}
	}
	return ev
}

// data counts application data: a request is the client's, a reply the server's next. In TLS 1.3 the client's last
// handshake flight is application data to the eye: it ends with its Finished, known by its length; failing that (client
// certificates in one record with it, padding), with the server's answer to it.
func (f *follower) data(from Side, length int) (ev event) {
	switch {
	case f.State == open:
	case f.Version == 0:
		return 0 // early data, or data before a ServerHello: counts for nothing
	case f.Version < tls13:
		f.State = open
	case from == Client && f.State == shaking && length == f.FinLen:
		f.State = open
		return 0
	case from == Client:
		f.State = finished
		if length == f.FinLen {
			f.State = open
		}
		return 0
	case f.State == finished:
		f.State = open
		return 0
	default:
		return 0 // the server's encrypted handshake flight
	}
	if from == Client {
		f.Request = true
		return 0
	}
	if f.Request {
		f.Request = false
		return replySeen
	}
	return 0
}

// readServerHello finds version and cipher suite as soon as enough of the message is there (RFC 8446 section 4.1.3).
func (f *follower) readServerHello() {
	m := f.Hello
	const fixed = 4 + 2 + 32 // header, legacy version, random
	if len(m) < fixed+1 {
		return
	}
	at := fixed + 1 + int(m[fixed]) // behind the session id: cipher suite, compression, extensions
	size := 4 + int(m[1])<<16 + int(m[2])<<8 + int(m[3])
	if len(m) < min(size, maxServerHello) {
		return
	}
	f.Version, f.Hello = 0x0303, nil
	if at+5 > len(m) {
		return
	}
	suite := binary.BigEndian.Uint16(m[at:])
	if supportedVersion(m[at+5:]) == tls13 {
		f.Version = tls13
		f.FinLen = finishedOverhead + 32
		if suite == 0x1302 { // TLS_AES_256_GCM_SHA384
			f.FinLen = finishedOverhead + 48
		}
	}
}

// supportedVersion looks for the supported_versions extension among the extensions.
func supportedVersion(ext []byte) uint16 {
	for len(ext) >= 4 {
		typ, n := binary.BigEndian.Uint16(ext), int(binary.BigEndian.Uint16(ext[2:]))
		if len(ext) < 4+n {
			return 0
		}
		if typ == extVersions && n == 2 {
			return binary.BigEndian.Uint16(ext[4:])
		}
		ext = ext[4+n:]
	}
	return 0
}
