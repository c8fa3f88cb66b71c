package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ftpalg/conntrack"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

func newRules() *cobra.Command {
	var s steering
	var policyFile string
	var remove bool
	cmd := &cobra.Command{
		Use:   "rules --policy FILE | --remove",
		Short: "Print the rules that 'run' installs, or remove them",
		Long: "Prints a shell script that installs ftpalg's chains for a policy, or an nft file; 'ftpalg run' does the same by " +
			"itself. With --remove, takes ftpalg's chains and table, of every back end, and its policy routing out of the " +
			"running kernel, its conntrack helper if no connection carries that, and nothing else; an ftpalg that runs puts its own back within seconds.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case remove:
				return removeAll(cmd.Context())
			case policyFile == "":
				return fmt.Errorf("%w: ftpalg rules needs --policy FILE, or --remove", errUsage)
			}
			p, err := loadPolicy(policyFile)
			if err != nil {
				return err
			}
			config := s.config(p, helperFor(cmd, p))
			backend, why, err := s.choose(cmd.Context(), config)
			if err != nil {
				return err
			}
			if s.backend == backendName(rules.BackendAuto) {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: printing %s rules: %s\n", backend, why)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), backend.Rules(config))
			return err
		},
	}
	s.flags(cmd.Flags())
	cmd.Flags().StringVar(&policyFile, "policy", "", "the policy `file`")
	cmd.Flags().BoolVar(&remove, "remove", false, "remove ftpalg's rules and policy routing")
	return cmd
}

// removeAll takes all of ours out of the kernel: the rules, and the helper that they name. An ftpalg that ends leaves the helper,
// for the next one and for others in other network namespaces.
func removeAll(ctx context.Context) error {
	if err := rules.Remove(ctx); err != nil {
		return err
	}
	return removeHelper()
}

// helperHeld is how long the rules' helper may be held behind them: nft lets go of it when no processor can still see the rules.
const helperHeld = time.Second

// removeHelper takes the helper away unless an open connection carries it, which could not be given another pinhole ever again:
// then the next ftpalg finds it. The rules of an ftpalg in another network namespace hold it as well.
func removeHelper() error {
	if there, err := conntrack.HasOwnHelper(); err != nil || !there {
		return err
	}
	c, err := conntrack.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	all, err := c.Connections(func(netip.AddrPort) bool { return true })
	if err != nil || slices.ContainsFunc(all, func(e conntrack.Entry) bool { return e.Live && e.Helper == conntrack.OwnHelper }) {
		return err
	}
	for begun := time.Now(); ; time.Sleep(helperHeld / 100) {
		err := conntrack.RemoveOwnHelper()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if time.Since(begun) > helperHeld {
			return nil
		}
	}
}

// helperFor finds the helper to print. Without the right to ask the kernel it is the one that most kernels have.
func helperFor(cmd *cobra.Command, p *policy.Policy) string {
	nat, err := rules.NAT(cmd.Context(), p)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: whether there is source NAT is not known: %v\n", err)
	}
	h, err := conntrack.DetectHelper(p.Helper, nat)
	if err == nil {
		return h.Name
	}
	name := p.Helper
	if name == "auto" {
		name = conntrack.BuiltInHelper
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "note: the kernel could not be asked for a helper, printing %q: %v\n", name, err)
	return name
}
