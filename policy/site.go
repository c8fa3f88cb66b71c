package policy

import (
	"bytes"
	"slices"
	"strings"
)

// siteForm says what follows a subcommand of SITE.
type siteForm uint8

const (
	siteNothing   siteForm = iota // nothing that names a file
	sitePath                      // a path
	siteAfterWord                 // a mode or a group, and a path
	siteTwoPaths                  // a path, and another that is to be made
	siteUnclear                   // a path and times, in an order that differs between servers
)

// siteCommand is a subcommand of SITE: what follows it, and the verbs whose restrictions hold for it.
type siteCommand struct {
	form siteForm
	as   []string
	made []string // the same for a path that is to be made
	link bool     // makes another way to a place: what a path means afterwards cannot be told from its letters
}

// What copies a file or makes a link reads what it has as RETR does, and moves it as RNFR does: it has another path afterwards.
var (
	reads  = []string{"RETR", "RNFR"}
	writes = []string{"APPE", "RNTO", "STOR", "STOU"}
)

// siteCommands are those of ProFTPD (mod_copy, mod_site, mod_site_misc, mod_quotatab), vsftpd and Pure-FTPd, and some that others have
// and that name no file.
var siteCommands = map[string]siteCommand{
	"CPFR":    {form: sitePath, as: reads},
	"CPTO":    {form: sitePath, made: writes},
	"COPY":    {form: siteTwoPaths, as: reads, made: writes},
	"SYMLINK": {form: siteTwoPaths, as: reads, made: writes, link: true},
	"MKDIR":   {form: sitePath, as: []string{"MKD"}},
	"RMDIR":   {form: sitePath, as: []string{"RMD"}},
	"CHMOD":   {form: siteAfterWord, as: []string{"MFF"}},
	"CHGRP":   {form: siteAfterWord, as: []string{"MFF"}},
	"UTIME":   {form: siteUnclear, as: []string{"MFF", "MFMT"}},
	"":        {}, "ALIAS": {}, "GPASS": {}, "GROUP": {}, "HELP": {}, "IDLE": {}, "QUOTA": {}, "TIME": {}, "UMASK": {}, "WHO": {},
}

// compileSite has SITE judged where a rule restricts what a subcommand does as well.
func (r *Rule) compileSite() {
	named, some := r.TracksPaths() || !r.files.isZero(), false
	for _, c := range siteCommands {
		some = some || r.restrictsAny(c.as) || r.restrictsAny(c.made)
	}
	if named || some {
		d := r.restriction("SITE")
		d.site, d.unknown = true, named
	}
}

// site rules on SITE by what its subcommand does. What cannot be told is denied: a subcommand that is not known where a rule has
// paths or names of files, quotes and backslashes, which ProFTPD takes for marks.
func (r *Rule) site(arg []byte, cwd string) Ruling {
	word, rest := cutWord(arg)
	c, known := siteCommands[strings.ToUpper(string(word))]
	switch {
	case (!known || c.link) && r.denied["SITE"].unknown:
		return DeniedPathUnknown
	case !r.restrictsAny(c.as) && !r.restrictsAny(c.made):
		return Allowed
	case bytes.ContainsAny(rest, `"\`):
		return DeniedPathUnknown
	}
	from, to := c.paths(string(rest))
	return min(r.judge(c.as, from, cwd), r.judge(c.made, to, cwd))
}

// paths reads what follows a subcommand: the path that it names, and the one that it makes. Several spaces are one to ProFTPD.
func (c siteCommand) paths(rest string) (from, to reading) {
	words := strings.FieldsFunc(rest, isBlank)
	whole := func(words []string, rest string) []string {
		return slices.Compact([]string{strings.Join(words, " "), strings.TrimLeft(rest, blanks)})
	}
	switch {
	case c.form == sitePath && len(c.as) > 0:
		from = reading{names: whole(words, rest), below: true}
	case c.form == sitePath:
		to = reading{names: whole(words, rest)}
	case c.form == siteAfterWord && len(words) > 0:
		_, behind := cutWord([]byte(rest))
		from = reading{names: whole(words[1:], string(behind))}
	case c.form == siteTwoPaths && len(words) == 2:
		from, to = reading{names: words[:1], below: true}, reading{names: words[1:]}
	default:
		from, to = reading{unclear: true}, reading{unclear: true}
	}
	return from, to
}

// judge rules on paths as on those of some verbs.
func (r *Rule) judge(verbs []string, paths reading, cwd string) Ruling {
	ruling := Allowed
	for _, verb := range verbs {
		d := r.denied[verb]
		switch {
		case d == nil:
			continue
		case d.whole:
			return DeniedCommand
		case paths.unclear && (d.files || len(d.paths) > 0):
			return DeniedPathUnknown
		}
		if d.files && slices.ContainsFunc(paths.names, func(name string) bool { return !r.File(name) }) {
			return DeniedFile
		}
		if len(d.paths) > 0 {
			ruling = min(ruling, d.path(paths, cwd))
		}
	}
	return ruling
}

func (r *Rule) restrictsAny(verbs []string) bool {
	return slices.ContainsFunc(verbs, func(verb string) bool {
		d := r.denied[verb]
		return d != nil && (d.whole || d.files || len(d.paths) > 0)
	})
}
