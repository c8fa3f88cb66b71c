// Package rules makes and installs the packet filter rules that steer FTP to ftpalg's queues, and that let through what
// ftpalg allowed. Everything stands in chains of our own, so that it can be replaced and removed without a look at
// anybody else's rules.
package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ftpalg/policy"
)

// DefaultMark is the "refused" bit: a packet that leaves the queue with it is answered with a reset.
const DefaultMark = 0x20000000

// Config says what the rules are for.
type Config struct {
	Queues    [2]uint16 // first and last queue number
	Helper    string    // name of the conntrack helper that carries our expectations
	FailOpen  bool      // let packets pass when no daemon reads the queue
	Mark      uint32    // the refused bit; 0 means DefaultMark
	NoAccept  bool      // leave the accepting rules out, for operators who keep their own
	Variant   Variant   // which iptables to install with
	Terminate Terminate // the zero value means DefaultTerminate
	NoLabels  bool      // the kernel has no labels: a restart then knows nothing of a session
	Flowtable []string  // interfaces between which data connections go past the rules; nft alone can do that
	Policy    *policy.Policy

	// Draining are the addresses of servers to which terminated sessions go on that may have begun under another policy.
	Draining []netip.Addr
}

func (c Config) withDefaults() Config {
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.Terminate == (Terminate{}) {
		c.Terminate = DefaultTerminate
	}
	return c
}

// Ruleset is the rules of one configuration, for every family and table.
type Ruleset struct {
	Variant  Variant
	Families []Family
}

// Family is the rules for IPv4 or for IPv6.
type Family struct {
	V6      bool
	Routing Routing // the zero value when nothing is terminated
	Tables  []Table
}

// Table is one of iptables' tables, with the chains that we have there.
type Table struct {
	Name   string
	Chains []Chain
}

// Chain is a chain of our own.
type Chain struct {
	Name  string
	Hook  string // the built-in chain with the jump that leads here; empty where a chain of ours leads here
	Rules []Rule
}

// Rule is one rule, and why it is there.
type Rule struct {
	Spec string // as iptables-restore takes it, without "-A CHAIN"
	Why  string // may be empty where the rule before it says enough
}

func (c *Chain) add(why, format string, args ...any) {
	c.Rules = append(c.Rules, Rule{Spec: fmt.Sprintf(format, args...), Why: why})
}

// tool names the command of the family: iptables or ip6tables.
func (f Family) tool() string {
	if f.V6 {
		return "ip6tables"
	}
	return "iptables"
}

// jump is the rule that leads from the built-in chain to ours. It says TCP, so that other traffic is spared the visit.
func (c Chain) jump() string { return "-p tcp -j " + c.Name }

// hooked gives the table's chains that a built-in chain leads to.
func (t Table) hooked() []Chain {
	return slices.DeleteFunc(slices.Clone(t.Chains), func(c Chain) bool { return c.Hook == "" })
}

// restore writes the table's chains for iptables-restore --noflush. Naming a chain empties it if it is there, and the
// whole table changes at once. extra lines go before the end.
func (t Table) restore(b *strings.Builder, comments bool, extra ...string) {
	fmt.Fprintf(b, "*%s\n", t.Name)
	for _, c := range t.Chains {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.Name)
	}
	said := map[string]bool{"": true}
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			if comments && !said[r.Why] {
				said[r.Why] = true
				fmt.Fprintf(b, "# %s\n", r.Why)
			}
			fmt.Fprintf(b, "-A %s %s\n", c.Name, r.Spec)
		}
	}
	for _, line := range extra {
		fmt.Fprintln(b, line)
	}
	b.WriteString("COMMIT\n")
}

// String prints the rules as a shell script that installs them and says why each is there. Running it again changes
// nothing.
func (r Ruleset) String() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# ftpalg's rules. 'ftpalg run' installs them by itself; with --no-rules, run this.\nset -e\n")
	for _, f := range r.Families {
		tool := r.Variant.command(f.tool(), "")
		f.Routing.script(&b, f)
		fmt.Fprintf(&b, "\n%s -w 5 --noflush <<'EOF'\n", r.Variant.command(f.tool(), "restore"))
		for _, t := range f.Tables {
			t.restore(&b, true)
		}
		b.WriteString("EOF\n# The jumps come last, when what they lead to is whole.\n")
		for _, t := range f.Tables {
			for _, c := range t.hooked() {
				fmt.Fprintf(&b, "%s -w 5 -t %s -C %s %s 2>/dev/null ||\n\t%s -w 5 -t %s -I %s 1 %s\n",
					tool, t.Name, c.Hook, c.jump(), tool, t.Name, c.Hook, c.jump())
			}
		}
	}
	return b.String()
}
