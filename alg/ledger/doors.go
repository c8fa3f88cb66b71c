package ledger

import (
	"errors"
	"net/netip"
	"sync"
)

// ErrHeld says that another session's data connection is to come between the same ends.
var ErrHeld = errors.New("another session's data connection is to come between the same ends")

// Door is where a pinhole leads, and for whom. The kernel holds one expectation for a door, whichever session it is of, and finds it
// by the door alone.
type Door struct {
	From netip.AddrPort // port 0: any
	To   netip.AddrPort
}

// Doors know whose pinhole stands at each door, so that no session takes away another's, and none has its data carried as another's.
// Its zero value is ready. It is safe for concurrent use.
type Doors struct {
	mu   sync.Mutex
	held map[Door]hold // guarded by mu, which is held while the kernel's expectation changes
}

type hold struct {
	owner any  // a session, or one of its promises
	firm  bool // nobody else can have the door
}

// Open has expect make an expectation at a door, which is the owner's if that succeeds. It fails with ErrHeld where another owner
// holds the door firmly. Whoever else held it has lost it: either its expectation was used, or expect has replaced it.
func (d *Doors) Open(at Door, owner any, firm bool, expect func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.held[at]; h.firm && h.owner != owner {
		return ErrHeld
	}
	if err := expect(); err != nil {
		return err
	}
	if d.held == nil {
		d.held = map[Door]hold{}
	}
	d.held[at] = hold{owner, firm}
	return nil
}

// Shut has withdraw take away the expectation at a door, if the door is still the owner's. It stays the owner's until Release.
func (d *Doors) Shut(at Door, owner any, withdraw func() error) (held bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[at].owner != owner {
		return false, nil
	}
	return true, withdraw()
}

// Release lets go of a door, if it is still the owner's.
func (d *Doors) Release(at Door, owner any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[at].owner == owner {
		delete(d.held, at)
	}
}

// Len returns how many doors are held.
func (d *Doors) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held)
}
