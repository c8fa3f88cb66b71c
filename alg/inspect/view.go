package inspect

import (
	"sync"
	"sync/atomic"

	"ftpalg/conntrack"
	"ftpalg/nfq"
)

// Sessions go by what their client sees: its own address, and where it went. Under NAT the server's packets show other
// addresses: its own, and where it sees the client. The queue stands before NAT, so that every packet has either all of the
// one or all of the other.

// views leads from what servers see to what clients see.
type views struct {
	used  atomic.Bool // since the first session under NAT
	mu    sync.RWMutex
	keys  map[Key]Key
	hosts map[hosts]map[hosts]int // with the number of sessions
}

// natted says whether a connection is under NAT.
func natted(e conntrack.Entry) bool { return e.Reply != e.Orig.Reversed() }

func (k Key) hosts() hosts { return hosts{k.Client.Addr(), k.Server.Addr()} }

func (v *views) add(server, client Key) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys[server] = client
	if v.hosts[server.hosts()] == nil {
		v.hosts[server.hosts()] = map[hosts]int{}
	}
	v.hosts[server.hosts()][client.hosts()]++
	v.used.Store(true)
}

func (v *views) drop(server, client Key) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys[server] == client { // and not that of a later connection between the same ports
		delete(v.keys, server)
	}
	n := v.hosts[server.hosts()]
	if n[client.hosts()]--; n[client.hosts()] == 0 {
		delete(n, client.hosts())
	}
	if len(n) == 0 {
		delete(v.hosts, server.hosts())
	}
}

// translate gives a server's segment the addresses that its client sees.
func (v *views) translate(seg *nfq.Segment) {
	if !v.used.Load() {
		return
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if k, ok := v.keys[Key{Client: seg.Dst, Server: seg.Src}]; ok {
		seg.Src, seg.Dst = k.Server, k.Client
	}
}

// origins gives the pairs of hosts that a server sees as the pair seen.
func (v *views) origins(seen hosts) []hosts {
	if !v.used.Load() {
		return nil
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var list []hosts
	for h := range v.hosts[seen] {
		list = append(list, h)
	}
	return list
}
