package lab

import (
	"context"
	"fmt"
)

// Guard is what stands on the gateway beside its NAT.
type Guard string

// The guards. The others than ftpalg are what it is compared with.
const (
	Bare   Guard = "bare"   // NAT of whole addresses and no filter: what fails here fails because of addresses in the payload
	Kernel Guard = "helper" // the kernel's own nf_conntrack_ftp and nf_nat_ftp
	Static Guard = "static" // the recipe: the passive range open to everybody, and high ports open to the server
	Ours   Guard = "ftpalg"
)

// highPorts is what the static recipe opens for active mode, in every host behind the gateway.
var highPorts = Ports{1024, 65535}

// Count is the number of ports in the range.
func (p Ports) Count() int { return int(p.Last) - int(p.First) + 1 }

// install puts a guard on the gateway of a stage, behind its NAT.
func (g Guard) install(ctx context.Context, s *Stage) (err error) {
	if g == Ours {
		if err = s.acceptMarked(ctx); err == nil {
			s.Daemon, err = s.startDaemon(ctx, s.policy(Closed))
		}
		return err
	}
	return s.Lab.each(ctx, Gateway, g.rules(s.nat)...)
}

// rules are the commands that make one of the other guards. They refuse and do not drop, so that clients need no timeout.
func (g Guard) rules(n NAT) (all []string) {
	add := func(format string, args ...any) { all = append(all, "iptables -w "+fmt.Sprintf(format, args...)) }
	server := Addr(Server, IPv4)
	for _, public := range n.public {
		switch g {
		case Bare:
			add("-t nat -A PREROUTING -d %s -j DNAT --to-destination %s", public, server)
		case Static:
			add("-t nat -A PREROUTING -d %s -p tcp --dport %d:%d -j DNAT --to-destination %s", public, PolicyPassive.First, PolicyPassive.Last, server)
		}
	}
	if g == Bare {
		add("-P FORWARD ACCEPT")
		return all
	}
	states := "ESTABLISHED"
	if g == Kernel {
		states = "RELATED,ESTABLISHED"
		add("-t raw -A PREROUTING -p tcp -m multiport --dports %d,%d -j CT --helper ftp", n.port(Explicit), n.port(Implicit))
	}
	add("-A FORWARD -m conntrack --ctstate %s -j ACCEPT", states)
	add("-A FORWARD -d %s -p tcp -m multiport --dports %d,%d -j ACCEPT", server, ExplicitPort, ImplicitPort)
	if g == Static {
		add("-A FORWARD -d %s -p tcp --dport %d:%d -j ACCEPT", server, PolicyPassive.First, PolicyPassive.Last)
		add("-A FORWARD -s %s -p tcp --dport %d:%d -j ACCEPT", server, highPorts.First, highPorts.Last)
	}
	for _, chain := range []string{"FORWARD", "INPUT"} {
		add("-A %s -p tcp -j REJECT --reject-with icmp-admin-prohibited", chain)
	}
	return all
}
