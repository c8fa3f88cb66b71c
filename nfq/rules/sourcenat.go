package rules

import (
	"context"
	"errors"
	"os/exec"
	"regexp"
	"slices"

	"ftpalg/policy"
)

// sourceNAT finds the statements of iptables and nft that change where a connection comes from.
var sourceNAT = regexp.MustCompile(`-j (MASQUERADE|SNAT|NETMAP)\b|\b(masquerade|snat)\b`)

// SourceNAT reports whether any rule on this machine translates the addresses of clients. It only reads. A program that is not
// there has no rules; an error is about what could not be read, and may hide such a rule.
func SourceNAT(ctx context.Context) (bool, error) {
	var failed error
	found := func(name string, args ...string) bool {
		text, err := command(ctx, "", name, args...)
		if err != nil && !errors.Is(err, exec.ErrNotFound) {
			failed = errors.Join(failed, err)
		}
		return err == nil && sourceNAT.MatchString(text)
	}
	for _, v := range []Variant{Legacy, NFT} {
		f, nat := Family{}, Table{Name: natTable}
		if !nat.unused(ctx, v, f) && found(v.command(f.tool(), "save"), "-t", natTable) {
			return true, nil
		}
	}
	if found("nft", "list", "ruleset") {
		return true, nil
	}
	return false, failed
}

// NAT reports whether control connections may be under NAT: a policy says that DNAT leads to a server, or a rule on this machine
// translates clients.
func NAT(ctx context.Context, p *policy.Policy) (bool, error) {
	if p != nil && slices.ContainsFunc(p.Servers, func(s policy.Server) bool { return len(s.Public) > 0 }) {
		return true, nil
	}
	return SourceNAT(ctx)
}
