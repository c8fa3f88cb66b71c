// Package doctor says what ftpalg needs of a machine and what stands in its way there: the kernel's features and settings, and
// what others do with the same packets (firewalld, ufw, Docker, other queues and helpers). Read collects the facts, and
// Examine decides from them alone, so that it can be tried with the facts of any machine.
package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// Level says how bad a finding is.
type Level string

// The levels. Only Wrong keeps ftpalg from its work.
const (
	OK    Level = "ok"
	Note  Level = "note"
	Wrong Level = "wrong"
)

// Finding is one thing that was looked at.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`         // which of the checks found it
	Found string `json:"found"`         // one line
	Fix   string `json:"fix,omitempty"` // for a shell; empty where nothing is to be done
}

// Subject is what the machine is to be examined for.
type Subject struct {
	Config     rules.Config // Policy is nil where only the machine is asked about; Helper is found out
	Backend    rules.Backend
	Why        string // why it is that back end
	PolicyFile string
}

// report collects findings.
type report struct {
	check    string
	findings []Finding
}

func (r *report) ok(format string, args ...any) { r.add(OK, "", format, args) }

// wrong tells what is wrong and the command that mends it.
func (r *report) wrong(fix, format string, args ...any) { r.add(Wrong, fix, format, args) }

// note tells what may be meant so, and the command for where it is not.
func (r *report) note(fix, format string, args ...any) { r.add(Note, fix, format, args) }

func (r *report) add(level Level, fix, format string, args []any) {
	r.findings = append(r.findings, Finding{level, r.check, fmt.Sprintf(format, args...), fix})
}

// checks are all there are, in the order in which they are told.
var checks = []struct {
	name string
	run  func(*Facts, *report)
}{
	{"capabilities", capabilities}, {"commands", commands}, {"extensions", extensions}, {"forwarding", forwarding},
	{"queues", queues}, {"helper", helper}, {"conntrack-tables", conntrackTables}, {"conntrack-timeout", conntrackTimeout},
	{"automatic-helper", automaticHelper}, {"conntrack-events", conntrackEvents}, {"source-checks", sourceChecks},
	{"terminate", termination}, {"source-marks", sourceMarks}, {"bridges", bridges}, {"localnet", localnet}, {"own-ftp", ownFTP}, {"routing", routing},
	{"features", features}, {"ufw", ufwSettings}, {"firewalld", firewalldReload},
	{"forward", forward}, {"local", local}, {"open", open},
	{"other-queues", otherQueues}, {"notrack", notrack}, {"other-helpers", otherHelpers}, {"offload", offload},
	{"source-nat", sourceNAT}, {"rules", rulesInPlace},
}

// Examine makes every check.
func Examine(f *Facts) []Finding {
	var r report
	for _, c := range checks {
		r.check = c.name
		c.run(f, &r)
	}
	return r.findings
}

// terminates reports whether there is a policy with a rule that terminates.
func (f *Facts) terminates() bool { return f.hasRule(policy.Terminate) }

func (f *Facts) hasRule(a policy.Action) bool {
	p := f.Config.Policy
	return p != nil && slices.ContainsFunc(p.Rules, func(r policy.Rule) bool { return r.Action == a })
}

// serves reports whether the policy has a server of a family. Without a policy, IPv4 is what everybody has.
func (f *Facts) serves(v6 bool) bool {
	if f.Config.Policy == nil {
		return !v6
	}
	return slices.ContainsFunc(f.servers(), func(s server) bool { return s.address.Addr().Is6() == v6 })
}

// server is one address of a server of the policy, or one that clients reach it by.
type server struct {
	name    string
	address netip.Prefix
	control []uint16
	passive ports
	public  bool
}

func (f *Facts) servers() []server {
	var list []server
	if f.Config.Policy == nil {
		return nil
	}
	for _, s := range f.Config.Policy.Servers {
		passive := highPort
		if !s.Passive.IsZero() {
			passive = ports{s.Passive.First, s.Passive.Last}
		}
		for _, a := range s.Addresses {
			list = append(list, server{s.Name, a, slices.Concat(s.Explicit, s.Implicit), passive, false})
		}
		for _, p := range s.Public {
			for _, a := range p.Addresses {
				list = append(list, server{s.Name, a, slices.Concat(p.Explicit, p.Implicit), passive, true})
			}
		}
	}
	return list
}
