package cert

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// maxFile bounds a file in bytes. The public CAs that systems come with are some 250 kB.
const maxFile = 1 << 20

// file is one file that a policy names, read once however often it is named.
type file struct {
	info   fs.FileInfo
	blocks []*pem.Block
	err    error // what is wrong with the file in any use; without its name
}

// changed reports whether now is another file than then was, or the same with another content or mode.
func changed(then, now fs.FileInfo) bool {
	return !os.SameFile(then, now) || !then.ModTime().Equal(now.ModTime()) || then.Size() != now.Size() || then.Mode() != now.Mode()
}

// readFile reads the PEM file at path, which may be a symbolic link: what counts is the file that was opened.
func readFile(path string) (f file) {
	// O_NONBLOCK because the opening of a FIFO, refused below, would wait for a writer.
	fd, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return file{err: unreadable(err)}
	}
	defer fd.Close()
	info, err := fd.Stat() // before the content is read: a change meanwhile will show as one
	if err != nil {
		return file{err: unreadable(err)}
	}
	f.info = info
	if !info.Mode().IsRegular() {
		return file{err: errors.New("is no regular file; name a PEM file")}
	}
	data, err := io.ReadAll(io.LimitReader(fd, maxFile+1))
	switch {
	case err != nil:
		f.err = unreadable(err)
	case len(data) > maxFile:
		f.err = fmt.Errorf("has more than %d bytes; name a file with PEM certificates or a key", maxFile)
	default:
		f.blocks, f.err = decode(data)
	}
	if f.err == nil {
		f.err = checkMode(path, info.Mode(), f.blocks)
	}
	if f.err == nil {
		f.err = checkOwner(path, info, f.blocks)
	}
	return f
}

// unreadable takes the path out of an error of package os, since the messages here begin with it.
func unreadable(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fmt.Errorf("%w; correct the name, or make the file readable by ftpalg", err)
}

// checkMode refuses a file with a private key that others than its owner can read, or could replace by their own. The
// key counts and not what the policy uses the file for, because certificates often come in one file with their key.
// Where the file has an access control list, the group's bits of its mode are the list's mask.
func checkMode(path string, mode fs.FileMode, blocks []*pem.Block) error {
	const groupOrOthers = 0o066 // read or write
	if mode&groupOrOthers == 0 || !holdsKey(blocks) {
		return nil
	}
	return fmt.Errorf("holds a private key and has mode %04o, so that group or others can read or write it; run: chmod go-rw %s", mode.Perm(), quote(path))
}

// serviceUser is whom the service runs as, where the package has installed it.
const serviceUser = "ftpalg"

// checkOwner refuses a file with a private key that belongs to anybody but root, the user that runs this and the service: its
// owner can change its mode at any time.
func checkOwner(path string, info fs.FileInfo, blocks []*pem.Block) error {
	stat, known := info.Sys().(*syscall.Stat_t)
	if !known || !holdsKey(blocks) {
		return nil
	}
	service := -1
	if u, err := user.Lookup(serviceUser); err == nil {
		service, _ = strconv.Atoi(u.Uid) // numeric on Linux
	}
	if !mayOwn(int(stat.Uid), os.Geteuid(), service) {
		return fmt.Errorf("holds a private key and belongs to user %d; run: chown root %s", stat.Uid, quote(path))
	}
	return nil
}

// mayOwn reports whether a key may belong to owner; service is -1 where there is none.
func mayOwn(owner, self, service int) bool {
	return owner == 0 || owner == self || owner == service
}

// quote writes a path as one word of a shell.
func quote(path string) string {
	const plain = "/.-_+@%=:,"
	special := func(r rune) bool {
		letter := r|0x20 >= 'a' && r|0x20 <= 'z'
		return !letter && (r < '0' || r > '9') && !strings.ContainsRune(plain, r)
	}
	if !strings.ContainsFunc(path, special) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
