package lab

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestQueueBalance: with several queues each has its reader, and sessions of several clients over both address families
// get their pinholes.
func TestQueueBalance(t *testing.T) {
	l := newLab(t)
	startFTPAlg(t, l, Policy(), "--queue-balance", "21:24")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	bound, err := l.Run(ctx, Gateway, "cat", "/proc/net/netfilter/nfnetlink_queue")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(bound, "\n"); n != 4 {
		t.Errorf("%d queues are bound, want 4:\n%s", n, bound)
	}
	for range 8 {
		e := scripted(t, l, IPv4)
		e.login(t)
		e.tell(t, fromClient, "PASV")
		e.tell(t, fromServer, pasv(50000))
		transfer(t, l, 50000)
		e.close()
	}
	e := scripted(t, l, IPv6)
	e.login(t)
	e.tell(t, fromClient, "NOOP")
}

// TestQueueConntrack: where the kernel sends conntrack's entries with the packets, sessions begin by them; where it does not
// they are looked up.
func TestQueueConntrack(t *testing.T) {
	l := newLab(t)
	d := startFTPAlg(t, l, Policy(), "--queue-conntrack")
	if !strings.Contains(d.Output(), `"queue_conntrack":true`) && os.Getenv("FTPALG_OWN_KERNEL") != "" {
		t.Errorf("Debian's kernel has NFQA_CT, and it is not used: %s", d.Output())
	}
	for _, family := range []Family{IPv4, IPv6} {
		e := scripted(t, l, family)
		e.login(t)
		e.tell(t, fromClient, "EPSV")
		e.tell(t, fromServer, "229 Entering Extended Passive Mode (|||50000|)")
		e.close()
	}
}
