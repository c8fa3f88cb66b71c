package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// String prints the table as an nft file that says why each rule is there. Loading it again replaces the table.
func (t NFTable) String() string {
	var b strings.Builder
	b.WriteString("#!/usr/sbin/nft -f\n# ftpalg's table. 'ftpalg run --backend nft' installs it by itself; with --no-rules, include this file.\n")
	for _, line := range t.hints() {
		b.WriteString(strings.TrimRight("# "+line, " ") + "\n")
	}
	fmt.Fprintf(&b, "\ntable %s\ndelete table %s\n", nftTable, nftTable)
	if len(t.chains) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "\ntable %s {\n", nftTable)
	for _, h := range t.helpers {
		fmt.Fprintf(&b, "\t%s\n", h)
	}
	if len(t.devices) > 0 {
		fmt.Fprintf(&b, "\n\tflowtable %s {\n\t\thook ingress priority filter;\n\t\tdevices = { %s };\n\t}\n", flowtable, quoted(t.devices))
	}
	for _, s := range t.sets {
		fmt.Fprintf(&b, "\n\t%s %s {\n\t\ttype %s\n%s\t\telements = {\n", s.kind, s.name, s.types, s.flags())
		for _, e := range s.elements {
			fmt.Fprintf(&b, "\t\t\t%s,\n", e)
		}
		b.WriteString("\t\t}\n\t}\n")
	}
	said := map[string]bool{"": true}
	for _, c := range t.chains {
		fmt.Fprintf(&b, "\n\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\t%s\n", c.Hook)
		}
		for _, r := range c.Rules {
			if !said[r.Why] {
				said[r.Why] = true
				fmt.Fprintf(&b, "\t\t# %s\n", r.Why)
			}
			fmt.Fprintf(&b, "\t\t%s\n", r.Spec)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// quoted lists interfaces as nft takes them, whatever their names are.
func quoted(devices []string) string {
	all := make([]string, len(devices))
	for i, d := range devices {
		all[i] = strconv.Quote(d)
	}
	return strings.Join(all, ", ")
}

// hints are what the table cannot do by itself.
func (t NFTable) hints() (lines []string) {
	if t.accept != "" {
		lines = append(lines, "",
			"A chain of nft cannot accept what a chain of another table drops. Where one of yours at the hooks forward, input or",
			"output drops what it does not know, it needs this line, which lets through what this table has judged and accepted:",
			"    "+t.accept+" accept")
	}
	first := true
	for _, f := range t.families {
		if f.Routing.isZero() {
			continue
		}
		if first {
			lines = append(lines, "", "Terminated connections need policy routing as well, which is no matter of nft's:")
			first = false
		}
		lines = append(lines, "    "+f.ip()+" route replace "+f.Routing.route(), "    "+f.ip()+" rule add "+f.Routing.rule())
	}
	return lines
}

// bothFamilies gives the routing of both families, which is zero for those that have none.
func (t NFTable) bothFamilies() []Family {
	all := []Family{{V6: false}, {V6: true}}
	for i := range all {
		for _, f := range t.families {
			if f.V6 == all[i].V6 {
				all[i].Routing = f.Routing
			}
		}
	}
	return all
}

// install puts the table in the place of what is there of ours, in one transaction.
func (t NFTable) install(ctx context.Context) error {
	var have []routes
	families := t.bothFamilies()
	if !hasIPv6() && families[1].Routing.isZero() {
		families = families[:1]
	}
	for _, f := range families {
		r, err := f.readRouting(ctx)
		if err != nil {
			return err
		}
		if err := f.addRouting(ctx, r); err != nil {
			return err
		}
		have = append(have, r)
	}
	if err := t.replace(ctx); err != nil {
		return err
	}
	for i, f := range families {
		if err := f.removeStale(ctx, have[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t NFTable) replace(ctx context.Context) error {
	if len(t.chains) == 0 {
		return removeTable(ctx)
	}
	return t.load(ctx)
}

// removeOthers takes away what iptables has of ours.
func (t NFTable) removeOthers(ctx context.Context) error { return Default.removeChains(ctx) }

// load has the kernel take the table, or, with "-c", only judge it.
func (t NFTable) load(ctx context.Context, options ...string) error {
	text := t.String()
	_, err := command(ctx, text, "nft", append(options, "-f", "-")...)
	return nameRule(err, text)
}

// nameRule finds the line that nft complains of.
func nameRule(err error, text string) error {
	if err == nil || errors.Is(err, exec.ErrNotFound) {
		return err
	}
	// /dev/stdin:7:3-13: Error: Could not process rule: No such file or directory
	at, complaint, found := strings.Cut(err.Error(), ": Error: ")
	if !found {
		return err
	}
	complaint, _, _ = strings.Cut(complaint, "\n")
	var line int
	_, position, _ := strings.Cut(at[strings.LastIndex(at, " ")+1:], ":")
	_, _ = fmt.Sscanf(position, "%d", &line)
	if lines := strings.Split(text, "\n"); 0 < line && line <= len(lines) {
		complaint += " (the rule: " + strings.TrimSpace(lines[line-1]) + ")"
	}
	return fmt.Errorf("nft: %s", complaint)
}

// removeTable deletes the table, if it is there.
func removeTable(ctx context.Context) error {
	there, err := hasTable(ctx)
	if err != nil || !there {
		return err
	}
	_, err = command(ctx, "", "nft", "delete", "table", "inet", "ftpalg")
	return err
}

// hasTable reports whether there is a table of ours. Where there is no nft, or no support for it, there is none.
func hasTable(ctx context.Context) (bool, error) {
	_, err := command(ctx, "", "nft", "list", "table", "inet", "ftpalg")
	if err != nil && strings.Contains(err.Error(), "not permitted") {
		return false, err
	}
	return err == nil, nil
}

// nftObject is what nft -j prints of one thing; the fields are those that are read.
type nftObject struct {
	Chain *struct{ Family, Table, Name, Hook, Policy string }
	Rule  *struct{ Chain string }
	Set   *struct{ Name string }
	Map   *struct{ Name string }
}

// listNFT asks the kernel.
func listNFT(ctx context.Context, what ...string) ([]nftObject, error) {
	out, err := command(ctx, "", "nft", append([]string{"-j", "list"}, what...)...)
	if err != nil {
		return nil, err
	}
	var list struct{ Nftables []nftObject }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("nft -j list %s: %w", strings.Join(what, " "), err)
	}
	return list.Nftables, nil
}

// present lists what is missing.
func (t NFTable) present(ctx context.Context) (missing []string, err error) {
	for _, f := range t.families {
		routing, err := f.routingMissing(ctx)
		if err != nil {
			return nil, err
		}
		missing = append(missing, routing...)
	}
	if there, err := hasTable(ctx); err != nil {
		return nil, err
	} else if !there {
		return append(missing, "nft: no table "+nftTable), nil
	}
	objects, err := listNFT(ctx, "table", "inet", "ftpalg")
	if err != nil {
		return nil, err
	}
	rules, sets := map[string]int{}, map[string]bool{}
	for _, o := range objects {
		switch {
		case o.Rule != nil:
			rules[o.Rule.Chain]++
		case o.Set != nil:
			sets[o.Set.Name] = true
		case o.Map != nil:
			sets[o.Map.Name] = true
		}
	}
	for _, c := range t.chains {
		if rules[c.Name] != len(c.Rules) {
			missing = append(missing, fmt.Sprintf("nft, table %s: chain %s has %d of its %d rules", nftTable, c.Name, rules[c.Name], len(c.Rules)))
		}
	}
	for _, s := range t.sets {
		if !sets[s.name] {
			missing = append(missing, fmt.Sprintf("nft, table %s: no %s %s", nftTable, s.kind, s.name))
		}
	}
	return missing, nil
}
