package lab

import "strings"

// Scenario is one row of the demo's table.
type Scenario struct {
	Server     ServerKind
	Client     ClientKind
	Mode       Mode
	Family     Family
	Protection Protection
}

// Scenarios returns every combination, those that cannot be included: the table says why they are not run.
func Scenarios() []Scenario {
	var all []Scenario
	for _, server := range Servers {
		for _, client := range Clients {
			for _, protection := range []Protection{Plain, Explicit, Implicit} {
				for _, mode := range []Mode{PASV, EPSV, PORT, EPRT} {
					for _, family := range []Family{IPv4, IPv6} {
						all = append(all, Scenario{server, client, mode, family, protection})
					}
				}
			}
		}
	}
	return all
}

// String returns the scenario's name, as `go test -run` takes it.
func (s Scenario) String() string {
	return strings.Join([]string{s.Server.Name, s.Client.Name, string(s.Protection), string(s.Mode), s.Family.String()}, "/")
}

// TLS12 tells whether the session is kept to TLS 1.2: the rows over IPv6 are, those over IPv4 take TLS 1.3.
func (s Scenario) TLS12() bool { return s.Protection != Plain && s.Family == IPv6 }

// NotApplicable returns why client and server cannot do this even without a gateway, or nothing.
func (s Scenario) NotApplicable() string {
	switch {
	case s.Family == IPv6 && (s.Mode == PASV || s.Mode == PORT):
		return string(s.Mode) + " cannot carry an IPv6 address (RFC 2428)"
	case s.Protection == Implicit && !s.Server.Implicit:
		return s.Server.Name + " has no implicit FTPS"
	}
	return s.Client.cannot(s)
}

// Doubted tells whether the scenario has to be tried without a firewall first. The curl of Debian 12 (7.88) leaves the
// data connection of active FTPS without TLS and hangs; other versions do not.
func (s Scenario) Doubted() bool {
	return s.Client.Name == "curl" && s.Protection != Plain && s.Mode.Active()
}

// scans tells whether the scenario's own client spends its pinhole on a port that nobody announced: see holdOpaque.
func (s Scenario) scans() bool { return s.Client.Name == held.Name && s.Protection != Plain }

// direction says who connects to whom. initiator and target are the hosts between which data connections are made, and the ranges that their ports come
// from: promised has those that may be announced, never has those that are not. stranger is the host that stands
// beside the initiator and was promised nothing.
type direction struct {
	initiator, target, stranger Host
	promised, never             Ports
}

func (s Scenario) direction() direction {
	if s.Mode.Active() {
		return direction{Server, Client, Server2, ClientPorts, NeverActive}
	}
	return direction{Client, Server, Client2, ServerPassive, NeverPassive}
}
