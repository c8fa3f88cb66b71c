package conntrack

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
)

// Fake keeps expectations, marks and labels in memory, for replay and for the tests of other packages. Its zero value is ready. It
// is safe for concurrent use.
type Fake struct {
	mu     sync.Mutex
	calls  []Call
	open   []Expectation
	marks  map[Tuple]uint32
	labels map[Tuple]Label
	fail   error
}

// Call is one request about an expectation made of a Fake.
type Call struct {
	Verb string // "expect" or "withdraw"
	Expectation
	Err error // what the Fake answered
}

// Fail makes every later Expect, SetMark and SetLabel answer with err, wrapped; nil makes them succeed again.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// Expect records x, in the place of one with the same end points if there is one, as Conn does.
func (f *Fake) Expect(x Expectation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.fail
	if err != nil {
		err = describe("expect", &x, err)
	} else if x.Exclusive && slices.ContainsFunc(f.open, x.sameEnds) {
		err = describe("expect", &x, ErrOverlap)
	} else {
		f.open = append(slices.DeleteFunc(f.open, x.sameEnds), x)
	}
	f.calls = append(f.calls, Call{"expect", x, err})
	return err
}

// Lookup finds every connection: a Fake's are there, and do not close.
func (f *Fake) Lookup(t Tuple) (Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := Untranslated(t)
	e.Mark, e.Label, e.Opened, e.Live = f.marks[t], f.labels[t], true, true
	return e, nil
}

// SetMark changes what Lookup of the same tuple gives as the mark.
func (f *Fake) SetMark(t Tuple, mark, mask uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := cmp.Or(f.fail, markChange{mark, mask}.check()); err != nil {
		return describeMark(t, mark, mask, err)
	}
	if f.marks == nil {
		f.marks = map[Tuple]uint32{}
	}
	f.marks[t] = f.marks[t]&^mask | mark
	return nil
}

// SetLabel changes what Lookup of the same tuple returns as the label.
func (f *Fake) SetLabel(t Tuple, value, mask Label) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	change := labelChange{value, mask}
	if err := cmp.Or(f.fail, change.check()); err != nil {
		return describeLabel(t, change, err)
	}
	if f.labels == nil {
		f.labels = map[Tuple]Label{}
	}
	f.labels[t] = change.of(f.labels[t])
	return nil
}

// AdjustSequence succeeds, and moves nothing.
func (f *Fake) AdjustSequence(t Tuple, _ bool, _ Adjustment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return describeAdjustment(t, f.fail)
	}
	return nil
}

// Withdraw forgets x, or answers ErrNotFound.
func (f *Fake) Withdraw(x Expectation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.open)
	f.open = slices.DeleteFunc(f.open, x.sameEnds)
	var err error
	if len(f.open) == before {
		err = describe("withdraw", &x, ErrNotFound)
	}
	f.calls = append(f.calls, Call{"withdraw", x, err})
	return err
}

// Use is a connection's first packet, which takes the expectation that it meets with it, if there is one.
func (f *Fake) Use(from, to netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = slices.DeleteFunc(f.open, func(x Expectation) bool {
		return x.To == to && (x.From == from || x.From == netip.AddrPortFrom(from.Addr(), 0))
	})
}

// Open gives the expectations that stand, oldest first.
func (f *Fake) Open() []Expectation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.open)
}

// Calls gives all requests so far, in order.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (x Expectation) sameEnds(y Expectation) bool { return x.From == y.From && x.To == y.To }
