// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
)

// exitStatuses says in help and man pages what doc/exit-status.md says at length.
var exitStatuses = []struct {
	status int
	text   string
}{
	{finding.StatusClean, "clean, done or allowed"},
	{finding.StatusFailed, "nothing could be done"},
	{finding.StatusFound, "something is wrong"},
	{finding.StatusCannotTell, "cannot tell: something could not be looked at"},
	{finding.StatusRefused, "refused: by policy, locked, in use, or changed while looking"},
	{finding.StatusHalfDone, "a change was interrupted or failed its check"},
	{finding.StatusUsage, "the command line makes no sense"},
	{finding.StatusInterrupted, "interrupted"},
}

func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "help about a command",
		Long:  "help says what a command does, how it is called and what its flags mean.",
		Example: `  shisa help
  shisa help check`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return commandNames(root, len(args)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil {
				return usageErrorOf(root, err)
			}
			if len(rest) > 0 {
				return unknownCommand(root, rest[0])
			}
			return c.Help()
		},
	}
}

// commandNames lists what can follow "shisa help" when so many words stand there already.
func commandNames(root *cobra.Command, words int) []string {
	var names []string
	for _, c := range root.Commands() {
		if words == 0 && c.IsAvailableCommand() {
			names = append(names, c.Name()+"\t"+c.Short)
		}
	}
	return names
}

// writeHelp writes the help of c on standard output.
func writeHelp(s *stdio, gs []group, c *cobra.Command) {
	wide := 80
	if s.width > 0 {
		wide = min(max(s.width, 60), 100)
	}
	fmt.Fprintf(s.out, "%s\n\nUsage:\n  %s\n", fill(c.Long, wide), c.UseLine())
	if c.Example != "" {
		fmt.Fprintf(s.out, "\nExamples:\n%s\n", c.Example)
	}
	if !c.HasParent() {
		for _, g := range gs {
			fmt.Fprintf(s.out, "\n%s:\n", g.title)
			writeCommands(s, g.commands)
		}
	} else if c.HasAvailableSubCommands() {
		fmt.Fprintf(s.out, "\nCommands:\n")
		writeCommands(s, c.Commands())
	}
	if c.HasAvailableFlags() && c.HasParent() {
		fmt.Fprintf(s.out, "\nFlags:\n%s", c.Flags().FlagUsagesWrapped(wide))
	}
	if !c.HasParent() {
		fmt.Fprint(s.out, "\nExit status:\n")
		for _, e := range exitStatuses {
			fmt.Fprintf(s.out, "  %-5d %s\n", e.status, e.text)
		}
		fmt.Fprint(s.out, "\nMore about a command: shisa help COMMAND\n")
	}
}

func writeCommands(s *stdio, cs []*cobra.Command) {
	for _, c := range cs {
		if c.IsAvailableCommand() {
			fmt.Fprintf(s.out, "  %-11s %s\n", c.Name(), c.Short)
		}
	}
}

// fill breaks paragraphs into lines of at most wide columns. Lines that begin with a blank are
// kept as they are.
func fill(text string, wide int) string {
	var out []string
	line := ""
	end := func() {
		if line != "" {
			out = append(out, line)
			line = ""
		}
	}
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n")
		if l == "" || l[0] == ' ' {
			end()
			out = append(out, l)
			continue
		}
		for word := range strings.FieldsSeq(l) {
			if line != "" && len(line)+1+len(word) > wide {
				end()
			}
			if line != "" {
				line += " "
			}
			line += word
		}
	}
	end()
	return strings.Join(out, "\n")
}
