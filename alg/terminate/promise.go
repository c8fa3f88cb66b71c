package terminate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
	"ftpalg/policy"
)

// promise is an announced data connection, from its announcement to its close.
type promise struct {
	session *session
	pinhole alg.Pinhole
	at      netip.AddrPort // where it is to come: the pinhole's To, but for the port if another client has that one
	until   time.Time      // when the pinhole lapses
	relayed atomic.Bool    // it comes here, and not through the kernel

	settled chan struct{} // closed when what is to be moved has been, or cannot be
	settle  func()        // closes settled

	mu       sync.Mutex    // guards what follows
	changed  chan struct{} // closed when something that await looks at has changed
	transfer *transfer     // the one that was asked for; nil: none, or the server refused it
	accepted bool          // the server has answered the transfer with 1yz: its bytes may move
	gone     bool          // nobody will ask for a transfer any more
	cut      func()        // breaks the data connection off; nil while it is not here
	instead  string        // the reply that the transfer has to end with
	broken   bool          // the data connection could not be made, or its TLS failed
	over     bool          // it was made, and is gone
}

// transfer is a transfer command that went on to the server, and how its data is protected: as the session was at that
// moment, for after CCC and another AUTH it has other configurations.
type transfer struct {
	direction alg.Direction
	levels    [2]alg.Level
	configs   [2]*tls.Config
	shown     *x509.Certificate // by the client on the control connection, where the policy asks for one
}

// sameProtection reports whether the data of both transfers is protected in the same way, by the same TLS sessions.
func (t *transfer) sameProtection(other *transfer) bool {
	for side, level := range t.levels {
		if level != other.levels[side] || level == alg.TLS && t.configs[side] != other.configs[side] {
			return false
		}
	}
	return true
}

func (s *session) newPromise(p alg.Pinhole, relayed bool) *promise {
	settled := make(chan struct{})
	n := &promise{
		session: s, pinhole: p, at: p.To, until: time.Now().Add(s.policy.PinholeTimeout),
		settled: settled, settle: sync.OnceFunc(func() { close(settled) }),
		changed: make(chan struct{}),
	}
	n.relayed.Store(relayed)
	return n
}

// stands is the pinhole where it came to be.
func (n *promise) stands() alg.Pinhole {
	p := n.pinhole
	p.To = n.at
	return p
}

func (n *promise) expectation() conntrack.Expectation {
	s := n.session
	return conntrack.Expectation{Master: s.tuple(), From: n.pinhole.From, To: n.at, Timeout: s.policy.PinholeTimeout, Exclusive: true}
}

// active reports whether the server connects, to a port that the client has announced.
func (n *promise) active() bool {
	return n.pinhole.Mode == policy.PORT || n.pinhole.Mode == policy.EPRT
}

// ends are those of the expectation.
func (n *promise) ends() ledger.Door { return ledger.Door{From: n.pinhole.From, To: n.at} }

func (n *promise) door() door { return door{n.pinhole.From.Addr(), n.at} }

// ask notes the transfer that is asked for over the data connection. It reports false if another one was, and the server
// has accepted it or not answered yet: a data connection carries one transfer (RFC 959 section 3.3, stream mode).
func (n *promise) ask(t *transfer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.transfer != nil {
		return false
	}
	n.transfer = t
	n.change()
	return true
}

// accept notes that the server carries the transfer out.
func (n *promise) accept() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.transfer != nil && !n.accepted {
		n.accepted = true
		n.change()
	}
}

// isAccepted reports whether the server has answered its transfer with 1yz.
func (n *promise) isAccepted() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.accepted
}

// refuse notes the server's final reply to a transfer that it has not accepted: the data connection is there for the next
// one, whose direction, limit and protection are its own. It reports false if the transfer had begun.
func (n *promise) refuse() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.accepted {
		return false
	}
	n.transfer = nil
	n.change()
	return true
}

// abandon notes that nobody will ask for a transfer any more. One that the server has accepted goes on to its end.
func (n *promise) abandon() {
	n.mu.Lock()
	n.gone = true
	cut := n.cut
	if n.accepted {
		cut = nil
	}
	n.change()
	n.mu.Unlock()
	if cut != nil {
		cut()
	}
}

// change wakes who waits in await. The lock is held.
func (n *promise) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// await waits until something is true of the promise, which is called with its lock held, and reports whether it is. It gives
// up when nobody will ask for a transfer any more, and when ctx ends.
func (n *promise) await(ctx context.Context, is func() bool) bool {
	for {
		n.mu.Lock()
		ok, gone, changed := is(), n.gone, n.changed
		n.mu.Unlock()
		if ok || gone {
			return ok
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// awaitAsked waits for a transfer command, and returns nil if none comes.
func (n *promise) awaitAsked(ctx context.Context) (t *transfer) {
	n.await(ctx, func() bool { t = n.transfer; return t != nil })
	return t
}

// awaitAnswer waits until the server has answered a transfer command, and reports whether it accepted it. It gives up when
// that takes too long.
func (n *promise) awaitAnswer(ctx context.Context, t *transfer, limit time.Duration) (accepted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answered := n.await(ctx, func() bool {
		accepted = n.transfer == t && n.accepted
		return accepted || n.transfer != t
	})
	if !answered && ctx.Err() == context.DeadlineExceeded {
		return false, errUnanswered
	}
	return accepted, nil
}

// arrived notes that the data connection is here, and how to break it off. It reports false if nobody wants it any more.
func (n *promise) arrived(cut func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	return !n.gone || n.accepted
}

// ended notes that the data connection is gone.
func (n *promise) ended() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over, n.cut = true, nil
}

// fail ends the transfer with a reply of ours, at once: the server's may come late, or never. Of a data connection that fails
// before a transfer is asked for the next one is refused.
func (n *promise) fail(why alg.Reason) {
	s := n.session
	s.mu.Lock()
	defer s.mu.Unlock()
	n.mu.Lock()
	n.broken = true
	if n.instead == "" {
		n.instead = why.Reply()
	}
	asked, text := n.transfer != nil, n.instead
	n.mu.Unlock()
	if asked && s.promise == n {
		s.dialogue.endTransfer(text)
	}
}

func (n *promise) isBroken() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broken
}
