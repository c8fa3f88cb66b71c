package nfq

import "sync"

const (
	// DefaultBatch is how many packets are read at a time, at most: the first of them waits until the last is decided on,
	// some 10 µs later for each, and from 16 on a call for all of them costs next to nothing for each.
	DefaultBatch = 16
	// MaxBatch bounds the memory of a queue's receive buffers, 68 KiB each.
	MaxBatch = 64
	// maxUnsent bounds the messages that are sent together. The last may exceed it: the socket takes two of the longest.
	maxUnsent = 4 << 10
)

// batch gathers the verdicts on packets that were read together, for one call to tell the kernel of all. Each of its
// messages is answered on its own if it is wrong, as if it came alone.
type batch struct {
	send func(messages []byte, count uint64) error

	mu       sync.Mutex // several goroutines may give verdicts
	open     bool       // there are packets at hand that are still to be decided on
	messages []byte
	count    uint64
}

// begin has the verdicts wait from now on, but for those that must not.
func (b *batch) begin() {
	b.mu.Lock()
	b.open = true
	b.mu.Unlock()
}

// add gives a verdict. An error may be about those before it as well.
func (b *batch) add(queue uint16, id uint32, v Verdict) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = appendVerdict(b.messages, queue, id, v)
	b.count++
	if b.open && !v.AtOnce && len(b.messages) < maxUnsent {
		return nil
	}
	return b.flush()
}

// end sends what waits, and lets no more wait.
func (b *batch) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	return b.flush()
}

func (b *batch) flush() error {
	if b.count == 0 {
		return nil
	}
	err := b.send(b.messages, b.count)
	b.messages, b.count = b.messages[:0], 0
	return err
}
