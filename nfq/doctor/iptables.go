package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// hooks are iptables' built-in chains, and priorities its tables' places among the base chains (linux/netfilter_ipv4.h).
var (
	hooks = map[string]string{
		"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output", "POSTROUTING": "postrouting",
	}
	priorities = map[string]int{"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
)

// parseSave reads what iptables-save or ip6tables-save prints; tool is the command that the rules can be changed with.
func parseSave(tool, text string) ([]*table, error) {
	family := "ip"
	if strings.HasPrefix(tool, "ip6") {
		family = "ip6"
	}
	var tables []*table
	var t *table
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			t = &table{tool: tool, family: family, name: line[1:]}
			tables = append(tables, t)
		case line == "" || strings.HasPrefix(line, "#") || line == "COMMIT":
		case t == nil:
			return nil, fmt.Errorf("%s: line %q stands in no table", tool, line)
		case strings.HasPrefix(line, ":"):
			t.declare(strings.Fields(line[1:]))
		default:
			if err := t.append(line); err != nil {
				return nil, fmt.Errorf("%s: line %q: %w", tool, line, err)
			}
		}
	}
	return tables, nil
}

// declare adds a chain: name, policy, counters.
func (t *table) declare(words []string) {
	if len(words) == 0 {
		return
	}
	c := &chain{name: words[0], hook: hooks[words[0]], priority: priorities[t.name], policy: accept}
	if len(words) > 1 && words[1] == "DROP" {
		c.policy = drop
	}
	t.chains = append(t.chains, c)
}

var errQuote = errors.New("a quotation mark is not closed")

// append adds a rule: -A CHAIN SPEC.
func (t *table) append(line string) error {
	if at := strings.Index(line, "-A "); strings.HasPrefix(line, "[") && at >= 0 {
		line = line[at:] // counters
	}
	words, err := split(line)
	if err != nil {
		return err
	}
	if len(words) < 2 || words[0] != "-A" {
		return errors.New("not a rule")
	}
	c := t.chain(words[1])
	if c == nil {
		return fmt.Errorf("there is no chain %s", words[1])
	}
	r := rule{text: line, remove: fmt.Sprintf("%s -w -t %s -D %s", t.tool, t.name, strings.TrimPrefix(line, "-A "))}
	p := specParser{words: words[2:], rule: &r, v6: t.family == "ip6"}
	if err := p.parse(); err != nil {
		return err
	}
	c.rules = append(c.rules, r)
	return nil
}

// split makes words as a shell does, as far as iptables-save quotes.
func split(line string) (words []string, err error) {
	var word strings.Builder
	quoted, begun := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if quoted {
		return nil, errQuote
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

// specParser reads a rule's options. What it does not know is a condition that may hold or not.
type specParser struct {
	words []string
	rule  *rule
	v6    bool
}

func (p *specParser) parse() error {
	for len(p.words) > 0 {
		not := p.words[0] == "!"
		if not {
			p.words = p.words[1:]
		}
		option := p.next()
		if option == "-j" || option == "-g" {
			return p.target(option)
		}
		m, err := p.condition(option)
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if not {
			m = m.not()
		}
		p.rule.matches = append(p.rule.matches, m)
	}
	return nil
}

// next takes a word, or "" behind the last.
func (p *specParser) next() string {
	if len(p.words) == 0 {
		return ""
	}
	word := p.words[0]
	p.words = p.words[1:]
	return word
}

// condition reads one option with its arguments; nil is the condition that always holds.
func (p *specParser) condition(option string) (match, error) {
	switch option {
	case "-m":
		p.next()
		return nil, nil
	case "-s", "-d":
		prefix, err := parsePrefix(p.next())
		if err != nil {
			return unknown, nil // a mask with holes, such as 10.0.0.1/255.0.0.255
		}
		if option == "-s" {
			return addressIn(source, []span{spanOf(prefix)}), nil
		}
		return addressIn(destination, []span{spanOf(prefix)}), nil
	case "-p":
		m := isTCP([]string{p.next()})
		if m == nil {
			m = func(packet) answer { return yes }
		}
		return m, nil
	case "-i":
		return interfaceIn(inInterface, []string{p.next()}), nil
	case "-o":
		return interfaceIn(outInterface, []string{p.next()}), nil
	case "--sport", "--sports":
		ranges, err := parsePorts(p.next())
		return portIn(sourcePort, ranges), err
	case "--dport", "--dports":
		ranges, err := parsePorts(p.next())
		return portIn(destinationPort, ranges), err
	case "--ctstate", "--state":
		return p.state(p.next()), nil
	case "--tcp-flags":
		mask, set := p.next(), p.next()
		return flagsAre(strings.Split(mask, ","), strings.Split(set, ",")), nil
	case "--mark":
		value, mask, masked := strings.Cut(p.next(), "/")
		if !masked {
			mask = "0xffffffff"
		}
		v, err1 := strconv.ParseUint(value, 0, 32)
		m, err2 := strconv.ParseUint(mask, 0, 32)
		if err1 != nil || err2 != nil {
			return unknown, nil
		}
		return markIs(uint32(v), uint32(m)), nil
	case "--comment":
		p.next()
		return nil, nil
	case "--rt-type": // a routing header, which FTP's packets do not have
		p.next()
		return never, nil
	}
	for len(p.words) > 0 && p.words[0] != "!" && !strings.HasPrefix(p.words[0], "-") {
		p.next()
	}
	return unknown, nil
}

// state reads conntrack's states, among which iptables counts NAT.
func (p *specParser) state(list string) match {
	words := strings.Split(list, ",")
	m := stateIn(words)
	for _, w := range words {
		if w == "DNAT" || w == "SNAT" {
			known := m
			m = func(p packet) answer { return max(known(p), isDNAT(p)) }
		}
	}
	return m
}

func (p *specParser) target(option string) error {
	name, args := p.next(), p.words
	p.words = nil
	switch name {
	case "ACCEPT", "QUEUE", "TPROXY":
		p.rule.does = accept
	case "DROP", "REJECT":
		p.rule.does = drop
	case "RETURN":
		p.rule.does = back
	case "NFQUEUE":
		p.rule.does = accept
		return p.queue(args)
	case "CT", "NOTRACK":
		p.rule.notrack = name == "NOTRACK" || len(args) > 0 && args[0] == "--notrack"
		p.rule.helper = argument(args, "--helper")
	case "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NETMAP":
		p.rule.does, p.rule.nat = accept, strings.ToLower(name)
	case "FLOWOFFLOAD":
		p.rule.offload = "FLOWOFFLOAD"
	default:
		p.rule.does, p.rule.to = call, name // a target of an extension leads to no chain, and so goes on
		if option == "-g" {
			p.rule.does = tail
		}
	}
	return nil
}

func (p *specParser) queue(args []string) error {
	text := argument(args, "--queue-balance")
	if text == "" {
		text = argument(args, "--queue-num")
	}
	if text == "" {
		text = "0"
	}
	ranges, err := parsePorts(text)
	if err == nil {
		q := [2]uint16(ranges[0])
		p.rule.queues = &q
	}
	return err
}

func argument(args []string, option string) string {
	for i := range args {
		if args[i] == option && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

func parsePrefix(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address %q: %w", text, err)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// parsePorts reads "21", "20:21" or "21,990,50000:50100".
func parsePorts(text string) (ranges []ports, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, several := strings.Cut(part, ":")
		if !several {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("ports %q: %w", text, err)
		}
		ranges = append(ranges, ports{uint16(a), uint16(b)})
	}
	return ranges, nil
}
