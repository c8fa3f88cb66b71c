package model

import (
	"bytes"
	"errors"
	"time"

	"ftpalg/conntrack"
)

// errNoHelper is the kernel's answer to an expectation below a connection that carries no helper (EOPNOTSUPP).
var errNoHelper = errors.New("operation not supported")

// Kernel is conntrack for one control connection at a time. It forgets the connection, picks it up again, and takes another one
// between the same ports, as the kernel does; expectations and all else is the Fake's.
type Kernel struct {
	conntrack.Fake
	world   *World
	entries uint32 // made so far: their ids
	entry   conntrack.Entry
	there   bool
}

// Lookup finds the control connection's entry, if there is one.
func (k *Kernel) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	if !k.there || t != k.entry.Orig {
		return conntrack.Entry{}, conntrack.ErrNotFound
	}
	fake, err := k.Fake.Lookup(t) // what was written to it
	entry := k.entry
	entry.Mark, entry.Label = fake.Mark, fake.Label
	return entry, err
}

// Expect checks an expectation against the truth before it takes it.
func (k *Kernel) Expect(x conntrack.Expectation) error {
	if !k.there || k.entry.Helper == "" {
		return errNoHelper
	}
	k.world.judgePinhole(x)
	return k.Fake.Expect(x)
}

// SetLabel writes the label of an entry that is there.
func (k *Kernel) SetLabel(t conntrack.Tuple, value, mask conntrack.Label) error {
	if !k.there || t != k.entry.Orig {
		return conntrack.ErrNotFound
	}
	return k.Fake.SetLabel(t, value, mask)
}

// begin makes the entry of a new connection, which the rules give a helper to at its SYN.
func (k *Kernel) begin(t conntrack.Tuple, helper string) {
	k.entries++
	k.entry, k.there = conntrack.Untranslated(t), true
	k.entry.ID, k.entry.Helper, k.entry.Timeout = k.entries, helper, time.Hour
	all := conntrack.Label(bytes.Repeat([]byte{0xff}, len(conntrack.Label{})))
	if err := errors.Join(k.Fake.SetMark(t, 0, ^uint32(0)), k.Fake.SetLabel(t, conntrack.Label{}, all)); err != nil {
		k.world.fault("a new entry: %v", err)
	}
}

// established ends the handshake.
func (k *Kernel) established() { k.entry.Opened, k.entry.Live = true, true }

// forget loses the entry, and its expectations with it: a RST that only conntrack has seen, and ten seconds.
func (k *Kernel) forget() {
	k.there = false
	for _, x := range k.Open() {
		_ = k.Withdraw(x) // it is there
	}
}

// pickUp makes an entry of a connection's packet in the middle (nf_conntrack_tcp_loose): no rule for SYNs sees it.
func (k *Kernel) pickUp(t conntrack.Tuple) {
	k.begin(t, "")
	k.established()
}
