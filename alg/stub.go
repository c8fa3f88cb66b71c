package alg

import (
	"net/netip"

	"ftpalg/policy"
)

type Transfer uint8

const BeginTransfer Kind = 100

func NewTerminated(p *policy.Policy, d policy.Decision, client, server netip.AddrPort) *Control {
	d.Implicit = false
	return New(p, d, client, server)
}
func (c *Control) SetProtection(p Protection) { c.secured = p.Control == TLS; c.dataLevel = p.Data }

const (
	LoginLimit Reason = 200 + iota
	NoCertificate
	UpstreamTLS
	ClientTLS
	ServerUnreachable
	IdleTimeout
	GatewayStopped
	ProtectionDiffers
	ReuseRequired
	DataFailed
	TooLarge
)

func (r Reason) Reply() string { return "550 " + r.String() }

func Reasons() func(func(Reason) bool) {
	return func(yield func(Reason) bool) {
		for r := range reasonCount {
			if !yield(r) {
				return
			}
		}
		for r := LoginLimit; r <= TooLarge; r++ {
			if !yield(r) {
				return
			}
		}
	}
}
