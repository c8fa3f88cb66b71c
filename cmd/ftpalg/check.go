package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"ftpalg/alg"
	"ftpalg/alg/terminate/cert"
	"ftpalg/policy"
)

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file with the keys that it names, run its tests, and print its canonical form",
		Args:  oneFile("policy file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := loadPolicy(args[0])
			if err != nil {
				return err
			}
			certs, err := cert.Load(p)
			if err != nil {
				return err
			}
			for _, w := range slices.Concat(p.Warnings, certs.Warnings()) {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			_, err = cmd.OutOrStdout().Write(p.Canonical())
			return err
		},
	}
}

// loadPolicy reads a policy file. It is only good if its own tests pass.
func loadPolicy(file string) (*policy.Policy, error) {
	p, err := policy.Load(file)
	if err != nil {
		return nil, err
	}
	if failed := alg.RunTests(file, p); len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return p, nil
}
