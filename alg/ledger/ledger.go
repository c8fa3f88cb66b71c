// Package ledger counts what all clients share, such as sessions or pinholes, so that no client uses up what is there for
// all. A client is an IPv4 address or an IPv6 network of 64 bits: a host can have any address of its network (RFC 4862), and
// many hosts behind NAT are one client.
package ledger

import (
	"errors"
	"net/netip"
	"sync"
)

// Why something is not there to be taken.
var (
	ErrShare = errors.New("the client's share is used up")
	ErrTotal = errors.New("the limit of all clients is reached")
)

// Limits are how much of something may be in use at once.
type Limits struct {
	Total  int // by all clients
	Client int // by one
}

// Fixed is for limits that never change.
func Fixed(total, client int) func() Limits {
	return func() Limits { return Limits{total, client} }
}

// Account counts one thing. It is safe for concurrent use. Its memory is bounded by the limit on all clients: only clients
// that have something are in it.
type Account struct {
	limits func() Limits // called at each Take, as another policy may be in force then

	mu   sync.Mutex
	used int                  // guarded by mu
	by   map[netip.Prefix]int // guarded by mu; clients that have none are not in it
}

// New returns an account of which nothing is taken.
func New(limits func() Limits) *Account {
	return &Account{limits: limits, by: map[netip.Prefix]int{}}
}

// Take takes n for a client, all or nothing. The error is ErrShare or ErrTotal.
func (a *Account) Take(client netip.Addr, n int) error {
	limits, who := a.limits(), Client(client)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch own := a.by[who]; {
	case n > limits.Client-own:
		return ErrShare
	case n > limits.Total-a.used:
		return ErrTotal
	default:
		a.used += n
		a.by[who] = own + n
		return nil
	}
}

// Release returns n of what a client has taken. A client never returns more than it has.
func (a *Account) Release(client netip.Addr, n int) {
	who := Client(client)
	a.mu.Lock()
	defer a.mu.Unlock()
	own := a.by[who]
	n = min(n, own)
	a.used -= n
	if own -= n; own == 0 {
		delete(a.by, who)
	} else {
		a.by[who] = own
	}
}

// Clear returns all that is taken.
func (a *Account) Clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used = 0
	clear(a.by)
}

// Used is how much all clients have.
func (a *Account) Used() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used
}

// Use is what an operator sees of an account.
type Use struct {
	Limits
	Used    int
	Clients int          // that have something
	Top     netip.Prefix // the client that has most; invalid if nobody has anything
	TopUsed int          // what that one has
}

// Use describes the account as it is now.
func (a *Account) Use() Use {
	u := Use{Limits: a.limits()}
	a.mu.Lock()
	defer a.mu.Unlock()
	u.Used, u.Clients = a.used, len(a.by)
	for who, n := range a.by {
		if n > u.TopUsed || n == u.TopUsed && who.Addr().Less(u.Top.Addr()) {
			u.Top, u.TopUsed = who, n
		}
	}
	return u
}

// Client is whose share an address has a part in: its own, or its network's of 64 bits.
func Client(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // fails for no number of bits that an address has; an invalid address has an invalid prefix
	return p
}
