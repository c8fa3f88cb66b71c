package nfq

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Where the kernel lists the queues of this network namespace, and its netlink sockets.
const (
	procQueues  = "/proc/net/netfilter/nfnetlink_queue"
	procNetlink = "/proc/net/netlink"
)

// Entry is one bound queue as the kernel lists it.
type Entry struct {
	Number       uint16
	PortID       uint32 // netlink port of the socket that has it
	Waiting      uint32 // packets that wait for a verdict
	QueueDropped uint64 // not queued because it was full; the kernel counts in 32 bits
	UserDropped  uint64 // not queued because the socket's buffer was full
}

// Queues lists every bound queue of this network namespace, whoever has it.
func Queues() ([]Entry, error) {
	text, err := os.ReadFile(procQueues)
	if err != nil {
		return nil, fmt.Errorf("%w (does the kernel have nfnetlink_queue? try: modprobe nfnetlink_queue)", err)
	}
	return parseQueues(text)
}

// parseQueues reads the lines that the kernel's nfnetlink_queue.c writes in seq_show: queue number, port, waiting,
// copy mode, copy range, queue dropped, user dropped, id sequence, 1.
func parseQueues(text []byte) ([]Entry, error) {
	var entries []Entry
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var e Entry
		var mode, size uint32
		if _, err := fmt.Sscan(lines.Text(), &e.Number, &e.PortID, &e.Waiting, &mode, &size, &e.QueueDropped, &e.UserDropped); err != nil {
			return nil, fmt.Errorf("%s: line %q: %w", procQueues, lines.Text(), err)
		}
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

func lookup(num uint16) (entry Entry, found bool, err error) {
	entries, err := Queues()
	for _, e := range entries {
		if e.Number == num {
			return e, true, err
		}
	}
	return Entry{}, false, err
}

// Owner describes who has the queue, as far as /proc tells.
func (e Entry) Owner() string {
	text := fmt.Sprintf("queue %d is bound by netlink port %d", e.Number, e.PortID)
	if pid, name := e.Process(); pid != 0 {
		return fmt.Sprintf("%s, process %d (%s)", text, pid, name)
	}
	return text
}

// Process gives the process that has the queue's socket open, and its name; 0 where /proc does not tell.
func (e Entry) Process() (pid int, name string) {
	inode := socketInode(e.PortID)
	if inode == "" {
		return 0, ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // unreadable processes are left out, as they must be
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == "socket:["+inode+"]" {
			pid, _ = strconv.Atoi(strings.Split(link, "/")[2])
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return pid, string(bytes.TrimSpace(comm))
		}
	}
	return 0, ""
}

// socketInode finds the inode of the netfilter netlink socket with the given port, or "".
func socketInode(port uint32) string {
	text, err := os.ReadFile(procNetlink)
	if err != nil {
		return ""
	}
	const protocol = "12" // NETLINK_NETFILTER
	for line := range strings.Lines(string(text)) {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(line); len(f) == 10 && f[1] == protocol && f[2] == strconv.FormatUint(uint64(port), 10) {
			return f[9]
		}
	}
	return ""
}
