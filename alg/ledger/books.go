package ledger

import "ftpalg/policy"

// Held packets stay in the kernel's queue until their verdict.
const (
	// maxHeld has to be well below nfq's queue length, or held packets would fill the queue.
	maxHeld = 2048
	// maxHeldOfClient is room for four sessions whose every segment waits behind a gap.
	maxHeldOfClient = 256
)

// maxOpenings bounds the memory of handshakes, some 10 MB. The inspector forgets one for another before.
const maxOpenings = 1 << 16

// A relayed data connection whose reader stalls takes 0.4 MiB of memory, or a pipe of 1 MiB of the kernel's, and four
// descriptors at most.
const (
	maxRelays = 2048
	// maxRelaysOfClient is room for an office behind one address. Each of its sessions has one transfer at a time.
	maxRelaysOfClient = 256
)

// Books are the accounts of a gateway. Both front ends work with the same: a client has one share, however its connections are
// carried.
type Books struct {
	Sessions   *Account // control connections that are followed
	Openings   *Account // control connections that have said nothing yet
	TurnedAway *Account // the same, remembered only to refuse them
	Pinholes   *Account // that stand
	Held       *Account // queued packets without a verdict
	Handshakes *Account // of TLS, in flight
	Relays     *Account // relayed data connections
	Doors      Doors    // where the pinholes lead
}

// Share is one account and what it counts.
type Share struct {
	Name string
	Use
}

// Shares describes all accounts.
func (b *Books) Shares() []Share {
	return []Share{
		{"sessions", b.Sessions.Use()},
		{"silent connections", b.Openings.Use()},
		{"refused sessions", b.TurnedAway.Use()},
		{"pinholes", b.Pinholes.Use()},
		{"held packets", b.Held.Use()},
		{"TLS handshakes", b.Handshakes.Use()},
		{"relayed data connections", b.Relays.Use()},
	}
}

// NewBooks opens the books. limits returns those of the policy in force.
func NewBooks(limits func() *policy.Limits) *Books {
	account := func(pick func(*policy.Limits) Limits) *Account {
		return New(func() Limits { return pick(limits()) })
	}
	sessions := func(l *policy.Limits) Limits { return Limits{l.Sessions, l.SessionsPerClient} }
	return &Books{
		Sessions:   account(sessions),
		Openings:   account(func(l *policy.Limits) Limits { return Limits{maxOpenings, l.SessionsPerClient} }),
		TurnedAway: account(sessions),
		Pinholes:   account(func(l *policy.Limits) Limits { return Limits{l.Pinholes, l.PinholesPerClient} }),
		Held:       New(Fixed(maxHeld, maxHeldOfClient)),
		Handshakes: account(func(l *policy.Limits) Limits { return Limits{l.Handshakes, l.HandshakesPerClient} }),
		Relays:     New(Fixed(maxRelays, maxRelaysOfClient)),
	}
}
