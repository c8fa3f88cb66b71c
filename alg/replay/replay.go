// Package replay is the front end that reads captures: the same streams, engine and policy as on the packet path, with a
// report in place of the kernel.
package replay

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/inspect"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// Run replays a capture (pcap or pcapng, gzip or not) through the policy, and reports events in the capture's time. If
// the file is damaged or cut off, everything before the damage has been reported when the error comes.
func Run(r io.Reader, p *policy.Policy, report func(audit.Event)) error {
	file, err := open(r)
	if err != nil {
		return err
	}
	p = watched(p)
	c := &capture{
		policy: p, decoder: nfq.NewDecoder(), tcp: map[inspect.Key]*connection{},
		fragments: fragments{open: map[datagram]*pieces{}},
	}
	c.report = report
	c.inspector = inspect.New(inspect.Options{Policy: p, Conntrack: c, Report: report, Lossy: true})
	for n := 1; ; n++ {
		f, err := file.next()
		if err != nil {
			c.giveUpWhere(func(*connection) bool { return true })
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("packet %d: the capture is damaged or cut off; what was before it is reported: %w", n, err)
		}
		c.giveUpWhere(func(conn *connection) bool { return f.at.Sub(conn.waiting[0].at) > waitForBytes })
		c.inspector.Expire(f.at)
		c.frame(f)
	}
}

// watched is the policy as far as a capture can show it: nobody opens TLS there, so what is terminated on the packet path is
// read as far as it is in clear text.
func watched(p *policy.Policy) *policy.Policy {
	w := *p
	w.Rules = slices.Clone(p.Rules)
	for i := range w.Rules {
		if w.Rules[i].Action == policy.Terminate {
			w.Rules[i].Action = policy.Inspect
		}
	}
	return &w
}

// Expect takes every pinhole and holds none.
func (c *capture) Expect(conntrack.Expectation) error { return nil }

// Withdraw forgets what Expect did not keep.
func (c *capture) Withdraw(conntrack.Expectation) error { return nil }

// SetLabel writes nothing: a replay ends with its sessions.
func (c *capture) SetLabel(conntrack.Tuple, conntrack.Label, conntrack.Label) error { return nil }

// AdjustSequence is never asked for: a capture shows no NAT.
func (c *capture) AdjustSequence(conntrack.Tuple, bool, conntrack.Adjustment) error {
	return conntrack.ErrNoAdjustment
}

// Lookup says of a connection whether a side has sent FIN so far.
func (c *capture) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	conn := c.tcp[inspect.Key{Client: t.Src, Server: t.Dst}]
	if conn == nil {
		return conntrack.Entry{}, conntrack.ErrNotFound
	}
	entry := conntrack.Untranslated(t)
	entry.Opened, entry.Live = true, conn.fin == [2]bool{}
	return entry, nil
}

// noQueue takes verdicts on packets that went through long ago.
type noQueue struct{}

func (noQueue) Verdict(uint32, nfq.Verdict) error { return nil }

// capture is a replay at work.
type capture struct {
	policy    *policy.Policy
	decoder   *nfq.Decoder
	inspector *inspect.Inspector
	report    func(audit.Event)
	tcp       map[inspect.Key]*connection
	waiting   []*connection // with segments that wait
	segment   nfq.Segment
	fragments fragments
}

// connection is a TCP connection of the capture, by the side that sent the SYN.
type connection struct {
	key     inspect.Key
	control bool
	denied  bool   // a control connection that the policy does not allow
	begun   bool   // its SYN was seen
	isn     uint32 // and had this sequence number
	spoke   bool   // a segment with payload was seen
	sides   [2]direction
	fin     [2]bool
	over    bool
	waiting []waitingSegment
}

func (conn *connection) side(client bool) *direction { return &conn.sides[sideIndex(client)] }

// between says whether the connection's hosts are a and b.
func (conn *connection) between(a, b netip.Addr) bool {
	client, server := conn.key.Client.Addr(), conn.key.Server.Addr()
	return a == client && b == server || a == server && b == client
}

func sideIndex(client bool) int {
	if client {
		return 0
	}
	return 1
}

// frame takes one frame. What is not TCP over IP is nobody's control connection and passed over.
func (c *capture) frame(f frame) {
	packet := c.fragments.whole(f.at, network(f.link, f.data))
	if packet == nil || c.decoder.Decode(packet, &c.segment) != nil {
		return
	}
	c.packet(f.at, &c.segment)
}

// packet takes one segment.
func (c *capture) packet(at time.Time, seg *nfq.Segment) {
	key, fromClient := c.direction(seg)
	conn := c.tcp[key]
	if conn != nil && !conn.over && c.isSYN(seg) && conn.replacedBy(seg) {
		c.giveUp(conn)
		c.end(at, conn)
	}
	if conn == nil || conn.over && seg.Flags&nfq.SYN != 0 {
		conn = &connection{key: key}
		c.tcp[key] = conn
	}
	if conn.over {
		return
	}
	if c.isSYN(seg) {
		conn.begun, conn.isn = true, seg.Seq
	}
	c.recognise(at, conn, fromClient, seg)
	conn.spoke = conn.spoke || len(seg.Payload) > 0
	switch {
	case conn.denied: // nothing of it would have gone on
		c.close(at, conn, fromClient, seg)
	case conn.control:
		c.order(at, conn, fromClient, seg)
	case c.isSYN(seg):
		// Whoever opens a data connection has the line that announced it.
		c.giveUpWhere(func(conn *connection) bool { return conn.between(seg.Src.Addr(), seg.Dst.Addr()) })
		c.inspector.Packet(at, inspect.Packet{Queue: noQueue{}}, seg)
		fallthrough
	default:
		c.close(at, conn, fromClient, seg)
	}
}

// replacedBy says whether a SYN begins another connection between the same ports, the end of this one not being in the
// capture. A repeated SYN has the same sequence number.
func (conn *connection) replacedBy(syn *nfq.Segment) bool {
	if conn.begun {
		return conn.isn != syn.Seq
	}
	return conn.spoke
}

func (c *capture) isSYN(seg *nfq.Segment) bool {
	return seg.Flags&(nfq.SYN|nfq.ACK) == nfq.SYN
}

// direction gives the connection of a segment: its client is who sent the SYN, or else who is not at a control port.
func (c *capture) direction(seg *nfq.Segment) (key inspect.Key, fromClient bool) {
	forward, backward := inspect.Key{Client: seg.Src, Server: seg.Dst}, inspect.Key{Client: seg.Dst, Server: seg.Src}
	switch {
	case c.isSYN(seg):
		return forward, true
	case c.tcp[forward] != nil:
		return forward, true
	case c.tcp[backward] != nil:
		return backward, false
	case seg.Flags&(nfq.SYN|nfq.ACK) == nfq.SYN|nfq.ACK, c.policy.IsControlPort(seg.Src):
		return backward, false
	}
	return forward, true
}

// recognise finds out whether a connection is a control connection: by its port, or else by a server that greets as FTP
// servers do on a port that no mail server uses.
func (c *capture) recognise(at time.Time, conn *connection, fromClient bool, seg *nfq.Segment) {
	if conn.control {
		return
	}
	known := c.policy.IsControlPort(conn.key.Server)
	greeted := !fromClient && !conn.spoke && greets(seg.Payload) && !mailPort(conn.key.Server)
	if !known && !greeted {
		return
	}
	conn.control = true
	switch why := alg.Admit(c.policy.Decide(conn.key.Client.Addr(), conn.key.Server)); {
	case why == alg.PolicyDenied:
		// Told once: the inspector would do so for every packet.
		conn.denied = true
		c.report(audit.Event{Time: at, Kind: audit.EventDeny, Reason: why, From: conn.key.Client, To: conn.key.Server})
	case greeted && !known:
		c.inspector.Begin(at, conn.key)
	case seg.Flags&nfq.SYN == 0:
		c.inspector.Resume(at, conntrack.Untranslated(conntrack.Tuple{Src: conn.key.Client, Dst: conn.key.Server}), inspect.Memory{})
	}
}

// greets says whether a server's first bytes are an FTP greeting (RFC 959 section 5.4).
func greets(b []byte) bool {
	return len(b) >= 4 && string(b[:3]) == "220" && (b[3] == ' ' || b[3] == '-')
}

func mailPort(a netip.AddrPort) bool {
	switch a.Port() {
	case 25, 465, 587, 2525:
		return true
	}
	return false
}

// close ends a session when its connection ends.
func (c *capture) close(at time.Time, conn *connection, fromClient bool, seg *nfq.Segment) {
	if seg.Flags&nfq.FIN != 0 {
		conn.fin[sideIndex(fromClient)] = true
	}
	if seg.Flags&nfq.RST != 0 || conn.fin[0] && conn.fin[1] {
		c.end(at, conn)
	}
}

func (c *capture) end(at time.Time, conn *connection) {
	conn.over = true
	if conn.control {
		c.inspector.End(at, conn.key, 0)
	}
}
