package lab

import (
	"slices"
	"strings"
)

// DataPath is how ftpalg carries the data connections of a control connection.
type DataPath string

// The data paths. Closed is how connections are inspected, whose TLS stays closed; with the others ftpalg terminates them.
const (
	Closed DataPath = ""
	Direct DataPath = "direct"
	Relay  DataPath = "relay"
	Auto   DataPath = "auto"
)

// Start is what came before a session.
type Start string

// The starts. Running is that of most scenarios: ftpalg has served others before.
const (
	Running    Start = ""
	Started    Start = "started"    // ftpalg has just started
	HandedOver Start = "handedover" // it has just taken over from another process
)

// Scenario is one row of the demo's table.
type Scenario struct {
	Server     ServerKind
	Client     ClientKind
	Mode       Mode
	Family     Family
	Protection Protection
	Clear      bool // PROT C: data connections are in clear text although the control connection has TLS
	Data       DataPath
	TLS13      bool // the client speaks no older version
	Start      Start
	PutFirst   bool // the upload comes before the download
}

// Scenarios returns every combination, those that cannot be included: the table says why they are not run. Those of one
// server with one data path follow one another.
func Scenarios() []Scenario {
	var all []Scenario
	for _, server := range Servers {
		all = append(all, inspected(server)...)
		// Behind a relayed data connection direct ones have to wait for a minute: see alg/terminate.
		for _, data := range []DataPath{Direct, Auto, Relay} {
			all = append(all, terminated(server, data)...)
		}
	}
	return all
}

// ColdScenarios returns the combinations in which ftpalg terminates and chooses the data path itself, each as the first session
// after each kind of start, with the download first and with the upload first: nothing that ftpalg could learn from a session is
// known then.
func ColdScenarios() []Scenario {
	var all []Scenario
	for _, server := range Servers {
		for _, s := range terminatedFor(server, Auto, tlsClients()) {
			for _, s.Start = range []Start{Started, HandedOver} {
				for _, s.PutFirst = range []bool{false, true} {
					if !s.PutFirst || s.Client.command != nil {
						all = append(all, s)
					}
				}
			}
		}
	}
	return all
}

// inspected returns the combinations in which the gateway holds no key.
func inspected(server ServerKind) (all []Scenario) {
	for _, client := range append(slices.Clone(Clients), FileZilla) {
		for _, protection := range []Protection{Plain, Explicit, Implicit} {
			for _, mode := range []Mode{PASV, EPSV, PORT, EPRT} {
				for _, family := range []Family{IPv4, IPv6} {
					all = append(all, Scenario{Server: server, Client: client, Mode: mode, Family: family, Protection: protection})
				}
			}
		}
	}
	return all
}

// tlsClients are the clients of terminated sessions.
func tlsClients() []ClientKind {
	return slices.Concat([]ClientKind{Fresh}, Clients, []ClientKind{FileZilla})
}

// terminated returns the combinations in which ftpalg has the server's key. Auto comes to direct or relay, so few clients
// are enough for it.
func terminated(server ServerKind, data DataPath) []Scenario {
	clients := tlsClients()
	if data == Auto {
		clients = []ClientKind{Clients[0], Clients[2], FileZilla}
	}
	return terminatedFor(server, data, clients)
}

// terminatedFor returns the combinations of a server, a data path and some clients. Plain sessions are there for the client that knows
// nothing else.
func terminatedFor(server ServerKind, data DataPath, clients []ClientKind) (all []Scenario) {
	for _, secret := range []bool{false, true} {
		for _, client := range clients {
			s := Scenario{Server: server, Client: client, Data: data, Clear: !secret}
			if client.Name != "tnftp" {
				all = append(all, s.inEachProtection()...)
			} else if s.Protection = Plain; !secret {
				all = append(all, s.inEachMode()...)
			}
		}
	}
	return all
}

// inEachProtection returns a scenario with all protections of the control connection.
func (s Scenario) inEachProtection() (all []Scenario) {
	for _, s.Protection = range []Protection{Explicit, AuthSSL, Implicit, CCC} {
		all = append(all, s.inEachMode()...)
	}
	return all
}

// inEachMode returns a scenario in all modes that there are (RFC 2428).
func (s Scenario) inEachMode() (all []Scenario) {
	for _, s.Mode = range []Mode{PASV, EPSV, PORT, EPRT} {
		for _, s.Family = range []Family{IPv4, IPv6} {
			if s.exists() {
				all = append(all, s)
			}
		}
	}
	return all
}

// exists tells whether the mode can carry an address of the family.
func (s Scenario) exists() bool { return s.Family == IPv4 || s.Mode == EPSV || s.Mode == EPRT }

// String returns the scenario's name, as `go test -run` takes it.
func (s Scenario) String() string {
	name := []string{s.Server.Name, s.Client.Name, string(s.Protection)}
	if s.Data != Closed {
		name = append(name, s.Level(), string(s.Data))
	}
	name = append(name, string(s.Mode), s.Family.String())
	if s.Start != Running {
		name = append(name, string(s.Start), s.Order())
	}
	return strings.Join(name, "/")
}

// Order names the transfers in their order.
func (s Scenario) Order() string {
	switch {
	case s.Client.command == nil:
		return "none"
	case s.PutFirst:
		return "up-down"
	}
	return "down-up"
}

// Level returns the protection level of data connections (RFC 2228): C or P.
func (s Scenario) Level() string {
	if s.protectsData() {
		return "P"
	}
	return "C"
}

func (s Scenario) protectsData() bool { return s.Protection != Plain && !s.Clear }

// opaque tells whether the gateway cannot read the control connection.
func (s Scenario) opaque() bool { return s.Data == Closed && s.Protection != Plain }

// needsReuse tells whether the server wants data connections to resume the control connection's TLS session. ProFTPD does
// not when CCC has ended it.
func (s Scenario) needsReuse() bool {
	return s.Server.insists && s.protectsData() && s.Protection != CCC
}

// relayed tells whether the data connections come to ftpalg.
func (s Scenario) relayed() bool {
	return s.Data == Relay || s.Data == Auto && s.protectsData()
}

// TLS12 tells whether the session is kept to TLS 1.2: the rows over IPv6 are, those over IPv4 take TLS 1.3.
func (s Scenario) TLS12() bool { return s.Protection != Plain && s.Family == IPv6 }

// NotApplicable returns why client and server cannot do this even without a gateway, or why no gateway can do it this way,
// or nothing.
func (s Scenario) NotApplicable() string {
	switch {
	case !s.exists():
		return string(s.Mode) + " cannot carry an IPv6 address (RFC 2428)"
	case s.Protection == Implicit && !s.Server.Implicit:
		return s.Server.Name + " has no implicit FTPS"
	}
	why := s.Client.cannot(s)
	if why == "" && s.Data != Closed {
		why = s.unable()
	}
	if why == "" && s.Data == Direct && s.needsReuse() && s.Client.command != nil {
		why = s.Server.Name + " wants its own TLS session resumed, and the client's is ftpalg's: it has to be relayed"
	}
	return why
}

func (s Scenario) properties() []string {
	return []string{
		s.Server.Name, s.Client.Name, string(s.Protection), s.Level() + string(s.Data), string(s.Mode), s.Family.String(),
		string(s.Start) + " " + s.Order(),
	}
}

func (s Scenario) certain() bool { return s.NotApplicable() == "" && !s.Doubted() }

// Doubted tells whether the scenario has to be tried without a firewall first. The curl of Debian 12 (7.88) leaves the
// data connection of active FTPS without TLS and hangs; other versions do not. Pure-FTPd resumes no session of TLS 1.3 on data
// connections, and FileZilla does not put up with that; a relay of ftpalg's does resume it.
func (s Scenario) Doubted() bool {
	switch s.Client.Name {
	case "curl":
		return s.protectsData() && s.Mode.Active()
	case FileZilla.Name:
		return s.opaque() && s.Server.Name == "pure-ftpd" && !s.TLS12()
	}
	return false
}

// scans tells whether the scenario's own client spends its pinhole on a port that nobody announced: see holdOpaque.
func (s Scenario) scans() bool { return s.Client.command == nil && s.opaque() }

// direction says who connects to whom. initiator and target are the hosts between which data connections are made, and
// the ranges that their ports come from: promised has those that may be announced, never has those that are not. stranger
// is the host that stands beside the initiator and was promised nothing.
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
