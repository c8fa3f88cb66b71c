package nfq

import (
	"context"
	"fmt"
	"time"
)

const (
	// watchInterval is how often the kernel's counters are read: often enough for an operator's eyes, and cheap.
	watchInterval = time.Second
	// reopenTries bounds the attempts to have a vanished queue back, one each watchInterval. A supervisor that
	// restarts the daemon does better than a daemon that stays up without its queue.
	reopenTries = 5
)

// watch runs for the life of the queue: it reports losses, and has a vanished queue back. It alone changes q.conn.
func (q *Queue) watch(ctx context.Context) {
	defer close(q.done)
	c := q.conn
	defer func() {
		c.close() // the handler still gives its verdict on what was read: it has decided, and nobody else will
		q.swap(nil)
	}()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var reported, kernel Loss // kernel is what this binding's counters said before
	for {
		var cause error
		select {
		case <-ctx.Done():
			return
		case <-q.closing:
			return
		case <-c.ended:
			cause = c.err
		case <-tick.C:
			cause = q.poll(c, &kernel)
			q.report(&reported)
		}
		if cause == nil {
			continue
		}
		q.opt.Logger.Error("queue lost", "queue", q.num, "err", cause)
		q.swap(nil)
		c.close()
		again := q.rebind(ctx, cause)
		if again == nil {
			return
		}
		c, kernel = again, Loss{}
		q.swap(c)
	}
}

// rebind tries to bind the queue again. It returns nil when the queue was closed meanwhile, or, with q.err set, when
// the tries were in vain.
func (q *Queue) rebind(ctx context.Context, cause error) *conn {
	for range reopenTries {
		c, err := dial(q)
		if err == nil {
			q.opt.Logger.Warn("queue bound again", "queue", q.num)
			return c
		}
		q.opt.Logger.Error("queue not bound", "queue", q.num, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-q.closing:
			return nil
		case <-time.After(watchInterval):
		}
	}
	q.err = fmt.Errorf("queue %d: %w; %d attempts to bind it again failed", q.num, cause, reopenTries)
	return nil
}

// poll reads the kernel's counters, and whether the queue is still ours.
func (q *Queue) poll(c *conn, before *Loss) error {
	entry, found, err := lookup(q.num)
	if err != nil {
		q.opt.Logger.Warn("queue counters not read", "queue", q.num, "err", err)
		return nil
	}
	if !found {
		return fmt.Errorf("%w: it is not in %s any more", ErrVanished, procQueues)
	}
	if entry.PortID != c.socket.port {
		return fmt.Errorf("%w: %s", ErrVanished, entry.Owner())
	}
	// The kernel's counters are 32 bits wide and wrap; so must the difference.
	q.queueDropped.Add(uint64(uint32(entry.QueueDropped - before.QueueDropped)))
	q.userDropped.Add(uint64(uint32(entry.UserDropped - before.UserDropped)))
	before.QueueDropped, before.UserDropped = entry.QueueDropped, entry.UserDropped
	return nil
}

// report hands on what was lost since it was last called.
func (q *Queue) report(before *Loss) {
	now := q.loss()
	if now == *before {
		return
	}
	q.opt.OnLoss(Loss{
		QueueDropped: now.QueueDropped - before.QueueDropped,
		UserDropped:  now.UserDropped - before.UserDropped,
		Overruns:     now.Overruns - before.Overruns,
	})
	*before = now
}

// swap sets the conn that verdicts go through; nil while there is none.
func (q *Queue) swap(c *conn) {
	q.mu.Lock()
	q.conn = c
	q.mu.Unlock()
}
