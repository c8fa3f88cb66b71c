package ftp

import (
	"bytes"
	"slices"
)

// otherRequests are the words that requests of other protocols begin with: HTTP (RFC 9110 section 9), SMTP, SIP and RTSP. None
// is a command of FTP.
var otherRequests = []string{
	"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI", "PROPFIND",
	"HELO", "EHLO", "LHLO", "INVITE", "REGISTER", "DESCRIBE", "SETUP",
}

// otherGreetings are what servers of other protocols say first: SSH, HTTP, POP3, IMAP and RFB.
var otherGreetings = []string{"SSH-", "HTTP/", "+OK", "-ERR", "* ", "RFB "}

// OtherClient reports whether a client's line is the request of another protocol.
func OtherClient(text []byte) bool {
	word, _, _ := bytes.Cut(text, []byte{' '})
	return len(word) <= maxVerb && slices.Contains(otherRequests, string(bytes.ToUpper(word)))
}

// OtherServer reports whether a server's line is the greeting of another protocol.
func OtherServer(text []byte) bool {
	return slices.ContainsFunc(otherGreetings, func(g string) bool { return bytes.HasPrefix(text, []byte(g)) })
}
