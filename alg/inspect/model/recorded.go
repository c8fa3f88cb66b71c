package model

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Habits are how a server answers: the replies that scripts/lab/record got from a real one, or RFC 959's own.
type Habits struct {
	Name     string
	TLS      bool // AUTH TLS begins TLS
	Greeting string

	long      int  // bytes of a line that is not taken any more
	skipsWill bool // IAC WILL x inside a line is taken out
	skipsIAC  bool // and IAC with another command
	gluedPath bool // LIST -a/path is options and a path
	answers   map[[2]string]answer
}

// answer is one entry of a file of testdata/servers. Runes up to 255 stand for bytes.
type answer struct {
	State, Probe, Send, Reply, After, PWD string
	Over                                  bool
}

// Load reads the habits of the servers that were recorded, by their file names.
func Load(dir string) ([]*Habits, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no recorded servers in %s: %w", dir, err)
	}
	var all []*Habits
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var f struct {
			TLS      bool
			Greeting string
			Answers  []answer
		}
		if err := json.Unmarshal(text, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		h := &Habits{
			Name: strings.TrimSuffix(filepath.Base(file), ".json"), TLS: f.TLS, Greeting: bytesOf(f.Greeting),
			long: 4096, answers: map[[2]string]answer{},
		}
		for _, a := range f.Answers {
			a.Reply, a.After, a.PWD = bytesOf(a.Reply), bytesOf(a.After), bytesOf(a.PWD)
			h.answers[[2]string{a.State, a.Probe}] = a
		}
		h.skipsWill = strings.HasPrefix(h.answers[[2]string{"in", "CWD IAC WILL"}].Reply, "250")
		h.skipsIAC = strings.HasPrefix(h.answers[[2]string{"in", "CWD IAC NOP"}].Reply, "250")
		h.gluedPath = !strings.HasPrefix(h.Name, "vsftpd") // replies do not tell what was listed
		all = append(all, h)
	}
	return all, nil
}

// bytesOf undoes what the recorder did to bytes that are not ASCII, and names the model's root.
func bytesOf(text string) string {
	text = strings.ReplaceAll(text, "$HOME/", "/")
	text = strings.ReplaceAll(text, "$HOME", "/")
	b := make([]byte, 0, len(text))
	for _, r := range text {
		b = append(b, byte(r))
	}
	return string(b)
}

// Textbook answers every command once and in order, as RFC 959 has it.
func Textbook(tls bool) *Habits {
	h := &Habits{Name: "textbook", TLS: tls, Greeting: "220 ready\r\n", long: 1 << 14, gluedPath: true}
	if tls {
		h.Name += "-tls"
	}
	return h
}

// find returns what a probe is answered in a state, if that was recorded.
func (h *Habits) find(state, probe string) (answer, bool) {
	a, ok := h.answers[[2]string{state, probe}]
	return a, ok
}

// textbook are the replies of RFC 959 section 5.4, RFC 2228, RFC 2428 and RFC 4217: to success and to failure.
var textbook = map[string][2]string{
	"USER": {"331 password\r\n", "530 no\r\n"}, "PASS": {"230 in\r\n", "530 no\r\n"}, "ACCT": {"202 superfluous\r\n", "530 no\r\n"},
	"AUTH": {"234 go\r\n", "500 no TLS\r\n"}, "PBSZ": {"200 ok\r\n", "503 no\r\n"}, "PROT": {"200 ok\r\n", "503 no\r\n"},
	"REIN": {"220 ready\r\n", "502 no\r\n"}, "CWD": {"250-227 Entering Passive Mode (198,51,100,2,195,90).\r\n234 go\r\n250 ok\r\n", "550 no\r\n"},
	"CDUP": {"250 ok\r\n", "550 no\r\n"}, "PORT": {"200 ok\r\n", "530 no\r\n"}, "EPRT": {"200 ok\r\n", "530 no\r\n"},
	"ABOR": {"226 nothing to abort\r\n", "530 no\r\n"}, "QUIT": {"221 bye\r\n", "221 bye\r\n"}, "STAT": {"211-status\r\n227 (198,51,100,2,195,91)\r\n211 end\r\n", "530 no\r\n"},
	"HELP": {"214-commands\r\n 234 AUTH\r\n214 end\r\n", ""}, "FEAT": {"211-\r\n EPSV\r\n211 end\r\n", ""},
	"EPSV ALL": {"200 ok\r\n", "530 no\r\n"}, "MKD": {"257 \"/new\" made\r\n", "550 no\r\n"}, "SIZE": {"213 7\r\n", "550 no\r\n"}, "MDTM": {"213 20200101000000\r\n", "550 no\r\n"},
}
