// Package replay is the front end that reads captures: the same streams, engine and policy as on the packet path, with a
// report in place of the kernel.
package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"ftpalg/alg/inspect"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/policy"
)

// Run replays a capture (pcap or pcapng, gzip or not) through the policy, and reports events in the capture's time. If
// the file is damaged or cut off, everything before the damage has been reported when the error comes.
func Run(r io.Reader, p *policy.Policy, report func(inspect.Event)) error {
	packets, err := open(r)
	if err != nil {
		return err
	}
	c := &capture{policy: p, decoder: nfq.NewDecoder(), tcp: map[inspect.Key]*connection{}}
	c.inspector = inspect.New(inspect.Options{Policy: p, Conntrack: c, Report: report, Lossy: true})
	for n := 1; ; n++ {
		data, info, err := packets.ReadPacketData()
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("packet %d: the capture is damaged or cut off; what was before it is reported: %w", n, err)
		}
		c.inspector.Expire(info.Timestamp)
		link := packets.LinkType()
		if len(info.AncillaryData) > 0 {
			if own, ok := info.AncillaryData[0].(layers.LinkType); ok {
				link = own // pcapng: each interface has its own
			}
		}
		c.packet(info.Timestamp, data, link)
	}
}

// maxPacket is the longest packet that a pcap file may hold: libpcap's MAXIMUM_SNAPLEN.
const maxPacket = 262144

// source is what pcap and pcapng readers have in common.
type source interface {
	ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
	LinkType() layers.LinkType
}

var (
	gzipMagic   = []byte{0x1f, 0x8b}
	pcapngMagic = []byte{0x0a, 0x0d, 0x0d, 0x0a}
)

// open finds out which kind of file it is by its first bytes.
func open(r io.Reader) (source, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	magic, _ := b.Peek(4)
	switch {
	case len(magic) == 0:
		return nil, errors.New("the file is empty")
	case bytes.HasPrefix(magic, gzipMagic):
		unzipped, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		b = bufio.NewReaderSize(unzipped, 1<<16)
		magic, _ = b.Peek(4)
	}
	if bytes.Equal(magic, pcapngMagic) {
		ng, err := pcapgo.NewNgReader(&wholeBlocks{r: b, order: binary.BigEndian}, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return nil, fmt.Errorf("pcapng: %w", err)
		}
		return ng, nil
	}
	pcap, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("neither pcap nor pcapng: %w", err)
	}
	// The file's own snap length is often wrong, and never to be trusted with how much memory a packet takes.
	pcap.SetSnaplen(maxPacket)
	return pcap, nil
}

// Expect takes every pinhole and holds none.
func (c *capture) Expect(conntrack.Expectation) error { return nil }

// Withdraw forgets what Expect did not keep.
func (c *capture) Withdraw(conntrack.Expectation) error { return nil }

// Lookup says of a connection whether a side has sent FIN so far.
func (c *capture) Lookup(t conntrack.Tuple) (conntrack.Entry, error) {
	conn := c.tcp[inspect.Key{Client: t.Src, Server: t.Dst}]
	if conn == nil {
		return conntrack.Entry{}, conntrack.ErrNotFound
	}
	return conntrack.Entry{Orig: t, Opened: true, Live: conn.fin == [2]bool{}}, nil
}

// noQueue takes verdicts on packets that went through long ago.
type noQueue struct{}

func (noQueue) Verdict(uint32, nfq.Verdict) error { return nil }

// capture is a replay at work.
type capture struct {
	policy    *policy.Policy
	decoder   *nfq.Decoder
	inspector *inspect.Inspector
	tcp       map[inspect.Key]*connection
	segment   nfq.Segment
}

// connection is a TCP connection of the capture, by the side that sent the SYN.
type connection struct {
	control bool
	fin     [2]bool
	over    bool
}

// packet takes one frame. What is not TCP over IP is nobody's control connection and passed over.
func (c *capture) packet(at time.Time, frame []byte, link layers.LinkType) {
	ip := network(frame, link)
	if ip == nil || c.decoder.Decode(ip, &c.segment) != nil {
		return
	}
	seg := &c.segment
	key, fromClient := c.direction(seg)
	conn := c.tcp[key]
	if conn == nil || conn.over && seg.Flags&nfq.SYN != 0 {
		conn = &connection{}
		c.tcp[key] = conn
	}
	if conn.over {
		return
	}
	c.recognise(at, conn, key, fromClient, seg)
	if conn.control || c.isSYN(seg) {
		c.inspector.Packet(at, inspect.Packet{Queue: noQueue{}}, seg)
	}
	c.close(at, conn, key, fromClient, seg)
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
func (c *capture) recognise(at time.Time, conn *connection, key inspect.Key, fromClient bool, seg *nfq.Segment) {
	if conn.control {
		return
	}
	switch {
	case c.policy.IsControlPort(key.Server):
		conn.control = true
		if seg.Flags&nfq.SYN == 0 {
			c.inspector.Resume(at, key, 0)
		}
	case !fromClient && greets(seg.Payload) && !mailPort(key.Server):
		conn.control = true
		c.inspector.Begin(at, key)
	}
}

// greets says whether a server's first bytes are an FTP greeting (RFC 959 section 5.4).
func greets(b []byte) bool {
	return len(b) > 4 && string(b[:3]) == "220" && (b[3] == ' ' || b[3] == '-') && bytes.IndexByte(b, '\n') > 0
}

func mailPort(a netip.AddrPort) bool {
	switch a.Port() {
	case 25, 465, 587, 2525:
		return true
	}
	return false
}

// close ends a session when its connection ends.
func (c *capture) close(at time.Time, conn *connection, key inspect.Key, fromClient bool, seg *nfq.Segment) {
	if seg.Flags&nfq.FIN != 0 {
		side := 0
		if !fromClient {
			side = 1
		}
		conn.fin[side] = true
	}
	if seg.Flags&nfq.RST != 0 || conn.fin[0] && conn.fin[1] {
		conn.over = true
		if conn.control {
			c.inspector.End(at, key, 0)
		}
	}
}

// network gives the IP packet of a frame, or nil: through Ethernet, VLAN tags, PPP, Linux "cooked" captures and whatever
// else gopacket knows.
func network(frame []byte, link layers.LinkType) []byte {
	if link == layers.LinkTypeRaw || link == layers.LinkTypeIPv4 || link == layers.LinkTypeIPv6 {
		return frame
	}
	p := gopacket.NewPacket(frame, link, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	l := p.NetworkLayer()
	if l == nil {
		return nil
	}
	// The payload lies behind the header in one buffer, and is cut to the packet's own length.
	header := l.LayerContents()
	return header[:len(header)+len(l.LayerPayload())]
}
