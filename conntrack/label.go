package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Label is the 128 bits that conntrack keeps with an entry for whoever needs them. It is in the table and nowhere else: it
// outlives this process, and goes away with the entry. The entry has room for it only if a rule that uses labels was in the
// network namespace when the entry was made.
type Label [16]byte

// SetLabel changes those bits of a TCP connection's label that are set in mask, to what they are in value. The tuple is as for
// Lookup. The error is ErrNotFound if conntrack does not know the connection, and ErrNoLabelRoom if its entry has no label.
func (c *Conn) SetLabel(t Tuple, value, mask Label) error {
	change := labelChange{value, mask}
	if err := c.setLabel(t, change); err != nil {
		return describeLabel(t, change, err)
	}
	return nil
}

func (c *Conn) setLabel(t Tuple, l labelChange) error {
	if err := errors.Join(l.check(), t.normalise()); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	start := c.beginEntry(msgCTNew, t)
	l.append(&c.req)
	c.req.end(start)
	err := c.ask()
	if errors.Is(err, unix.ENOSPC) { // which means another thing where an expectation is made
		return fmt.Errorf("%w: %w", ErrNoLabelRoom, unix.ENOSPC)
	}
	return err
}

// labelChange is a change of some bits of a label. Both are always sent whole: from a shorter attribute the kernel would take
// zeroes for the rest.
type labelChange struct{ value, mask Label }

func (l labelChange) check() error {
	for i := range l.value {
		if l.value[i]&^l.mask[i] != 0 {
			return fmt.Errorf("%w: the label has bits that its mask has not", ErrInvalid) // the kernel would toggle them
		}
	}
	return nil
}

func (l *labelChange) append(e *encoder) {
	e.bytes(ctaLabels, l.value[:])
	e.bytes(ctaLabelsMask, l.mask[:])
}

// of is what a label becomes by the change.
func (l labelChange) of(old Label) Label {
	for i := range old {
		old[i] = old[i]&^l.mask[i] | l.value[i]
	}
	return old
}

func describeLabel(t Tuple, l labelChange, err error) error {
	return fmt.Errorf("conntrack: set label %x/%x of %s to %s: %w", l.value, l.mask, t.Src, t.Dst, err)
}
