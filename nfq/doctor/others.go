package doctor

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// flow is packets of one kind, of one server.
type flow struct {
	packet
	what   string
	server server
}

// control gives the packets of control connections to a server, which comes in where it goes out: ftpalg's rules want that. Where
// the clients are is not asked.
func (f *Facts) control(s server) []flow {
	var list []flow
	for _, port := range s.control {
		there := packet{v6: s.address.Addr().Is6(), to: s.address, sport: highPort, dport: onePort(port), out: f.devices[s.address], state: "established", dnat: f.dnat()}
		back := there
		back.from, back.to, back.sport, back.dport, back.in, back.out = there.to, there.from, there.dport, there.sport, there.out, there.in
		first := there
		first.state = "new"
		list = append(list, flow{first, "new control connections", s}, flow{there, "control connections", s}, flow{back, "control connections", s})
	}
	return list
}

// data gives the first packets of data connections to a server, and from it.
func (f *Facts) data(s server) []flow {
	there := packet{v6: s.address.Addr().Is6(), to: s.address, sport: highPort, dport: s.passive, out: f.devices[s.address], state: "related", dnat: f.dnat()}
	back := there
	back.from, back.to, back.sport, back.dport, back.in, back.out = there.to, there.from, anyPort, highPort, there.out, there.in
	return []flow{{there, "data connections", s}, {back, "data connections", s}}
}

// dnat reports whether somebody's rules change destinations.
func (f *Facts) dnat() bool {
	for _, t := range f.tables {
		for _, c := range t.chains {
			if slices.ContainsFunc(c.rules, func(r rule) bool { return r.nat == "dnat" || r.nat == "redirect" }) {
				return true
			}
		}
	}
	return false
}

// owner names whose a table is, as far as its chains tell.
func owner(t *table) string {
	switch {
	case t.tool == "nft" && t.name == "firewalld", t.has("FORWARD_ZONES"):
		return "firewalld"
	case t.has("ufw-") || t.has("ufw6-"):
		return "ufw"
	case t.has("DOCKER-USER"):
		return "Docker"
	}
	return "another firewall"
}

// place is a table for people.
func place(t *table) string {
	if t.tool == "nft" {
		return "table " + t.family + " " + t.name
	}
	return t.tool + ", table " + t.name
}

// jumpsToUs reports whether a rule leads to ftpalg's chains.
func (r *rule) jumpsToUs() bool { return strings.HasPrefix(r.to, ourPrefix) }

// before gives the part of a base chain that sees packets before ftpalg's accepting rules do; ok is false where
// ftpalg's rules accept nothing for it, so that all of it counts.
func (f *Facts) before(t *table, c *chain) (part *chain, ok bool) {
	if f.Backend == rules.BackendNFT || f.Config.NoAccept || t.tool != "iptables" && t.tool != "ip6tables" || t.name != "filter" {
		return c, false
	}
	cut := *c
	cut.policy = accept
	at := slices.IndexFunc(c.rules, func(r rule) bool { return r.jumpsToUs() })
	cut.rules = c.rules[:max(at, 0)] // where it does not stand yet, ftpalg will put it first
	return &cut, true
}

// dropped is the packets of ftpalg's that a base chain drops, or may drop.
type dropped struct {
	flows    []flow
	certain  []flow // those that are dropped whatever the rest of the packet is
	where    string
	overtake bool // it stands before ftpalg's own rules, which would accept them
}

// drops asks a base chain about packets.
func (f *Facts) drops(t *table, c *chain, flows []flow) (d dropped) {
	part, first := f.before(t, c)
	d.overtake = first
	for _, fl := range flows {
		if !t.covers(fl.v6) {
			continue
		}
		o := t.through(part, fl.packet, nil)
		if !o.drop {
			continue
		}
		d.flows = append(d.flows, fl)
		if !o.accept {
			d.certain = append(d.certain, fl)
		}
		if d.where == "" || !o.accept && len(d.certain) == 1 {
			d.where = fmt.Sprintf("chain %s: %s", o.dropChain, o.dropper)
		}
	}
	return d
}

// forward asks everybody's rules for what is forwarded: a packet passes only if each base chain accepts it.
func forward(f *Facts, r *report) { f.ask(r, "forward", false) }

// local asks the rules for what this machine receives: terminated connections come to its own sockets.
func local(f *Facts, r *report) {
	if f.terminates() {
		f.ask(r, "input", true)
	}
}

func (f *Facts) ask(r *report, hook string, host bool) {
	if f.tablesErr != nil {
		if !host {
			r.wrong(again, "the rules of others cannot be read: %v", f.tablesErr)
		}
		return
	}
	flows := f.flows(host)
	for t, c := range f.bases(hook) {
		f.judge(r, t, c, f.drops(t, c, flows), host)
	}
}

// flows are the packets that pass this machine, or those that it receives.
func (f *Facts) flows(host bool) (flows []flow) {
	for _, s := range f.servers() {
		if host && f.terminated(s) {
			back := func(fl flow) bool { return fl.from.IsValid() }
			flows = append(flows, slices.DeleteFunc(f.control(s), back)...)
			flows = append(flows, f.data(s)...)
		}
		if !host && !s.public { // what is forwarded shows where DNAT leads
			flows = append(append(flows, f.control(s)...), f.data(s)...)
		}
	}
	for i := range flows {
		flows[i].marks = f.mark(host)
	}
	return flows
}

// bases goes through everybody's base chains at a hook.
func (f *Facts) bases(hook string) iter.Seq2[*table, *chain] {
	return func(yield func(*table, *chain) bool) {
		for _, t := range f.tables {
			for _, c := range t.chains {
				if c.hook == hook && !yield(t, c) {
					return
				}
			}
		}
	}
}

// Obstacle is a firewall that drops, or may drop, what ftpalg's nft table accepts.
type Obstacle struct{ Name, Fix string }

func (o Obstacle) String() string {
	return o.Name + " does not know the mark of what ftpalg's table accepts, and what it drops stays dropped"
}

// Obstacles finds those among the rules of others, and reads nothing else: ftpalg asks when it starts.
func Obstacles(ctx context.Context, s Subject) (list []Obstacle, err error) {
	f := &Facts{Subject: s, programs: readPrograms()}
	if f.mark(false) == 0 {
		return nil, nil // it accepts nothing, or is not nft's
	}
	if f.tables, err = readTables(ctx, f.programs); err != nil {
		return nil, fmt.Errorf("read the rules of others: %w", err)
	}
	f.devices = readDevices(ctx, f.servers())
	flows := f.flows(false)
	for t, c := range f.bases("forward") {
		if d := f.drops(t, c, flows); len(d.flows) > 0 {
			list = append(list, Obstacle{place(t) + " (" + d.where + ")", f.acceptCommand(t, c, d.flows, false)})
		}
	}
	return list, nil
}

// mark is the mark that ftpalg's packets have when others' chains see them: nft's rules set one on what they accept, and what goes
// to ftpalg's sockets has one.
func (f *Facts) mark(host bool) uint32 {
	t := f.Config.Terminate
	if t == (rules.Terminate{}) {
		t = rules.DefaultTerminate
	}
	switch {
	case host:
		return t.Divert
	case f.Backend == rules.BackendNFT && !f.Config.NoAccept:
		return t.Own
	}
	return 0
}

// terminated reports whether a rule of the policy terminates connections to a server.
func (f *Facts) terminated(s server) bool {
	return slices.ContainsFunc(f.Config.Policy.Rules, func(r policy.Rule) bool {
		return r.Action == policy.Terminate && (len(r.To) == 0 || slices.Contains(r.To, "any") || slices.Contains(r.To, s.name))
	})
}

// judge tells what one base chain does with ftpalg's packets.
func (f *Facts) judge(r *report, t *table, c *chain, d dropped, host bool) {
	who := owner(t) + " (" + place(t) + ")"
	switch {
	case f.Config.Policy == nil && owner(t) == "another firewall":
		return // nobody asks it
	case f.Config.Policy == nil:
		r.note("ftpalg doctor --policy FILE", "%s decides on what is forwarded; with a policy it can be asked about FTP", who)
		return
	case len(d.flows) == 0 && (owner(t) != "another firewall" || len(c.rules) > 0):
		r.ok("%s lets FTP through at %s", who, c.name)
		return
	case len(d.flows) == 0:
		return
	}
	fix := f.acceptCommand(t, c, d.flows, host)
	if d.overtake {
		fix = f.install()
	}
	say, verb, told := r.note, "may drop", d.flows
	if len(d.certain) > 0 {
		say, verb, told = r.wrong, "drops", d.certain
	}
	kinds := map[string]bool{}
	for _, fl := range told {
		kinds[fl.what] = true
	}
	what := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
	if d.overtake {
		what += " before ftpalg's rules see them"
	}
	say(fix, "%s %s %s (%s)", who, verb, what, d.where)
}

// open: ftpalg opens pinholes in what is closed. Where everything is forwarded anyhow it opens, and protects, nothing.
func open(f *Facts, r *report) {
	var hosts, commands []string
	for _, s := range f.servers() {
		p := f.data(s)[0].packet
		p.state = "new"
		if f.tablesErr != nil || s.public || f.closed(p) {
			continue
		}
		command := "iptables -w -P FORWARD DROP"
		if p.v6 {
			command = "ip6tables -w -P FORWARD DROP"
		}
		if f.ufw != nil {
			command = "ufw default deny routed"
		}
		hosts = append(hosts, s.address.String())
		if !slices.Contains(commands, command) {
			commands = append(commands, command)
		}
	}
	if len(hosts) > 0 {
		r.note(strings.Join(commands, " && ")+" # everything that is forwarded needs a rule then",
			"every port of %s is reachable: nothing drops what ftpalg did not open", strings.Join(hosts, ", "))
	}
}

// closed reports whether a forwarded packet is dropped by anybody.
func (f *Facts) closed(p packet) bool {
	for t, c := range f.bases("forward") {
		if t.covers(p.v6) && t.through(c, p, nil).drop {
			return true
		}
	}
	return false
}

// scan calls see once for each rule of others that may match a packet of ftpalg's on its way.
func (f *Facts) scan(see func(*table, *chain, *rule)) {
	var flows []flow
	for _, s := range f.servers() {
		flows = append(append(flows, f.control(s)...), f.data(s)...)
	}
	seen := map[*rule]bool{}
	for _, t := range f.tables {
		for _, base := range t.chains {
			if base.hook == "" {
				continue
			}
			for _, fl := range flows {
				if !t.covers(fl.v6) {
					continue
				}
				t.through(base, fl.packet, func(c *chain, r *rule) {
					if !seen[r] {
						seen[r] = true
						see(t, c, r)
					}
				})
			}
		}
	}
}

// otherQueues: rules of others that queue the same packets.
func otherQueues(f *Facts, r *report) {
	ours := f.Config.Queues
	f.scan(func(t *table, _ *chain, found *rule) {
		switch q := found.queues; {
		case q == nil:
		case q[0] <= ours[1] && ours[0] <= q[1]:
			r.wrong(found.remove, "%s sends FTP packets to ftpalg's queue, which is not made for them (%s: %s)", owner(t), place(t), found.text)
		default:
			r.note(found.remove, "%s sends FTP packets to queue %s (%s: %s)", owner(t), queueText(*q), place(t), found.text)
		}
	})
}

// notrack: without conntrack there are no expectations.
func notrack(f *Facts, r *report) {
	f.scan(func(t *table, _ *chain, found *rule) {
		if found.notrack {
			r.wrong(found.remove, "%s keeps FTP from conntrack, so no pinhole can be made (%s: %s)", owner(t), place(t), found.text)
		}
	})
}

// otherHelpers: rules of others that give control connections a helper. The first helper that a connection gets is the one
// that it keeps.
func otherHelpers(f *Facts, r *report) {
	f.scan(func(t *table, c *chain, found *rule) {
		if found.helper == "" {
			return
		}
		if f.after(t, c, found) {
			r.note(found.remove, "%s gives control connections the helper %q, but ftpalg's rule comes first (%s: %s)",
				owner(t), found.helper, place(t), found.text)
			return
		}
		r.wrong(found.remove, "%s gives control connections the helper %q, which opens ports by itself (%s: %s)",
			owner(t), found.helper, place(t), found.text)
	})
}

// after reports whether a rule of a table comes after ftpalg's in the raw table.
func (f *Facts) after(t *table, c *chain, found *rule) bool {
	if t.tool == "nft" { // a helper can be set only behind conntrack, and so behind raw
		return f.Backend != rules.BackendNFT
	}
	if f.Backend == rules.BackendNFT || t.name != "raw" || strings.HasSuffix(t.tool, "-legacy") {
		return false
	}
	for i := range c.rules {
		if &c.rules[i] == found {
			return false
		}
		if c.rules[i].jumpsToUs() {
			return true
		}
	}
	return c.hook == ""
}

// offload: what a flowtable takes never comes to the queue. The kernel takes no connection that has a helper (nft_flow_offload
// looks for one), so it takes data connections and leaves control connections.
func offload(f *Facts, r *report) {
	f.scan(func(t *table, _ *chain, found *rule) {
		if found.offload != "" {
			r.ok("%s offloads connections to flowtable %s: data connections gain, and control connections stay, for they carry a helper (%s)",
				owner(t), found.offload, found.text)
		}
	})
}

// sourceNAT: in active mode a client tells its own address, which has to be rewritten where it is translated.
func sourceNAT(f *Facts, r *report) {
	if !f.hasRule(policy.Inspect) {
		return
	}
	f.scan(func(t *table, _ *chain, found *rule) {
		switch {
		case found.nat != "masquerade" && found.nat != "snat" && found.nat != "netmap":
		case f.helper.Own:
			r.note(load("nf_conntrack_sane")+" && sed -i 's/^helper: .*/helper: auto/' "+f.PolicyFile,
				"source NAT (%s: %s): with the helper %q active mode works only where the length of PORT and EPRT stays",
				place(t), found.text, f.helper.Name)
		default:
			r.ok("source NAT (%s: %s): ftpalg rewrites PORT and EPRT in clear text", place(t), found.text)
		}
	})
}

// firewalldReload: firewalld empties all of iptables' tables when it is started or loaded again, also where its own rules are in
// nft, and no setting keeps it from that (fw.py, flush, in all its versions until 1.3). Tables of nft's it leaves alone.
func firewalldReload(f *Facts, r *report) {
	if f.Backend == rules.BackendNFT || !slices.ContainsFunc(f.tables, func(t *table) bool { return owner(t) == "firewalld" }) {
		return
	}
	fix := f.install() + " # after each 'firewall-cmd --reload'"
	if err, tried := f.features["nft_queue"]; tried && err == nil {
		fix = "ftpalg run --backend nft --policy FILE"
		if f.PolicyFile != "" {
			fix = "ftpalg run --backend nft --policy " + f.PolicyFile
		}
	}
	r.note(fix, "firewalld takes ftpalg's rules out whenever it is loaded: it empties iptables' tables")
}

// ufwSettings: what ufw will do when it is loaded again.
func ufwSettings(f *Facts, r *report) {
	if f.ufw == nil {
		return
	}
	const file = "/etc/default/ufw"
	r.ok("ufw is on: what is forwarded and not allowed is %s", strings.ToLower(f.ufw["DEFAULT_FORWARD_POLICY"]))
	if strings.EqualFold(f.ufw["MANAGE_BUILTINS"], "yes") {
		r.wrong("sed -i 's/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=no/' "+file,
			"ufw takes ftpalg's rules out whenever it is loaded: MANAGE_BUILTINS=yes in %s", file)
	}
	sysctl := f.ufw["IPT_SYSCTL"]
	for _, s := range []struct{ setting, bad, why string }{
		{"net/ipv4/ip_forward", "0", "forwarding ends"},
		{"net/ipv6/conf/all/forwarding", "0", "forwarding ends"},
		{"net/ipv6/conf/default/forwarding", "0", "forwarding ends"},
		{conntrackDir + "helper", "1", "the kernel assigns its own helpers by port"},
	} {
		if f.ufwSysctl[s.setting] == s.bad {
			r.wrong(fmt.Sprintf("sed -i '\\,^%s=,d' %s", s.setting, sysctl), "%s whenever ufw is loaded: %s=%s in %s", s.why, s.setting, s.bad, sysctl)
		}
	}
}
