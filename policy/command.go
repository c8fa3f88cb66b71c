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
func (r Ruling) String() string { return word(rulingWords, r) }

// restriction is what a rule has against one verb.
type restriction struct {
	whole     bool     // every use of it
	words     [][]byte // these first words
	paths     []string // these paths and all under them
	direction bool     // every use of it, because of where the data goes
	users     bool     // the users that Rule.User refuses
	files     bool     // the files that Rule.File refuses
}

// The commands whose data goes one way (RFC 959 section 4.1.3), and those that name a file.
var (
	uploads   = []string{"APPE", "STOR", "STOU"}
	downloads = []string{"RETR"}
	fileVerbs = []string{"APPE", "RETR", "RNFR", "RNTO", "STOR", "STOU"}
)

// argument says how a verb's argument holds a path.
type argument uint8

const (
	onePath   argument = iota + 1 // the argument is the path (RFC 959 section 4.1.3)
	listing                       // options as of ls, then paths, perhaps with wild cards
	afterWord                     // a time or facts, one space, and the path
)

// pathVerbs are the commands whose paths can be restricted, in their plain form.
var pathVerbs = map[string]argument{
	"APPE": onePath, "CDUP": onePath, "CWD": onePath, "DELE": onePath, "MDTM": onePath, "MKD": onePath, "MLSD": onePath,
	"MLST": onePath, "RETR": onePath, "RMD": onePath, "RNFR": onePath, "RNTO": onePath, "SIZE": onePath,
	"SMNT": onePath, "STOR": onePath, "STOU": onePath,
	"LIST": listing, "NLST": listing, "STAT": listing,
	"MFCT": afterWord, "MFF": afterWord, "MFMT": afterWord,
}

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
			d.paths = append(d.paths, rest)
		default:
			d.words = append(d.words, []byte(rest))
		}
	}
	// CDUP is CWD to the parent (RFC 959 section 4.1.1): a way round a CWD path otherwise.
	if cwd, ok := r.denied["CWD"]; ok && len(cwd.paths) > 0 {
		up := r.restriction("CDUP")
		up.paths = slices.Concat(up.paths, cwd.paths)
	}
	r.compileNames()
}

func (r *Rule) compileNames() {
	r.users, r.files = newPatterns(r.Users, userPattern), newPatterns(r.Files, fold)
	if !r.users.isZero() {
		r.restriction("USER").users = true
	}
	if !r.files.isZero() {
		for _, verb := range fileVerbs {
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
	case d.files && namesFile(verb, arg) && !r.File(string(arg)):
		return DeniedFile
	case len(d.paths) == 0:
		return Allowed
	}
	return d.path(verb, string(arg), cwd)
}

// namesFile reports whether a command's argument is a file's name: without one, the server makes one up for STOU (RFC 959
// section 4.1.3).
func namesFile(verb string, arg []byte) bool { return verb != "STOU" || len(bytes.TrimSpace(arg)) > 0 }

// blanks are what C's isspace takes for white space, and so servers do.
const blanks = " \t\v\f\r\n"

// hasWord reports whether the first word of arg is one of the denied ones. White space in front, which some servers
// skip, does not hide it.
func (d *restriction) hasWord(arg []byte) bool {
	arg = bytes.TrimLeft(arg, blanks)
	if end := bytes.IndexAny(arg, blanks); end >= 0 {
		arg = arg[:end]
	}
	return slices.ContainsFunc(d.words, func(w []byte) bool { return bytes.EqualFold(w, arg) })
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

// RestsOnState reports whether the rule restricts anything that is read in clear text.
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

// path rules on the paths that a command names. Where servers differ in how they read an argument, every reading is
// tried and the strictest ruling holds.
func (d *restriction) path(verb, arg, cwd string) Ruling {
	names, recursive := pathnames(verb, arg)
	ruling := Allowed
	for _, name := range names {
		full, known := resolve(name, cwd, pathVerbs[verb] == listing)
		for _, p := range d.paths {
			switch {
			case p == "/", known && under(full, p), known && recursive && under(p, full):
				return DeniedPath
			case !known:
				ruling = DeniedPathUnknown
			}
		}
	}
	return ruling
}

// pathnames gives the paths that an argument may name; "" is the working directory. It also says whether what lies
// under them is meant as well.
func pathnames(verb, arg string) (names []string, recursive bool) {
	arg = strings.Trim(arg, " \t")
	first, rest, _ := strings.Cut(arg, " ")
	switch {
	case verb == "CDUP":
		return []string{".."}, false
	case verb == "STAT" && arg == "":
		return nil, false // the status of the session (RFC 959 section 4.1.3), no path
	case pathVerbs[verb] == afterWord:
		return []string{strings.TrimSpace(rest)}, false
	case verb == "MDTM" && isTime(first):
		return []string{arg, strings.TrimSpace(rest)}, false // RFC 3659 has no time here; servers that set it with MDTM do
	case pathVerbs[verb] == listing:
		return listed(arg)
	}
	return []string{arg}, false
}

// listed reads the argument of LIST, NLST or STAT: what is left behind the options is one path with spaces to some
// servers, several paths to others.
func listed(arg string) (names []string, recursive bool) {
	var words []string
	rest := arg
	for _, w := range strings.Fields(arg) {
		if w[0] != '-' || strings.Contains(w, "/") { // no option has a slash
			words = append(words, w)
			continue
		}
		recursive = recursive || strings.Contains(w, "R")
		if len(words) == 0 {
			rest = strings.TrimLeft(strings.TrimPrefix(rest, w), " \t")
		}
	}
	if len(words) < 2 {
		return []string{strings.Join(words, "")}, recursive
	}
	return append(words, rest), recursive
}

// isTime reports whether a word is a time-val (RFC 3659 section 2.3): fourteen digits, perhaps a fraction.
func isTime(word string) bool {
	return len(word) >= 14 && strings.Trim(word[:14], "0123456789") == ""
}

// resolve makes a path absolute and clean, by its letters alone: the gateway cannot see the server's links. It gives
// false where the path cannot be told: a relative one without a working directory, a home directory, a drive letter, a
// quote that some servers strip, a wild card where the server expands them. A backslash counts as a slash, which is
// what it is to a server on Windows.
func resolve(name, cwd string, wild bool) (full string, known bool) {
	name = strings.ReplaceAll(name, `\`, "/")
	switch {
	case strings.HasPrefix(name, "~"), strings.HasPrefix(name, `"`), len(name) > 1 && name[1] == ':':
		return "", false
	case wild && strings.ContainsAny(name, "*?[{"):
		return "", false
	case strings.HasPrefix(name, "/"):
		return path.Clean(name), true
	case !strings.HasPrefix(cwd, "/"):
		return "", false
	}
	return path.Clean(cwd + "/" + name), true
}

// under reports whether a clean path is dir or lies under it. Names are compared as the least strict server does it:
// case and trailing dots and spaces mean nothing on Windows.
func under(full, dir string) bool {
	if dir == "/" {
		return true
	}
	names, want := strings.Split(full, "/"), strings.Split(dir, "/")
	return len(names) >= len(want) && slices.EqualFunc(names[:len(want)], want, func(a, b string) bool {
		return strings.EqualFold(strings.TrimRight(a, ". "), strings.TrimRight(b, ". "))
	})
}
