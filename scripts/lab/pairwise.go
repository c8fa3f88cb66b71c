package lab

import "maps"

// combination is a case of a table in which every property may meet every other.
type combination interface {
	properties() []string // always as many, in the same order
	certain() bool        // it runs, and passes or fails: there is nothing in the way that may turn up on the way
}

// pair is two properties of a combination, each with its position.
type pair struct {
	i, j int
	a, b string
}

// pairs returns each two properties of a combination.
func pairs(c combination) map[pair]bool {
	all := make(map[pair]bool)
	properties := c.properties()
	for j, b := range properties {
		for i, a := range properties[:j] {
			all[pair{i, j, a, b}] = true
		}
	}
	return all
}

// Pairwise returns some combinations, in their order, in which any two properties meet that meet in one of all. Those that are
// not certain to run are none of them.
func Pairwise[C combination](all []C) (some []C) {
	missing := make(map[pair]bool)
	meet := make([]map[pair]bool, len(all)) // nil for what cannot be chosen
	for i, c := range all {
		if c.certain() {
			meet[i] = pairs(c)
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
	for i, c := range all {
		if chosen[i] {
			some = append(some, c)
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
