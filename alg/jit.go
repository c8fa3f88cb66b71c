package alg

import (
	"net/netip"
	"time"

	"ftpalg/policy"
)

// jit is the account of a session's just-in-time pinholes: at most one credit, earned by a request and its reply inside
// TLS, spent by one new four-tuple, lapsing by itself. So a client that scans gets one port and not a range.
// It is a part of Memory.
type jit struct {
	Login uint8     // exchanges so far that a login takes, and that earn nothing
	Next  time.Time // when a credit could be spent if all were spent evenly
	Until time.Time // the credit's end; zero without one
	From  netip.AddrPort
	To    netip.AddrPort // with From: the four-tuple that the last credit went to
	ISN   uint32         // the sequence number of its SYN
	Spent time.Time      // and when
}

// loginExchanges are those before the first that can be for a data connection: USER and PASS.
const loginExchanges = 2

// How fast credits can be spent: so many at once, and then one each so many milliseconds. A client that fetches small files
// one after another over a fast network has some dozens of data connections a second; a scan wants thousands.
const (
	creditBurst = 20
	creditEvery = 20 * time.Millisecond
)

func (j *jit) earn(until time.Time) {
	if j.Login < loginExchanges {
		j.Login++
		return
	}
	j.Until = until
}

// spend takes the credit, unless credits go too fast.
func (j *jit) spend(now time.Time, from, to netip.AddrPort, isn uint32) bool {
	next := j.Next
	if next.Before(now) {
		next = now
	}
	if next.Sub(now) >= creditBurst*creditEvery {
		return false
	}
	*j = jit{Login: j.Login, Next: next.Add(creditEvery), From: from, To: to, ISN: isn, Spent: now}
	return true
}

// HasCredit says whether a SYN at now would get a pinhole.
func (c *Control) HasCredit(now time.Time) bool {
	return c.phase == records && now.Before(c.jit.Until)
}

// SYN decides on the first packet of a data connection between the two hosts, from either of them, with sequence number
// isn and the addresses that it has before NAT. The pinhole is exact to the source port. The reasons are CreditSpent (the
// effects open the pinhole), SYNRepeated (it stands, or was used, already), NoSession, NoCredit and OutsideRange.
func (c *Control) SYN(now time.Time, from, to netip.AddrPort, isn uint32, fx []Effect) (Reason, []Effect) {
	switch {
	case c.phase != records:
		return NoSession, fx
	case c.Repeated(now, from, to, isn):
		return SYNRepeated, fx
	case !c.promised(from, to):
		return OutsideRange, fx
	case !now.Before(c.jit.Until), !c.jit.spend(now, from, to, isn):
		return NoCredit, fx
	}
	fx = c.closePinhole(NextDataCommand, fx)
	c.pinhole = c.toServer(policy.JIT, from, to.Port())
	if from.Addr() == c.seen().server && to.Addr() == c.seen().client {
		c.pinhole = c.toClient(policy.JIT, from, to.Port())
	}
	return CreditSpent, append(fx, Effect{Kind: OpenPinhole, Pinhole: c.pinhole})
}

// Repeated says whether a SYN is the one again that the last credit went to. Another sequence number is another connection:
// a server's source port is always 20 in active mode, and a client may announce the same port twice.
func (c *Control) Repeated(now time.Time, from, to netip.AddrPort, isn uint32) bool {
	return c.jit.From == from && c.jit.To == to && c.jit.ISN == isn && now.Before(c.jit.Spent.Add(c.policy.PinholeTimeout))
}

// promised says whether the policy has room for a data connection from from to to: into the server's passive range, or
// from the server to the client where the rule says so.
func (c *Control) promised(from, to netip.AddrPort) bool {
	if to.Port() < firstUnprivileged && !c.policy.PrivilegedPorts {
		return false
	}
	switch {
	case from.Addr() == c.client.Addr() && to.Addr() == c.server.Addr():
		return c.passivePorts().Contains(to.Port())
	case from.Addr() == c.seen().server && to.Addr() == c.seen().client:
		return c.rule.OpaqueActive
	}
	return false
}
