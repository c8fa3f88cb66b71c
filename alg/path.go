package alg

import (
	"bytes"
	"path"
)

// maxPath bounds a working directory; PATH_MAX of Linux.
const maxPath = 4096

// workingDirectory follows the user's working directory for path rules, as far as the control connection tells it.
// An empty path means that it is not known: after login until PWD or an absolute CWD is answered.
type workingDirectory struct {
	path string
	next string // what the last CWD asked for; taken when it is accepted
}

// request notes what CWD asks for. Without path rules nothing is followed.
func (w *workingDirectory) request(follow bool, arg []byte) {
	w.next = ""
	switch {
	case !follow || len(arg) == 0 || len(arg) > maxPath:
	case arg[0] == '/':
		w.next = path.Clean(string(arg))
	case w.path != "" && arg[0] != '~':
		w.next = path.Join(w.path, string(arg))
	}
}

// answered takes the reply to CWD, CDUP or PWD.
func (w *workingDirectory) answered(k kind, ok bool, text []byte) {
	switch {
	case !ok:
	case k == cwd:
		w.path = w.next
	case k == cdup && w.path != "":
		w.path = path.Dir(w.path)
	case k == pwd && w.path == "":
		w.path = quotedPath(text)
	}
}

// quotedPath reads the path of a 257 reply: in double quotes, with doubled ones inside (RFC 959 appendix II).
func quotedPath(text []byte) string {
	if len(text) < 2 || text[0] != '"' || len(text) > maxPath {
		return ""
	}
	var dir []byte
	for rest := text[1:]; ; {
		i := bytes.IndexByte(rest, '"')
		if i < 0 {
			return ""
		}
		dir = append(dir, rest[:i]...)
		if i+1 >= len(rest) || rest[i+1] != '"' {
			break
		}
		dir = append(dir, '"')
		rest = rest[i+2:]
	}
	if len(dir) == 0 || dir[0] != '/' {
		return ""
	}
	return path.Clean(string(dir))
}
