package policy

import (
	"path"
	"slices"
	"strings"
)

// Bounds of what one command line costs: every pattern is tried on every reading of its argument.
const (
	maxPatterns = 256  // of one list
	maxPattern  = 255  // bytes of a pattern
	maxName     = 1020 // bytes of a name: 255 characters of up to four bytes; a longer one is denied
)

// names reads two lists of patterns. problem says what is wrong with one, or nothing.
func (b *builder) names(key string, raw *rawNames, problem func(string) string) Names {
	n := Names{Allow: b.patterns(key+".allow", raw.Allow, problem), Deny: b.patterns(key+".deny", raw.Deny, problem)}
	for i, text := range raw.Deny {
		if slices.Contains(n.Allow, text) {
			b.fault(index(key+".deny", i), "%q is allowed and denied; remove one", text)
		}
	}
	return n
}

func (b *builder) patterns(key string, raw []string, problem func(string) string) []string {
	if len(raw) > maxPatterns {
		b.fault(key, "%d patterns; %d is the most, use wild cards", len(raw), maxPatterns)
		return nil
	}
	for i, text := range raw {
		switch what := problem(text); {
		case what != "":
			b.fault(index(key, i), "%q %s", text, what)
		case len(text) > maxPattern:
			b.fault(index(key, i), "longer than %d bytes; use wild cards", maxPattern)
		}
	}
	list := append([]string{}, raw...)
	slices.Sort(list)
	return slices.Compact(list)
}

func userProblem(text string) string {
	if text == "" || strings.TrimSpace(text) != text || !printable(text) {
		return "is no user's name; write printable characters without spaces around them, and * or ? as wild cards"
	}
	return ""
}

func fileProblem(text string) string {
	_, err := path.Match(fold(text), "")
	switch {
	case text == "" || !printable(text):
		return "is no file's name; write printable characters, and * or ? as wild cards"
	case strings.Contains(text, "/"):
		return "has a slash; a pattern is for the last element of a path, as *.exe is (paths go under commands)"
	case err != nil:
		return `is no pattern that can be read; close its [, and write \[ or \\ for these characters themselves`
	}
	return ""
}

// patterns is a Names ready for use: for path.Match, case folded.
type patterns struct{ allow, deny []string }

func newPatterns(n Names, form func(string) string) patterns {
	var p patterns
	for _, text := range n.Allow {
		p.allow = append(p.allow, form(text))
	}
	for _, text := range n.Deny {
		p.deny = append(p.deny, form(text))
	}
	return p
}

func (p *patterns) isZero() bool { return len(p.allow)+len(p.deny) == 0 }

// permit says whether a name is allowed in every way in which servers may read it.
func (p *patterns) permit(readings ...string) bool {
	if slices.ContainsFunc(readings, func(name string) bool { return len(name) > maxName }) {
		return false
	}
	for _, name := range readings {
		if len(p.allow) > 0 && !matchAny(p.allow, name) || matchAny(p.deny, name) {
			return false
		}
	}
	return true
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		matches, err := path.Match(pattern, name)
		return matches && err == nil
	})
}

// fold makes all letters that differ in case alone the same. Through upper case, because some letters have two lower
// case forms.
func fold(s string) string { return strings.ToLower(strings.ToUpper(s)) }

// User reports whether a user may log in, by the argument of USER.
func (r *Rule) User(name string) bool {
	if r.users.isZero() {
		return true
	}
	name = userName(name)
	return r.users.permit(name, strings.TrimSpace(name)) // some servers skip blanks
}

// userName readies a user's name for path.Match, to which a slash is more than a character.
func userName(name string) string { return strings.ReplaceAll(fold(name), "/", "\x00") }

// userPattern is the same for a pattern, in which only * and ? are wild cards.
func userPattern(text string) string { return userEscapes.Replace(userName(text)) }

var userEscapes = strings.NewReplacer(`\`, `\\`, "[", `\[`)

// File reports whether a file may be transferred or renamed, by the argument that names it.
func (r *Rule) File(arg string) bool {
	return r.files.isZero() || r.files.permit(fileNames(fold(arg))...)
}

// fileNames gives the last element of a path in every way in which servers may read it: with and without the blanks and
// quotes around it; with dots in between resolved; and as Windows has it, where a backslash is a slash, dots and spaces
// at the end mean nothing, and a colon stands behind a drive or before a stream of the file's data.
func fileNames(arg string) []string {
	names := []string{path.Base(arg), path.Base(path.Clean(arg))}
	windows := path.Base(path.Clean(strings.ReplaceAll(strings.Trim(arg, "\"' \t"), `\`, "/")))
	for part := range strings.SplitSeq(windows, ":") {
		names = append(names, strings.TrimRight(part, ". "))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
