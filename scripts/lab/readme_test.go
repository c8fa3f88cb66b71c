package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ftpalg/alg"
	"ftpalg/policy"
)

const repository = "../.."

// readmeBlocks gives the README's code blocks in one language.
func readmeBlocks(t *testing.T, language string) (blocks []string) {
	text, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("no %s in the README", language)
	}
	return blocks
}

// TestReadmePolicies: the README's policies are good, and pass their own tests.
func TestReadmePolicies(t *testing.T) {
	for _, block := range readmeBlocks(t, "yaml") {
		p, err := policy.Parse("README.md", []byte(block))
		if err != nil {
			t.Fatal(err)
		}
		if failed := alg.RunTests("README.md", p); len(failed) > 0 || len(p.Tests) == 0 {
			t.Errorf("%d tests, failed: %v", len(p.Tests), failed)
		}
	}
}

// TestReadmeCommands runs the README's commands, those of the daemon on the lab's gateway. What would run this test
// again, or for minutes, is only checked to be there; the demo is run for one server and client.
func TestReadmeCommands(t *testing.T) {
	requireRoot(t)
	l := newLab(t)
	bin := t.TempDir()
	for _, line := range strings.Split(strings.Join(readmeBlocks(t, "sh"), ""), "\n") {
		switch program, _, _ := strings.Cut(line, " "); program {
		case "":
		case "go":
			shell(t, strings.ReplaceAll(line, "/usr/local/sbin", bin), "")
		case "scripts/demo":
			if strings.Contains(line, "-nat") {
				shell(t, line+" -match both/ftpalg/vsftpd/curl/plain", " passed, 0 failed")
				continue
			}
			shell(t, line+" -match vsftpd/curl/plain", " passed, 0 failed")
		case "scripts/test", "scripts/bench", "scripts/package": // the package has a test of its own
			if info, err := os.Stat(filepath.Join(repository, line)); err != nil || info.Mode()&0o111 == 0 {
				t.Errorf("%s: cannot be run: %v", line, err)
			}
		case "ftpalg":
			onGateway(t, l, bin, line)
		default:
			t.Errorf("the README has %q, and this test does not know how to run it", line)
		}
	}
}

// shell runs a line at the top of the repository and looks for a text in what it prints.
func shell(t *testing.T, line, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir = repository
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%s: %v, %s", line, err, out)
	}
}

// onGateway runs a line of ftpalg's. The daemon is stopped again once it is ready, and the doctor finds its rules.
func onGateway(t *testing.T, l *Lab, bin, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := strings.Fields(strings.ReplaceAll(line, "testdata/", filepath.Join(repository, "testdata")+"/"))
	program := filepath.Join(bin, args[0])
	if args[1] != "run" {
		if out, err := l.Run(ctx, Gateway, program, args[1:]...); err != nil {
			t.Errorf("%s: %v, %s", line, err, out)
		}
		return
	}
	daemon, err := l.Start(ctx, Gateway, program, append(args[1:], "--socket", l.Path("readme.sock"))...)
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(ctx, "ftpalg to be ready", func() (bool, error) { return strings.Contains(daemon.Output(), "msg=ready"), nil })
	if err != nil {
		t.Errorf("%s: %v: %s", line, err, daemon.Output())
	}
	if out, err := l.Run(ctx, Gateway, program, append([]string{"doctor"}, args[2:]...)...); err != nil || !strings.Contains(out, "rules are in place") {
		t.Errorf("doctor while ftpalg runs: %v, %s", err, out)
	}
	if err := daemon.Stop(); err != nil {
		t.Errorf("%s: %v", line, err)
	}
}
