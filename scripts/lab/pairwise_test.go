package lab

import "testing"

// Whatever two properties meet in a scenario that runs meet in one that is chosen, and the chosen are few.
func TestPairwise(t *testing.T) {
	checkPairwise(t, Scenarios(), 10)
}

// The same of those that start from nothing.
func TestPairwiseCold(t *testing.T) {
	checkPairwise(t, ColdScenarios(), 20)
}

// The same of the NAT matrix.
func TestPairwiseCells(t *testing.T) {
	checkPairwise(t, Cells(), 20)
}

func checkPairwise[C combination](t *testing.T, all []C, part int) {
	some := Pairwise(all)
	met := make(map[pair]bool)
	for _, c := range some {
		if !c.certain() {
			t.Errorf("%v is chosen, and may not run", c)
		}
		for p := range pairs(c) {
			met[p] = true
		}
	}
	runs := 0
	for _, c := range all {
		if !c.certain() {
			continue
		}
		runs++
		for p := range pairs(c) {
			if !met[p] {
				t.Errorf("%v: %q and %q meet in none that is chosen", c, p.a, p.b)
			}
		}
	}
	t.Logf("%d of %d", len(some), runs)
	if len(some) == 0 || len(some)*part > runs {
		t.Errorf("%d of %d are chosen, want some and one in %d at most", len(some), runs, part)
	}
}
