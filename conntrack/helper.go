package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// OwnHelper is the name of the helper that ftpalg registers where the kernel lets user space define helpers.
const OwnHelper = "ftpalg"

const (
	// ownMaxExpected is how many expectations one control connection may have outstanding. ftpalg holds one; the rest
	// is for the moment in which a new one stands and the old one is not withdrawn yet.
	ownMaxExpected = 8
	// ownTimeout is how many seconds an expectation lives that was given no timeout of its own, as with the kernel's
	// own helpers. Expect always gives one.
	ownTimeout = 300
)

// Helper is the conntrack helper that control connections carry so that expectations can hang on them.
type Helper struct {
	Name string // for the rule `-j CT --helper NAME`
	Own  bool   // defined by ftpalg through nfnetlink_cthelper
	IPv6 bool   // there for IPv6 as well as for IPv4
}

// BuiltInHelper is the kernel's helper that carries expectations where there is none of our own. It reacts to requests of the scanner
// protocol alone, which never get to it (package rules, carrierGuard). Other TCP helpers of the kernel could carry them as well,
// but what they act on is text that may be anywhere in a segment: nothing could hold ftp, irc and sip closed, and pptp opens more
// than a port.
const BuiltInHelper = "sane"

// ErrNoSubsystem means that the kernel does not let user space define helpers.
var ErrNoSubsystem = errors.New("the kernel has no nfnetlink_cthelper (CONFIG_NF_CT_NETLINK_HELPER)")

// DetectHelper finds the helper to use, and registers ftpalg's own if that is it. want is "auto" or a helper's name. "auto" takes
// our own where the kernel lets user space define helpers: the kernel does nothing of its own accord for it. Where there is NAT it
// takes the built-in one first: packets with a helper of user space that a queue has had are adjusted twice, and NAT leaves a
// connection out whose SYN was queued (nf_confirm_cthelper).
func DetectHelper(want string, nat bool) (Helper, error) {
	order := []string{OwnHelper, BuiltInHelper}
	if nat {
		slices.Reverse(order)
	}
	switch want {
	case "auto":
	case OwnHelper, BuiltInHelper:
		order = []string{want}
	default:
		return Helper{}, fmt.Errorf("conntrack: find a helper: %q is none of auto, %s, %s", want, OwnHelper, BuiltInHelper)
	}
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return Helper{}, fmt.Errorf("conntrack: find a helper: open a netlink socket: %w", err)
	}
	defer nl.Close()
	var tried []string
	for _, name := range order {
		h, err := detect(nl, name)
		switch {
		case err == nil:
			return h, nil
		case errors.Is(err, ErrPermission): // the same for every one of them
			return Helper{}, fmt.Errorf("conntrack: find a helper: %w", err)
		}
		tried = append(tried, fmt.Sprintf("%s: %v", name, err))
	}
	return Helper{}, fmt.Errorf("conntrack: find a helper: tried %s; load one of the modules nfnetlink_cthelper, nf_conntrack_sane",
		strings.Join(tried, "; "))
}

func detect(nl *netlink.Conn, name string) (Helper, error) {
	if name == OwnHelper {
		return Helper{Name: name, Own: true, IPv6: true}, registerOwn(nl)
	}
	if err := probeHelper(nl, name, unix.AF_INET); err != nil {
		return Helper{}, err
	}
	return Helper{Name: name, IPv6: probeHelper(nl, name, unix.AF_INET6) == nil}, nil
}

// RegisterOwnHelper defines the helper "ftpalg" for TCP over IPv4 and IPv6, or brings an existing one into line. The
// kernel never hands its packets to user space: its only work is to be carried. Helpers are not namespaced: one
// registration serves every network namespace, until RemoveOwnHelper or a reboot.
func RegisterOwnHelper() error {
	return withNetlink("register the helper "+OwnHelper, registerOwn)
}

// RemoveOwnHelper takes the helper "ftpalg" away again, and from the connections that carry it, which can never be given it back
// (ctnetlink_change_helper). It fails with EBUSY while a rule names it. It is no error if there is none.
func RemoveOwnHelper() error {
	return withNetlink("remove the helper "+OwnHelper, removeOwn)
}

// HasOwnHelper reports whether the helper "ftpalg" is defined.
func HasOwnHelper() (there bool, err error) {
	err = withNetlink("look for the helper "+OwnHelper, func(nl *netlink.Conn) error {
		var e encoder
		e.family(unix.AF_UNSPEC)
		list, err := execute(nl, unix.NFNL_SUBSYS_CTHELPER, msgHelperGet, netlink.Dump, e.b)
		for _, m := range list {
			there = there || bytes.Contains(m.Data, []byte(OwnHelper+"\x00"))
		}
		if errors.Is(err, unix.EINVAL) {
			return nil // the kernel has no such helpers
		}
		return err
	})
	return there, err
}

func withNetlink(what string, do func(*netlink.Conn) error) error {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("conntrack: %s: open a netlink socket: %w", what, err)
	}
	defer nl.Close()
	if err := do(nl); err != nil {
		return fmt.Errorf("conntrack: %s: %w", what, err)
	}
	return nil
}

func registerOwn(nl *netlink.Conn) error {
	if err := haveSubsystem(nl); err != nil {
		return err
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		_, err := execute(nl, unix.NFNL_SUBSYS_CTHELPER, msgHelperNew, netlink.Create|netlink.Acknowledge, encodeOwn(family))
		if err != nil {
			return fmt.Errorf("define it for address family %d: %w", family, err)
		}
	}
	return nil
}

// haveSubsystem asks for the list of user-space helpers, since that request cannot be wrong in itself: EINVAL means
// that nothing in the kernel takes it, nor a module that the kernel could load.
func haveSubsystem(nl *netlink.Conn) error {
	var e encoder
	e.family(unix.AF_UNSPEC)
	_, err := execute(nl, unix.NFNL_SUBSYS_CTHELPER, msgHelperGet, netlink.Dump, e.b)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ErrNoSubsystem, err)
	}
	return err
}

func removeOwn(nl *netlink.Conn) error {
	if err := haveSubsystem(nl); errors.Is(err, ErrNoSubsystem) {
		return nil
	}
	var e encoder
	e.family(unix.AF_UNSPEC)
	e.text(nfcthName, OwnHelper)
	_, err := execute(nl, unix.NFNL_SUBSYS_CTHELPER, msgHelperDelete, netlink.Acknowledge, e.b)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("it is in use; delete the rules that name it first: %w", unix.EBUSY)
	}
	return err
}

// encodeOwn is the definition of the helper for one address family.
func encodeOwn(family uint8) []byte {
	var e encoder
	e.family(family)
	e.text(nfcthName, OwnHelper)
	tuple := e.nest(nfcthTuple)
	e.uint16(nfcthTupleL3, uint16(family))
	e.uint8(nfcthTupleL4, unix.IPPROTO_TCP)
	e.close(tuple)
	set := e.nest(nfcthPolicy)
	e.uint32(nfcthPolicySetNum, 1)
	class := e.nest(nfcthPolicySet)
	e.text(nfcthPolicyName, OwnHelper)
	e.uint32(nfcthPolicyExpectMax, ownMaxExpected)
	e.uint32(nfcthPolicyExpectTimeout, ownTimeout)
	e.close(class)
	e.close(set)
	e.uint32(nfcthPrivDataLen, 0)
	e.uint32(nfcthStatus, helperStatusDisabled)
	return e.b
}

// probeHelper reports whether the kernel has a TCP helper of that name, loading its module if there is one. It asks
// for a conntrack entry with that helper and with a master that cannot exist. The kernel looks for the helper first
// (EOPNOTSUPP if there is none) and for the master next (ENOENT); so nothing is ever created.
func probeHelper(nl *netlink.Conn, name string, family uint8) error {
	const attempts = 2 // EAGAIN means that the module was loaded just now, and that the request should come again.
	var err error
	for range attempts {
		_, err = execute(nl, unix.NFNL_SUBSYS_CTNETLINK, msgCTNew,
			netlink.Create|netlink.Excl|netlink.Acknowledge, encodeProbe(name, family))
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("the kernel has no TCP helper of that name")
	case err == nil:
		return errors.New("the kernel took a connection whose master does not exist")
	}
	return err
}

// encodeProbe is the request of probeHelper. Its addresses are from the documentation prefixes of RFC 5737 and
// RFC 3849, and port 0 is no connection's.
func encodeProbe(name string, family uint8) []byte {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if family == unix.AF_INET6 {
		a, b = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	there := Tuple{netip.AddrPortFrom(a, 0), netip.AddrPortFrom(b, 0)}
	back := Tuple{there.Dst, there.Src}
	var e encoder
	e.family(family)
	e.tuple(ctaTupleOrig, there)
	e.tuple(ctaTupleReply, back)
	e.uint32(ctaTimeout, 1)
	help := e.nest(ctaHelp)
	e.text(ctaHelpName, name)
	e.close(help)
	e.tuple(ctaTupleMaster, there)
	return e.b
}
