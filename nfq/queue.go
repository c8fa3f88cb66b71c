package nfq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
)

// DefaultMaxLen is how many packets may wait in the kernel for a verdict. The kernel's own default of 1024 is one burst
// of segments from a few hundred sessions; 8192 rides out a garbage collection or a policy reload at 100,000 packets a
// second, and at a typical 2 KiB a packet bounds the kernel's memory to 16 MiB a queue.
const DefaultMaxLen = 8192

// ErrTaken: another process has the queue.
var ErrTaken = errors.New("queue taken by another process")

// ErrVanished: the queue was lost while running and could not be had back.
var ErrVanished = errors.New("queue vanished")

// ErrClosed: the queue was closed, so its packets are dropped by the kernel and need no verdict.
var ErrClosed = errors.New("queue closed")

// Options tune a Queue. The zero value is good: fail closed, the default length, no reports.
type Options struct {
	FailOpen  bool         // accept instead of drop when the queue is full
	Conntrack bool         // have the kernel tell of each packet's conntrack entry, if it can (NFQA_CT)
	MaxLen    uint32       // packets waiting for a verdict; 0 means DefaultMaxLen
	Batch     int          // packets read, and their verdicts given, at a time; 0 means DefaultBatch
	Logger    *slog.Logger // nil means silent
	OnLoss    func(Loss)   // called at most once a second, with what was lost since the last call; nil means not
}

// Packet is one queued packet. The handler may keep the ID; the rest is reused when it returns.
type Packet struct {
	ID   uint32
	Hook uint8  // netfilter hook number: 0 is PREROUTING, 2 is FORWARD
	Mark uint32 // the packet's mark, 0 if it has none
	Data []byte // from the IP header on

	Conntrack []byte // attributes of its conntrack entry, for conntrack.Decode; nil without
}

// Handler takes one packet, and must see to it that Verdict is called once for its ID, now or later, from any
// goroutine. While it runs, the queue's other packets wait, and so may the verdicts on those that were read with this one.
type Handler func(p *Packet)

// Verdict is what to do with a packet. The zero value drops it.
type Verdict struct {
	Accept  bool
	SetMark bool
	Mark    uint32 // the packet's new mark, with SetMark
	Payload []byte // if not nil, the packet goes on with these bytes, IP header and all
	AtOnce  bool   // the packet has gone on when Verdict returns; else it may wait for verdicts on others
}

// Stats are counted from Open on.
type Stats struct {
	Received uint64 // packets handed to the handler
	Verdicts uint64 // verdicts that the kernel took
	Loss
}

// Loss is what never reached the handler.
type Loss struct {
	QueueDropped uint64 // dropped (or, failing open, accepted) by the kernel because MaxLen packets were waiting
	UserDropped  uint64 // the same because the socket's receive buffer was full
	Overruns     uint64 // times that the socket reported ENOBUFS for that
}

// Queue is a bound netfilter queue.
type Queue struct {
	num     uint16
	opt     Options
	handler Handler

	mu   sync.RWMutex // guards conn: verdicts read it; reopening and Close write it
	conn *conn        // nil once closed

	conntrack                    atomic.Bool // packets come with their conntrack entries
	received, verdicts, overruns atomic.Uint64
	queueDropped, userDropped    atomic.Uint64
	closing, done                chan struct{}
	closeOnce                    sync.Once
	err                          error // why done was closed; read only after that
}

// Open binds queue num and returns when packets can be queued to it. The queue closes when ctx ends.
func Open(ctx context.Context, num uint16, opt Options, h Handler) (*Queue, error) {
	if opt.MaxLen == 0 {
		opt.MaxLen = DefaultMaxLen
	}
	if opt.Batch == 0 {
		opt.Batch = DefaultBatch
	}
	if opt.Batch < 1 || opt.Batch > MaxBatch {
		return nil, fmt.Errorf("queue %d: %d packets at a time: it must be 1 to %d", num, opt.Batch, MaxBatch)
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.OnLoss == nil {
		opt.OnLoss = func(Loss) {}
	}
	q := &Queue{num: num, opt: opt, handler: h, closing: make(chan struct{}), done: make(chan struct{})}
	var err error
	if q.conn, err = dial(q); err != nil {
		return nil, err
	}
	go q.watch(ctx)
	return q, nil
}

// Verdict gives the verdict for a packet. It may be called from any goroutine. The kernel hears of it before the next packet
// is waited for, and of all verdicts in the order in which they were given.
func (q *Queue) Verdict(id uint32, v Verdict) error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.conn == nil {
		return ErrClosed
	}
	if err := q.conn.verdict(id, v); err != nil {
		return fmt.Errorf("verdict for packet %d of queue %d: %w", id, q.num, err)
	}
	return nil
}

// Close unbinds the queue: the kernel drops what waits in it. It returns when the handler runs no more, so a handler
// must not call it.
func (q *Queue) Close() error {
	q.closeOnce.Do(func() { close(q.closing) })
	<-q.done
	return q.err
}

// Conntrack says whether packets come with their conntrack entries.
func (q *Queue) Conntrack() bool { return q.conntrack.Load() }

// Done is closed when the queue has ended, by Close, by its context, or because it vanished for good.
func (q *Queue) Done() <-chan struct{} { return q.done }

// Err says why Done was closed: nil after Close or the end of the context. Before that it is nil.
func (q *Queue) Err() error {
	select {
	case <-q.done:
		return q.err
	default:
		return nil
	}
}

// Stats returns the counters. The kernel's own are read once a second.
func (q *Queue) Stats() Stats {
	return Stats{Received: q.received.Load(), Verdicts: q.verdicts.Load(), Loss: q.loss()}
}

func (q *Queue) loss() Loss {
	return Loss{QueueDropped: q.queueDropped.Load(), UserDropped: q.userDropped.Load(), Overruns: q.overruns.Load()}
}
