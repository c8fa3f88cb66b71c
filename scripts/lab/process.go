package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// slowness is how many times slower than usual the machine is: see patient.
var slowness = sync.OnceValue(func() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("FTPALG_PATIENCE")); err == nil && n > 1 {
		return time.Duration(n)
	}
	return 1
})

// patient returns a bound of the lab's for how long something may take, as it is on this machine: scripts/kernel sets
// FTPALG_PATIENCE, because an emulated machine is many times slower. Only what ends when something has happened is bounded
// by it: what has to stay away is waited for as long as it takes on this machine, and no test asks for less.
func patient(usual time.Duration) time.Duration { return usual * slowness() }

// killGrace is how long a process that was asked to end may take before it is killed. On a busy machine ftpalg needs some
// seconds to remove its rules.
var killGrace = patient(20 * time.Second)

// pollInterval is how often Wait looks again.
const pollInterval = 10 * time.Millisecond

// Wait looks until done says true, ctx ends or done fails. The error names what was waited for.
func Wait(ctx context.Context, what string, done func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("lab: waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
}

// run runs a program in the host's own namespaces and returns what it printed on both streams.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	isolate(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("lab: %s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// isolate gives a program a process group of its own, so that Ctrl-C reaches only us and we decide the order of the
// ending, and takes the whole group down when the program's context ends.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killGrace
}

// inside returns the command line that runs a program in a host's namespace.
func (l *Lab) inside(h Host, name string, args []string) []string {
	return append([]string{"netns", "exec", l.Namespace(h), name}, args...)
}

// Run runs a program on a host of the lab and returns what it printed on both streams.
func (l *Lab) Run(ctx context.Context, h Host, name string, args ...string) (string, error) {
	return run(ctx, "ip", l.inside(h, name, args)...)
}

// Proc is a program that runs on a host of the lab.
type Proc struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	log  lockedBuffer
}

// Start starts a program on a host of the lab. It lives until it ends, is stopped, or ctx ends.
func (l *Lab) Start(ctx context.Context, h Host, name string, args ...string) (*Proc, error) {
	return l.startWith(ctx, h, nil, name, args...)
}

// startWith is Start with a writer that receives what the program prints as it comes.
func (l *Lab) startWith(ctx context.Context, h Host, tee io.Writer, name string, args ...string) (*Proc, error) {
	return start(ctx, tee, "ip", l.inside(h, name, args)...)
}

// start starts a program in our own namespaces, with a writer that receives what it prints or nil.
func start(ctx context.Context, tee io.Writer, name string, args ...string) (*Proc, error) {
	p := &Proc{done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, name, args...)
	isolate(p.cmd)
	p.cmd.Stdout = &p.log
	if tee != nil {
		p.cmd.Stdout = io.MultiWriter(&p.log, tee)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("lab: start %s %s: %w", name, strings.Join(args, " "), err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID returns the process id. The program replaces `ip netns exec`, so the id is its own.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Output returns what the program has printed so far.
func (p *Proc) Output() string { return p.log.String() }

// Exited returns a channel that is closed when the program has ended.
func (p *Proc) Exited() <-chan struct{} { return p.done }

// Signal sends a signal to the program.
func (p *Proc) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the program and its children to end, kills what does not, and returns when the program has ended.
func (p *Proc) Stop() error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(-p.PID(), signal); errors.Is(err, syscall.ESRCH) {
			<-p.done
			return nil
		}
		select {
		case <-p.done:
		case <-time.After(killGrace):
		}
	}
	<-p.done
	return nil
}

// InNS runs f on a thread that is in a host's network namespace. Sockets that f opens stay in that namespace, also
// when they are used elsewhere later. f must not start goroutines that open sockets.
func (l *Lab) InNS(h Host, f func() error) error {
	target, err := os.Open("/run/netns/" + l.Namespace(h))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer target.Close()
	result := make(chan error, 1)
	go func() { result <- onThreadIn(target, f) }()
	return <-result
}

// onThreadIn runs f on a thread that is moved to a network namespace, and brings the thread back. If it cannot be
// brought back it stays locked, so that it ends with the goroutine and no other goroutine gets the namespace.
func onThreadIn(target *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: setns %s: %w", target.Name(), err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("lab: setns back from %s: %w", target.Name(), back))
	}
	runtime.UnlockOSThread()
	return err
}

// WaitListening waits until a host listens on a TCP port. It asks the kernel, so no connection reaches the listener.
func (l *Lab) WaitListening(ctx context.Context, h Host, port uint16) error {
	filter := fmt.Sprintf("sport = :%d", port)
	return Wait(ctx, fmt.Sprintf("%s to listen on port %d", h, port), func() (bool, error) {
		out, err := l.Run(ctx, h, "ss", "-Hltn", filter)
		return strings.Contains(out, "LISTEN"), err
	})
}

// hostPort joins an address and a port.
func hostPort(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }

// lockedBuffer is a buffer that is read while a program still writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns a copy of what was written so far.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
