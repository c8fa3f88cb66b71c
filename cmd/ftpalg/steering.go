package main

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// defaultQueue is FTP's port, so that the number tells what it is for.
const defaultQueue = 21

// steering is what 'run' and 'rules' both have to know of how packets get here.
type steering struct {
	backend  backendName
	queues   queueRange
	mark     uint32 // the refused bit; 0 if nothing answers it
	noAccept bool
	port     uint16 // the transparent listeners'
	table    uint32 // routing table

	flowtable []string // interfaces
}

func (s *steering) flags(f *pflag.FlagSet) {
	s.backend = backendName(rules.BackendAuto)
	f.Var(&s.backend, "backend", "iptables, nft, or auto: what the kernel can do and this machine's firewall uses")
	s.queues = queueRange{defaultQueue, defaultQueue}
	f.Var(&s.queues, "queue-balance", "queue `number`, or first:last to spread the load over several")
	s.mark = rules.DefaultMark
	f.Var((*markBit)(&s.mark), "mark", "mark `bit` for packets that are answered with a reset; the four bits below it are for terminated connections")
	f.BoolVar(&s.noAccept, "no-accept", false, "leave the accepting rules out: your own accept control and RELATED data")
	f.Uint16Var(&s.port, "transparent-port", rules.DefaultTerminate.Port, "`port` on 127.0.0.1 and ::1 where ftpalg takes the connections that it terminates; run takes the next that is free, unless --no-rules")
	f.Uint32Var(&s.table, "route-table", rules.DefaultTerminate.Table, "`number` of a routing table of ftpalg's own, for terminated connections")
	f.StringSliceVar(&s.flowtable, "flowtable", nil, "`interfaces` between which established data connections go past all rules (nft's flowtable), as in eth0,eth1")
}

func (s *steering) config(p *policy.Policy, helper string) rules.Config {
	cfg := s.machine()
	cfg.Helper, cfg.FailOpen, cfg.Policy = helper, p.FailOpen, p
	return cfg
}

// machine is the part of the configuration that no policy decides.
func (s *steering) machine() rules.Config {
	return rules.Config{
		Queues: [2]uint16{s.queues.first, s.queues.last}, Mark: s.mark, NoAccept: s.noAccept, Terminate: s.terminate(),
		Flowtable: s.flowtable,
	}
}

// choose gives the back end for a configuration, and why if that was left to ftpalg.
func (s *steering) choose(ctx context.Context, c rules.Config) (b rules.Backend, why string, err error) {
	if b, why = rules.Backend(s.backend), "--backend says so"; b == rules.BackendAuto {
		b, why = rules.Choose(ctx, c)
	}
	if len(s.flowtable) > 0 && b != rules.BackendNFT {
		err = fmt.Errorf("--flowtable is for nft alone, and the rules are for %s: %s", b, why)
	}
	return b, why, err
}

// backendName is a flag.
type backendName rules.Backend

func (b *backendName) String() string { return string(*b) }

func (b *backendName) Type() string { return "name" }

func (b *backendName) Set(s string) error {
	switch rules.Backend(s) {
	case rules.BackendAuto, rules.BackendIPTables, rules.BackendNFT:
		*b = backendName(s)
		return nil
	}
	return fmt.Errorf("%q is none of auto, iptables, nft", s)
}

// terminate says how terminated connections get to ftpalg's sockets. Their marks are those that the rules have, also where
// nothing answers the refused bit.
func (s *steering) terminate() rules.Terminate {
	t := rules.DefaultTerminate
	if s.mark != 0 {
		t = t.WithMarks(s.mark)
	}
	t.Port, t.Table = cmp.Or(s.port, t.Port), cmp.Or(s.table, t.Table)
	return t
}

// markBit is a flag: one bit with four more below it.
type markBit uint32

func (m *markBit) String() string { return fmt.Sprintf("%#x", uint32(*m)) }

func (m *markBit) Type() string { return "bit" }

func (m *markBit) Set(s string) error {
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil || bits.OnesCount64(v) != 1 || v < 1<<4 {
		return fmt.Errorf("%q is not one bit from 0x10 to 0x80000000", s)
	}
	*m = markBit(v)
	return nil
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
