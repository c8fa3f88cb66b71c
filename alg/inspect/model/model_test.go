package model

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"ftpalg/policy"
)

var (
	steps = flag.Int("model.steps", 0, "play about so many steps, from fresh seeds on")
	seed  = flag.Uint64("model.seed", 0, "play this seed alone")
)

// file is a policy file with the rule's own lines in it.
const file = `
version: 1
servers:
  - {name: files, addresses: [198.51.100.2], explicit: [21], passive: 50000-50100}
rules:
  - {name: r, to: files, action: inspect, modes: [PASV, EPSV, PORT, EPRT], %s}
limits: {audit-rate: 10000}
`

// rule is a policy, and what it denies.
type rule struct {
	text   string
	denied []string
	secret []string
}

var rules = []rule{
	{"commands: {deny: [SITE, DELE, MKD]}", []string{"SITE", "DELE", "MKD"}, nil},
	{"commands: {deny: [SITE, RETR /secret, STOR /secret, APPE /secret, LIST /secret, NLST /secret, SIZE /secret, MDTM /secret]}",
		[]string{"SITE"}, []string{"RETR", "STOR", "APPE", "LIST", "NLST", "SIZE", "MDTM"}},
	{"commands: {deny: [MKD, CWD /secret, RETR /secret, LIST /secret]}", []string{"MKD"}, []string{"CWD", "RETR", "LIST"}},
	{"opaque-active: deny", nil, nil},
}

// setup makes one of the worlds there can be, by a seed.
func setup(t testing.TB, r *rand.Rand, habits []*Habits) (Setup, string) {
	h, u := habits[r.IntN(len(habits))], rules[r.IntN(len(rules))]
	s := Setup{
		Habits: h, Policy: parse(t, u.text), Denied: u.denied, Secret: u.secret,
		DropNew: r.IntN(2) == 0, LastWins: r.IntN(2) == 0, Handshake: r.IntN(2) == 0,
	}
	return s, fmt.Sprintf("%s, %s, new without SYN dropped %v, last content wins %v, all segments %v", h.Name, u.text, s.DropNew, s.LastWins, s.Handshake)
}

var parsed = map[string]*policy.Policy{}

func parse(t testing.TB, text string) *policy.Policy {
	if parsed[text] == nil {
		p, err := policy.Parse("model.yaml", fmt.Appendf(nil, file, text))
		if err != nil {
			t.Fatal(err)
		}
		parsed[text] = p
	}
	return parsed[text]
}

var load = sync.OnceValues(func() ([]*Habits, error) { return Load("../../../testdata/servers") })

// habits are those of the servers that were recorded, and of two that keep to the book.
func habits(t testing.TB) []*Habits {
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Clone(all), Textbook(false), Textbook(true))
}

// length is the number of steps of a dialogue.
const length = 50

// TestModel plays dialogues from fixed seeds on, and from a fresh one. With -model.steps it plays that many steps, and reports each
// kind of fault once.
func TestModel(t *testing.T) {
	all := habits(t)
	const bounded = 500
	fresh := uint64(time.Now().UnixNano())
	switch {
	case *seed != 0:
		play(t, all, *seed, 1)
	case *steps != 0:
		const portion = 20_000 // dialogues, after which it says how far it is
		for left := *steps / length; left > 0; left -= portion {
			play(t, all, fresh, min(left, portion))
			fresh += portion
		}
	default:
		play(t, all, 1, bounded)
		play(t, all, fresh, bounded)
	}
}

// play plays dialogues from a seed on.
func play(t *testing.T, all []*Habits, seed uint64, dialogues int) {
	began, kinds, played, seen := time.Now(), map[string]int{}, 0, Seen{}
	for i := range uint64(dialogues) {
		r := rand.New(rand.NewPCG(seed+i, 10))
		s, what := setup(t, r, all)
		dialogue := Generate(r, &s, length)
		fault, n, some := Run(s, dialogue)
		played += n
		seen.Add(some)
		if fault == "" {
			continue
		}
		if kinds[kindOf(fault)]++; kinds[kindOf(fault)] == 1 {
			t.Errorf("%s\n%s\nthe same again: go test ./alg/inspect/model -run TestModel -model.seed %d\n%s", fault, what, seed+i, Format(Shrink(s, dialogue)))
		}
	}
	t.Logf("%d dialogues of %d steps in all from seed %d in %v: %+v; faults: %v", dialogues, played, seed, time.Since(began).Round(time.Millisecond), seen, kinds)
	if least := dialogues / 20; dialogues > 1 && min(seen.Commands, seen.Transfers, seen.TLS, seen.Pinholes) < least {
		t.Errorf("too little came to pass to tell anything: %+v", seen)
	}
}
