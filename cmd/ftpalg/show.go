package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newSessions() *cobra.Command {
	return newShow("sessions", "List the control connections that the running daemon follows", func(line []byte) (string, error) {
		var s sessionRecord
		err := json.Unmarshal(line, &s)
		return fmt.Sprintf("#%-4d  %s → %s  rule %q  user %q  control %s, data %s  idle %s", s.Session, s.Client, s.Server,
			s.Rule, s.User, s.Control, s.Data, time.Since(s.Seen).Round(time.Second)), err
	})
}

func newPinholes() *cobra.Command {
	return newShow("pinholes", "List the pinholes that are open now", func(line []byte) (string, error) {
		var p pinholeRecord
		err := json.Unmarshal(line, &p)
		return fmt.Sprintf("#%-4d  %-4s  %s → %s  for %s more", p.Session, p.Mode, p.From, p.To,
			time.Until(p.Until).Round(time.Second)), err
	})
}

// newShow makes a command that asks the running daemon and prints its answer.
func newShow(question, short string, people func(line []byte) (string, error)) *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   question + " [--json]",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(socket, question, func(line []byte) error {
				text := string(line)
				if !asJSON {
					var err error
					if text, err = people(line); err != nil {
						return fmt.Errorf("the daemon's answer %q: %w", line, err)
					}
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "the daemon's Unix socket")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}
