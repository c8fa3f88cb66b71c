package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// show prints what the running daemon answers.
type show struct {
	cmd    *cobra.Command
	socket string
	json   bool
}

// newShow makes a command that asks the running daemon and prints its answer.
func newShow(name, short string, run func(*show) error) *show {
	s := &show{cmd: &cobra.Command{Use: name + " [--json]", Short: short, Args: cobra.NoArgs}}
	s.cmd.RunE = func(*cobra.Command, []string) error { return run(s) }
	s.cmd.Flags().StringVar(&s.socket, "socket", defaultSocket, "the daemon's Unix socket")
	s.cmd.Flags().BoolVar(&s.json, "json", false, "print one JSON object a line")
	return s
}

// ask puts a question to the daemon. people puts a line of the answer for them; an empty text is left out.
func (s *show) ask(question string, people func(line []byte) (string, error)) error {
	return ask(s.socket, question, func(line []byte) error {
		text := string(line)
		if !s.json {
			var err error
			if text, err = people(line); err != nil {
				return fmt.Errorf("the daemon's answer %q: %w", line, err)
			}
		}
		if text == "" {
			return nil
		}
		_, err := fmt.Fprintln(s.cmd.OutOrStdout(), text)
		return err
	})
}

func newSessions() *cobra.Command {
	var shares bool
	s := newShow("sessions", "List the control connections that the running daemon follows, and what clients use of its limits",
		func(s *show) error {
			if !shares {
				if err := s.ask("sessions", sessionText); err != nil || s.json {
					return err
				}
			}
			return s.ask("shares", shareText)
		})
	s.cmd.Flags().BoolVar(&shares, "shares", false, "only what clients use of its limits; with --json the one way to see it")
	return s.cmd
}

func sessionText(line []byte) (string, error) {
	var s sessionRecord
	err := json.Unmarshal(line, &s)
	return fmt.Sprintf("#%-4d  %s → %s  rule %q  user \"%s\"  control %s, data %s  idle %s", s.Session, s.Client, s.Server,
		s.Rule, s.User, s.Control, s.Data, time.Since(s.Seen).Round(time.Second)), err
}

// shareText is empty for what nobody uses.
func shareText(line []byte) (string, error) {
	var s shareRecord
	if err := json.Unmarshal(line, &s); err != nil || s.Used == 0 {
		return "", err
	}
	return fmt.Sprintf("share  %s %d/%d, most by %s: %d/%d", s.Of, s.Used, s.Limit, s.Most, s.MostUsed, s.PerClient), nil
}

func newPinholes() *cobra.Command {
	return newShow("pinholes", "List what the kernel expects under control connections: the pinholes, and what nobody here asked for", func(s *show) error {
		return s.ask("pinholes", pinholeText)
	}).cmd
}

func pinholeText(line []byte) (string, error) {
	var p pinholeRecord
	err := json.Unmarshal(line, &p)
	switch {
	case p.Foreign:
		p.Mode = "not asked for"
	case p.Earlier:
		p.Mode = "from before this process"
	}
	return fmt.Sprintf("#%-4d  %-4s  %s → %s  for %s more", p.Session, p.Mode, p.From, p.To,
		time.Until(p.Until).Round(time.Second)), err
}
