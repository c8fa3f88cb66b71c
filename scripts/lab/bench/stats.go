package main

import (
	"cmp"
	"math"
	"slices"
)

// quantile gives the value below which a part q of the values lies. It sorts them.
func quantile[T cmp.Ordered](values []T, q float64) T {
	slices.Sort(values)
	return values[min(int(float64(len(values))*q), len(values)-1)]
}

// median does not change its argument: the order of values is that of the rounds.
func median(values []float64) float64 { return quantile(slices.Clone(values), 0.5) }

// spread gives the quartiles, which say how far the rounds agree.
func spread(values []float64) (low, high float64) {
	sorted := slices.Clone(values)
	return quantile(sorted, 0.25), quantile(sorted, 0.75)
}

// series holds one figure for each way and round: series[way][round].
type series [ways][]float64

func (s *series) add(way int, v float64) { s[way] = append(s[way], v) }

// ratios gives f of every round, leaving out rounds in which it means nothing.
func (s *series) ratios(f func(round [ways]float64) float64) []float64 {
	var all []float64
	for i := range s[routed] {
		var round [ways]float64
		for way := range s {
			if i < len(s[way]) {
				round[way] = s[way][i]
			}
		}
		if r := f(round); !math.IsNaN(r) && !math.IsInf(r, 0) {
			all = append(all, r)
		}
	}
	return all
}

// middle gives the median of each way's rounds.
func (s *series) middle() (m [ways]float64) {
	for way, values := range s {
		if len(values) > 0 {
			m[way] = median(values)
		}
	}
	return m
}
