package conntrack

import (
	"slices"
	"sync"
)

// Fake keeps expectations in memory, for replay and for the tests of other packages. Its zero value is ready. It is
// safe for concurrent use.
type Fake struct {
	mu    sync.Mutex
	calls []Call
	open  []Expectation
	fail  error
}

// Call is one request made of a Fake.
type Call struct {
	Verb string // "expect" or "withdraw"
	Expectation
	Err error // what the Fake answered
}

// Fail makes every later Expect answer with err, wrapped; nil makes them succeed again.
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
	} else {
		f.open = append(slices.DeleteFunc(f.open, x.sameEnds), x)
	}
	f.calls = append(f.calls, Call{"expect", x, err})
	return err
}

// Lookup finds every connection: a Fake's are there, and do not close.
func (f *Fake) Lookup(t Tuple) (Entry, error) {
	return Entry{Orig: t, Reply: Tuple{Src: t.Dst, Dst: t.Src}, Opened: true, Live: true}, nil
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
