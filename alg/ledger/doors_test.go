package ledger

import (
	"errors"
	"net/netip"
	"testing"
)

// A door that is held firmly is nobody else's; one that is not goes to whom the kernel lets have it. Who has lost a door takes nothing
// away there.
func TestDoors(t *testing.T) {
	var d Doors
	at := Door{netip.MustParseAddrPort("192.0.2.2:0"), netip.MustParseAddrPort("198.51.100.2:50000")}
	ok, refusal := func() error { return nil }, errors.New("there is one")
	refuse := func() error { return refusal }
	must := func() error { t.Error("the kernel was asked"); return nil }
	for _, step := range []struct {
		owner  string
		firm   bool
		expect func() error
		want   error
	}{
		{"inspected", false, ok, nil},
		{"terminated", true, refuse, refusal},
		{"terminated", true, ok, nil},
		{"inspected", false, must, ErrHeld},
		{"terminated", true, ok, nil},
	} {
		if err := d.Open(at, step.owner, step.firm, step.expect); err != step.want {
			t.Errorf("%s: %v, want %v", step.owner, err, step.want)
		}
	}
	if held, err := d.Shut(at, "inspected", must); held || err != nil {
		t.Errorf("who has lost the door: %v, %v", held, err)
	}
	d.Release(at, "inspected")
	if held, err := d.Shut(at, "terminated", refuse); !held || err != refusal {
		t.Errorf("who has the door: %v, %v", held, err)
	}
	d.Release(at, "terminated")
	if err := d.Open(at, "inspected", false, ok); err != nil || d.Len() != 1 {
		t.Errorf("afterwards: %v, %d doors", err, d.Len())
	}
}
