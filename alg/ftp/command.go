package ftp

import (
	"errors"
	"fmt"
)

// Errors of the grammar. What is returned wraps one of these and quotes what was found.
var (
	ErrCommand = errors.New("not an FTP command")
	ErrReply   = errors.New("not an FTP reply")
)

// maxVerb bounds a command name. RFC 959 says four letters; the longest in use have seven (XSHA256).
const maxVerb = 12

// Command is one command line.
type Command struct {
	Verb string // in upper case; known ones are never allocated
	Arg  []byte // what follows the one space, unchanged; nil without a space
}

// ParseCommand reads a command line (RFC 959 section 5.3) without its terminator. The name may be in any case. A line
// that does not begin with a name and then ends or goes on with one space is an error: some servers skip white space
// in front, or take a tab for a space, and some do not.
func ParseCommand(text []byte) (Command, error) {
	end := 0
	for end < len(text) && text[end] != ' ' {
		if !verbByte(text[end]) {
			return Command{}, fmt.Errorf("%w: byte %#02x in the command's name", ErrCommand, text[end])
		}
		end++
	}
	if end == 0 || end > maxVerb {
		return Command{}, fmt.Errorf("%w: a name of %d bytes, 1 to %d expected", ErrCommand, end, maxVerb)
	}
	cmd := Command{Verb: verb(text[:end])}
	if end < len(text) {
		cmd.Arg = text[end+1:]
	}
	return cmd, nil
}

func verbByte(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
}

// verb gives a name in upper case, without allocating for the names that are known.
func verb(name []byte) string {
	var upper [maxVerb]byte
	for i, c := range name {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		upper[i] = c
	}
	if known, ok := verbs[string(upper[:len(name)])]; ok {
		return known
	}
	return string(upper[:len(name)])
}

// verbs are the commands of RFC 959, 775 (X forms), 1639, 2228, 2389, 2428, 2640, 3659, 4217 and 7151, and those that
// servers and clients in use add.
var verbs = func() map[string]string {
	known := map[string]string{}
	for _, v := range []string{
		"ABOR", "ACCT", "ADAT", "ALLO", "APPE", "AUTH", "CCC", "CDUP", "CLNT", "CONF", "CWD", "DELE", "ENC", "EPRT",
		"EPSV", "ESTA", "ESTP", "FEAT", "HASH", "HELP", "HOST", "LANG", "LIST", "LPRT", "LPSV", "MDTM", "MFCT", "MFF",
		"MFMT", "MIC", "MKD", "MLSD", "MLST", "MODE", "NLST", "NOOP", "OPTS", "PASS", "PASV", "PBSZ", "PORT", "PROT",
		"PWD", "QUIT", "RANG", "REIN", "REST", "RETR", "RMD", "RNFR", "RNTO", "SITE", "SIZE", "SMNT", "SPSV", "STAT",
		"STOR", "STOU", "STRU", "SYST", "TYPE", "USER", "XCRC", "XCUP", "XCWD", "XMD5", "XMKD", "XPWD", "XRMD", "XSHA",
		"XSHA1", "XSHA256", "XSHA512",
	} {
		known[v] = v
	}
	return known
}()

// Known reports whether some server has a command of this name, which is in upper case.
func Known(verb string) bool {
	_, known := verbs[verb]
	return known
}

// String gives the line as it goes on the wire, without the terminator.
func (c Command) String() string {
	if c.Arg == nil {
		return c.Verb
	}
	return c.Verb + " " + string(c.Arg)
}
