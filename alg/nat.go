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

// namePASV has a 227 name the pinhole's address: a server may announce its own, the public one, or none. The zero effect
// leaves the line as it is.
func (c *Control) namePASV(announced netip.Addr, p Pinhole, line ftp.Line) (Effect, Reason) {
	if announced == p.To.Addr() || c.opened {
		return Effect{}, NoReason
	}
	if text := ftp.FitPASV(p.To, line.Len-line.EOL); text != nil {
		return Effect{Kind: Rewrite, Side: Server, Start: line.Start, Len: len(text), New: text}, NoReason
	}
	switch {
	case c.translates() && c.seen().byKernel && announced == c.seen().server:
		was := netip.AddrPortFrom(announced, p.To.Port())
		return shift(Server, line, len(ftp.FormatPort(p.To))-len(ftp.FormatPort(was))), NoReason
	case c.translates(), announced.IsUnspecified():
		return Effect{}, NoRoom
	}
	return Effect{}, NoReason // the policy overlooks the address, and so do the clients that it is meant for
}

// nameActive has PORT and EPRT name the pinhole's address, in the same way.
func (c *Control) nameActive(announced netip.AddrPort, p Pinhole, arg []byte, line ftp.Line) (Effect, Reason) {
	if announced.Addr() == p.To.Addr() || c.opened {
		return Effect{}, NoReason
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
		return Effect{Kind: Rewrite, Side: Client, Start: line.Start + uint64(at), Len: len(text), New: text}, NoReason
	case c.seen().byKernel && announced.Addr() == c.client.Addr():
		return shift(Client, line, grows), NoReason
	}
	return Effect{}, NoRoom
}

// shift leaves a line to the kernel.
func shift(side Side, line ftp.Line, grows int) Effect {
	return Effect{Kind: Shift, Side: side, Start: line.Start, Len: line.Len, Shift: grows}
}

// named appends what names a pinhole's address, behind the effect that opens it.
func (c *Control) named(e Effect, fx []Effect) []Effect {
	switch e.Kind {
	case Rewrite:
		return c.rewrite(e.Side, e.Start, e.New, fx)
	case Shift:
		return append(fx, e)
	}
	return fx
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

// disarm changes the first byte of a line of a reply of several that the kernel would take for an announcement.
func (c *Control) disarm(line ftp.Line, fx []Effect) []Effect {
	if !c.arms(line.Text) {
		return fx
	}
	fx = append(fx, Effect{Kind: Audit, Reason: UnsolicitedReply, Side: Server, Text: line.Text})
	return c.rewrite(Server, line.Start, []byte{' '}, fx)
}
