package rules

import "context"

// Vacant is an error where somebody else's policy routing uses the mark or the routing table that a ruleset needs.
func Vacant(ctx context.Context, r Ruleset) error {
	for _, f := range r.Families {
		if f.Routing.isZero() {
			continue
		}
		have, err := f.readRouting(ctx)
		if err == nil {
			err = f.vacant(ctx, have)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
