package lab

import "maps"

// pair is two properties of a scenario, each with its position in the name.
type pair struct {
	i, j int
	a, b string
}

// pairs returns each two properties of a scenario.
func (s Scenario) pairs() map[pair]bool {
	properties := []string{s.Server.Name, s.Client.Name, string(s.Protection), s.Level() + string(s.Data), string(s.Mode), s.Family.String()}
	all := make(map[pair]bool)
	for j, b := range properties {
		for i, a := range properties[:j] {
			all[pair{i, j, a, b}] = true
		}
	}
	return all
}

// Pairwise returns some scenarios, in their order, in which any two properties meet that meet in one of all. Those that do not
// apply are none of them, nor those that might turn out so: what is returned runs, or fails.
func Pairwise(all []Scenario) (some []Scenario) {
	missing := make(map[pair]bool)
	meet := make([]map[pair]bool, len(all)) // nil for what cannot be chosen
	for i, s := range all {
		if s.NotApplicable() == "" && !s.Doubted() {
			meet[i] = s.pairs()
			maps.Copy(missing, meet[i])
		}
	}
	chosen := make([]bool, len(all))
	for len(missing) > 0 {
		best, most := 0, 0
		for i := range all {
			if n := common(meet[i], missing); n > most {
				best, most = i, n
			}
		}
		chosen[best] = true
		for p := range meet[best] {
			delete(missing, p)
		}
	}
	for i, s := range all {
		if chosen[i] {
			some = append(some, s)
		}
	}
	return some
}

// common counts what is in both sets.
func common(a, b map[pair]bool) (n int) {
	for p := range a {
		if b[p] {
			n++
		}
	}
	return n
}
