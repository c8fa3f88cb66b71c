package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
	crowded(t, path)
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another ftpalg is running") {
		t.Errorf("beside a daemon that has no time: %v", err)
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

// TestListenAmongOthers: no socket is made where others can put something in its place, in the directory or above it; the error
// names which. Where the sticky bit keeps them from it (/tmp) one is.
func TestListenAmongOthers(t *testing.T) {
	for _, c := range []struct {
		name            string
		above, mode     os.FileMode
		want, directory string // of the error
	}{
		{"its own", 0o755, 0o700, "", ""},
		{"everybody's", 0o755, 0o777, "others than its owner can write there (mode 0777)", "outer/inner"},
		{"a group's", 0o755, 0o770, "others than its owner can write there (mode 0770)", "outer/inner"},
		{"in everybody's", 0o777, 0o700, "others than its owner can write there (mode 0777)", "outer"},
		{"sticky", 0o755, 0o777 | os.ModeSticky, "", ""},
		{"in a sticky one", 0o777 | os.ModeSticky, 0o755, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			inner := filepath.Join(dir, "outer/inner")
			if err := errors.Join(os.MkdirAll(inner, 0o700), os.Chmod(inner, c.mode), os.Chmod(filepath.Dir(inner), c.above)); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(dir, "link")
			if err := os.Symlink(inner, link); err != nil {
				t.Fatal(err)
			}
			wantListen(t, filepath.Join(inner, "socket"), filepath.Join(dir, c.directory), c.want)
			if c.directory == "outer/inner" {
				c.directory = "link" // as it was given
			}
			wantListen(t, filepath.Join(link, "socket"), filepath.Join(dir, c.directory), c.want)
		})
	}
}

// wantListen wants a socket at path, or an error that names a directory and leaves nothing.
func wantListen(t *testing.T, path, directory, problem string) {
	t.Helper()
	l, err := listen(path)
	if err == nil {
		l.Close()
	}
	switch _, left := os.Lstat(path); {
	case problem == "" && err != nil, problem != "" && (err == nil || !strings.HasPrefix(err.Error(), directory+": "+problem)):
		t.Errorf("%s: %v, want an error with %q", path, err, problem)
	case problem != "" && left == nil:
		t.Errorf("%s is there", path)
	}
}

// TestListenInAnothersDirectory: a directory's owner can put anything there.
func TestListenInAnothersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := filepath.Join(t.TempDir(), "theirs")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	wantListen(t, filepath.Join(dir, "socket"), dir, "belongs to user 65534")
}

// crowded makes a socket on which nobody answers, and as many wait as can.
func crowded(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// scarce is a listener that finds no descriptor free at first.
type scarce struct {
	net.Listener
	failed bool
}

func (s *scarce) Accept() (net.Conn, error) {
	if !s.failed {
		s.failed = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return s.Listener.Accept()
}

// TestAnswerGoesOn: a question that cannot be taken does not end the daemon, and the next is answered.
func TestAnswerGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	go func() { ended <- d.answer(ctx, &scarce{Listener: l}) }()
	if err := ask(path, "none", func([]byte) error { return io.ErrUnexpectedEOF }); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestAskPatiently: the daemon can give all of a long answer while the first line of it is still being read.
func TestAskPatiently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const lines = 100_000
	given := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, err = io.WriteString(c, strings.Repeat("a session of somebody's\n", lines))
			c.Close()
		}
		given <- err
	}()
	n := 0
	err = ask(path, "sessions", func([]byte) error {
		if n++; n == 1 {
			return <-given
		}
		return nil
	})
	if err != nil || n != lines {
		t.Errorf("%d of %d lines: %v", n, lines, err)
	}
}
