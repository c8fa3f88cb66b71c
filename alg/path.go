package alg

import (
	"bytes"
	"path"
	"strings"
)

// maxPath bounds a working directory; PATH_MAX of Linux.
const maxPath = 4096

// workingDirectory follows the user's working directory for path rules, as far as the control connection tells it.
// An empty path means that it is not known: after login until PWD or an absolute CWD is answered, and while a change is
// under way, because a command behind it in the same segment would be judged by the wrong one. It is a part of Memory.
type workingDirectory struct {
	Path    string
	Before  string // the path before the change that is under way
	Next    string // what it will be if that is accepted; empty when that cannot be told
	Changes int    // under way
	Lost    bool   // it cannot be known any more in this session
	Moved   bool   // something was renamed: where the directory is now, PWD may not tell (Pure-FTPd), and an absolute CWD does
}

// lose gives up following: which reply belongs to which command cannot be told any more.
func (w *workingDirectory) lose() { *w = workingDirectory{Lost: true} }

// forget makes the directory unknown until the server tells it.
func (w *workingDirectory) forget() { w.Path, w.Before, w.Next = "", "", "" }

// move is for a name that was changed: it may be the directory's, or that of one above it.
func (w *workingDirectory) move() {
	w.forget()
	w.Moved = true
}

// reset is for another user, who begins in a directory of his own. It may be the same user in the same one: servers say 230 to
// USER or PASS after a login too.
func (w *workingDirectory) reset() { *w = workingDirectory{Lost: w.Lost, Moved: w.Moved} }

// request notes CWD, or CDUP with "..". Without path rules nothing is followed.
func (w *workingDirectory) request(follow bool, arg []byte) {
	if !follow || w.Lost {
		return
	}
	if w.Changes == 0 {
		w.Before, w.Next = w.Path, w.target(string(arg))
	} else {
		w.Before, w.Next = "", "" // several at once: which reply is whose cannot be trusted
	}
	w.Path = ""
	w.Changes++
}

// target is where a change leads, or empty where servers differ: blanks around the path, another system's separators,
// quotes and home directories.
func (w *workingDirectory) target(arg string) string {
	switch {
	case arg == "" || len(arg) > maxPath || arg[0] == '~' || strings.TrimSpace(arg) != arg || strings.ContainsAny(arg, "\\\"") || strings.Contains(arg, "\xff"):
		return ""
	case arg[0] == '/':
		return path.Clean(arg)
	case w.Path != "":
		return path.Join(w.Path, arg)
	}
	return ""
}

// answered takes the reply to CWD, CDUP or PWD.
func (w *workingDirectory) answered(k kind, ok bool, text []byte) {
	if w.Lost {
		return
	}
	if k == pwd {
		if ok && w.Changes == 0 && w.Path == "" && !w.Moved {
			w.Path = quotedPath(text)
		}
		return
	}
	if w.Changes == 0 {
		return
	}
	if w.Changes--; w.Changes > 0 {
		return
	}
	w.Path = w.Before
	if ok {
		w.Path = w.Next
		w.Moved = w.Moved && w.Path == ""
	}
}

// quotedPath reads the path of a 257 reply, which is in double quotes (RFC 959 appendix II). Where the path has quotes itself, or the
// text after it, it is not known: some servers double those within, and Pure-FTPd does not.
func quotedPath(text []byte) string {
	if len(text) > maxPath || bytes.Count(text, []byte{'"'}) != 2 || text[0] != '"' {
		return ""
	}
	dir, _, _ := bytes.Cut(text[1:], []byte{'"'})
	if len(dir) == 0 || dir[0] != '/' {
		return ""
	}
	return path.Clean(string(dir))
}
