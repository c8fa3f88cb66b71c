package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// Defaults of how packets are steered here. The queue's number is FTP's port, so that it tells what it is for; the mark
// is a high bit that policy routing seldom uses.
const (
	defaultQueue = 21
	defaultMark  = 0x20000000
)

// steering is what 'run' and 'rules' both have to know.
type steering struct {
	queues   queueRange
	mark     uint32
	noAccept bool
}

func (s *steering) flags(f *pflag.FlagSet) {
	s.queues = queueRange{defaultQueue, defaultQueue}
	f.Var(&s.queues, "queue-balance", "queue `number`, or first:last to spread the load over several")
	f.Uint32Var(&s.mark, "mark", defaultMark, "mark `bit` for packets that are answered with a reset")
	f.BoolVar(&s.noAccept, "no-accept", false, "leave the accepting rules out: your own accept control and RELATED data")
}

// terminate is how connections that are terminated get here.
func (s *steering) terminate() rules.Terminate { return rules.DefaultTerminate }

func (s *steering) config(p *policy.Policy, helper string) rules.Config {
	return rules.Config{
		Queues: [2]uint16{s.queues.first, s.queues.last}, Helper: helper, FailOpen: p.FailOpen, Mark: s.mark,
		NoAccept: s.noAccept, Policy: p, Terminate: s.terminate(),
	}
}

// queueRange is a flag: "21" or "21:24".
type queueRange struct{ first, last uint16 }

func (q *queueRange) String() string {
	if q.first == q.last {
		return strconv.Itoa(int(q.first))
	}
	return fmt.Sprintf("%d:%d", q.first, q.last)
}

func (q *queueRange) Type() string { return "queues" }

func (q *queueRange) Set(s string) error {
	a, b, several := strings.Cut(s, ":")
	if !several {
		b = a
	}
	first, err1 := strconv.ParseUint(a, 10, 16)
	last, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || last < first || last-first >= 64 {
		return fmt.Errorf("%q is not a queue number, or first:last with at most 64 queues", s)
	}
	q.first, q.last = uint16(first), uint16(last)
	return nil
}
