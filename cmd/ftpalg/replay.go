package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"ftpalg/alg/replay"
	"ftpalg/policy"
)

func newReplay() *cobra.Command {
	var policyFile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "replay [--policy FILE] [--json] CAPTURE",
		Short: "Tell what ftpalg would have done with the traffic of a capture",
		Long: "Reads a capture (pcap or pcapng, gzip or not; - for standard input) and reports sessions, pinholes and " +
			"refusals. It needs neither root nor a kernel. Without a policy everything is inspected and allowed.",
		Args: oneFile("capture"),
		RunE: func(_ *cobra.Command, args []string) error {
			p := policy.AllowAll()
			if policyFile != "" {
				var err error
				if p, err = loadPolicy(policyFile); err != nil {
					return err
				}
			}
			return replayFile(args[0], p, asJSON)
		},
	}
	cmd.Flags().StringVar(&policyFile, "policy", "", "decide by this policy `file`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func replayFile(name string, p *policy.Policy, asJSON bool) error {
	file := os.Stdin
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return err
		}
		defer file.Close()
	}
	out := bufio.NewWriter(os.Stdout)
	report := replay.Text(out)
	if asJSON {
		report = replay.JSON(out)
	}
	err := replay.Run(file, p, report)
	if flushed := out.Flush(); err == nil {
		err = flushed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
