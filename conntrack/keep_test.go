package conntrack

import (
	"testing"
	"time"
)

// A connection is heard of several times before conntrack would forget it, and not more often than is of use.
func TestKeepEvery(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{
		5 * 24 * time.Hour: time.Minute,
		2 * time.Minute:    30 * time.Second,
		time.Second:        time.Second,
	} {
		if got := KeepEvery(life); got != want {
			t.Errorf("forgotten after %v: every %v, want %v", life, got, want)
		}
	}
}
