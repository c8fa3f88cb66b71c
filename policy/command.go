package policy

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// Ruling is what a rule says of a command. The zero value denies.
type Ruling uint8

const (
	DeniedCommand     Ruling = iota // the verb, or the verb with its first word
	DeniedPath                      // the path it names
	DeniedPathUnknown               // the path cannot be told, and the rule has a path for this verb
	DeniedUser                      // the user's name
	DeniedDirection                 // an upload or a download
	DeniedFile                      // the file's name
	Allowed
)

var rulingWords = []string{
	DeniedCommand: "denied command", DeniedPath: "denied path", DeniedPathUnknown: "denied: path unknown",
	DeniedUser: "denied user", DeniedDirection: "denied direction", DeniedFile: "denied file", Allowed: "allowed",
}

// String says the ruling in words.
func (r Ruling) String() string { return Word(rulingWords, r) }

// restriction is what a rule has against one verb.
type restriction struct {
	whole     bool     // every use of it
	words     [][]byte // these first words
	paths     []string // these paths and all under them
	direction bool     // every use of it, because of where the data goes
	users     bool     // the users that Rule.User refuses
	files     bool     // the files that Rule.File refuses
	site      bool     // what Rule.site refuses
	unknown   bool     // what Rule.site does not know
}

// The commands whose data goes one way (RFC 959 section 4.1.3), and those that name a file.
var (
	uploads   = []string{"APPE", "STOR", "STOU"}
	downloads = []string{"RETR"}
	fileVerbs = []string{"APPE", "RETR", "RNFR", "RNTO", "STOR", "STOU"}
)

// digests are the commands that answer with a checksum of a file, or of a part of it as short as a byte: so they tell its content
// as RETR does.
var digests = []string{"HASH", "MD5", "XCRC", "XMD5", "XSHA", "XSHA1", "XSHA256", "XSHA512"}

// plainForm gives the standard name for the X forms of RFC 775, which servers take for the same commands (RFC 1123
// section 4.1.3.1).
func plainForm(verb string) string {
	switch verb {
	case "XCUP", "XCWD", "XMKD", "XPWD", "XRMD":
		return standardNames[verb]
	}
	return verb
}

var standardNames = map[string]string{"XCUP": "CDUP", "XCWD": "CWD", "XMKD": "MKD", "XPWD": "PWD", "XRMD": "RMD"}

// compile readies the rule for Command.
func (r *Rule) compile() {
	r.allow, r.denied = map[string]bool{}, map[string]*restriction{}
	for _, verb := range r.Allow {
		r.allow[verb] = true
	}
	for _, entry := range r.Deny {
		verb, rest, _ := strings.Cut(entry, " ")
		d := r.restriction(verb)
		switch {
		case rest == "":
			d.whole = true
		case rest[0] == '/':
			d.paths = append(d.paths, path.Clean(rest))
		default:
			d.words = append(d.words, []byte(rest))
		}
	}
	r.extend("CWD", "CDUP") // which is CWD to the parent (RFC 959 section 4.1.1)
	r.extend("RETR", digests...)
	r.compileNames()
	r.compileSite()
}

// extend has the paths of one verb hold for others, which would be a way round them.
func (r *Rule) extend(verb string, others ...string) {
	d := r.denied[verb]
	if d == nil || len(d.paths) == 0 {
		return
	}
	for _, other := range others {
		o := r.restriction(other)
		o.paths = slices.Concat(o.paths, d.paths)
	}
}

func (r *Rule) compileNames() {
	r.users, r.files = newPatterns(r.Users, userPattern), newPatterns(r.Files, fold)
	if !r.users.isZero() {
		r.restriction("USER").users = true
	}
	if !r.files.isZero() {
		for _, verb := range slices.Concat(fileVerbs, digests) {
			r.restriction(verb).files = true
		}
	}
	if r.NoUpload {
		for _, verb := range uploads {
			r.restriction(verb).direction = true
		}
	}
	if r.NoDownload {
		for _, verb := range downloads {
			r.restriction(verb).direction = true
		}
	}
}

func (r *Rule) restriction(verb string) *restriction {
	if r.denied[verb] == nil {
		r.denied[verb] = &restriction{}
	}
	return r.denied[verb]
}

// Command rules on one command: its verb, its argument as it came, and the session's working directory, or "" where
// that is unknown. It does not allocate for a verb in upper case that neither paths nor names restrict.
func (r *Rule) Command(verb string, arg []byte, cwd string) Ruling {
	if r == nil {
		return DeniedCommand
	}
	verb = plainForm(strings.ToUpper(verb))
	if len(r.allow) > 0 && !r.allow[verb] {
		return DeniedCommand
	}
	d := r.denied[verb]
	if d == nil {
		return Allowed
	}
	switch {
	case d.whole || d.hasWord(arg):
		return DeniedCommand
	case d.direction:
		return DeniedDirection
	case d.users && !r.User(string(arg)):
		return DeniedUser
	case d.files && namesFile(verb, arg) && !r.names(verb, string(arg)):
		return DeniedFile
	case d.site:
		return r.site(arg, cwd)
	case len(d.paths) == 0:
		return Allowed
	}
	return d.path(pathnames(verb, string(arg)), cwd)
}

// names reports whether a command may name the file that it names, in every way in which servers may read that.
func (r *Rule) names(verb, arg string) bool {
	if pathVerbs[verb] != digest {
		return r.File(arg)
	}
	return !slices.ContainsFunc(pathnames(verb, arg).names, func(name string) bool { return !r.File(name) })
}

// namesFile reports whether a command's argument is a file's name: without one, the server makes one up for STOU (RFC 959
// section 4.1.3).
func namesFile(verb string, arg []byte) bool { return verb != "STOU" || len(bytes.TrimSpace(arg)) > 0 }

// blanks are what C's isspace takes for white space, and so servers do.
const blanks = " \t\v\f\r\n"

// hasWord reports whether the first word of arg is one of the denied ones, or may be: ProFTPD takes a word in quotes for the
// same without.
func (d *restriction) hasWord(arg []byte) bool {
	if len(d.words) == 0 {
		return false
	}
	word, _ := cutWord(arg)
	return bytes.ContainsAny(word, `"\`) || slices.ContainsFunc(d.words, func(w []byte) bool { return bytes.EqualFold(w, word) })
}

// cutWord returns the first word of an argument and what follows the white space after it. White space in front, which some
// servers skip, does not hide it.
func cutWord(arg []byte) (word, rest []byte) {
	arg = bytes.TrimLeft(arg, blanks)
	if end := bytes.IndexAny(arg, blanks); end >= 0 {
		return arg[:end], bytes.TrimLeft(arg[end:], blanks)
	}
	return arg, nil
}

// Restricts reports whether some command whose verb begins with prefix, in upper case, can be denied under this rule,
// whatever its argument. What is not restricted need not be waited for.
func (r *Rule) Restricts(prefix string) bool {
	if len(r.allow) > 0 {
		return true // whatever it is, a longer verb is not on the list
	}
	for verb := range r.denied {
		if strings.HasPrefix(verb, prefix) {
			return true
		}
	}
	for x, plain := range standardNames {
		if r.denied[plain] != nil && strings.HasPrefix(x, prefix) {
			return true
		}
	}
	return false
}

// RestsOnState reports whether what the rule allows depends on how far a session has got: who is logged in, where, and
// whether inside TLS.
func (r *Rule) RestsOnState() bool { return len(r.allow) > 0 || len(r.denied) > 0 || r.RequireTLS }

// RestsOnLogin reports whether the rule restricts who logs in, or how.
func (r *Rule) RestsOnLogin() bool { return !r.users.isZero() || r.RequireTLS }

// TracksPaths reports whether the rule has any path entry, so that the working directory matters.
func (r *Rule) TracksPaths() bool {
	for _, d := range r.denied {
		if len(d.paths) > 0 {
			return true
		}
	}
	return false
}
