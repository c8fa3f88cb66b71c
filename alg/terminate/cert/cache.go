package cert

import (
	"container/list"
	"crypto/tls"
	"net/netip"
	"sync"

	"ftpalg/alg/ledger"
)

// cache keeps the minted certificates that were used last. A client whose share is used up has one of its own replaced, never
// another's.
type cache struct {
	kept *ledger.Account

	mu    sync.Mutex               // guards what follows
	order *list.List               // of *entry, the one that was used last in front
	at    map[origin]*list.Element // where each is in order
}

type entry struct {
	origin      origin
	certificate *tls.Certificate
	client      netip.Addr // that asked first
}

func newCache(most, ofClient int) *cache {
	return &cache{kept: ledger.New(ledger.Fixed(most, ofClient)), order: list.New(), at: map[origin]*list.Element{}}
}

// get returns the certificate for o, or nil.
func (c *cache) get(o origin) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.at[o]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).certificate
}

// add keeps a certificate for o and returns it, or another that has been added meanwhile, so that all show the same.
func (c *cache) add(o origin, certificate *tls.Certificate, client netip.Addr) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.at[o]; e != nil {
		return e.Value.(*entry).certificate
	}
	switch c.kept.Take(client, 1) {
	case nil:
	case ledger.ErrShare:
		c.replace(c.oldestOf(client), client)
	default:
		c.replace(c.order.Back(), client)
	}
	c.at[o] = c.order.PushFront(&entry{o, certificate, client})
	return certificate
}

// replace makes room for a client's certificate where another is. c.mu must be held.
func (c *cache) replace(old *list.Element, client netip.Addr) {
	e := c.order.Remove(old).(*entry)
	delete(c.at, e.origin)
	c.kept.Release(e.client, 1)
	_ = c.kept.Take(client, 1) // nobody else takes any: c.mu is held
}

// oldestOf is the certificate of a client that was used longest ago. c.mu must be held, and there is one.
func (c *cache) oldestOf(client netip.Addr) *list.Element {
	e := c.order.Back()
	for ledger.Client(e.Value.(*entry).client) != ledger.Client(client) {
		e = e.Prev()
	}
	return e
}
