package terminate

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"ftpalg/policy"
)

// TestRenewalUndoesNoReload: a policy that is put in force while the key for tickets is renewed stays in force.
func TestRenewalUndoesNoReload(t *testing.T) {
	const reloads = 20_000
	g := &Gateway{}
	g.SetPolicy(&policy.Policy{}, nil)
	var renewing sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		renewing.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					g.renewTickets(time.Now().Add(2 * ticketLife))
				}
			}
		})
	}
	defer renewing.Wait()
	defer close(done)
	for i := range reloads {
		p := &policy.Policy{}
		g.SetPolicy(p, nil)
		for range 3 { // for a renewal that began before
			runtime.Gosched()
			if g.inForce.Load().policy != p {
				t.Fatalf("reload %d of %d was undone", i, reloads)
			}
		}
	}
}
