// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import "github.com/spf13/cobra"

// newReboot is the command that has the commands about restarts of machines.
func newReboot(s *stdio) *cobra.Command {
	c := &cobra.Command{
		Use:   "reboot COMMAND",
		Short: "unit files that restart a machine again and again",
		Long: `reboot is about units that restart machines. What restarts a machine at a wrong moment is mostly written in a file
of a few lines; lint reads it before a machine does.`,
		Example: `  shisa reboot lint deploy/systemd
  shisa reboot lint --sarif . > reboot.sarif`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return usageError(c, "no command was given")
		},
	}
	c.AddCommand(newRebootLint(s))
	return c
}
