package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"ftpalg/alg"
)

// The manual has every command and option, and man finds nothing wrong with it.
func TestCommandPage(t *testing.T) {
	root := newRoot()
	text := render(t, commandPage(root))
	for _, c := range root.Commands() {
		if c.Hidden || c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(text, "--"+f.Name) {
				t.Errorf("ftpalg %s --%s is missing", c.Name(), f.Name)
			}
		})
		if !strings.Contains(text, "ftpalg "+c.Use) {
			t.Errorf("ftpalg %s is missing", c.Use)
		}
	}
}

// The manual says what every reason means.
func TestReasonsAreExplained(t *testing.T) {
	for _, r := range alg.Reasons() {
		if r.Means() == "" {
			t.Errorf("%s is not explained", r)
		}
	}
}

// The policy's manual has every line of the reference policy.
func TestPolicyPage(t *testing.T) {
	reference, err := os.ReadFile("../../testdata/policies/reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := policyPage(bytes.NewReader(reference))
	if err != nil {
		t.Fatal(err)
	}
	text := words(render(t, page))
	for line := range strings.Lines(string(reference)) {
		if line := words(strings.TrimPrefix(strings.TrimLeft(line, " #"), "- ")); !strings.Contains(text, line) {
			t.Errorf("%q is missing", line)
		}
	}
	if _, err := policyPage(strings.NewReader("# text\nversion 1\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line that is no key: %v", err)
	}
}

// words puts a page on one line.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }

// render has man format a page, and fails the test if man complains.
func render(t *testing.T, page string) string {
	t.Helper()
	cmd := exec.Command("man", "--warnings=all", "--no-hyphenation", "--no-justification", "-E", "ascii", "-l", "-")
	cmd.Env = append(os.Environ(), "MANWIDTH=400", "MAN_KEEP_FORMATTING=")
	cmd.Stdin = strings.NewReader(page)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		t.Fatalf("man: %v: %s", err, complaints.String())
	}
	return out.String()
}

// FuzzPolicyPage: whatever the text, every indentation ends.
func FuzzPolicyPage(f *testing.F) {
	reference, err := os.ReadFile("../../testdata/policies/reference.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reference)
	f.Add([]byte("a:\n  - b: 1\n c:\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		page, err := policyPage(bytes.NewReader(text))
		open := 0
		for line := range strings.Lines(page) {
			switch line {
			case ".RS\n":
				open++
			case ".RE\n":
				open--
			}
		}
		if err == nil && open != 0 {
			t.Errorf("%d stay open:\n%s", open, page)
		}
	})
}
