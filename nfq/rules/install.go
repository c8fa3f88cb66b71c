package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Variant names an iptables back end.
type Variant string

// The variants. Default is whatever "iptables" is on this machine.
const (
	Default Variant = ""
	Legacy  Variant = "legacy"
	NFT     Variant = "nft"
)

// command names a program: command("ip6tables", "save") of Legacy is "ip6tables-legacy-save".
func (v Variant) command(tool, verb string) string {
	for _, part := range []string{string(v), verb} {
		if part != "" {
			tool += "-" + part
		}
	}
	return tool
}

// tables are the tables that we have chains in.
var tables = []Table{{Name: natTable}, {Name: "raw"}, {Name: "mangle"}, {Name: "filter"}}

// natTable is used by few policies, and costs every connection of the machine something once it is there.
const natTable = "nat"

// install replaces our chains. Each table changes at once; the order is routing, nat, raw, mangle, filter, so that what is
// accepted last has been steered first, and leftover routing goes when no rule needs it any more.
func (r Ruleset) install(ctx context.Context) error {
	for _, f := range families(r) {
		if err := f.apply(ctx, r.Variant); err != nil {
			return err
		}
	}
	return nil
}

// removeOthers takes away what nft has of ours.
func (r Ruleset) removeOthers(ctx context.Context) error { return removeTable(ctx) }

// Remove does what the function of that name does, with a certain variant of iptables.
func (v Variant) Remove(ctx context.Context) error { return Install(ctx, Ruleset{Variant: v}) }

// removeChains takes our chains away, if there are any.
func (v Variant) removeChains(ctx context.Context) error {
	for _, f := range families(Ruleset{}) {
		out, err := v.save(ctx, f)
		if errors.Is(err, exec.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if ours(out) {
			if err := f.replaceTables(ctx, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// save gives all tables that are there. Unlike asking for one, that makes none.
func (v Variant) save(ctx context.Context, f Family) (string, error) {
	if f.V6 && !hasIPv6() {
		return "", nil
	}
	return command(ctx, "", v.command(f.tool(), "save"))
}

// ours reports whether the output of iptables-save has chains of ours.
func ours(saved string) bool { return strings.Contains(saved, "\n:"+prefix) }

// present lists what is missing of the ruleset.
func (r Ruleset) present(ctx context.Context) (missing []string, err error) {
	for _, f := range r.Families {
		routing, err := f.routingMissing(ctx)
		if err != nil {
			return nil, err
		}
		missing = append(missing, routing...)
		for _, t := range f.Tables {
			found, err := read(ctx, r.Variant, f, t)
			if err != nil {
				return nil, err
			}
			where := f.tool() + ", table " + t.Name + ": "
			for _, c := range t.hooked() {
				if !slices.Contains(found.jumps, c.Hook+" "+c.jump()) {
					missing = append(missing, where+"no jump from "+c.Hook+" to "+c.Name)
				}
			}
			for _, c := range t.Chains {
				if n, ok := found.chains[c.Name]; !ok || n != len(c.Rules) {
					missing = append(missing, fmt.Sprintf("%schain %s has %d of its %d rules", where, c.Name, n, len(c.Rules)))
				}
			}
		}
	}
	return missing, nil
}

// families are those of the ruleset, and empty ones for those that it does not have, to remove what is left there.
func families(r Ruleset) []Family {
	all := []Family{{V6: false, Tables: tables}, {V6: true, Tables: tables}}
	for _, f := range r.Families {
		if f.Tables[0].Name != natTable {
			f.Tables = append(slices.Clone(tables[:1]), f.Tables...)
		}
		if f.V6 {
			all[1] = f
		} else {
			all[0] = f
		}
	}
	return all
}

// unused says whether a table holds nothing of anybody's, so that to read it would only bring it about.
func (t Table) unused(ctx context.Context, v Variant, f Family) bool {
	if t.Name != natTable || len(t.Chains) > 0 {
		return false
	}
	version, err := command(ctx, "", v.command(f.tool(), ""), "--version")
	if err != nil || strings.Contains(version, "nf_tables") {
		return false
	}
	file := "/proc/thread-self/net/ip_tables_names"
	if f.V6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && !slices.Contains(strings.Fields(string(names)), t.Name)
}

func (f Family) apply(ctx context.Context, v Variant) error {
	empty := !slices.ContainsFunc(f.Tables, func(t Table) bool { return len(t.Chains) > 0 })
	if f.V6 && empty && !hasIPv6() {
		return nil // nothing to install, and nowhere that anything could be left
	}
	routes, err := f.readRouting(ctx)
	if err != nil {
		return err
	}
	if err := f.addRouting(ctx, routes); err != nil {
		return err
	}
	if err := f.replaceTables(ctx, v); err != nil {
		return err
	}
	return f.removeStale(ctx, routes)
}

// replaceTables puts the family's chains in the place of what is there of ours.
func (f Family) replaceTables(ctx context.Context, v Variant) error {
	for _, t := range f.Tables {
		if t.unused(ctx, v, f) {
			continue
		}
		found, err := read(ctx, v, f, t)
		if err != nil {
			return err
		}
		if text := found.replaceBy(t); text != "" {
			if err := restore(ctx, v, f, text); err != nil {
				return err
			}
		}
	}
	return nil
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// leftover is what a table holds of ours.
type leftover struct {
	chains map[string]int // rules in each chain of ours
	jumps  []string       // rules of other chains that lead to ours, as "CHAIN SPEC"
}

// read asks the kernel, through iptables-save.
func read(ctx context.Context, v Variant, f Family, t Table) (leftover, error) {
	out, err := command(ctx, "", v.command(f.tool(), "save"), "-t", t.Name)
	if err != nil {
		return leftover{}, err
	}
	return parseSave(out), nil
}

// parseSave finds our chains, and the jumps to them, in the output of iptables-save.
func parseSave(text string) leftover {
	found := leftover{chains: map[string]int{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, ":"+prefix); ok {
			found.chains[prefix+strings.Fields(name)[0]] += 0
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		chain, spec, _ := strings.Cut(rule, " ")
		if strings.HasPrefix(chain, prefix) {
			found.chains[chain]++
		} else if strings.Contains(spec, " -j "+prefix) || strings.Contains(spec, " -g "+prefix) || strings.HasPrefix(spec, "-j "+prefix) {
			found.jumps = append(found.jumps, rule)
		}
	}
	return found
}

// replaceBy is the input of iptables-restore that puts t, which may be empty, in the place of what was found; or ""
// when there is nothing to do.
func (l leftover) replaceBy(t Table) string {
	if len(t.Chains) == 0 && len(l.chains) == 0 {
		return ""
	}
	wanted := map[string]bool{}
	var extra []string
	for _, jump := range l.jumps {
		extra = append(extra, "-D "+jump)
	}
	for _, c := range t.Chains {
		wanted[c.Name] = true
	}
	all := t // with the chains to be removed, so that they are emptied before
	for name := range l.chains {
		if !wanted[name] {
			all.Chains = append(all.Chains[:len(all.Chains):len(all.Chains)], Chain{Name: name})
			extra = append(extra, "-X "+name)
		}
	}
	for _, c := range t.hooked() {
		extra = append(extra, "-I "+c.Hook+" 1 "+c.jump())
	}
	var b strings.Builder
	all.restore(&b, false, extra...)
	return b.String()
}

// restore runs iptables-restore, and finds the line that it complains of.
func restore(ctx context.Context, v Variant, f Family, text string) error {
	_, err := command(ctx, text, v.command(f.tool(), "restore"), "-w", "5", "--noflush")
	if err == nil {
		return nil
	}
	var line int
	if at := strings.LastIndex(err.Error(), "line"); at >= 0 {
		_, _ = fmt.Sscanf(strings.TrimLeft(err.Error()[at+len("line"):], ": "), "%d", &line)
	}
	if lines := strings.Split(text, "\n"); line > 0 && line <= len(lines) {
		return fmt.Errorf("%w (the rule: %s)", err, lines[line-1])
	}
	return err
}

// command runs a program, and puts what it says of its failure into the error. If we are killed it ends as well: it might
// install what somebody removes behind us. The kernel sees to that when the thread ends that started it.
func command(ctx context.Context, input, name string, args ...string) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: install it (on Debian: apt-get install iptables nftables iproute2), or manage the rules yourself with --no-rules", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
