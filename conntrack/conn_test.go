package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ack is an NLMSG_ERROR message as the kernel sends it with NETLINK_CAP_ACK.
func ack(seq uint32, errno unix.Errno) []byte {
	b := make([]byte, 36)
	binary.NativeEndian.PutUint32(b, 36)
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint32(b[8:], seq)
	binary.NativeEndian.PutUint32(b[16:], uint32(-int32(errno)))
	return b
}

// headerOnly cuts a message down to its header.
func headerOnly(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, headerLen)
	return b[:headerLen]
}

// scripted gives a Conn whose kernel has answered already. Its requests are numbered from 1.
func scripted(t *testing.T, answers ...[]byte) *Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000})
	for _, a := range answers {
		if _, err := unix.Write(fds[1], a); err != nil {
			t.Fatal(err)
		}
	}
	return &Conn{fd: fds[0]}
}

func TestExpectAnswers(t *testing.T) {
	const ok = 0
	for _, test := range []struct {
		name    string
		answers [][]byte
		want    error // nil for success
	}{
		{"installed", [][]byte{ack(2, ok)}, nil},
		{"an answer left over from an earlier request", [][]byte{ack(0, unix.EPERM), ack(2, ok)}, nil},
		{"no helper", [][]byte{ack(1, unix.EOPNOTSUPP), ack(2, unix.ENOENT)}, ErrNoHelper},
		{"no master", [][]byte{ack(1, unix.ENOENT), ack(2, unix.ENOENT)}, ErrNoMaster},
		{"table full", [][]byte{ack(1, unix.EMFILE), ack(2, unix.ENOENT)}, ErrFull},
		{"overlap", [][]byte{ack(1, unix.EBUSY), ack(2, unix.ENOENT)}, ErrOverlap},
		{"not permitted", [][]byte{ack(1, unix.EPERM), ack(2, unix.EPERM)}, ErrPermission},
		{"a stranger: replaced", [][]byte{ack(1, unix.EEXIST), ack(2, ok), ack(5, ok)}, nil},
		{"a stranger that just left: replaced", [][]byte{ack(1, unix.EEXIST), ack(2, ok), ack(3, unix.ENOENT), ack(5, ok)}, nil},
		{"a stranger, and no room", [][]byte{ack(1, unix.EEXIST), ack(2, ok), ack(4, unix.EMFILE), ack(5, unix.ENOENT)}, ErrFull},
		{"timeout not set, taken back", [][]byte{ack(2, unix.ETIME), ack(3, ok)}, unix.ETIME},
		{"timeout not set, and gone by itself", [][]byte{ack(2, unix.ENOENT), ack(3, unix.ENOENT)}, unix.ENOENT},
		{"timeout not set, nor taken back", [][]byte{ack(2, unix.ETIME), ack(3, unix.EPERM)}, ErrPermission},
		{"no answer", nil, unix.EAGAIN},
		{"no header", [][]byte{{1, 2, 3}}, errAny},
		{"no error number", [][]byte{headerOnly(ack(1, 0))}, errAny},
		{"a length past the end", [][]byte{ack(2, 0)[:30]}, errAny},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := scripted(t, test.answers...).Expect(x4)
			if test.want == errAny && err != nil {
				return
			}
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

var errAny = errors.New("any error")

func TestWithdrawGone(t *testing.T) {
	if err := scripted(t, ack(1, unix.ENOENT)).Withdraw(x4); !errors.Is(err, ErrNotFound) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ErrNotFound and ENOENT", err)
	}
}

func TestSetMarkAnswers(t *testing.T) {
	mapped := Tuple{netip.MustParseAddrPort("[::ffff:192.0.2.2]:40000"), x4.Master.Dst}
	for _, test := range []struct {
		name       string
		tuple      Tuple
		mark, mask uint32
		errno      unix.Errno
		want       error
	}{
		{"set", x4.Master, 1, 3, 0, nil},
		{"cleared", x4.Master, 0, 3, 0, nil},
		{"mapped address", mapped, 1, 1, 0, nil},
		{"no such connection", x4.Master, 1, 1, unix.ENOENT, ErrNotFound},
		{"not permitted", x4.Master, 1, 1, unix.EPERM, ErrPermission},
		{"bits outside of the mask", x4.Master, 5, 1, 0, ErrInvalid},
		{"two families", Tuple{x4.Master.Src, x6.Master.Dst}, 1, 1, 0, ErrInvalid},
	} {
		if err := scripted(t, ack(1, test.errno)).SetMark(test.tuple, test.mark, test.mask); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// What no kernel could install is refused before it is asked: the Conn here is closed.
func TestInvalidExpectations(t *testing.T) {
	for name, change := range map[string]func(*Expectation){
		"no timeout":       func(x *Expectation) { x.Timeout = 0 },
		"two days":         func(x *Expectation) { x.Timeout = 48 * time.Hour },
		"port 0":           func(x *Expectation) { x.To = netip.AddrPortFrom(server4, 0) },
		"master's port 0":  func(x *Expectation) { x.Master.Src = netip.AddrPortFrom(client4, 0) },
		"no address":       func(x *Expectation) { x.From = netip.AddrPort{} },
		"anyone":           func(x *Expectation) { x.From = netip.MustParseAddrPort("0.0.0.0:0") },
		"two families":     func(x *Expectation) { x.To = x6.To },
		"scoped addresses": func(x *Expectation) { x.From = netip.MustParseAddrPort("[fe80::1%eth0]:0") },
	} {
		x := x4
		change(&x)
		if err := (&Conn{fd: -1}).Expect(x); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

// IPv4-mapped addresses, as a dual-stack socket gives them, mean IPv4.
func TestMappedAddresses(t *testing.T) {
	x := expectation("[::ffff:192.0.2.2]:40000 [::ffff:198.51.100.2]:21", "[::ffff:192.0.2.2]:0", "198.51.100.2:50000")
	if err := x.normalise(); err != nil || x != x4 {
		t.Errorf("got %+v, %v\nwant %+v", x, err, x4)
	}
}

func TestClosedConn(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Expect(x4); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Expect after Close: %v", err)
	}
	if err := c.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestFake(t *testing.T) {
	var f Fake
	later := x4
	later.Timeout = time.Second
	if err := errors.Join(f.Expect(x4), f.Expect(x6), f.Expect(later)); err != nil {
		t.Fatal(err)
	}
	if open := f.Open(); len(open) != 2 || open[0] != x6 || open[1] != later {
		t.Errorf("open: %v", open)
	}
	f.Fail(ErrFull)
	if err := f.Expect(x4); !errors.Is(err, ErrFull) {
		t.Errorf("told to fail: %v", err)
	}
	if err := f.Withdraw(x6); err != nil {
		t.Error(err)
	}
	if err := f.Withdraw(x6); !errors.Is(err, ErrNotFound) {
		t.Errorf("second withdrawal: %v", err)
	}
	if err := f.SetMark(x4.Master, 1, 1); !errors.Is(err, ErrFull) {
		t.Errorf("told to fail: %v", err)
	}
	f.Fail(nil)
	if err := errors.Join(f.SetMark(x4.Master, 6, 7), f.SetMark(x4.Master, 1, 3)); err != nil {
		t.Error(err)
	}
	if err := f.SetMark(x4.Master, 2, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("bits outside of the mask: %v", err)
	}
	if e, err := f.Lookup(x4.Master); err != nil || e.Mark != 5 {
		t.Errorf("mark: %+v, %v", e, err)
	}
	if calls := f.Calls(); len(calls) != 6 || calls[3].Err == nil || calls[4] != (Call{"withdraw", x6, nil}) {
		t.Errorf("calls: %v", calls)
	}
}
