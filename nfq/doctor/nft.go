package doctor

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// nftObject is one object of `nft -j list ruleset`: exactly one of its fields is set (libnftables-json(5)).
type nftObject struct {
	Table *struct{ Family, Name string }
	Chain *struct {
		Family, Table, Name, Hook, Policy string
		Prio                              int
	}
	Rule *struct {
		Family, Table, Chain string
		Handle               uint64
		Expr                 []map[string]json.RawMessage
	}
	Helper *struct{ Family, Table, Name, Type string } `json:"ct helper"`
}

// nftReader makes tables of the objects.
type nftReader struct {
	tables  map[string]*table // by family and name
	order   []*table
	helpers map[string]string // type of a helper object, by family, table and name
}

// parseNFT reads what `nft -j list ruleset` prints. The kernel lists objects before the rules that name them.
func parseNFT(text []byte) ([]*table, error) {
	var list struct{ Nftables []nftObject }
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("nft -j list ruleset: %w", err)
	}
	r := nftReader{tables: map[string]*table{}, helpers: map[string]string{}}
	for _, o := range list.Nftables { // chains first: rules lead from one to the other
		if h := o.Helper; h != nil {
			r.helpers[h.Family+" "+h.Table+" "+h.Name] = h.Type
		}
		if c := o.Chain; c != nil {
			policy := accept
			if c.Policy == "drop" {
				policy = drop
			}
			t := r.table(c.Family, c.Table)
			t.chains = append(t.chains, &chain{name: c.Name, hook: c.Hook, priority: c.Prio, policy: policy})
		}
	}
	for _, o := range list.Nftables {
		if o.Rule == nil {
			continue
		}
		t := r.table(o.Rule.Family, o.Rule.Table)
		c := t.chain(o.Rule.Chain)
		if c == nil {
			return nil, fmt.Errorf("nft -j list ruleset: table %s %s has a rule in %q, which is no chain of it", t.family, t.name, o.Rule.Chain)
		}
		place := fmt.Sprintf("%s %s %s handle %d", t.family, t.name, c.name, o.Rule.Handle)
		base := rule{text: "rule " + place, remove: "nft delete rule " + place}
		c.rules = append(c.rules, r.rules(t, base, o.Rule.Expr)...)
	}
	return r.order, nil
}

func (r *nftReader) table(family, name string) *table {
	key := family + " " + name
	if r.tables[key] == nil {
		r.tables[key] = &table{tool: "nft", family: family, name: name}
		r.order = append(r.order, r.tables[key])
	}
	return r.tables[key]
}

// rules makes one rule, or several of one with a verdict map: its elements exclude one another.
func (r *nftReader) rules(t *table, base rule, expr []map[string]json.RawMessage) []rule {
	for _, e := range expr {
		for kind, arg := range e {
			switch kind {
			case "match":
				if m := nftMatch(arg); m != nil {
					base.matches = append(base.matches, m)
				}
			case "xt":
				base.matches = append(base.matches, unknown)
			case "vmap":
				return vmap(base, arg)
			default:
				r.statement(t, &base, kind, arg)
			}
		}
	}
	return []rule{base}
}

// statement reads what a rule does. Statements that the doctor has no use for change nothing.
func (r *nftReader) statement(t *table, to *rule, kind string, arg json.RawMessage) {
	switch kind {
	case "accept", "drop", "return", "jump", "goto", "reject":
		to.does, to.to = verdict(kind, arg)
	case "queue":
		to.does, to.queues = accept, nftQueues(arg)
	case "notrack":
		to.notrack = true
	case "ct helper":
		var name string
		_ = json.Unmarshal(arg, &name)
		to.helper = r.helpers[t.family+" "+t.name+" "+name]
		if to.helper == "" {
			to.helper = name
		}
	case "masquerade", "snat", "dnat", "redirect":
		to.does, to.nat = accept, kind
	case "flow":
		var flow struct{ Flowtable string }
		_ = json.Unmarshal(arg, &flow)
		to.offload = strings.TrimPrefix(flow.Flowtable, "@")
	}
}

func verdict(kind string, arg json.RawMessage) (effect, string) {
	var to struct{ Target string }
	_ = json.Unmarshal(arg, &to)
	switch kind {
	case "accept":
		return accept, ""
	case "drop", "reject":
		return drop, ""
	case "return":
		return back, ""
	case "jump":
		return call, to.Target
	case "goto":
		return tail, to.Target
	}
	return goOn, ""
}

// nftQueues reads the queue statement: none (queue 0), a number, or a range.
func nftQueues(arg json.RawMessage) *[2]uint16 {
	var q struct{ Num json.RawMessage }
	_ = json.Unmarshal(arg, &q)
	if len(q.Num) == 0 {
		return &[2]uint16{}
	}
	if ranges, ok := nftPorts(q.Num); ok && len(ranges) == 1 {
		return (*[2]uint16)(&ranges[0])
	}
	return &[2]uint16{0, 65535} // a map or a hash: any
}

// vmap makes a rule of each element of a verdict map. Of a named map the elements are not known.
func vmap(base rule, arg json.RawMessage) []rule {
	var m struct {
		Key  json.RawMessage
		Data json.RawMessage
	}
	var data struct{ Set [][2]json.RawMessage }
	_ = json.Unmarshal(arg, &m)
	if json.Unmarshal(m.Data, &data) != nil {
		any := base
		any.matches = append(any.matches[:len(any.matches):len(any.matches)], unknown)
		yes, no := any, any
		yes.does, no.does = accept, drop
		return []rule{yes, no}
	}
	var rules []rule
	for _, element := range data.Set {
		var kinds map[string]json.RawMessage
		if json.Unmarshal(element[1], &kinds) != nil {
			continue
		}
		r := base
		r.matches = r.matches[:len(r.matches):len(r.matches)]
		if condition := comparison(m.Key, element[0]); condition != nil {
			r.matches = append(r.matches, condition)
		}
		for kind, arg := range kinds {
			r.does, r.to = verdict(kind, arg)
		}
		rules = append(rules, r)
	}
	return rules
}

// nftMatch reads a condition; nil always holds.
func nftMatch(arg json.RawMessage) match {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(arg, &m) != nil {
		return unknown
	}
	switch m.Op {
	case "==", "in":
		return comparison(m.Left, m.Right)
	case "!=":
		if equal := comparison(m.Left, m.Right); equal != nil {
			return equal.not()
		}
		return never
	}
	return unknown
}

// nftLeft is what a condition looks at.
type nftLeft struct {
	Payload *struct{ Protocol, Field string }
	Meta    *struct{ Key string }
	CT      *struct{ Key string } `json:"ct"`
	Exthdr  json.RawMessage       // of IPv6: FTP's packets have none
	And     []json.RawMessage     `json:"&"`
}

// comparison is the condition that what left looks at has one of the values of right; nil always holds.
func comparison(left, right json.RawMessage) match {
	var l nftLeft
	if json.Unmarshal(left, &l) != nil {
		return unknown
	}
	switch {
	case l.Payload != nil:
		return payloadIs(l.Payload.Protocol, l.Payload.Field, right)
	case l.Meta != nil:
		return metaIs(l.Meta.Key, right)
	case l.CT != nil:
		return ctIs(l.CT.Key, right)
	case l.Exthdr != nil:
		return never
	case len(l.And) == 2:
		return masked(l.And, right)
	}
	return unknown
}

func payloadIs(protocol, field string, right json.RawMessage) match {
	switch {
	case protocol == "udp" || protocol == "sctp" || protocol == "icmp" || protocol == "icmpv6":
		return never
	case (protocol == "tcp" || protocol == "th") && (field == "dport" || field == "sport"):
		ranges, ok := nftPorts(right)
		switch {
		case !ok:
			return unknown
		case field == "sport":
			return portIn(sourcePort, ranges)
		}
		return portIn(destinationPort, ranges)
	case protocol == "tcp" && field == "flags":
		return masked(nil, right)
	case (protocol == "ip" || protocol == "ip6") && (field == "saddr" || field == "daddr"):
		spans, ok := nftSpans(right)
		switch {
		case !ok:
			return both(isFamily(protocol == "ip6"), unknown)
		case field == "saddr":
			return addressIn(source, spans)
		}
		return addressIn(destination, spans)
	case protocol == "ip" && field == "protocol", protocol == "ip6" && field == "nexthdr":
		return isTCP(nftWords(right))
	case protocol == "ip" || protocol == "ip6":
		return both(isFamily(protocol == "ip6"), unknown)
	}
	return unknown
}

func both(a, b match) match {
	return func(p packet) answer { return min(a(p), b(p)) }
}

func metaIs(key string, right json.RawMessage) match {
	words := nftWords(right)
	switch {
	case words == nil:
		return unknown
	case key == "l4proto":
		return isTCP(words)
	case key == "nfproto" && len(words) == 1:
		return isFamily(words[0] == "ipv6")
	case key == "iifname", key == "iif":
		return interfaceIn(inInterface, words)
	case key == "oifname", key == "oif":
		return interfaceIn(outInterface, words)
	}
	return unknown
}

func ctIs(key string, right json.RawMessage) match {
	words := nftWords(right)
	switch {
	case words == nil:
		return unknown
	case key == "state":
		return stateIn(words)
	case key == "status" && len(words) == 1 && words[0] == "dnat":
		return isDNAT
	}
	return unknown
}

// masked is a comparison under a mask: of TCP's flags, or of the mark.
func masked(and []json.RawMessage, right json.RawMessage) match {
	if len(and) == 2 {
		var l nftLeft
		var mask, value uint32
		if json.Unmarshal(and[0], &l) == nil && l.Meta != nil && l.Meta.Key == "mark" &&
			json.Unmarshal(and[1], &mask) == nil && json.Unmarshal(right, &value) == nil {
			return markIs(value, mask)
		}
	}
	mask := []string{"fin", "syn", "rst", "psh", "ack", "urg"}
	if len(and) == 2 {
		var l nftLeft
		if json.Unmarshal(and[0], &l) != nil || l.Payload == nil || l.Payload.Protocol != "tcp" || l.Payload.Field != "flags" {
			return unknown
		}
		mask = nftWords(and[1])
	}
	set := nftWords(right)
	if mask == nil || set == nil {
		return unknown
	}
	return flagsAre(mask, set)
}

// values unpacks the right side of a condition: one value, a list or a set. A named set has none that are known.
func values(right json.RawMessage) []json.RawMessage {
	var set struct{ Set []json.RawMessage }
	if json.Unmarshal(right, &set) == nil && set.Set != nil {
		return set.Set
	}
	var list []json.RawMessage
	if json.Unmarshal(right, &list) == nil {
		return list
	}
	return []json.RawMessage{right}
}

// nftWords reads words; nil where something else is among them.
func nftWords(right json.RawMessage) []string {
	var words []string
	for _, v := range values(right) {
		var w string
		if json.Unmarshal(v, &w) != nil || strings.HasPrefix(w, "@") {
			return nil
		}
		words = append(words, w)
	}
	return words
}

// nftPorts reads ports and ranges of them.
func nftPorts(right json.RawMessage) (ranges []ports, ok bool) {
	for _, v := range values(right) {
		var n uint16
		var r struct{ Range *ports }
		switch {
		case json.Unmarshal(v, &n) == nil:
			ranges = append(ranges, onePort(n))
		case json.Unmarshal(v, &r) == nil && r.Range != nil:
			ranges = append(ranges, *r.Range)
		default:
			return nil, false
		}
	}
	return ranges, len(ranges) > 0
}

// nftSpans reads addresses, prefixes and ranges.
func nftSpans(right json.RawMessage) (spans []span, ok bool) {
	for _, v := range values(right) {
		s, ok := nftSpan(v)
		if !ok {
			return nil, false
		}
		spans = append(spans, s)
	}
	return spans, len(spans) > 0
}

func nftSpan(v json.RawMessage) (span, bool) {
	var a netip.Addr
	if json.Unmarshal(v, &a) == nil && a.IsValid() {
		return span{a, a}, true
	}
	var o struct {
		Prefix *struct {
			Addr netip.Addr
			Len  int
		}
		Range *[2]netip.Addr
	}
	if json.Unmarshal(v, &o) != nil {
		return span{}, false
	}
	if o.Prefix != nil {
		p, err := o.Prefix.Addr.Prefix(o.Prefix.Len)
		if err != nil || !p.IsValid() {
			return span{}, false
		}
		return spanOf(p), true
	}
	if o.Range != nil && o.Range[0].IsValid() && o.Range[1].IsValid() {
		return span(*o.Range), true
	}
	return span{}, false
}
