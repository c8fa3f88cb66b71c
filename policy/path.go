package policy

import (
	"path"
	"slices"
	"strings"
)

// argument says how a verb's argument holds a path.
type argument uint8

const (
	onePath   argument = iota + 1 // the argument is the path (RFC 959 section 4.1.3)
	listing                       // options as of ls, then paths, perhaps with wild cards
	afterWord                     // a time or facts, one space, and the path
	digest                        // a path, perhaps followed by the numbers of its first and last byte
)

// pathVerbs are the commands whose paths can be restricted, in their plain form.
var pathVerbs = map[string]argument{
	"APPE": onePath, "CDUP": onePath, "CWD": onePath, "DELE": onePath, "MDTM": onePath, "MKD": onePath, "MLSD": onePath,
	"MLST": onePath, "RETR": onePath, "RMD": onePath, "RNFR": onePath, "RNTO": onePath, "SIZE": onePath,
	"SMNT": onePath, "STOR": onePath, "STOU": onePath,
	"LIST": listing, "NLST": listing, "STAT": listing,
	"MFCT": afterWord, "MFF": afterWord, "MFMT": afterWord,
	"HASH": digest, "MD5": digest, "XCRC": digest, "XMD5": digest, "XSHA": digest, "XSHA1": digest, "XSHA256": digest, "XSHA512": digest,
}

// reading is what servers may read in an argument: every path that one of them may find there.
type reading struct {
	names   []string // "" is the working directory
	below   bool     // what lies under them is meant as well
	globs   bool     // wild cards are expanded, and a backslash may take the meaning from the character after it
	unclear bool     // there may be other paths
}

// path rules on the paths that a command may name: the strictest ruling holds.
func (d *restriction) path(r reading, cwd string) Ruling {
	ruling := Allowed
	for _, name := range r.names {
		for _, form := range forms(name, r.globs) {
			full, known := resolve(form, cwd, r.globs)
			for _, p := range d.paths {
				switch {
				case p == "/", known && under(full, p), known && r.below && under(p, full):
					return DeniedPath
				case !known:
					ruling = DeniedPathUnknown
				}
			}
		}
	}
	return ruling
}

// pathnames reads the argument of a verb of pathVerbs.
func pathnames(verb, arg string) reading {
	first, rest, _ := strings.Cut(strings.TrimLeft(arg, blanks), " ")
	switch {
	case verb == "CDUP":
		return reading{names: []string{".."}}
	case verb == "STAT" && strings.Trim(arg, blanks) == "":
		return reading{} // the status of the session (RFC 959 section 4.1.3), no path
	case verb == "RNFR":
		return reading{names: blanksAside(arg), below: true} // what lies under a directory has another path afterwards
	case verb == "MDTM" && isTime(first):
		return reading{names: append(blanksAside(arg), blanksAside(rest)...)} // RFC 3659 has no time here; servers that set it with MDTM do
	}
	switch pathVerbs[verb] {
	case listing:
		return listed(arg)
	case afterWord:
		return reading{names: blanksAside(rest)}
	case digest:
		return reading{names: digested(arg)}
	}
	return reading{names: blanksAside(arg)}
}

// blanksAside returns a path with and without the blanks around it, which servers skip or keep.
func blanksAside(name string) []string {
	if trimmed := strings.Trim(name, blanks); trimmed != name {
		return []string{name, trimmed}
	}
	return []string{name}
}

// listed reads the argument of LIST, NLST or STAT.
//
// ProFTPD and Pure-FTPd end options at the first character that is no letter or digit, so that a path may follow without a
// space; to vsftpd they end at the first space. What is left is one path with spaces to ProFTPD and vsftpd, several paths to
// Pure-FTPd and to those that call ls, which take options between them as well.
func listed(arg string) reading {
	r := reading{globs: true, below: recursive(arg)}
	rest := afterOptions(arg)
	r.names = blanksAside(rest)
	for word := range strings.FieldsFuncSeq(rest, isBlank) {
		r.names = append(r.names, word)
		if glued := afterOptions(word); glued != "" {
			r.names = append(r.names, glued)
		}
	}
	if !strings.HasPrefix(arg, "-") {
		r.names = append(r.names, arg)
	} else if _, filter, more := strings.Cut(arg, " "); more && filter != "" {
		r.names = append(r.names, filter)
	}
	slices.Sort(r.names)
	r.names = slices.Compact(r.names)
	return r
}

// afterOptions skips options as ProFTPD and Pure-FTPd do.
func afterOptions(arg string) string {
	arg = strings.TrimLeft(arg, blanks)
	for strings.HasPrefix(arg, "-") {
		arg = strings.TrimLeft(strings.TrimLeft(arg[1:], alphanumeric), blanks)
	}
	return arg
}

const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// recursive reports whether an option of a listing asks for what lies under its paths.
func recursive(arg string) bool {
	for word := range strings.FieldsFuncSeq(arg, isBlank) {
		for options := range strings.SplitSeq(word, "-") {
			last := len(options) - len(strings.TrimLeft(options, alphanumeric))
			if word[0] == '-' && strings.Contains(options[:last], "R") {
				return true
			}
		}
	}
	return false
}

// digested reads the argument of a digest.
func digested(arg string) []string {
	names := blanksAside(arg)
	words := strings.FieldsFunc(arg, isBlank)
	for n := len(words) - 1; n > 0 && n >= len(words)-2 && isNumber(words[n]); n-- {
		names = append(names, strings.Join(words[:n], " "))
	}
	return names
}

func isBlank(c rune) bool { return strings.ContainsRune(blanks, c) }

func isNumber(word string) bool { return strings.Trim(word, "0123456789") == "" }

// isTime reports whether a word is a time-val (RFC 3659 section 2.3): fourteen digits, perhaps a fraction.
func isTime(word string) bool { return len(word) >= 14 && isNumber(word[:14]) }

// forms returns the path as each kind of server reads its backslashes: a character like others on Unix, a slash on Windows,
// and dropped where wild cards are expanded (glob(3), as in Pure-FTPd's listings).
func forms(name string, globs bool) []string {
	if !strings.Contains(name, `\`) {
		return []string{name}
	}
	all := []string{name, strings.ReplaceAll(name, `\`, "/")}
	if globs {
		all = append(all, unescape(name))
	}
	return all
}

// unescape drops each backslash and keeps the character after it.
func unescape(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] == '\\' && i+1 < len(name) {
			i++
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

// resolve makes a path absolute and clean, by its letters alone: the gateway cannot see the server's links. It returns
// false where the path cannot be told: a relative one without a working directory, a home directory, a drive letter, a
// quote that some servers strip, a wild card where the server expands them, a name of dots and spaces that Windows takes for
// one of dots.
func resolve(name, cwd string, globs bool) (full string, known bool) {
	switch {
	case strings.HasPrefix(name, "~"), strings.HasPrefix(name, `"`), len(name) > 1 && name[1] == ':', hasVagueName(name):
		return "", false
	case globs && strings.ContainsAny(name, "*?[{"):
		return "", false
	case strings.HasPrefix(name, "/"):
		return path.Clean(name), true
	case !strings.HasPrefix(cwd, "/"):
		return "", false
	}
	return path.Clean(cwd + "/" + name), true
}

// hasVagueName reports whether an element of a path consists of dots and spaces, and is not one of those that all know.
func hasVagueName(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.Trim(element, ". ") == "" && element != "" && element != "." && element != ".." {
			return true
		}
	}
	return false
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
