package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"ftpalg/nfq/doctor"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

func newDoctor() *cobra.Command {
	var s steering
	var policyFile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [--policy FILE] [--json]",
		Short: "Check what ftpalg needs of this machine, and say what mends it",
		Long: "Looks at the kernel, its settings and everybody's packet filter rules, and prints a line a finding. What keeps ftpalg " +
			"from its work is WRONG, and makes the exit code 1; a note is about what may be meant so. Each comes with the command that mends it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, err := examine(cmd.Context(), s, policyFile)
			if err != nil {
				first, _, _ := strings.Cut(err.Error(), "\n")
				findings = append(findings, doctor.Finding{Level: doctor.Wrong, Check: "policy", Found: first, Fix: "ftpalg check " + policyFile})
			}
			return tell(cmd.OutOrStdout(), findings, asJSON)
		},
	}
	s.flags(cmd.Flags())
	cmd.Flags().StringVar(&policyFile, "policy", "", "check against this policy `file` as well")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// examine looks at the machine with regard to a policy, or, with the error, without it where it is wrong.
func examine(ctx context.Context, s steering, policyFile string) ([]doctor.Finding, error) {
	var p *policy.Policy
	var err error
	if policyFile != "" {
		p, err = loadPolicy(policyFile)
	}
	subject := doctor.Subject{Config: s.machine(), PolicyFile: policyFile}
	if p != nil && err == nil {
		subject.Config = s.config(p, "")
	}
	subject.Backend, subject.Why = s.backendInUse(ctx, subject.Config)
	return doctor.Examine(doctor.Read(ctx, subject)), err
}

// backendInUse gives the back end in which the rules stand, or would be installed.
func (s *steering) backendInUse(ctx context.Context, c rules.Config) (b rules.Backend, why string) {
	if installed, ok := rules.Installed(ctx); ok && s.backend == backendName(rules.BackendAuto) {
		return installed, "ftpalg's stand there"
	}
	c.Helper = cmp.Or(c.Helper, "ftp")
	b, why, _ = s.choose(ctx, c) // an error is about --flowtable, which run needs
	return b, why
}

// tell prints findings; the error is about those that are wrong.
func tell(out io.Writer, findings []doctor.Finding, asJSON bool) error {
	bad := 0
	for _, f := range findings {
		if f.Level == doctor.Wrong {
			bad++
		}
		if asJSON {
			line, err := json.Marshal(f)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s\n", line)
			continue
		}
		switch f.Level {
		case doctor.OK:
			fmt.Fprintf(out, "ok    %s\n", f.Found)
		case doctor.Note:
			fmt.Fprintf(out, "note  %s\n      if that is not meant: %s\n", f.Found, f.Fix)
		default:
			fmt.Fprintf(out, "WRONG %s\n      fix: %s\n", f.Found, f.Fix)
		}
	}
	if bad == 0 {
		return nil
	}
	if !asJSON {
		fmt.Fprintln(out, problems(bad))
	}
	return errSaid
}

func problems(n int) string {
	if n == 1 {
		return "1 problem"
	}
	return fmt.Sprintf("%d problems", n)
}
