package audit

import (
	"fmt"
	"runtime/debug"
)

// Fault is a mistake of ours (a panic) that was kept to the session that it befell.
type Fault struct {
	mistake any
	Stack   []byte
}

// NewFault makes a Fault of what recover returned. It is to be called by the deferred function that recovers, as its stack is
// the one of the mistake.
func NewFault(mistake any) *Fault { return &Fault{mistake, debug.Stack()} }

// Error returns one line, without the stack.
func (f *Fault) Error() string { return fmt.Sprintf("panic: %v", f.mistake) }
