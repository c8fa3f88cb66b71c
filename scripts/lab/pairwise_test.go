package lab

import "testing"

// Whatever two properties meet in a scenario that runs meet in one that is chosen, and the chosen are few.
func TestPairwise(t *testing.T) {
	all := Scenarios()
	some := Pairwise(all)
	met := make(map[pair]bool)
	for _, s := range some {
		if why := s.NotApplicable(); why != "" || s.Doubted() {
			t.Errorf("%s is chosen, and may not run: %s", s, why)
		}
		for p := range s.pairs() {
			met[p] = true
		}
	}
	runs := 0
	for _, s := range all {
		if s.NotApplicable() != "" || s.Doubted() {
			continue
		}
		runs++
		for p := range s.pairs() {
			if !met[p] {
				t.Errorf("%s: %q and %q meet in none that is chosen", s, p.a, p.b)
			}
		}
	}
	t.Logf("%d of %d", len(some), runs)
	if len(some)*10 > runs {
		t.Errorf("%d of %d scenarios are chosen, want a tenth at most", len(some), runs)
	}
}
