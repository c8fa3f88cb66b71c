package terminate

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much the kernel moves between two looks at a spliced connection: the most that a pipe holds unless the
	// administrator allows more (pipe(7)).
	pipeSize = 1 << 20
	// smallPipe is what a pipe holds by itself. A user whose pipes have 64 MiB in all gets pipes of 8 KiB, and through those it
	// costs more to splice than to copy.
	smallPipe = 64 << 10
	// firstLoad is how much is copied at first. Most data connections send in one direction alone, and the other one's first
	// load is its end; most listings are shorter.
	firstLoad = 4 << 10
)

// carrier moves bytes from one half to the other. What was loaded is not lost when the other half cannot take it at once.
type carrier interface {
	// load waits until something has arrived, and takes up to most bytes of it; io.EOF says that nothing more comes.
	load(most int64) (int64, error)
	// unload sends all that was loaded.
	unload() error
	free()
}

// newCarrier returns the one that costs least: where no byte changes the kernel does the work.
func newCarrier(src, dst *half) (carrier, error) {
	if src.tls != nil || dst.tls != nil {
		return &copied{src: src, dst: dst}, nil
	}
	from, err := src.tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	to, err := dst.tcp.SyscallConn()
	return &spliced{from: from, to: to, src: src, dst: dst}, err
}

// copied is a carrier of bytes that change on their way.
type copied struct {
	src, dst *half
	buf      []byte
	large    *[bufferSize]byte // what buf is from the second load on
	n        int               // loaded
}

func (c *copied) load(most int64) (int64, error) {
	switch {
	case c.buf == nil:
		c.buf = make([]byte, firstLoad)
	case c.large == nil:
		c.large = buffers.Get().(*[bufferSize]byte)
		c.buf = c.large[:]
		c.src.widen()
	}
	n, err := c.src.read(c.buf[:min(int64(len(c.buf)), most)])
	c.n = n
	return int64(n), err
}

func (c *copied) unload() error { return c.dst.write(c.buf[:c.n]) }

func (c *copied) free() {
	if c.large != nil {
		buffers.Put(c.large)
	}
}

// spliced is a carrier of bytes that stay as they are: splice(2) by way of a pipe, which is made when something comes. Other
// than io.Copy it loses nothing at a deadline.
type spliced struct {
	from, to syscall.RawConn
	src, dst *half
	instead  *copied // where the pipe would be small
	in, out  int     // ends of the pipe
	size     int     // of the pipe; 0: there is none yet
	n        int     // loaded
}

func (c *spliced) load(most int64) (int64, error) {
	if c.size == 0 && c.instead == nil {
		if err := c.begin(); err != nil {
			return 0, err
		}
	}
	if c.instead != nil {
		return c.instead.load(most)
	}
	n, err := splice(c.from.Read, func(fd int) (int64, error) {
		return unix.Splice(fd, nil, c.in, nil, int(min(most, int64(c.size))), unix.SPLICE_F_NONBLOCK)
	})
	if err == nil && n == 0 {
		err = io.EOF
	}
	c.n = n
	return int64(n), err
}

// begin waits for the first byte, or the end, and makes the pipe.
func (c *spliced) begin() error {
	_, err := splice(c.from.Read, func(fd int) (int64, error) {
		n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK)
		return int64(n), err
	})
	if err != nil {
		return err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("splice: %w", os.NewSyscallError("pipe2", err))
	}
	c.out, c.in = pipe[0], pipe[1]
	c.size, err = unix.FcntlInt(uintptr(c.in), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil { // the machine's bound on pipes is reached: what it has by itself will do
		c.size, err = unix.FcntlInt(uintptr(c.in), unix.F_GETPIPE_SZ, 0)
	}
	if err == nil && c.size < smallPipe {
		c.free()
		c.size, c.instead = 0, &copied{src: c.src, dst: c.dst}
	}
	return err
}

func (c *spliced) unload() error {
	if c.instead != nil {
		return c.instead.unload()
	}
	for c.n > 0 {
		if err := c.dst.tcp.SetWriteDeadline(time.Now().Add(c.dst.raw.patience)); err != nil {
			return err
		}
		n, err := splice(c.to.Write, func(fd int) (int64, error) {
			return unix.Splice(c.out, nil, fd, nil, c.n, unix.SPLICE_F_NONBLOCK)
		})
		if err != nil {
			return err
		}
		c.n -= n
		c.dst.raw.taken.Store(time.Now().UnixNano())
	}
	return nil
}

func (c *spliced) free() {
	if c.instead != nil {
		c.instead.free()
	}
	if c.size > 0 {
		_ = unix.Close(c.in)
		_ = unix.Close(c.out)
	}
}

// splice runs a system call when a connection is ready for it.
func splice(ready func(func(uintptr) bool) error, call func(fd int) (int64, error)) (int, error) {
	var n int64
	var err error
	waitErr := ready(func(fd uintptr) bool {
		for n, err = call(int(fd)); err == unix.EINTR; n, err = call(int(fd)) {
		}
		return err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return 0, waitErr
	case err != nil:
		return 0, os.NewSyscallError("splice", err)
	}
	return int(n), nil
}
