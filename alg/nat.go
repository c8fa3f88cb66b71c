package alg

import (
	"bytes"
	"net/netip"
	"slices"

	"ftpalg/alg/ftp"
	"ftpalg/policy"
)

// nat is what each host does not see of the other: without NAT it is what it sees.
type nat struct {
	server   netip.Addr // the server's own address
	client   netip.Addr // the client's as the server sees it
	byKernel bool       // the kernel rewrites PORT, EPRT and 227 behind us
}

// translates says whether addresses differ.
func (c *Control) translates() bool { return c.nat != nil }

// seen gives what the hosts do not see, with NAT and without.
func (c *Control) seen() nat {
	if c.nat == nil {
		return nat{server: c.server.Addr(), client: c.client.Addr()}
	}
	return *c.nat
}

// toServer is the pinhole for a port of the server's: the client goes where it sees the server.
func (c *Control) toServer(mode policy.Mode, from netip.AddrPort, port uint16) Pinhole {
	p := Pinhole{Mode: mode, From: from, To: netip.AddrPortFrom(c.server.Addr(), port)}
	if c.translates() {
		p.Real = netip.AddrPortFrom(c.seen().server, port)
	}
	return p
}

// toClient is the pinhole for a port of the client's: the server goes where it sees the client.
func (c *Control) toClient(mode policy.Mode, from netip.AddrPort, port uint16) Pinhole {
	p := Pinhole{Mode: mode, From: from, To: netip.AddrPortFrom(c.seen().client, port), Shared: c.seen().client != c.client.Addr()}
	if c.translates() {
		p.Real = netip.AddrPortFrom(c.client.Addr(), port)
	}
	return p
}

// naming is how an announcement comes to name its pinhole's address. The zero value leaves it as it is.
type naming struct {
	side  Side
	start uint64 // of what stands in its place
	text  []byte

	byKernel bool // the kernel rewrites it
	grows    int  // by so many bytes
}

// namePASV has a 227 name the pinhole's address: a server may announce its own, the public one, or none. Over IPv6 it cannot
// name any; servers announce 0.0.0.0 there, which clients read as the address of the control connection.
func (c *Control) namePASV(announced netip.Addr, p Pinhole, line ftp.Line) (naming, Reason) {
	if !p.To.Addr().Is4() {
		return naming{}, NoReason
	}
	found := found227(line.Text)
	switch {
	case c.opened, announced == p.To.Addr() && (found != nil || !c.readAlong):
		return naming{}, NoReason
	}
	if text := ftp.FitPASV(p.To, line.Len-line.EOL); text != nil {
		return naming{side: Server, start: line.Start, text: text}, NoReason
	}
	switch {
	case found != nil && c.translates() && c.seen().byKernel && announced == c.seen().server:
		return naming{byKernel: true, grows: len(ftp.FormatPort(p.To)) - len(found)}, NoReason
	case c.translates(), announced.IsUnspecified(), c.readAlong && found == nil:
		return naming{}, NoRoom
	}
	return naming{}, NoReason // the policy overlooks the address, and so do the clients that it is meant for
}

// found227 gives the six numbers that the kernel's helper finds in a 227: they begin with the first digit behind the code, or
// it drops the line for good (nf_conntrack_ftp, try_rfc1123).
func found227(line []byte) []byte {
	const numbers = "0123456789,"
	text := line[min(len(line), len("227 ")):]
	text = text[max(0, bytes.IndexAny(text, numbers[:10])):]
	text = text[:len(text)-len(bytes.TrimLeft(text, numbers))]
	if _, err := ftp.ParsePort(text); err != nil {
		return nil
	}
	return text
}

// nameActive has PORT and EPRT name the pinhole's address, in the same way.
func (c *Control) nameActive(announced netip.AddrPort, p Pinhole, arg []byte, line ftp.Line) (naming, Reason) {
	if announced.Addr() == p.To.Addr() || c.opened {
		return naming{}, NoReason
	}
	fit, format := ftp.FitPort, ftp.FormatPort
	if p.Mode == policy.EPRT {
		fit, format = ftp.FitEPRT, ftp.FormatEPRT
	}
	at := bytes.LastIndex(line.Text, arg)
	grows := len(format(p.To)) - len(arg)
	whole := at >= 0 && line.Len-line.EOL == len(line.Text) // no Telnet signals in between
	switch text := fit(p.To, len(arg)); {
	case whole && text != nil && (grows == 0 || !c.seen().byKernel):
		return naming{side: Client, start: line.Start + uint64(at), text: text}, NoReason
	case whole && c.seen().byKernel && announced.Addr() == c.client.Addr():
		return naming{byKernel: true, grows: grows}, NoReason
	}
	return naming{}, NoRoom
}

// named completes the last effect, which opens a pinhole, with what names its address.
func (c *Control) named(n naming, fx []Effect) []Effect {
	last := &fx[len(fx)-1]
	last.ByKernel, last.Grows = n.byKernel, n.grows
	return c.rewrite(n.side, n.start, n.text, fx)
}

// announcements are what the kernel's helper looks for at the beginning of a server's line.
var announcements = []string{"227 ", "229 "}

// arms says whether the kernel might take a server's line, or what begins it, for an announcement.
func (c *Control) arms(text []byte) bool {
	return c.readAlong && len(text) > 0 && slices.ContainsFunc(announcements, func(a string) bool {
		n := min(len(a), len(text))
		return a[:n] == string(text[:n])
	})
}

// swallowed says whether the kernel's helper drops a client's line for good: one that begins like PORT or EPRT and does not go
// on like it. In PORT it wants a CR behind the numbers.
func (c *Control) swallowed(line ftp.Line) bool {
	const name = len("PORT")
	if !c.readAlong || len(line.Text) < name {
		return false
	}
	port, eprt := bytes.EqualFold(line.Text[:name], []byte("PORT")), bytes.EqualFold(line.Text[:name], []byte("EPRT"))
	return (port || eprt) && (len(line.Text) == name || line.Text[name] != ' ' || port && line.Flaws&ftp.BareLF != 0)
}

// disarm changes the first byte of a line of a reply of several that the kernel would take for an announcement.
func (c *Control) disarm(line ftp.Line, fx []Effect) []Effect {
	if !c.arms(line.Text) {
		return fx
	}
	fx = append(fx, Effect{Kind: Audit, Reason: UnsolicitedReply, Side: Server, Text: line.Text})
	return c.rewrite(Server, line.Start, []byte{' '}, fx)
}
