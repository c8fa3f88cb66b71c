package policy

import (
	"net/netip"
	"slices"
)

// Decision is what a policy says of a control connection. The zero value denies.
type Decision struct {
	Action   Action
	Rule     *Rule   // the rule that decided; nil when none matched
	Server   *Server // nil when the address or port is no listed server's
	Implicit bool    // TLS comes first on this port
}

// Decide says whether client may open a control connection to server, and under which rule. What no rule names is
// denied. It does not allocate.
func (p *Policy) Decide(client netip.Addr, server netip.AddrPort) Decision {
	s, implicit, ok := p.control(server)
	if !ok {
		return Decision{}
	}
	client = client.Unmap()
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.servers[s] && r.clients.find(client) >= 0 {
			return Decision{r.Action, r, &p.Servers[s], implicit}
		}
	}
	return Decision{Server: &p.Servers[s], Implicit: implicit}
}

// control gives the server that has a control port at an address, by its position.
func (p *Policy) control(addr netip.AddrPort) (server int, implicit, ok bool) {
	i := p.index.find(addr.Addr().Unmap())
	if i < 0 {
		return 0, false, false
	}
	s := &p.Servers[p.owner[i]]
	implicit = slices.Contains(s.Implicit, addr.Port())
	return p.owner[i], implicit, implicit || slices.Contains(s.Explicit, addr.Port()) || p.everyPort
}

// IsControlPort reports whether a listed server has a control port at addr. No rule is asked, and of AllowAll's ports
// only the usual ones count.
func (p *Policy) IsControlPort(addr netip.AddrPort) bool {
	s, implicit, ok := p.control(addr)
	return ok && (implicit || slices.Contains(p.Servers[s].Explicit, addr.Port()))
}

// ControlPorts lists the control ports of all servers in ascending order, each once.
func (p *Policy) ControlPorts() []uint16 {
	var ports []uint16
	for _, s := range p.Servers {
		ports = append(append(ports, s.Explicit...), s.Implicit...)
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
