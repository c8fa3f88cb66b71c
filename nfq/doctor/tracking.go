package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

const conntrackDir = "net/netfilter/nf_conntrack_"

// conntrackTables looks at how full the kernel's tables are, and whether they hold what the policy allows.
func conntrackTables(f *Facts, r *report) {
	count, there := f.sysctl[conntrackDir+"count"]
	limit, limited := f.sysctl[conntrackDir+"max"]
	switch {
	case !there || !limited:
		r.wrong("modprobe nf_conntrack", "the kernel tracks no connections")
		return
	case limit > 0 && count*10 > limit*9:
		r.wrong(set(conntrackDir+"max", 2*limit), "conntrack is nearly full: %d of %d", count, limit)
	default:
		r.ok("conntrack holds %d of %d connections", count, limit)
	}
	pinholes := 1024 // without a policy: what a busy server needs
	if p := f.Config.Policy; p != nil {
		pinholes = p.Limits.Pinholes
		// A session is one connection, or two where it is terminated, and each pinhole becomes one.
		need := p.Limits.Sessions + p.Limits.Pinholes
		if f.terminates() {
			need += p.Limits.Sessions
		}
		if limit > 0 && limit < need {
			r.note(set(conntrackDir+"max", need), "%s is %d: the policy's limits allow %d connections (limits.sessions, limits.pinholes)",
				key(conntrackDir+"max"), limit, need)
		}
	}
	if n, there := f.sysctl[conntrackDir+"expect_max"]; there && n < pinholes {
		r.note(set(conntrackDir+"expect_max", pinholes), "nf_conntrack_expect_max is %d: no more pinholes than that can be open at once (limits.pinholes is %d)",
			n, pinholes)
	}
}

// conntrackTimeout: a control connection is idle while its data connection works, and between commands. RFC 5382 section
// 5 (REQ-5) has a NAT keep an idle connection for 2 hours and 4 minutes; the kernel's default is five days.
func conntrackTimeout(f *Facts, r *report) {
	const (
		least  = 2*60*60 + 4*60 // seconds
		kernel = 5 * 24 * 60 * 60
		path   = conntrackDir + "tcp_timeout_established"
	)
	if n, there := f.sysctl[path]; there && n < least {
		r.note(set(path, kernel), "%s is %d: a control connection is forgotten after so many idle seconds, as in a long transfer", key(path), n)
	}
}

// automaticHelper: kernels before 6.0 may assign the ftp helper by port, which then opens ports behind us.
func automaticHelper(f *Facts, r *report) {
	if f.sysctl[conntrackDir+"helper"] != 0 {
		r.wrong(set(conntrackDir+"helper", 0), "the kernel assigns its own helpers by port")
		return
	}
	r.ok("no automatic conntrack helpers")
}

// conntrackEvents: without destroy events sessions are only found to be over by the sweep.
func conntrackEvents(f *Facts, r *report) {
	if v, there := f.sysctl[conntrackDir+"events"]; there && v == 0 {
		r.wrong(set(conntrackDir+"events", 1), "conntrack reports no events: ends of sessions are noticed late")
		return
	}
	r.ok("conntrack events")
}

// queues looks for processes that read our queues.
func queues(f *Facts, r *report) {
	if f.queuesErr != nil {
		fix := load("nfnetlink_queue")
		if !errors.Is(f.queuesErr, fs.ErrNotExist) {
			fix = again
		}
		r.wrong(fix, "the kernel has no packet queues: %v", f.queuesErr)
		return
	}
	r.ok("packet queues (nfnetlink_queue)")
	free := true
	for _, q := range f.queues {
		if q.Number < f.Config.Queues[0] || q.Number > f.Config.Queues[1] {
			continue
		}
		free = false
		switch {
		case q.name == "ftpalg":
			r.ok("queue %d is read by ftpalg, process %d", q.Number, q.pid)
		case q.pid != 0:
			r.wrong(fmt.Sprintf("kill %d # or give ftpalg another number with --queue-balance", q.pid),
				"queue %d is read by process %d (%s), which is not ftpalg", q.Number, q.pid, q.name)
		default:
			r.note("ftpalg run --queue-balance another", "queue %d is bound by netlink port %d of a process that cannot be seen", q.Number, q.PortID)
		}
	}
	if free {
		r.ok("queue %s is free", queueText(f.Config.Queues))
	}
}

func queueText(q [2]uint16) string {
	if q[0] == q[1] {
		return fmt.Sprint(q[0])
	}
	return fmt.Sprintf("%d:%d", q[0], q[1])
}

// reader gives the process that reads one of our queues; 0 where nobody does, -1 where it cannot be seen.
func (f *Facts) reader() int {
	for _, q := range f.queues {
		if q.Number >= f.Config.Queues[0] && q.Number <= f.Config.Queues[1] {
			if q.pid == 0 {
				return -1
			}
			return q.pid
		}
	}
	return 0
}

// install is the command that puts ftpalg's rules in force, before everybody else's.
func (f *Facts) install() string {
	if pid := f.reader(); pid > 0 {
		return fmt.Sprintf("kill -HUP %d", pid)
	}
	return "ftpalg run --policy " + f.PolicyFile
}

func rulesInPlace(f *Facts, r *report) {
	p := f.Config.Policy
	switch {
	case p == nil:
	case f.missingErr != nil:
		r.wrong(again, "the rules cannot be read: %v", f.missingErr)
	case len(f.missing) > 0:
		const told = 3 // of many, the first few tell enough
		what := strings.Join(f.missing[:min(told, len(f.missing))], "; ")
		if more := len(f.missing) - told; more > 0 {
			what += fmt.Sprintf("; and %d more", more)
		}
		r.wrong(f.install(), "not in place: %s", what)
	case f.reader() == 0 && !p.FailOpen:
		r.wrong("ftpalg run --policy "+f.PolicyFile+" # or take the rules out: ftpalg rules --remove",
			"ftpalg's rules are in place, but nobody reads queue %s: control connections get nowhere", queueText(f.Config.Queues))
	default:
		r.ok("ftpalg's rules are in place")
	}
}
