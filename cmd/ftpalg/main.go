// Command ftpalg lets FTP and FTPS through a default-drop Linux gateway by exact pinholes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the thing checked or run failed
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:]))
}

// execute runs the command line and gives the exit code: errors before a command begins are errors of usage.
func execute(ctx context.Context, args []string) int {
	begun := false
	root := newRoot()
	root.SetArgs(args)
	root.PersistentPreRun = func(*cobra.Command, []string) { begun = true }
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case !begun, errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "ftpalg: %v\nTry 'ftpalg --help'.\n", err)
		return exitUsage
	case !errors.Is(err, errSaid):
		patiently(func() { fmt.Fprintf(os.Stderr, "ftpalg: %v\n", err) })
	}
	return exitFailed
}

// errUsage is for mistakes in the command line that a command finds itself.
var errUsage = errors.New("wrong usage")

// oneFile is for a command that works on one file.
func oneFile(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("%w: ftpalg %s needs one %s, and has %d", errUsage, cmd.Name(), what, len(args))
	}
}

// errSaid is for a command that has told on its own output what failed.
var errSaid = errors.New("failed")

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "ftpalg",
		Short:         "FTP and FTPS through a default-drop gateway, by exact pinholes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.AddCommand(newRun(), newCheck(), newRules(), newReplay(), newSessions(), newPinholes(), newDoctor(), newVersion(), newMan())
	return root
}
