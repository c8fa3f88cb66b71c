package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ftpalg/alg/inspect"
)

// A handover puts a new process in the place of the running one, for a new version: the daemon starts its successor, which
// first does all that can fail without harm, and then takes the queues, the listeners and the rules. The old process keeps
// the terminated sessions that it has until they end. Their data connections come to the listeners, so to the successor,
// which passes on what nobody promised it. Inspected sessions go on in the successor, with what the old process knows of them.
const (
	sayReady    = "ready"    // successor: the policy is good, and the kernel answers; behind it the memory's format that it reads
	sayListener = "listener" // predecessor, with one of its listeners
	sayMemory   = "memory"   // predecessor, with a file: what it knows of the inspected sessions
	sayTake     = "take"     // predecessor: the rest is free; behind it the number of the newest session
	sayRunning  = "running"  // successor: the queues are bound, and the rules in force
	sayMain     = "main"     // predecessor: the service manager knows that the successor is the main process
	sayData     = "data"     // successor, any time later, with a connection
)

const (
	// predecessorVariable tells a successor the descriptor of its end of the link.
	predecessorVariable = "FTPALG_PREDECESSOR_FD"
	// handoverTimeout bounds each step. Certificates are read and rules installed in it.
	handoverTimeout = 30 * time.Second
	// maxMessage is more than any message has: a word and a number.
	maxMessage = 64
)

var (
	errNotTaken      = errors.New("the new process has not taken over")
	errDrained       = errors.New("the last session that began before the handover has ended")
	errSuccessorGone = errors.New("the process that took over is gone")
)

// link is one end of the connection between a daemon and its successor.
type link struct {
	*net.UnixConn
	process *os.Process   // the successor; nil at its own end
	gone    chan struct{} // closed when that has ended
	recalls bool          // the successor reads our memory
}

// newLink makes a pair: our end, and the other for a child to inherit.
func newLink() (*link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, err := openLink(fds[0])
	return ours, os.NewFile(uintptr(fds[1]), "successor"), err
}

func openLink(fd int) (*link, error) {
	f := os.NewFile(uintptr(fd), "link")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %d is no Unix socket", fd), c.Close())
	}
	return &link{UnixConn: u}, nil
}

// predecessor gives the link to the daemon that started us as its successor, or nil.
func predecessor() (*link, error) {
	text := os.Getenv(predecessorVariable)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is no descriptor", predecessorVariable, text)
	}
	unix.CloseOnExec(fd)
	l, err := openLink(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", predecessorVariable, err)
	}
	return l, os.Unsetenv(predecessorVariable)
}

// send sends a message, with a socket if that is not nil. It stays open here as well. (Not by its File, whose use makes the
// socket a blocking one, in both processes.)
func (l *link) send(message string, socket syscall.Conn) error {
	if socket == nil {
		_, err := l.Write([]byte(message))
		return err
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		_, _, err = l.WriteMsgUnix([]byte(message), unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(ctlErr, err)
}

// receive waits for the next message, and gives the socket that came with it or nil.
func (l *link) receive() (message string, socket *os.File, err error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := l.ReadMsgUnix(text, rights)
	switch {
	case err != nil:
		return "", nil, err
	case n == 0:
		return "", nil, io.EOF
	case rn == 0:
		return string(text[:n]), nil, nil
	}
	parts, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(parts) != 1 {
		return "", nil, fmt.Errorf("%d control messages with %q: %w", len(parts), text[:n], err)
	}
	fds, err := unix.ParseUnixRights(&parts[0])
	if err != nil || len(fds) != 1 {
		return "", nil, fmt.Errorf("%d descriptors with %q: %w", len(fds), text[:n], err)
	}
	return string(text[:n]), os.NewFile(uintptr(fds[0]), "passed"), nil
}

// expect waits for a message that begins with one word, and gives the rest of it.
func (l *link) expect(word string) (rest string, err error) {
	if err := l.SetReadDeadline(time.Now().Add(handoverTimeout)); err != nil {
		return "", err
	}
	text, _, err := l.receive()
	if err != nil {
		return "", fmt.Errorf("wait for %q: %w", word, err)
	}
	got, rest, _ := strings.Cut(text, " ")
	if got != word {
		return "", fmt.Errorf("got %q and not %q", text, word)
	}
	return rest, l.SetReadDeadline(time.Time{})
}

// startSuccessor runs the program's file as it is now, with our own arguments, until it is ready to take over. When ctx ends
// before that there is none.
func startSuccessor(ctx context.Context) (*link, error) {
	file, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, theirs, err := newLink()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(file, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), predecessorVariable+"=3") // the first of ExtraFiles
	err = cmd.Start()
	theirs.Close() // so that the link ends with the process
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.process, l.gone = cmd.Process, make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(l.gone)
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	format, err := l.expect(sayReady)
	l.recalls = format == strconv.Itoa(inspect.MemoryFormat)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = cmd.Process.Kill() // it may have ended by itself
		return nil, errors.Join(fmt.Errorf("the new process, %s: %w", file, err), l.Close())
	}
	return l, nil
}

// handOver gives the successor what it needs, and lets go of it. Our work is over then, unless the error is errNotTaken: the
// successor has ended, and everything is free again.
func (d *daemon) handOver(l *link) error {
	if err := d.pass(l); err != nil {
		_ = l.process.Kill() // it may have ended by itself
		<-l.gone
		d.inForce = "" // it may have had others
		return errors.Join(fmt.Errorf("%w: %w", errNotTaken, err), l.Close())
	}
	d.hasRules = false
	d.manager.say(fmt.Sprintf("MAINPID=%d", l.process.Pid))
	return l.send(sayMain, nil)
}

// pass gives the successor everything, and waits until it works. The listeners are closed in any case.
func (d *daemon) pass(l *link) (err error) {
	for _, listener := range d.listeners {
		err = errors.Join(err, l.send(sayListener, listener), listener.Close())
	}
	d.listeners = nil
	if err = errors.Join(err, d.passMemory(l), l.send(fmt.Sprint(sayTake, " ", d.sessions.Load()), nil)); err != nil {
		return err
	}
	_, err = l.expect(sayRunning)
	return err
}

// takeOver waits until the predecessor has let go of everything, and takes its listeners.
func (d *daemon) takeOver(ctx context.Context, tasks *errgroup.Group) error {
	l := d.predecessor
	if l == nil || d.succeeded {
		return nil
	}
	ready := fmt.Sprint(sayReady, " ", inspect.MemoryFormat)
	if err := errors.Join(l.send(ready, nil), l.SetReadDeadline(time.Now().Add(handoverTimeout))); err != nil {
		return err
	}
	var listeners []*net.TCPListener
	for {
		text, socket, err := l.receive()
		if err != nil {
			return err
		}
		if socket == nil {
			last, ok := strings.CutPrefix(text, sayTake+" ")
			number, err := strconv.ParseUint(last, 10, 64)
			if !ok || err != nil {
				return fmt.Errorf("got %q and not %q", text, sayTake)
			}
			d.sessions.Store(number)
			d.accept(ctx, tasks, listeners)
			return l.SetReadDeadline(time.Time{})
		}
		if text == sayMemory {
			d.readMemory(socket)
			continue
		}
		listener, err := net.FileListener(socket)
		if err := errors.Join(err, socket.Close()); err != nil {
			return err
		}
		listeners = append(listeners, listener.(*net.TCPListener))
	}
}

// tookOver tells the predecessor that we have everything. If it was killed meanwhile there is nobody left but us.
func (d *daemon) tookOver() {
	if d.predecessor == nil || d.succeeded {
		return
	}
	d.succeeded = true
	err := d.predecessor.send(sayRunning, nil)
	if err == nil {
		_, err = d.predecessor.expect(sayMain)
	}
	if err != nil {
		d.log.Warn("the predecessor has ended, and its sessions with it", "err", err)
	}
}

// passOn gives a connection to the predecessor, which carries or resets it. It says whether there is one.
func (d *daemon) passOn(c *net.TCPConn) bool {
	return d.predecessor != nil && d.predecessor.send(sayData, c) == nil
}

// drainSessions carries what is left until it is over, with the data connections that the successor passes on.
func (d *daemon) drainSessions(ctx context.Context, successor *link) error {
	d.log.Info("handed over", "successor", successor.process.Pid, "terminated", d.terminating.Count())
	tasks, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { successor.Close() })
	defer stop()
	tasks.Go(func() error { return d.adopt(ctx, successor) })
	tasks.Go(func() error { return d.watchExpectations(ctx, false, d.terminating) })
	tasks.Go(func() error {
		tick, late := time.NewTicker(expireEvery), time.NewTimer(d.drain)
		defer tick.Stop()
		defer late.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-late.C:
				d.log.Warn("sessions from before the handover end now", "terminated", d.terminating.Count())
				return errDrained
			case <-d.hup: // it came too late for us
				_ = successor.process.Signal(syscall.SIGHUP)
			case <-d.usr2:
				d.log.Warn("no handover: this process has handed over already", "successor", successor.process.Pid)
			case now := <-tick.C:
				d.terminating.Expire(now)
				if d.terminating.Idle() && !d.predecessor.open() {
					return errDrained
				}
			}
		}
	})
	return tasks.Wait()
}

// adopt carries the connections that the successor passes on.
func (d *daemon) adopt(ctx context.Context, successor *link) error {
	for {
		text, socket, err := successor.receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errSuccessorGone, err)
		case socket == nil:
			return fmt.Errorf("%w: it says %q", errSuccessorGone, text)
		}
		c, err := net.FileConn(socket)
		if err := errors.Join(err, socket.Close()); err != nil {
			d.log.Error("a connection from the successor", "err", err)
			continue
		}
		d.terminating.Carry(c.(*net.TCPConn))
	}
}

// open says whether the other end is there.
func (l *link) open() bool {
	if l == nil {
		return false
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return false
	}
	poll := []unix.PollFd{{Events: unix.POLLIN}} // nothing is said any more: only its end can be read
	ctlErr := raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_, err = unix.Poll(poll, 0)
	})
	return ctlErr == nil && err == nil && poll[0].Revents == 0
}
