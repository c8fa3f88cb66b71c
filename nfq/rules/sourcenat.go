package rules

import (
	"context"
	"regexp"
)

// sourceNAT finds the statements of iptables and nft that change where a connection comes from.
var sourceNAT = regexp.MustCompile(`-j (MASQUERADE|SNAT|NETMAP)\b|\b(masquerade|snat)\b`)

// SourceNAT reports whether any rule on this machine translates the addresses of clients. It only reads, and what cannot be
// read has no such rule.
func SourceNAT(ctx context.Context) bool {
	for _, v := range []Variant{Legacy, NFT} {
		f, nat := Family{}, Table{Name: natTable}
		if nat.unused(ctx, v, f) {
			continue
		}
		if text, err := command(ctx, "", v.command(f.tool(), "save"), "-t", natTable); err == nil && sourceNAT.MatchString(text) {
			return true
		}
	}
	text, err := command(ctx, "", "nft", "list", "ruleset")
	return err == nil && sourceNAT.MatchString(text)
}
