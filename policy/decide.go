package policy

import (
	"net/netip"
	"slices"
)

// Decision is what a policy says of a control connection. The zero value denies.
type Decision struct {
	Action   Action
	Rule     *Rule          // the rule that decided; nil when none matched
	Server   *Server        // nil when the address or port is no listed server's
	Real     netip.AddrPort // where that server itself is; another than the client sees if that is a public address
	Implicit bool           // TLS comes first on this port
}

// Decide says whether client may open a control connection to server, as the client sees it, and under which rule. What no
// rule names is denied. It does not allocate.
func (p *Policy) Decide(client netip.Addr, server netip.AddrPort) Decision {
	f, implicit, ok := p.control(server)
	if !ok {
		return Decision{}
	}
	client = client.Unmap()
	d := Decision{Server: &p.Servers[f.server], Real: p.real(f, server, implicit), Implicit: implicit}
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.servers[f.server] && r.clients.find(client) >= 0 {
			d.Action, d.Rule = r.Action, r
			break
		}
	}
	return d
}

// control gives the server that has a control port at an address, and whether TLS comes first there.
func (p *Policy) control(addr netip.AddrPort) (f face, implicit, ok bool) {
	i := p.index.find(addr.Addr().Unmap())
	if i < 0 {
		return face{}, false, false
	}
	f = p.faces[i]
	first, later := p.ports(f)
	implicit = slices.Contains(first, addr.Port())
	return f, implicit, implicit || slices.Contains(later, addr.Port()) || p.everyPort
}

// ports gives the control ports of a face: those where TLS comes first, and the others.
func (p *Policy) ports(f face) (implicit, explicit []uint16) {
	s := &p.Servers[f.server]
	if f.public >= 0 {
		return s.Public[f.public].Implicit, s.Public[f.public].Explicit
	}
	return s.Implicit, s.Explicit
}

// real gives the server's own address and port for one that clients see.
func (p *Policy) real(f face, seen netip.AddrPort, implicit bool) netip.AddrPort {
	if f.public < 0 {
		return seen
	}
	s := &p.Servers[f.server]
	ports, usual := s.Explicit, uint16(explicitPort)
	if implicit {
		ports, usual = s.Implicit, implicitPort
	}
	port := seen.Port()
	if !slices.Contains(ports, port) {
		port = firstPort(ports, usual)
	}
	return netip.AddrPortFrom(s.host(seen.Addr().Unmap().Is6()), port)
}

// host is the server's one address of a family, or the zero value if it has none, or several.
func (s *Server) host(v6 bool) (host netip.Addr) {
	for _, a := range s.Addresses {
		if a.Addr().Is6() != v6 {
			continue
		}
		if host.IsValid() || !a.IsSingleIP() {
			return netip.Addr{}
		}
		host = a.Addr()
	}
	return host
}

// IsPublic reports whether clients reach the server at an address that is not its own.
func (s *Server) IsPublic(addr netip.Addr) bool {
	return s != nil && slices.ContainsFunc(s.Public, func(p Public) bool {
		return slices.ContainsFunc(p.Addresses, func(a netip.Prefix) bool { return a.Contains(addr) })
	})
}

// IsControlPort reports whether a listed server has a control port at addr, its own or a public one. No rule is asked, and
// of AllowAll's ports only the usual ones count.
func (p *Policy) IsControlPort(addr netip.AddrPort) bool {
	f, implicit, ok := p.control(addr)
	if !ok || implicit {
		return ok
	}
	_, explicit := p.ports(f)
	return slices.Contains(explicit, addr.Port())
}
