package ledger

import (
	"net/netip"
	"sync"
	"testing"
)

var (
	alice = netip.MustParseAddr("192.0.2.1")
	bob   = netip.MustParseAddr("192.0.2.2")
	carol = netip.MustParseAddr("2001:db8:1:2::1")
)

// A client that takes all it can leaves the rest to others.
func TestShare(t *testing.T) {
	a := New(Fixed(5, 3))
	for i, c := range []struct {
		client netip.Addr
		n      int
		want   error
	}{
		{alice, 4, ErrShare},
		{alice, 2, nil},
		{alice, 1, nil},
		{alice, 1, ErrShare},
		{bob, 2, nil},
		{bob, 1, ErrTotal},
		{carol, 1, ErrTotal},
		{alice, 1, ErrShare},
	} {
		if err := a.Take(c.client, c.n); err != c.want {
			t.Errorf("take %d: %v, want %v", i, err, c.want)
		}
	}
	a.Release(alice, 3)
	if err := a.Take(carol, 3); err != nil || a.Used() != 5 {
		t.Errorf("after a release: %v, %d used", err, a.Used())
	}
}

// A client is an IPv4 address, mapped into IPv6 or not, or an IPv6 network of 64 bits.
func TestClient(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":           "192.0.2.1/32",
		"::ffff:192.0.2.1":    "192.0.2.1/32",
		"2001:db8:1:2::1":     "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::": "2001:db8:1:2::/64",
		"2001:db8:1:3::1":     "2001:db8:1:3::/64",
		"fe80::1%eth0":        "fe80::/64",
	} {
		if got := Client(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("Client(%s) = %s, want %s", addr, got, want)
		}
	}
	if Client(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
}

// What is returned twice, or was never taken, is not there to be taken by others.
func TestReleaseTooMuch(t *testing.T) {
	a := New(Fixed(2, 2))
	_ = a.Take(alice, 1)
	_ = a.Take(bob, 1)
	a.Release(alice, 7)
	a.Release(carol, 1)
	if a.Used() != 1 || a.Take(carol, 1) != nil || a.Take(carol, 1) != ErrTotal {
		t.Error("released more than was taken")
	}
}

// The limits are those in force when something is taken; what was taken before stays.
func TestLimitsChange(t *testing.T) {
	limits := Limits{2, 2}
	a := New(func() Limits { return limits })
	_ = a.Take(alice, 2)
	limits = Limits{1, 1}
	if a.Take(alice, 1) != ErrShare || a.Take(bob, 1) != ErrTotal || a.Used() != 2 {
		t.Error("lower limits do not hold")
	}
	limits = Limits{3, 3}
	if a.Take(alice, 1) != nil {
		t.Error("higher limits do not hold")
	}
}

func TestUse(t *testing.T) {
	a := New(Fixed(9, 5))
	if u := a.Use(); u.Top.IsValid() || u.Used != 0 || u.Clients != 0 {
		t.Errorf("of nothing: %+v", u)
	}
	_ = a.Take(bob, 2)
	_ = a.Take(carol, 3)
	want := Use{Limits{9, 5}, 5, 2, netip.MustParsePrefix("2001:db8:1:2::/64"), 3}
	if u := a.Use(); u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
}

// Many at once never have more than the limits, and nothing is left of those that are gone.
func TestConcurrent(t *testing.T) {
	const total, share = 10, 4
	a := New(Fixed(total, share))
	var all sync.WaitGroup
	for i := range 16 {
		client := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 4)})
		all.Go(func() {
			for range 1000 {
				if a.Take(client, 1+i%3) == nil {
					if u := a.Use(); u.Used > total || u.TopUsed > share {
						t.Errorf("%+v", u)
					}
					a.Release(client, 1+i%3)
				}
			}
		})
	}
	all.Wait()
	if u := a.Use(); u.Used != 0 || u.Clients != 0 {
		t.Errorf("left: %+v", u)
	}
}

// Packets are counted, so that what is counted must not cost an allocation.
func TestNoAllocation(t *testing.T) {
	a := New(Fixed(9, 5))
	for _, client := range []netip.Addr{alice, carol} {
		if n := testing.AllocsPerRun(100, func() {
			_ = a.Take(client, 1)
			a.Release(client, 1)
		}); n != 0 {
			t.Errorf("%v: %v allocations", client, n)
		}
	}
}
