// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
)

// group is a heading of the help and the commands below it, in the order that people see.
type group struct {
	title    string
	commands []*cobra.Command
}

// groups lists every command by hand. Where one is missing here it does not exist.
func groups(s *stdio) []group {
	return []group{
		{"Looking at disk images", []*cobra.Command{
			newScan(s),
			newDoctor(s),
			newReboot(s),
			newCheck(s),
			newInfo(s),
			newMap(s),
			newCompare(s),
			newDisk(s),
			newHolders(s),
			newUmount(s),
			newBase(s),
			newQemuImg(s),
		}},
		{"Mending them, so that it can be taken back", []*cobra.Command{
			newRepair(s),
			newApply(s),
			newUndo(s),
			newRecover(s),
		}},
		{"Other commands", []*cobra.Command{
			newDemo(s),
			newVersion(s),
			newCompletion(s),
			newMan(s),
		}},
	}
}

// newRoot builds the tree of commands.
func newRoot(s *stdio) *cobra.Command {
	root := &cobra.Command{
		Use:   "shisa COMMAND",
		Short: "keeps harm away from the disks of virtual machines",
		Long: `shisa finds what is wrong with the disks of virtual machines: which images are hurt, which parts
of the guest's disk they stand for, what the likely cause is and what to do next.

Looking changes nothing. What could not be read is reported, and never counts as clean. What changes an
image says so before, keeps the old bytes, and can be undone.`,
		Example: `  shisa scan                      look at every image of this host
  shisa check /var/lib/images     check all images below a directory
  shisa check --json vm.qcow2     the same for a program
  shisa repair vm.qcow2           what could be mended, without changing anything`,
		// Arguments reach RunE if no command has their name, and flags too: the answer is then
		// that the command is unknown, not that one of its flags is.
		Args:                  cobra.ArbitraryArgs,
		FParseErrWhitelist:    cobra.FParseErrWhitelist{UnknownFlags: true},
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	var version bool
	root.Flags().BoolVar(&version, "version", false, `the same as "shisa version"`)
	root.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case len(args) > 0:
			return unknownCommand(c, args[0])
		case version:
			return runVersion(c.Context(), versionOptions{}, s)
		}
		return usageError(c, "no command was given")
	}
	gs := groups(s)
	for _, g := range gs {
		root.AddCommand(g.commands...)
	}
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { writeHelp(s, gs, c) })
	root.SetHelpCommand(newHelp(root))
	return root
}

// unknownCommand names the commands that were perhaps meant.
func unknownCommand(root *cobra.Command, name string) error {
	err := fmt.Errorf("unknown command %q", name)
	root.SuggestionsMinimumDistance = 2
	// Cobra takes every command that begins with name for a near one, and all begin with nothing.
	if near := root.SuggestionsFor(name); len(name) > 1 && len(near) > 0 {
		path := root.CommandPath() + " "
		err = finding.WithHint(err, "try: "+path+strings.Join(near, " or "+path))
	}
	return usageErrorOf(root, err)
}

// wantArgs accepts between low and high arguments; high below 0 is no limit.
func wantArgs(low, high int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		use := c.CommandPath() + strings.TrimPrefix(c.Use, c.Name())
		switch {
		case slices.Contains(args, ""):
			// Mostly a variable of a script that is not set.
			return usageError(c, "an argument is empty, want: %s", use)
		case len(args) < low && len(args) == 0:
			return usageError(c, "nothing to work on, want: %s", use)
		case len(args) < low:
			return usageError(c, "too few arguments, want: %s", use)
		case high >= 0 && len(args) > high:
			return usageError(c, "unexpected argument %q, want: %s", args[high], use)
		}
		return nil
	}
}

// jsonFlag is the flag that every command has which gives a result.
func jsonFlag(c *cobra.Command, v *bool) {
	c.Flags().BoolVar(v, "json", false, "print one JSON document instead of text (see doc/json.md)")
}
