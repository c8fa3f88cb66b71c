package lab

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// Bridge is a client and a server that cannot do with one another what they can do through ftpalg.
type Bridge struct {
	Name     string
	Server   ServerKind
	Scenario Scenario // of the client's side; Relay and Direct say how data connections have to go, by themselves
	Upstream []string // what the policy says of the server's side
}

// Bridges returns the rows of the bridging table.
func Bridges() []Bridge {
	vsftpd, proftpd, pureFTPd := Servers[0], Servers[1], Servers[2]
	curl, ftplib, tnftp := Clients[0], Clients[2], Clients[3]
	return []Bridge{
		{"AUTH SSL only, to a server without it", pureFTPd,
			Scenario{Client: ftplib, Mode: EPSV, Protection: AuthSSL, Data: Relay}, nil},
		{"implicit only, to explicit only", vsftpd.with(Setup{Only: Explicit}),
			Scenario{Client: ftplib, Mode: PASV, Protection: Implicit, Data: Relay}, []string{"control: explicit", "session-reuse: required"}},
		{"explicit only, to implicit only", proftpd.with(Setup{Only: Implicit}),
			Scenario{Client: curl, Mode: EPSV, Protection: AuthSSL, Data: Relay}, []string{"control: implicit", "session-reuse: required"}},
		{"plain, to ProFTPD's TLSRequired on", proftpd.with(Setup{RequireTLS: true}),
			Scenario{Client: tnftp, Mode: PASV, Protection: Plain, Data: Relay}, []string{"control: explicit"}},
		{"plain, to Pure-FTPd's --tls 3", pureFTPd.with(Setup{RequireTLS: true}),
			Scenario{Client: tnftp, Mode: EPRT, Protection: Plain, Data: Relay}, []string{"control: explicit"}},
		{"plain, to vsftpd's force_local_*", vsftpd.with(Setup{RequireTLS: true}),
			Scenario{Client: curl, Mode: PORT, Protection: Plain, Data: Relay}, []string{"control: explicit"}},
		{"plain, to implicit only", vsftpd.with(Setup{Only: Implicit}),
			Scenario{Client: ftplib, Mode: EPSV, Protection: Plain, Data: Relay}, []string{"control: implicit"}},
		{"explicit, to a server without TLS", vsftpd.with(Setup{NoTLS: true}),
			Scenario{Client: curl, Mode: PASV, Protection: AuthSSL, Data: Relay}, []string{"control: plain"}},
		{"implicit, to a server without TLS", pureFTPd.with(Setup{NoTLS: true}),
			Scenario{Client: ftplib, Mode: EPRT, Protection: Implicit, Data: Relay}, []string{"control: plain"}},
		{"TLS 1.3 only, to TLS 1.2 only", proftpd.with(Setup{TLS12: true, AnySession: true}),
			Scenario{Client: ftplib, Mode: EPSV, Protection: Explicit, TLS13: true, Data: Relay}, nil},
		{"no session reuse, to a server that insists", vsftpd,
			Scenario{Client: Fresh, Mode: PASV, Protection: Explicit, Data: Relay}, []string{"session-reuse: required"}},
		{"FileZilla, to a server without reuse in 1.3", pureFTPd,
			Scenario{Client: FileZilla, Mode: PASV, Protection: Explicit, TLS13: true, Data: Relay}, nil},
	}
}

// BridgeResult is what came of a bridge. It has passed if Without is an error and Err is none.
type BridgeResult struct {
	Without error // what the client and the server said to one another without a gateway
	Result
}

// Run tries the client and the server without a firewall, which has to fail, and then through ftpalg.
func (b Bridge) Run(ctx context.Context, config Config) (result BridgeResult) {
	start := time.Now()
	defer func() { result.Took = time.Since(start) }()
	s, err := newStage(ctx, b.Server, config, (*Stage).openUp)
	if err != nil {
		result.Err = err
		return result
	}
	defer func() { result.Err = errors.Join(result.Err, s.Close()) }()
	scenario := b.Scenario
	scenario.Server, scenario.Family = b.Server, IPv4
	if result.Without = s.transfer(ctx, scenario, sessionTimeout); result.Without == nil {
		result.Err = errors.New("client and server need no bridge")
		return result
	}
	policy := Termination{Upstream: b.Upstream, Rule: []string{"data: auto"}}.Policy(s.Server)
	if result.Err = errors.Join(s.calibrate(ctx), s.Restart(ctx, scenario.Data, policy)); result.Err == nil {
		s.run(ctx, scenario, &result.Result)
	}
	return result
}

// Setup is how a server differs from what it is in the scenarios. The zero value is no difference.
type Setup struct {
	Only       Protection // Explicit or Implicit: it listens on that port alone
	NoTLS      bool       // it has none
	RequireTLS bool       // it wants it for logins and for data
	TLS12      bool       // no newer version than TLS 1.2
	AnySession bool       // data connections need not resume the control connection's session
	Modules    []string   // that ProFTPD loads besides its usual ones
	Announce   netip.Addr // what it says in 227 in place of its own address; invalid: nothing else
}

func (k ServerKind) with(s Setup) ServerKind {
	k.setup = s
	return k
}

// WithoutTLS is the server with TLS switched off.
func (k ServerKind) WithoutTLS() ServerKind { return k.with(Setup{NoTLS: true}) }

// ports returns the control ports that the server listens on.
func (k ServerKind) ports() []uint16 {
	ports := []uint16{ExplicitPort, ImplicitPort}
	return slices.DeleteFunc(ports, func(port uint16) bool {
		return port == ImplicitPort && (!k.Implicit || k.setup.NoTLS || k.setup.Only == Explicit) ||
			port == ExplicitPort && k.setup.Only == Implicit
	})
}

// choose gives the word for what a setup wants.
func (s Setup) choose(none, optional, required string) string {
	switch {
	case s.NoTLS:
		return none
	case s.RequireTLS:
		return required
	}
	return optional
}
