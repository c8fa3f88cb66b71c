package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ftpalg/conntrack"
)

// terminatePolicy is the policy that terminated sessions run under. Clients are shown the server's own certificate.
const terminatePolicy = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2, "2001:db8:2::2"]
    explicit: [%d]
    implicit: [%d]
    passive: %d-%d
    certificates:
      - {certificate: %s, key: %s}
    upstream:
      verify: %s
%sclients:
  - name: office
    addresses: [192.0.2.0/24, "2001:db8:1::/64"]
rules:
  - name: office to files
    from: office
    to: files
    action: terminate
%slimits:
  audit-rate: 10000
%s`

// Termination is what a policy says of terminated sessions, beyond what all of the lab's say: lines of YAML, each without
// indentation and line end.
type Termination struct{ Upstream, Rule, Limits []string }

// Policy returns the policy file for the server.
func (t Termination) Policy(s *FTPServer) string {
	return fmt.Sprintf(terminatePolicy, ExplicitPort, ImplicitPort, PolicyPassive.First, PolicyPassive.Last,
		s.CA, s.Key, s.CA, indent(6, t.Upstream), indent(4, t.Rule), indent(2, t.Limits))
}

func indent(by int, lines []string) string {
	var text strings.Builder
	for _, line := range lines {
		text.WriteString(strings.Repeat(" ", by) + line + "\n")
	}
	return text.String()
}

// handshakeTimeout is ftpalg's default where machines are not slow: an emulated one may take seconds for what takes milliseconds.
var handshakeTimeout = min(patient(10*time.Second), time.Minute)

// policy returns the policy file for a data path.
func (s *Stage) policy(data DataPath) string {
	if data == Closed {
		return s.nat.publish(Policy())
	}
	t := Termination{Rule: []string{"data: " + string(data)}, Limits: []string{fmt.Sprint("handshake-timeout: ", handshakeTimeout)}}
	return s.nat.publish(t.Policy(s.Server))
}

// carry has ftpalg run with the policy for a data path, started as it has to be.
func (s *Stage) carry(ctx context.Context, data DataPath, start Start) error {
	if s.data != data || start == Started {
		if err := s.Restart(ctx, data, s.policy(data)); err != nil {
			return err
		}
	}
	if start == HandedOver {
		return s.Daemon.HandOver(ctx)
	}
	return nil
}

// Restart runs ftpalg with another policy.
func (s *Stage) Restart(ctx context.Context, data DataPath, policy string) error {
	if s.Daemon != nil {
		if err := s.Daemon.Stop(); err != nil {
			return err
		}
	}
	// It outlives the scenario that needs it first.
	d, err := s.startDaemon(context.WithoutCancel(ctx), policy)
	if err == nil {
		s.Daemon, s.data = d, data
	}
	return err
}

// connections lists what the gateway's connection tracking knows of connections to the data ports of a scenario, by their
// identities.
func (s *Stage) connections(scenario Scenario) (map[uint32]conntrack.Entry, error) {
	kernel, err := s.kernel()
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	way := scenario.direction()
	list, err := kernel.Connections(func(to netip.AddrPort) bool {
		return to.Addr() == Addr(way.target, scenario.Family) && way.promised.Contains(to.Port())
	})
	byID := make(map[uint32]conntrack.Entry)
	for _, entry := range list {
		byID[entry.ID] = entry
	}
	return byID, err
}

// checkPath tells by the connections that a session made how its data connections went: through the kernel each is one
// connection, through ftpalg it is two, and in both of a relayed one each end sees the other's own address.
func (s *Stage) checkPath(scenario Scenario, before map[uint32]conntrack.Entry, pinholes []Event) error {
	after, err := s.connections(scenario)
	if err != nil {
		return err
	}
	made := 0
	for id, entry := range after {
		_, old := before[id]
		if !old && slices.ContainsFunc(pinholes, func(p Event) bool { return entry.Orig.Dst == p.To && entry.Orig.Src.Addr() == p.From }) {
			made++
		}
	}
	// Two data connections between the same ports, one behind the other, are one entry.
	least, most, how := 1, len(pinholes), "through the kernel"
	if scenario.relayed() {
		least, most, how = len(pinholes)+1, 2*len(pinholes), "relayed"
	}
	if made < least || made > most {
		return fmt.Errorf("%d connections for %d pinholes, want %d to %d: data is to go %s", made, len(pinholes), least, most, how)
	}
	return nil
}

// waitEnded waits until each session that began since a mark has ended, and fails if the kernel expects a data connection
// then.
func (s *Stage) waitEnded(mark int) error {
	ctx, cancel := context.WithTimeout(context.Background(), reportGrace)
	defer cancel()
	err := Wait(ctx, "terminated sessions to end", func() (bool, error) {
		open := 0
		for _, e := range s.Daemon.Since(mark) {
			switch e.Msg {
			case "session":
				open++
			case "session ended":
				open--
			}
		}
		return open == 0, nil
	})
	return errors.Join(err, s.nothingExpected())
}

// nothingExpected fails if the gateway's kernel expects a connection.
func (s *Stage) nothingExpected() error {
	kernel, err := s.kernel()
	if err != nil {
		return err
	}
	defer kernel.Close()
	left, err := kernel.Expectations()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("when the session is over the kernel expects %v", left)
	}
	return err
}

// kernel speaks to the gateway's connection tracking.
func (s *Stage) kernel() (kernel *conntrack.Conn, err error) {
	err = s.Lab.InNS(Gateway, func() (err error) {
		kernel, err = conntrack.Dial()
		return err
	})
	return kernel, err
}
