package audit

import (
	"net/netip"
	"time"

	"ftpalg/alg"
)

// SessionInfo is what the operator sees of a session.
type SessionInfo struct {
	Number         uint64
	Client, Server netip.AddrPort
	Rule           string
	User           string
	Protection     alg.Protection
	Pinhole        alg.Pinhole // zero without one
	PinholeUntil   time.Time
	Began          time.Time
	LastSeen       time.Time
	Refused        bool
}
