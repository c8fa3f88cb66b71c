package alg

import (
	"bytes"
	"encoding/gob"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ftpalg/policy"
)

// handOver gives the state machine that another process would go on with, or c itself where that has to begin anew.
func handOver(t testing.TB, c *Control) *Control {
	t.Helper()
	m, ok := c.Remember()
	if !ok {
		return c
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(m); err != nil {
		t.Fatal(err)
	}
	m = Memory{}
	if err := gob.NewDecoder(&b).Decode(&m); err != nil {
		t.Fatal(err)
	}
	next := Resume(c.policy, c.policy.Decide(c.client.Addr(), c.server), c.client, c.server, PhaseUnknown)
	if !next.Recall(m) {
		t.Fatalf("%+v is not gone on with", m)
	}
	return next
}

// TestRecall: whoever goes on with a control connection decides as the one before would have, wherever the change falls.
func TestRecall(t *testing.T) {
	handedOver := 0
	for _, tr := range transcripts(t) {
		if strings.Contains(tr.Name, "terminated/") {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(tr.Name), ".txt"), func(t *testing.T) {
			c := control(t, tr)
			for _, step := range tr.Steps {
				before := c
				if c = handOver(t, c); c != before {
					handedOver++
				}
				got := describeAll(c.Feed(now, side(step.FromClient), step.Data, nil))
				if !slices.Equal(got, step.Expect) {
					t.Errorf("%s:%d: %q\n got %q\nwant %q", tr.Name, step.Line, step.Data, got, step.Expect)
				}
			}
		})
	}
	if handedOver < 100 {
		t.Errorf("only %d steps were handed over", handedOver)
	}
}

// TestRecallForbidden: what a policy has come to forbid is not gone on with.
func TestRecallForbidden(t *testing.T) {
	c := New(policy.AllowAll(), policy.AllowAll().Decide(tlsClientAddr.Addr(), tlsServerAddr), tlsClientAddr, tlsServerAddr)
	c.Feed(now, Server, []byte("220 ready\r\n"), nil)
	for _, step := range []string{"AUTH TLS\r\n", "234 go\r\n"} {
		c.Feed(now, side(step[0] == 'A'), []byte(step), nil)
		m, ok := c.Remember()
		if !ok {
			t.Fatalf("behind %q there is no memory", step)
		}
		closed := policy.AllowAll()
		d := closed.Decide(tlsClientAddr.Addr(), tlsServerAddr)
		d.Rule.OpaquePinhole = false
		if next := Resume(closed, d, tlsClientAddr, tlsServerAddr, PhaseTLS); next.Recall(m) || next.HasCredit(now) || next.Opaque(Client) {
			t.Errorf("behind %q: TLS goes on", step)
		}
	}
}

// TestRecallNothing: a memory that says nothing opens nothing, and one with too much is bounded.
func TestRecallNothing(t *testing.T) {
	p := policy.AllowAll()
	c := Resume(p, p.Decide(tlsClientAddr.Addr(), tlsServerAddr), tlsClientAddr, tlsServerAddr, PhaseUnknown)
	if !c.Recall(Memory{Outstanding: make([]run, 1000)}) || c.kinds.used != maxRuns {
		t.Errorf("%d runs", c.kinds.used)
	}
	if c.Recall(Memory{Phase: records}) {
		t.Error("inside TLS without its records")
	}
}
