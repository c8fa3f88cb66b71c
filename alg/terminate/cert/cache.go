package cert

import (
	"container/list"
	"crypto/tls"
	"sync"
)

// cache keeps the minted certificates that were used last.
type cache struct {
	most int

	mu    sync.Mutex
	order *list.List // of *entry, the one that was used last in front
	at    map[origin]*list.Element
}

type entry struct {
	origin      origin
	certificate *tls.Certificate
}

func newCache(most int) *cache {
	return &cache{most: most, order: list.New(), at: map[origin]*list.Element{}}
}

// get gives the certificate for o, or nil.
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

// add keeps a certificate for o and gives it back, or another that has been added meanwhile, so that all show the same.
func (c *cache) add(o origin, certificate *tls.Certificate) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.at[o]; e != nil {
		return e.Value.(*entry).certificate
	}
	c.at[o] = c.order.PushFront(&entry{o, certificate})
	if c.order.Len() > c.most {
		delete(c.at, c.order.Remove(c.order.Back()).(*entry).origin)
	}
	return certificate
}
