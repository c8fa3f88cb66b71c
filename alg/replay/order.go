package replay

import (
	"slices"
	"time"

	"ftpalg/alg/inspect"
	"ftpalg/nfq"
)

// Captures are not always in order: with several interfaces or receive queues an acknowledgement may be written before
// what it acknowledges, and a reply before its command. On the packet path that cannot be, so it is put right here: a
// segment that acknowledges bytes not seen so far waits for them, until it is plain that the capture does not have them.
const (
	// waitForBytes is how long that is at most, in the capture's time; disorder is a matter of microseconds.
	waitForBytes = 100 * time.Millisecond
	// maxWaiting bounds the segments of one connection that wait.
	maxWaiting = 64
	// window is the farthest that an acknowledgement can be ahead of what was seen (RFC 7323 section 2.3).
	window = 1 << 30
)

// waitingSegment is a segment with memory of its own.
type waitingSegment struct {
	at         time.Time
	fromClient bool
	segment    nfq.Segment
}

// direction is what has been delivered of one side of a connection.
type direction struct {
	seen bool
	next uint32 // sequence number behind it
}

// ahead says whether a segment has waiting to do.
func (conn *connection) ahead(fromClient bool, seg *nfq.Segment) bool {
	peer := conn.side(!fromClient)
	distance := int32(seg.Ack - peer.next)
	return peer.seen && seg.Flags&nfq.ACK != 0 && 0 < distance && distance < window
}

// gap says whether a segment begins behind bytes that were not seen.
func (conn *connection) gap(fromClient bool, seg *nfq.Segment) bool {
	own := conn.side(fromClient)
	return own.seen && int32(seg.Seq-own.next) > 0
}

// order delivers a segment, or lets it wait.
func (c *capture) order(at time.Time, conn *connection, fromClient bool, seg *nfq.Segment) {
	if !conn.ahead(fromClient, seg) {
		c.deliver(at, conn, fromClient, seg)
		c.settle(conn)
		return
	}
	// When the side that is waited for goes on behind the missing bytes, the capture has not got them.
	lost := conn.gap(fromClient, seg) && len(conn.waiting) > 0
	own := *seg
	own.Packet = slices.Clone(seg.Packet)
	own.Payload = own.Packet[len(seg.Packet)-len(seg.Payload):]
	if len(conn.waiting) == 0 {
		c.waiting = append(c.waiting, conn)
	}
	conn.waiting = append(conn.waiting, waitingSegment{at, fromClient, own})
	if lost || len(conn.waiting) > maxWaiting {
		c.giveUp(conn)
	}
}

// settle delivers what waits for nothing any more.
func (c *capture) settle(conn *connection) {
	for i := 0; i < len(conn.waiting); {
		w := conn.waiting[i]
		if conn.ahead(w.fromClient, &w.segment) {
			i++
			continue
		}
		conn.waiting = slices.Delete(conn.waiting, i, i+1)
		c.deliver(w.at, conn, w.fromClient, &w.segment)
		i = 0
	}
	c.settled()
}

// settled drops the connections of which nothing waits any more.
func (c *capture) settled() {
	c.waiting = slices.DeleteFunc(c.waiting, func(conn *connection) bool { return len(conn.waiting) == 0 })
}

// giveUp delivers everything that waits.
func (c *capture) giveUp(conn *connection) {
	for len(conn.waiting) > 0 {
		w := conn.waiting[0]
		conn.waiting = conn.waiting[1:]
		c.deliver(w.at, conn, w.fromClient, &w.segment)
	}
	c.settled()
}

// giveUpWhere delivers everything that waits of some connections.
func (c *capture) giveUpWhere(some func(*connection) bool) {
	for _, conn := range slices.Clone(c.waiting) {
		if some(conn) {
			c.giveUp(conn)
		}
	}
}

// deliver hands a segment of a control connection to the inspector.
func (c *capture) deliver(at time.Time, conn *connection, fromClient bool, seg *nfq.Segment) {
	if conn.over {
		return
	}
	d := conn.side(fromClient)
	end := seg.Seq + uint32(len(seg.Payload))
	if seg.Flags&(nfq.SYN|nfq.FIN) != 0 {
		end++
	}
	if !d.seen || int32(end-d.next) > 0 {
		d.seen, d.next = true, end
	}
	c.inspector.Packet(at, inspect.Packet{Queue: noQueue{}}, seg)
	c.close(at, conn, fromClient, seg)
}
