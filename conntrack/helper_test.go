package conntrack

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// haveOwn reports whether this kernel lets user space define helpers.
func haveOwn(t *testing.T) bool {
	t.Helper()
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	err = haveSubsystem(nl)
	if err != nil && !errors.Is(err, ErrNoSubsystem) {
		t.Fatal(err)
	}
	return err == nil
}

func TestDetectHelper(t *testing.T) {
	l := newLab(t)
	own := haveOwn(t)
	detect := func(want string) (h Helper, err error) {
		l.gateway.do(t, func() error { h, err = DetectHelper(want, false); return nil })
		return h, err
	}
	if own {
		defer RemoveOwnHelper()
	}
	sane, ours := Helper{Name: "sane", IPv6: true}, Helper{Name: OwnHelper, Own: true, IPv6: true}
	if got, err := detect("sane"); err != nil || got != sane {
		t.Errorf("sane: got %+v, %v", got, err)
	}
	want := sane
	if own {
		want = ours
	}
	if auto, err := detect("auto"); err != nil || auto != want {
		t.Errorf("auto: got %+v, %v, want %+v", auto, err, want)
	}
	var translating Helper
	var err error
	l.gateway.do(t, func() error { translating, err = DetectHelper("auto", true); return nil })
	if err != nil || translating != sane {
		t.Errorf("auto under NAT: got %+v, %v, want %+v", translating, err, sane)
	}
	if _, err := detect(OwnHelper); own != (err == nil) || !own && !strings.Contains(err.Error(), "CONFIG_NF_CT_NETLINK_HELPER") {
		t.Errorf("%s: %v, where the kernel has the subsystem: %v", OwnHelper, err, own)
	}
	if _, err := detect("amanda"); err == nil || !strings.Contains(err.Error(), "none of auto, ftpalg, sane") {
		t.Errorf("amanda: %v", err)
	}
	var count []byte
	l.gateway.do(t, func() (err error) {
		count, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		return err
	})
	if string(count) != "0\n" {
		t.Errorf("the probes left %s connections behind", count)
	}
}

// A helper that the kernel lacks is recognised, over both address families; amanda is there for UDP only.
func TestProbeMissingHelper(t *testing.T) {
	l := newLab(t)
	nl := l.netlink(t)
	for _, name := range []string{"nosuchhelper", "amanda"} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := probeHelper(nl, name, family); err == nil || !strings.Contains(err.Error(), "no TCP helper of that name") {
				t.Errorf("%s, family %d: %v", name, family, err)
			}
		}
	}
}

// Our own helper carries expectations, more than one for each master, and the kernel does not queue its packets:
// nobody listens on queue 0 here, and the control connection works.
func TestOwnHelper(t *testing.T) {
	needRoot(t)
	if !haveOwn(t) {
		if err := RegisterOwnHelper(); !errors.Is(err, ErrNoSubsystem) {
			t.Errorf("register: %v, want ErrNoSubsystem", err)
		}
		if err := RemoveOwnHelper(); err != nil {
			t.Errorf("remove: %v", err)
		}
		t.Skip("NOT TESTED: this kernel has no nfnetlink_cthelper; run the test through scripts/kernel")
	}
	for range 2 { // the second time it is there already
		if err := RegisterOwnHelper(); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := HasOwnHelper(); err != nil || !there {
		t.Errorf("it is not there: %v", err)
	}
	t.Run("carries expectations", carriesExpectations)
	await(t, "no rule holds the helper any more", func() bool { return RemoveOwnHelper() == nil })
	if err := RemoveOwnHelper(); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	if there, err := HasOwnHelper(); err != nil || there {
		t.Errorf("it is still there: %v", err)
	}
}

func carriesExpectations(t *testing.T) {
	l := newLab(t)
	for _, command := range []string{"iptables", "ip6tables"} {
		run(t, "ip netns exec "+string(l.gateway)+" "+command+" -w -t raw -R PREROUTING 1 -p tcp --dport 21 -j CT --helper "+OwnHelper)
	}
	if err := RemoveOwnHelper(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("remove while rules name it: %v, want EBUSY", err)
	}
	for name, h := range families {
		t.Run(name, func(t *testing.T) {
			control := netip.AddrPortFrom(h.server, ftpPort)
			l.serve(t, control)
			x := h.expect(l.control(t, h.client, control))
			if e, err := l.conn.Lookup(x.Master); err != nil || e.Helper != OwnHelper {
				t.Errorf("master: %+v, %v", e, err)
			}
			before := len(l.table(t))
			for i := range uint16(ownMaxExpected) {
				x.To = netip.AddrPortFrom(h.server, dataPort+i)
				l.serve(t, x.To)
				x.Timeout = time.Minute
				if err := l.conn.Expect(x); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(l.table(t)) - before; n != ownMaxExpected {
				t.Errorf("%d expectations stand, want %d", n, ownMaxExpected)
			}
			for i := range uint16(ownMaxExpected) {
				if _, err := l.dial(t, h.client, netip.AddrPortFrom(h.server, dataPort+i)); err != nil {
					t.Errorf("expected connection %d: %v", i, err)
				}
			}
			l.refused(t, "a second host", h.other, x.To)
		})
	}
}
