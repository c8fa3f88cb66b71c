package lab

import (
	"testing"
	"time"
)

// inabilityTimeout bounds each attempt: some of what cannot be hangs.
var inabilityTimeout = patient(4 * time.Second)

// TestInabilities: what the table says that a client and a server cannot do they cannot do without a firewall either, and the
// rows of the table are needed.
func TestInabilities(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			s, err := newStage(t.Context(), kind, Config{ServersDir: serversDir}, (*Stage).openUp)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, group := range unableGroups(kind) {
				if !failsOnce(t, s, group) {
					t.Errorf("%s: all of it works, although it is listed as %q", group[0], group[0].unable())
				}
			}
		})
	}
}

// unableGroups returns what the table says a server cannot do, those together that differ in the mode only.
func unableGroups(kind ServerKind) [][]Scenario {
	var groups [][]Scenario
	last := ""
	for _, s := range terminated(kind, Relay) {
		if s.unable() == "" || s.Client.command == nil || s.Client.cannot(s) != "" {
			continue
		}
		name := s.Client.Name + string(s.Protection) + s.Level()
		if name != last {
			groups = append(groups, nil)
		}
		last = name
		groups[len(groups)-1] = append(groups[len(groups)-1], s)
	}
	return groups
}

// failsOnce tries scenarios until one fails: what is lost in a race is not lost always.
func failsOnce(t *testing.T, s *Stage, group []Scenario) bool {
	for _, scenario := range group {
		if s.transfer(t.Context(), scenario, inabilityTimeout) != nil {
			return true
		}
	}
	return false
}
