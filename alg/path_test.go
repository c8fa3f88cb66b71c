package alg

import "testing"

// TestWorkingDirectory: where servers differ, or while a change is under way, it is not known.
func TestWorkingDirectory(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []string // CWD path, "+" accepted, "-" refused, or a 257 reply's text
		want  string
	}{
		{"unknown after login", nil, ""},
		{"absolute", []string{"CWD /a/../b", "+"}, "/b"},
		{"relative to nothing", []string{"CWD a", "+"}, ""},
		{"relative", []string{"CWD /a", "+", "CWD b", "+"}, "/a/b"},
		{"up", []string{"CWD /a/b", "+", "CWD ..", "+"}, "/a"},
		{"refused", []string{"CWD /a", "+", "CWD /b", "-"}, "/a"},
		{"under way", []string{"CWD /a", "+", "CWD /b"}, ""},
		{"two at once", []string{"CWD /a", "CWD /b", "+", "-"}, ""},
		{"known again", []string{"CWD /a", "CWD /b", "+", "-", "CWD /c", "+"}, "/c"},
		{"told by the server", []string{`"/x y" is it`}, "/x y"},
		{"told with doubled quotes", []string{`"/x ""y""" is it`}, ""},
		{"told with single quotes", []string{`"/x" y/z" is it`}, ""},
		{"renamed", []string{"CWD /a/b", "+", "RNTO"}, ""},
		{"renamed, and told", []string{"CWD /a/b", "+", "RNTO", `"/a/b" is it`}, ""},
		{"renamed, and relative", []string{"CWD /a/b", "+", "RNTO", "CWD ..", "+"}, ""},
		{"renamed, and absolute", []string{"CWD /a/b", "+", "RNTO", "CWD /a", "+", "CWD c", "+"}, "/a/c"},
		{"renamed, and another login", []string{"CWD /a/b", "+", "RNTO", "230", `"/a/b" is it`}, ""},
		{"another login", []string{"CWD /a/b", "+", "230", "CWD c", "+"}, ""},
		{"another login, and told", []string{"CWD /a/b", "+", "230", `"/a/b" is it`}, "/a/b"},
		{"told nothing", []string{`x`}, ""},
		{"told while under way", []string{"CWD /a", `"/x"`, "+"}, "/a"},
		{"blanks", []string{"CWD  /a", "+"}, ""},
		{"another system's separator", []string{`CWD \a`, "+"}, ""},
		{"home", []string{"CWD ~a", "+"}, ""},
		{"quotes", []string{`CWD "/a"`, "+"}, ""},
		{"a byte that is Telnet's", []string{"CWD /\xffa", "+"}, ""},
	} {
		var w workingDirectory
		for _, step := range test.steps {
			switch {
			case len(step) > 4 && step[:4] == "CWD ":
				w.request(true, []byte(step[4:]))
			case step == "RNTO":
				w.move()
			case step == "230":
				w.reset()
			case step == "+", step == "-":
				w.answered(cwd, step == "+", nil)
			default:
				w.answered(pwd, true, []byte(step))
			}
		}
		if w.Path != test.want {
			t.Errorf("%s: %q, want %q", test.name, w.Path, test.want)
		}
	}
}
