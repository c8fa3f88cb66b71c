package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"ftpalg/alg/inspect"
	"ftpalg/nfq/rules"
)

// handed is what a predecessor knows and no packet tells.
type handed struct {
	general
	sessions map[inspect.Key]inspect.Memory // that it inspected; until they are resumed
}

// general is what belongs to no session. It is there for encoding/gob.
type general struct {
	Backend  rules.Backend // of the rules: to try nft drops what waits in queues
	InForce  string        // the text of the rules
	Draining []netip.Addr  // the servers of terminated sessions
}

// passMemory gives the successor what we know, in a file that is nowhere but in memory.
func (d *daemon) passMemory(l *link) error {
	if !l.recalls {
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

// writeMemory writes what is general, and then each inspected session: a reply on its way is to be taken for its command's. Our
// queues are closed by now, and what comes meanwhile is dropped, so that nothing passes unread between what we know and what the
// successor sees. Where the policy fails open it may: then no session is written.
func (d *daemon) writeMemory(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	enc := gob.NewEncoder(buffered)
	if err := enc.Encode(general{Backend: d.backend, InForce: d.inForce, Draining: d.draining()}); err != nil {
		return fmt.Errorf("remember: %w", err)
	}
	if d.policy.FailOpen {
		return buffered.Flush()
	}
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
	d.handed.sessions = map[inspect.Key]inspect.Memory{}
	dec := gob.NewDecoder(bufio.NewReader(file))
	err := dec.Decode(&d.handed.general)
	for err == nil {
		var m inspect.Memory
		if err = dec.Decode(&m); err == nil {
			d.handed.sessions[m.Key] = m
		}
	}
	if !errors.Is(err, io.EOF) {
		d.log.Warn("what the predecessor knows cannot be read", "err", err)
	}
}
