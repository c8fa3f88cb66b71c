package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ftpalg/alg/inspect"
)

// passMemory gives the successor what we know of the inspected sessions, in a file that is nowhere but in memory: a reply on its
// way is to be taken for its command's. Our queues are closed by now, and what comes meanwhile is dropped, so that nothing
// passes unread between what we know and what the successor sees. Where the policy fails open it may, and nothing is given.
func (d *daemon) passMemory(l *link) error {
	if !l.recalls || d.policy.FailOpen {
		return nil
	}
	fd, err := unix.MemfdCreate("ftpalg-sessions", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	file := os.NewFile(uintptr(fd), "memory")
	defer file.Close()
	if err := d.writeMemory(file); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil { // both ends have one offset
		return err
	}
	return l.send(sayMemory, file)
}

func (d *daemon) writeMemory(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	enc := gob.NewEncoder(buffered)
	for m := range d.inspector.Remember() {
		if err := enc.Encode(m); err != nil {
			return fmt.Errorf("remember session %d: %w", m.Number, err)
		}
	}
	return buffered.Flush()
}

// readMemory reads what the predecessor knows. What cannot be read is not needed: such sessions go on as behind a restart.
func (d *daemon) readMemory(file *os.File) {
	defer file.Close()
	d.remembered = map[inspect.Key]inspect.Memory{}
	dec := gob.NewDecoder(bufio.NewReader(file))
	for {
		var m inspect.Memory
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			d.log.Warn("what the predecessor knows of inspected sessions cannot be read", "err", err)
			return
		}
		d.remembered[m.Key] = m
	}
}
