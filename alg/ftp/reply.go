package ftp

import "fmt"

// Reply is one line of a reply (RFC 959 section 4.2).
type Reply struct {
	Code int    // 100 to 699; 6yz are protected replies (RFC 2228 section 5.2)
	Text []byte // what follows the code and its separator
	Last bool   // the reply is complete; false for the earlier lines of a multi-line one
}

// Preliminary says whether another reply to the same command will follow (1yz).
func (r Reply) Preliminary() bool { return r.Code < 200 }

// Positive says whether the command was accepted, wholly or so far (1yz, 2yz, 3yz).
func (r Reply) Positive() bool { return r.Code < 400 }

// Replies puts lines together to replies. The zero value waits for a first line.
type Replies struct {
	Code uint16 // of the multi-line reply that is open; 0 outside of one
}

// Open says whether a multi-line reply has begun and not ended.
func (r *Replies) Open() bool { return r.Code != 0 }

// Line reads the next line. Inside a multi-line reply everything counts as text until the same code followed by a
// space (RFC 959 section 4.2; lines in between may begin with digits). A code that ends its line stands for one with an
// empty text, as some servers send it.
func (r *Replies) Line(text []byte) (Reply, error) {
	code, more, ok := replyCode(text)
	if r.Open() {
		reply := Reply{Code: int(r.Code), Text: text}
		if ok && !more && code == int(r.Code) {
			r.Code = 0
			reply.Text, reply.Last = afterCode(text), true
		}
		return reply, nil
	}
	if !ok {
		return Reply{}, fmt.Errorf("%w: a code of three digits (100 to 699) and a space or hyphen expected", ErrReply)
	}
	if more {
		r.Code = uint16(code)
	}
	return Reply{Code: code, Text: afterCode(text), Last: !more}, nil
}

// replyCode reads the code and whether a hyphen follows it.
func replyCode(text []byte) (code int, more, ok bool) {
	if len(text) < 3 {
		return 0, false, false
	}
	for _, c := range text[:3] {
		if c < '0' || c > '9' {
			return 0, false, false
		}
		code = code*10 + int(c-'0')
	}
	if code < 100 || code > 699 {
		return 0, false, false
	}
	if len(text) == 3 {
		return code, false, true
	}
	return code, text[3] == '-', text[3] == ' ' || text[3] == '-'
}

func afterCode(text []byte) []byte {
	if len(text) < 4 {
		return nil
	}
	return text[4:]
}
