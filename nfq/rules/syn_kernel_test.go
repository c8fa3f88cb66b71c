package rules

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"ftpalg/nfq"
	"ftpalg/nfq/internal/lab"
)

// wideText has the gateway's own addresses among its servers and clients, and a neighbour of its clients' that no rule names.
const wideText = `version: 1
servers:
  - name: everything there
    addresses: [198.51.100.0/24, "2001:db8:2::/64"]
    passive: 50000-50100
clients:
  - name: office
    addresses: [192.0.2.0/30, "2001:db8:1::/126"]
rules:
  - name: office
    from: office
    action: inspect
    opaque-active: pinhole
`

// TestDataSYNs: a SYN that could be of a data connection is queued if a rule names both its ends and it goes through the gateway.
// Those of others, and those to the gateway itself, go on unread; and so do all where nobody reads the queue, though the policy
// fails closed.
func TestDataSYNs(t *testing.T) {
	install(t, func(c *Config) { c.Policy = parse(t, wideText) })
	forwardAll(t)
	for family, h := range casts {
		guest := netip.PrefixFrom(h.guest, h.guest.BitLen()).String()
		lab.Run(t, "ip -n client addr add "+guest+" dev eth0"+map[bool]string{true: " nodad"}[h.guest.Is6()])
		t.Cleanup(func() { lab.Run(t, "ip -n client addr del "+guest+" dev eth0") })
		t.Run(family, func(t *testing.T) { dataSYNs(t, h) })
	}
}

func dataSYNs(t *testing.T, h hosts) {
	inner, outer := h.server.Prev(), h.client.Prev() // the gateway's own
	for _, c := range []struct {
		name, near, far string // no far: the gateway
		from, to        netip.Addr
		port            uint16
		queued          int32
	}{
		{"passive", "client", "server", h.client, h.server, 50007, 1},
		{"passive, of no client", "client", "server", h.guest, h.server, 50008, 0},
		{"beside the passive range", "client", "server", h.client, h.server, 50101, 0},
		{"to the gateway, at a server's address", "client", "", h.client, inner, 50009, 0},
		{"active", "server", "client", h.server, h.client, 40007, 1},
		{"active, to no client", "server", "client", h.server, h.guest, 40008, 0},
		{"to the gateway, at a client's address", "server", "", h.server, outer, 40009, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := hear(t, c.far, port(c.to, c.port))
			talk(t, reach(t, c.near, c.from, port(c.to, c.port)), accept(t, l)) // nobody reads the queue
			if n := synsQueued(t, func() {
				talk(t, reach(t, c.near, c.from, port(c.to, c.port)), accept(t, l))
			}); n != c.queued {
				t.Errorf("%d packets were queued, want %d", n, c.queued)
			}
		})
	}
}

// synsQueued counts what comes to the queue while something is done, and accepts it.
func synsQueued(t *testing.T, do func()) int32 {
	t.Helper()
	var q *nfq.Queue
	var n atomic.Int32
	ready := make(chan struct{})
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(p *nfq.Packet) {
		<-ready
		n.Add(1)
		_ = q.Verdict(p.ID, nfq.Verdict{Accept: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	do()
	q.Close()
	return n.Load()
}

// hear listens in a namespace of the lab, or, without a name, on the gateway.
func hear(t *testing.T, name, address string) net.Listener {
	t.Helper()
	if name != "" {
		return listen(t, name, address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// forwardAll has the gateway of install forward what nobody refuses.
func forwardAll(t *testing.T) {
	t.Helper()
	if underTest == BackendNFT {
		lab.Run(t, "nft add rule "+theirTable+" forward accept")
		return
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		lab.Run(t, tool+" -w -P FORWARD ACCEPT")
	}
}
