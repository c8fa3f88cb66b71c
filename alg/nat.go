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
	server  netip.Addr // the server's own address
	client  netip.Addr // the client's as the server sees it
	resizes bool       // a line may become longer, or shorter
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
	start uint64 // of what stands in its place, if that is as long
	text  []byte

	line []byte // the whole line in place of what it was, if that is not
}

// namePASV has a 227 name the pinhole's address: a server may announce its own, the public one, or none. Over IPv6 it cannot
// name any; servers announce 0.0.0.0 there, which clients read as the address of the control connection.
func (c *Control) namePASV(announced netip.Addr, p Pinhole, line ftp.Line) (naming, Reason) {
	if !p.To.Addr().Is4() {
		return naming{}, NoReason
	}
	if c.terminated() || announced == p.To.Addr() {
		return naming{}, NoReason
	}
	if text := ftp.FitPASV(p.To, line.Len-line.EOL); text != nil {
		return naming{side: Server, start: line.Start, text: text}, NoReason
	}
	switch {
	case c.mayResize(Server, line):
		return naming{line: []byte("227 Entering Passive Mode (" + ftp.FormatPort(p.To) + ").")}, NoReason
	case c.translates(), announced.IsUnspecified():
		return naming{}, NoRoom
	}
	return naming{}, NoReason // the policy overlooks the address, and so do the clients that it is meant for
}

// mayResize reports whether a line may become longer or shorter: where the front end can do that, and no part of it has gone on.
func (c *Control) mayResize(side Side, line ftp.Line) bool {
	return c.seen().resizes && line.Start >= c.released[side]
}

// nameActive has PORT and EPRT name the pinhole's address, in the same way.
func (c *Control) nameActive(announced netip.AddrPort, p Pinhole, arg []byte, line ftp.Line) (naming, Reason) {
	if announced.Addr() == p.To.Addr() || c.terminated() {
		return naming{}, NoReason
	}
	fit, format := ftp.FitPort, ftp.FormatPort
	if p.Mode == policy.EPRT {
		fit, format = ftp.FitEPRT, ftp.FormatEPRT
	}
	at := bytes.LastIndex(line.Text, arg)
	if at < 0 || line.Len-line.EOL != len(line.Text) { // Telnet signals in between
		return naming{}, NoRoom
	}
	exact, text := format(p.To), fit(p.To, len(arg))
	switch {
	case len(exact) != len(arg) && c.mayResize(Client, line):
		return naming{line: slices.Concat(line.Text[:at], []byte(exact), line.Text[at+len(arg):])}, NoReason
	case text != nil:
		return naming{side: Client, start: line.Start + uint64(at), text: text}, NoReason
	}
	return naming{}, NoRoom
}

// named completes the last effect, which opens a pinhole, with what names its address.
func (c *Control) named(n naming, fx []Effect) []Effect {
	fx[len(fx)-1].New = n.line
	return c.rewrite(n.side, n.start, n.text, fx)
}
