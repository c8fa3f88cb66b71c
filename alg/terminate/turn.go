package terminate

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/alg"
)

// waitTurn waits until a client's line may be taken, or until the replies that it waits for are overdue.
func (s *session) waitTurn(l line) {
	if s.over || s.dialogue.ready(l) {
		return
	}
	began, stop := time.Now(), s.tick()
	defer stop()
	for !s.over && !s.dialogue.ready(l) && !s.deserted(began) {
		if limit := s.dialogue.patience(s.givenUp()); limit > 0 && time.Since(began) >= limit {
			s.dialogue.goOn()
			continue
		}
		s.turn.Wait()
	}
}

// waitReplies waits for the replies that a client has to come which says no more.
func (s *session) waitReplies() {
	began, stop := time.Now(), s.tick()
	defer stop()
	for !s.over && s.dialogue.busy() && !s.deserted(began) {
		s.turn.Wait()
	}
}

// deserted ends the session if nobody is there for the reply that is waited for since it began, and reports whether it did.
// Nobody reads the client's connection meanwhile, so TCP is asked: a client may have closed its direction alone (RFC 9293 section
// 3.6) or the whole connection, which looks the same, so it has the time that an idle session has, as long as no data moves.
func (s *session) deserted(began time.Time) bool {
	silent := time.Since(began)
	if s.heard.After(began) {
		silent = time.Since(s.heard)
	}
	switch stage(s.peers[alg.Client].tcp) {
	case unix.BPF_TCP_CLOSE:
		s.lost(net.ErrClosed)
	case unix.BPF_TCP_CLOSE_WAIT:
		if silent >= s.policy.Limits.IdleTimeout && !s.moves() {
			s.lost(os.ErrDeadlineExceeded)
		}
	}
	return s.over
}

// moves reports whether a transfer is under way whose data goes through the kernel, or has come here.
func (s *session) moves() bool {
	n := s.promise
	return n != nil && s.dialogue.control.Transferring() != alg.NoTransfer && (!n.relayed.Load() || s.relaying.Load() > 0)
}

// turnTick is how often one who waits for its turn looks at the clock.
const turnTick = time.Second

// tick has those who wait for their turn look again, every turnTick until stop is called.
func (s *session) tick() (stop func()) {
	ticker, done := time.NewTicker(turnTick), make(chan struct{})
	go func() {
		for {
			select {
			case <-ticker.C:
				s.turn.Broadcast()
			case <-done:
				return
			}
		}
	}()
	return func() {
		ticker.Stop()
		close(done)
	}
}
