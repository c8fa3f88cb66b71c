package conntrack

import (
	"net/netip"
	"time"
)

// Tuple is one direction of a TCP connection as conntrack keeps it.
type Tuple struct {
	Src, Dst netip.AddrPort
}

// Reversed is the tuple of the other direction where there is no NAT.
func (t Tuple) Reversed() Tuple { return Tuple{Src: t.Dst, Dst: t.Src} }

// Expectation is a data connection to come, exact in all but the source port, which is exact as well when From's
// port is not 0. Master is the original direction of the control connection that announced it.
type Expectation struct {
	Master  Tuple
	From    netip.AddrPort // who may connect; port 0 means any source port
	To      netip.AddrPort // exactly where
	Timeout time.Duration  // how long the kernel keeps it unused; whole seconds, at least 1

	// Real is where the connection goes, if the control connection is under NAT: To is an address of the gateway's then, or
	// where DNAT leads from. Where it comes from is translated as the control connection is. The zero value is without NAT.
	Real netip.AddrPort

	// Exclusive has it fail with ErrOverlap where another stands between the same ends, instead of taking its place: several
	// clients may be behind To, and what one of them expects must not be another's for the asking.
	Exclusive bool
}

// Entry is one connection in the conntrack table.
type Entry struct {
	Orig, Reply Tuple
	ID          uint32        // tells it from an earlier connection with the same tuples
	Mark        uint32        // connmark
	Label       Label         // zero if nothing was written, or if the entry has no room for one
	Helper      string        // empty if it carries none, and then no expectation can hang on it
	Opened      bool          // the handshake was completed
	Live        bool          // it was, and neither side has sent FIN or RST, nor (Lookup, Connections) is it about to be forgotten
	Adjusted    [2]Adjustment // of what comes from its client and from its server; zero where nothing moves
	Status      uint32        // IPS_* bits of linux/netfilter/nf_conntrack_common.h
	Timeout     time.Duration // until conntrack forgets it, unless packets come
}

// Untranslated is the entry of a connection without NAT, of which nothing else is known.
func Untranslated(t Tuple) Entry { return Entry{Orig: t, Reply: t.Reversed()} }
