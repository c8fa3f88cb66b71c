package policy

import (
	"maps"
	"path"
	"slices"
	"strings"
)

func (b *builder) allRules(raw []rawRule) {
	if len(raw) == 0 {
		b.fault("rules", "empty, so that everything is denied; list at least one rule")
	}
	if !b.count("rules", len(raw)) {
		return
	}
	names := map[string]int{}
	for i, r := range raw {
		key := b.name("rules", i, r.Name, names)
		b.p.Rules = append(b.p.Rules, b.rule(key, &r))
	}
}

func (b *builder) rule(key string, raw *rawRule) Rule {
	r := Rule{
		Name:          raw.Name,
		Action:        Action(b.choose(key+".action", raw.Action, actionWords...)),
		Modes:         b.modes(key+".modes", raw.Modes),
		RequireTLS:    b.choose(key+".require", raw.Require, "none", "tls") == 1,
		OpaquePinhole: b.choose(key+".opaque", raw.Opaque, "deny", "pinhole") == 1,
		OpaqueActive:  b.choose(key+".opaque-active", raw.OpaqueActive, "deny", "pinhole") == 1,
		Data:          DataPath(b.choose(key+".data", raw.Data, dataPathWords...)),
		TLS:           b.clientTLS(key+".tls", &raw.TLS),
		MaxSize:       raw.MaxSize,
		Users:         b.names(key+".users", &raw.Users, userProblem),
		Files:         b.names(key+".files", &raw.Files, fileProblem),
	}
	if r.OpaquePinhole {
		r.Modes |= 1 << JIT
	} else if r.OpaqueActive {
		b.fault(key+".opaque-active", "pinhole, but opaque is deny; set opaque: pinhole, or opaque-active: deny")
	}
	r.From = b.references(key+".from", raw.From, b.clients)
	r.To = b.references(key+".to", raw.To, b.servers)
	b.match(&r)
	b.transfers(key+".transfers", raw.Transfers, &r)
	b.commands(key+".commands", &raw.Commands, &r)
	b.terminated(key, &r)
	r.compile()
	return r
}

var transferWords = []string{"upload", "download"}

// transfers reads the directions allowed. None is a choice too: listings only.
func (b *builder) transfers(key string, raw []string, r *Rule) {
	r.NoUpload, r.NoDownload = true, true
	for i, text := range raw {
		if b.choose(index(key, i), text, transferWords...) == 0 {
			r.NoUpload = false
		} else {
			r.NoDownload = false
		}
	}
}

func (b *builder) modes(key string, raw []string) (set Modes) {
	if len(raw) == 0 {
		b.fault(key, "empty, so that no data connection is allowed; list some of %s, or write action: deny", strings.Join(modeWords[:JIT], ", "))
	}
	for i, text := range raw {
		set |= 1 << b.choose(index(key, i), text, modeWords[:JIT]...)
	}
	return set
}

// references checks the names that a rule gives, and sorts them: their order has no meaning.
func (b *builder) references(key string, raw []string, known map[string]int) []string {
	if len(raw) == 0 {
		b.fault(key, "empty, so that the rule matches nothing; list names, or write any")
	}
	for i, name := range raw {
		_, ok := known[name]
		switch {
		case name == anyName && len(raw) > 1:
			b.fault(index(key, i), "any stands for all and goes alone; remove it or the other names")
		case name != anyName && !ok:
			there := append([]string{anyName}, slices.Sorted(maps.Keys(known))...)
			b.fault(index(key, i), "%q is not defined; there is: %s", name, strings.Join(there, ", "))
		case slices.Contains(raw[:i], name):
			b.fault(index(key, i), "%q is listed twice; remove one", name)
		}
	}
	return slices.Sorted(slices.Values(raw))
}

// match resolves a rule's names for Decide.
func (b *builder) match(r *Rule) {
	r.servers = make([]bool, len(b.p.Servers))
	for i, s := range b.p.Servers {
		r.servers[i] = slices.Contains(r.To, s.Name) || slices.Contains(r.To, anyName)
	}
	if slices.Contains(r.From, anyName) {
		r.clients = everything
		return
	}
	var from prefixes
	for _, c := range b.p.Clients {
		if slices.Contains(r.From, c.Name) {
			from = append(from, c.Addresses...)
		}
	}
	r.clients = newPrefixes(from)
}

// commands reads the lists of allowed and denied commands.
func (b *builder) commands(key string, raw *rawNames, r *Rule) {
	r.Allow, r.Deny = []string{}, []string{}
	for i, text := range raw.Allow {
		if !isVerb(text) {
			b.fault(index(key+".allow", i), "%q is no command name; write one such as RETR, without arguments", text)
			continue
		}
		r.Allow = append(r.Allow, plainForm(strings.ToUpper(text)))
	}
	for i, text := range raw.Deny {
		entry, problem := parseDeny(text)
		if problem != "" {
			b.fault(index(key+".deny", i), "%q %s", text, problem)
			continue
		}
		if slices.Contains(r.Allow, entry) {
			b.fault(index(key+".deny", i), "%q is allowed and denied; remove one", text)
		}
		r.Deny = append(r.Deny, entry)
	}
	slices.Sort(r.Allow)
	slices.Sort(r.Deny)
	r.Allow, r.Deny = slices.Compact(r.Allow), slices.Compact(r.Deny)
}

// parseDeny gives an entry of the deny list in its one form: VERB, VERB WORD or VERB /path.
func parseDeny(text string) (entry, problem string) {
	verb, rest, more := strings.Cut(text, " ")
	if !isVerb(verb) {
		return "", "does not begin with a command name; write it as SITE, SITE CHMOD or STOR /path"
	}
	verb = plainForm(strings.ToUpper(verb))
	_, takesPath := pathVerbs[verb]
	switch {
	case !more:
		return verb, ""
	case rest == "" || strings.TrimSpace(rest) != rest || !printable(rest):
		return "", "has stray spaces or characters that cannot be printed; put one space after the command name"
	case rest[0] == '/' && !takesPath:
		return "", "gives a path to a command that takes none that ftpalg reads; deny the command as a whole"
	case rest[0] == '/' && strings.ContainsAny(rest, `*?[{\`):
		return "", "has a wild card; a path covers all that is under it, write the directory"
	case rest[0] == '/':
		return verb + " " + cleanPath(rest), ""
	case takesPath:
		return "", "gives a path that does not begin with /; write it from the root that the client sees"
	case strings.Contains(rest, " "):
		return "", "has more than one word after the command name; write the first only, as in SITE CHMOD"
	}
	return verb + " " + strings.ToUpper(rest), ""
}

// cleanPath gives a path in its one form. A slash is at its end only where a space would be, which could not be seen.
func cleanPath(name string) string {
	clean := path.Clean(name)
	if strings.HasSuffix(clean, " ") {
		clean += "/"
	}
	return clean
}

// isVerb reports whether text can be a command name: letters, and digits behind the first (XMD5, XSHA256).
func isVerb(text string) bool {
	for i, c := range []byte(text) {
		letter := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return text != "" && len(text) <= maxVerb
}

// maxVerb bounds a command name, as package alg/ftp does. RFC 959 says four letters, servers use up to seven.
const maxVerb = 12
