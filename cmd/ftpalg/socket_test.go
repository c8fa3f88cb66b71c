package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListen: a dead daemon's socket is replaced, a living one's is not, and what is no socket stays as it is.
func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v (%v)", info.Mode(), err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another ftpalg is running") {
		t.Errorf("beside a living daemon: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
	l.Close()
	if l, err = listen(path); err != nil {
		t.Errorf("behind a dead daemon: %v", err)
	} else {
		l.Close()
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir} {
		if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if kept, err := os.ReadFile(file); string(kept) != "kept" {
		t.Errorf("the file has become %q (%v)", kept, err)
	}
}
