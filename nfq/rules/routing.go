package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

const (
	// protocol marks rules and routes as ours, as the prefix does chains. It is a free number of those that the kernel keeps
	// for whoever makes routes (linux/rtnetlink.h, RTPROT_*), and FTP's port.
	protocol = "21"
	// priority puts our rule behind that for local addresses and before all others: it is for nothing but our mark, and a
	// VPN's rule for "everything else" must not come first.
	priority = 21
	// ourRoute delivers everything to this machine itself.
	ourRoute = "local default dev lo"
)

// Routing sends packets with a mark to this machine itself, whatever their destination: TPROXY and the socket match
// find the socket, but without this the packets would be forwarded.
type Routing struct {
	Mark  uint32 // bit of the fwmark
	Table uint32 // nobody else's
}

// isZero reports whether nothing is to be routed.
func (r Routing) isZero() bool { return r == Routing{} }

func (r Routing) mark() string { return fmt.Sprintf("%#x/%#x", r.Mark, r.Mark) }

// rule and route are arguments of ip.
func (r Routing) rule() string {
	return fmt.Sprintf("pref %d fwmark %s lookup %d protocol %s", priority, r.mark(), r.Table, protocol)
}

func (r Routing) route() string {
	return fmt.Sprintf("%s table %d proto %s", ourRoute, r.Table, protocol)
}

// ip is the command of the family.
func (f Family) ip() string {
	if f.V6 {
		return "ip -6"
	}
	return "ip -4"
}

// script writes the commands that put the routing in force; running them again changes nothing.
func (r Routing) script(b *strings.Builder, f Family) {
	if r.isZero() {
		return
	}
	fmt.Fprintf(b, "\n# Packets with this mark are for this machine itself, whatever their address says.\n%s route replace %s\n", f.ip(), r.route())
	fmt.Fprintf(b, "[ -n \"$(%s rule show fwmark %s table %d)\" ] ||\n\t%s rule add %s\n", f.ip(), r.mark(), r.Table, f.ip(), r.rule())
}

// ipRule and ipRoute are what ip prints of a rule and of a route, with numbers for names.
type ipRule struct {
	Priority int
	Mark     string `json:"fwmark"`
	Mask     string `json:"fwmask"`
	Table    string
	Protocol string
}

type ipRoute struct {
	Dst      string
	Dev      string
	Table    string
	Protocol string
}

// routes is what the kernel has, of one family.
type routes struct {
	rules  []ipRule // everybody's
	tables []string // those with our route
}

// ours reports whether it is a rule that we make; the routing tells for which mark and table.
func (r ipRule) ours() bool { return r.Protocol == protocol && r.Priority == priority && r.Mark != "" }

func (r ipRule) routing() Routing {
	mark, _ := strconv.ParseUint(r.Mark, 0, 32)
	table, _ := strconv.ParseUint(r.Table, 10, 32)
	return Routing{Mark: uint32(mark), Table: uint32(table)}
}

// takes reports whether the rule is for packets that have the bits of mark.
func (r ipRule) takes(mark uint32) bool { return r.routing().Mark&mark != 0 }

func (r ipRule) String() string {
	s := fmt.Sprintf("pref %d", r.Priority)
	if r.Mark != "" {
		s += " fwmark " + r.Mark
	}
	if r.Mask != "" {
		s += "/" + r.Mask
	}
	return s + " lookup " + r.Table
}

// readRouting asks the kernel, through ip. Where ip is not there and nothing is to be routed, nothing was.
func (f Family) readRouting(ctx context.Context) (routes, error) {
	var have routes
	err := f.list(ctx, &have.rules, "rule show")
	if errors.Is(err, exec.ErrNotFound) && f.Routing.isZero() {
		return routes{}, nil
	}
	if err != nil {
		return routes{}, err
	}
	// The kernel filters, since a router may have a million routes. What was filtered by is not printed.
	var local []ipRoute
	err = f.list(ctx, &local, "route show table all type local proto "+protocol)
	for _, r := range local {
		if r.Dst == "default" && r.Dev == "lo" {
			have.tables = append(have.tables, r.Table)
		}
	}
	return have, err
}

// list decodes what ip shows.
func (f Family) list(ctx context.Context, into any, what string) error {
	out, err := f.run(ctx, "-N -j "+what)
	if err != nil || strings.TrimSpace(out) == "" {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s -N -j %s: %w", f.ip(), what, err)
	}
	return nil
}

func (f Family) run(ctx context.Context, args string) (string, error) {
	words := strings.Fields(f.ip() + " " + args)
	return command(ctx, "", words[0], words[1:]...)
}

// addRouting puts the family's routing in force, unless its table or its mark is somebody else's. What is there already
// stays untouched.
func (f Family) addRouting(ctx context.Context, have routes) error {
	if f.Routing.isZero() {
		return nil
	}
	if err := f.vacant(ctx, have); err != nil {
		return err
	}
	// The route comes first, so that the rule never leads to an empty table and on to the next rule.
	if !have.hasRoute(f.Routing) {
		if _, err := f.run(ctx, "route add "+f.Routing.route()); err != nil {
			return err
		}
	}
	if !have.hasRule(f.Routing) {
		if _, err := f.run(ctx, "rule add "+f.Routing.rule()); err != nil {
			return err
		}
	}
	return nil
}

// vacant is an error where somebody else uses the table or the mark.
func (f Family) vacant(ctx context.Context, have routes) error {
	const remedy = "choose another table with --route-table, or another mark with --mark"
	for _, r := range have.rules {
		if !r.ours() && (r.routing().Table == f.Routing.Table || r.takes(f.Routing.Mark)) {
			return fmt.Errorf("the %s rule '%s' of somebody else uses routing table %d or mark %#x: %s",
				f.ip(), r, f.Routing.Table, f.Routing.Mark, remedy)
		}
	}
	var table []ipRoute
	err := f.list(ctx, &table, fmt.Sprintf("route show table %d", f.Routing.Table))
	if err != nil && strings.Contains(err.Error(), "FIB table does not exist") {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range table {
		if r.Protocol != protocol {
			return fmt.Errorf("routing table %d has a route of somebody else to %s (%s route show table %d): %s",
				f.Routing.Table, r.Dst, f.ip(), f.Routing.Table, remedy)
		}
	}
	return nil
}

func (h routes) hasRule(r Routing) bool {
	return slices.ContainsFunc(h.rules, func(have ipRule) bool { return have.ours() && have.routing() == r })
}

func (h routes) hasRoute(r Routing) bool { return slices.Contains(h.tables, fmt.Sprint(r.Table)) }

// removeStale takes away rules and routes of ours that are not, or no longer, the family's.
func (f Family) removeStale(ctx context.Context, have routes) error {
	for _, r := range have.rules {
		if r.ours() && r.routing() != f.Routing {
			if _, err := f.run(ctx, "rule del "+r.routing().rule()); err != nil {
				return err
			}
		}
	}
	for _, table := range have.tables {
		if table != fmt.Sprint(f.Routing.Table) {
			if _, err := f.run(ctx, fmt.Sprintf("route del %s table %s proto %s", ourRoute, table, protocol)); err != nil {
				return err
			}
		}
	}
	return nil
}

// routingMissing lists what is missing of the family's routing, for people to read.
func (f Family) routingMissing(ctx context.Context) (missing []string, err error) {
	if f.Routing.isZero() {
		return nil, nil
	}
	have, err := f.readRouting(ctx)
	if err != nil {
		return nil, err
	}
	if !have.hasRoute(f.Routing) {
		missing = append(missing, "route: "+f.ip()+" route add "+f.Routing.route())
	}
	if !have.hasRule(f.Routing) {
		missing = append(missing, "rule: "+f.ip()+" rule add "+f.Routing.rule())
	}
	return missing, nil
}
