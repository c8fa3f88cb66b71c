package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What the kernel refuses, in terms of what the caller can do about it. Every error of this package that stems from
// the kernel wraps the errno as well.
var (
	// ErrNotFound means that the entry or expectation is not there: never made, used, timed out or gone with its master.
	ErrNotFound = errors.New("not there (used, timed out, or never made)")
	// ErrNoMaster means that conntrack does not know the control connection.
	ErrNoMaster = errors.New("the control connection has no conntrack entry (it ended, or its packets bypass conntrack)")
	// ErrNoHelper means that the control connection carries no helper, and expectations hang on helpers.
	ErrNoHelper = errors.New("the control connection carries no conntrack helper " +
		"(the rule `-t raw -A PREROUTING -p tcp --dport PORT -j CT --helper NAME` must stand before it connects)")
	// ErrFull means that no more expectations fit.
	ErrFull = errors.New("the expectation table is full (raise the sysctl net.netfilter.nf_conntrack_expect_max)")
	// ErrOverlap means that another expectation covers part of this one, so that the kernel could not tell them apart.
	ErrOverlap = errors.New("another expectation overlaps it")
	// ErrNoLabelRoom means that the entry was made while no rule in the network namespace used labels.
	ErrNoLabelRoom = errors.New("the connection has no room for a label (no rule used labels when it began)")
	// ErrPermission means that the process may not change conntrack.
	ErrPermission = errors.New("not permitted (run as root, or give the program the capability CAP_NET_ADMIN)")
	// ErrInvalid means that the caller asked for what no kernel could install.
	ErrInvalid = errors.New("invalid request")
)

// explain gives the sentinel for the errno of a request, with the errno wrapped beside it. absent is what ENOENT means to
// the request: a missing master when creating an expectation, and else that what it is about is missing.
func explain(errno unix.Errno, absent error) error {
	var sentinel error
	switch errno {
	case unix.ENOENT:
		sentinel = absent
	case unix.EOPNOTSUPP:
		sentinel = ErrNoHelper
	case unix.EMFILE, unix.ENOSPC:
		sentinel = ErrFull
	case unix.EBUSY:
		sentinel = ErrOverlap
	case unix.EPERM:
		sentinel = ErrPermission
	default:
		return errno
	}
	return fmt.Errorf("%w: %w", sentinel, errno)
}
