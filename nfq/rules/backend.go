package rules

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Backend is a language in which the kernel takes rules.
type Backend string

// The back ends. Auto stands for the one that Choose finds.
const (
	BackendAuto     Backend = "auto"
	BackendIPTables Backend = "iptables"
	BackendNFT      Backend = "nft"
)

// Rules are one configuration's, for one back end. Printed, they are what an administrator can install without ftpalg.
type Rules interface {
	fmt.Stringer
	install(ctx context.Context) error
	present(ctx context.Context) (missing []string, err error)
	removeOthers(ctx context.Context) error
}

// Rules makes the rules for a policy. The back end must not be Auto.
func (b Backend) Rules(cfg Config) Rules {
	if b == BackendNFT {
		return NFTables(cfg)
	}
	return IPTables(cfg)
}

// Install puts the rules in force, and takes away what an earlier run left, in this back end first and in the other one
// then, so that packets are never steered by none. Queues must be bound before, or packets are lost.
func Install(ctx context.Context, r Rules) error {
	if err := r.install(ctx); err != nil {
		return err
	}
	return r.removeOthers(ctx)
}

// Remove takes away all tables, chains and policy routing of ours, of every back end, and nothing else. That there are none is
// no error.
func Remove(ctx context.Context) error { return Install(ctx, NFTable{}) }

// Present lists what is missing of the rules, for people to read. Nothing missing means that they are in force.
func Present(ctx context.Context, r Rules) (missing []string, err error) { return r.present(ctx) }

// Installed gives the back end in which rules of ours stand, if there is one.
func Installed(ctx context.Context) (Backend, bool) {
	if there, _ := hasTable(ctx); there {
		return BackendNFT, true
	}
	for _, f := range []Family{{V6: false}, {V6: true}} {
		if out, err := Default.save(ctx, f); err == nil && ours(out) {
			return BackendIPTables, true
		}
	}
	return "", false
}

// Choose finds the back end for a configuration, and says why: one that the kernel and its tools can do, and, of two, the one
// in which this machine's firewall is. What iptables drops no chain of nft's can accept, so iptables comes first. A configuration
// may be without a policy: then all that any policy could need is tried.
func Choose(ctx context.Context, cfg Config) (b Backend, why string) {
	if cfg.Policy == nil {
		cfg.Policy = everything
	}
	cfg.NoLabels = true // without them it works as well
	if err := NFTables(cfg).load(ctx, "-c"); err != nil {
		return BackendIPTables, "nft cannot do it here: " + err.Error()
	}
	firewall, err := iptablesFirewall(ctx)
	others := forwardChains(ctx)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return BackendNFT, "iptables is not installed"
	case err != nil:
		return BackendNFT, "iptables cannot do it here: " + err.Error()
	case firewall != "" && len(others) > 0:
		return BackendIPTables, firewall + " (" + strings.Join(others, " and ") + " of nft judges what is forwarded as well, and has to accept it by itself)"
	case firewall != "":
		return BackendIPTables, firewall
	case len(others) > 0:
		return BackendNFT, "the firewall of this machine is nft's: " + strings.Join(others, " and ")
	}
	return BackendNFT, "nothing else filters what is forwarded here, and nft changes all rules at once"
}

// iptablesFirewall says how iptables filters what is forwarded, but for our own chains; or nothing if it does not.
func iptablesFirewall(ctx context.Context) (string, error) {
	for _, f := range []Family{{V6: false}, {V6: true}} {
		out, err := Default.save(ctx, f)
		if err != nil {
			return "", err
		}
		if what := filtersForward(out); what != "" {
			return f.tool() + " filters what is forwarded: " + what, nil
		}
	}
	return "", nil
}

// filtersForward finds a policy or a rule of the chain FORWARD of the table filter in the output of iptables-save.
func filtersForward(saved string) string {
	_, filter, _ := strings.Cut(saved, "*filter\n")
	filter, _, _ = strings.Cut(filter, "COMMIT\n")
	for line := range strings.Lines(filter) {
		line = strings.TrimSpace(line)
		if policy, ok := strings.CutPrefix(line, ":FORWARD "); ok && !strings.HasPrefix(policy, "ACCEPT") {
			return "its policy is " + strings.Fields(policy)[0]
		}
		if strings.HasPrefix(line, "-A FORWARD ") && !strings.Contains(line, " "+prefix) {
			return line
		}
	}
	return ""
}

// forwardChains lists the chains of others, and not of iptables, that judge what is forwarded, as "table FAMILY NAME".
func forwardChains(ctx context.Context) (tables []string) {
	objects, err := listNFT(ctx, "chains")
	if err != nil {
		return nil // there is no nft here
	}
	for _, o := range objects {
		c := o.Chain
		if c == nil || c.Hook != "forward" || c.Name == "FORWARD" || c.Family+" "+c.Table == nftTable {
			continue
		}
		if table := "table " + c.Family + " " + c.Table; !slices.Contains(tables, table) {
			tables = append(tables, table)
		}
	}
	return tables
}
