// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ownStatus is the annotation of a command whose exit statuses are not those of the others: a text
// that says what they are.
const ownStatus = "exit-status"

type manOptions struct {
	list    bool
	command *cobra.Command
}

func newMan(s *stdio) *cobra.Command {
	var o manOptions
	c := &cobra.Command{
		Use:   "man [COMMAND...]",
		Short: "the manual page of a command",
		Long: `man prints the manual page of shisa or of one of its commands, made from what "shisa help" knows,
in the language of man(7).`,
		Example: `  shisa man check | man -l -
  shisa man base scan | man -l -
  shisa man > /usr/local/share/man/man1/shisa.1
  shisa man --list`,
		Args:   wantArgs(0, -1),
		Hidden: true, // for those who package shisa; people have "help" and "man shisa"
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return commandNames(c.Root(), len(args)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			var rest []string
			var err error
			if o.command, rest, err = c.Root().Find(args); err != nil || len(rest) > 0 {
				return unknownCommand(c.Root(), strings.Join(args, " "))
			}
			return runMan(c.Context(), o, s)
		},
	}
	c.Flags().BoolVar(&o.list, "list", false, "print the names of the commands that have a page")
	return c
}

func runMan(_ context.Context, o manOptions, s *stdio) error {
	if !o.list {
		return writeMan(s.out, o.command)
	}
	listPages(s.out, o.command.Root())
	return nil
}

// listPages prints the commands below c, each with those that it is below.
func listPages(w io.Writer, c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			fmt.Fprintln(w, strings.TrimPrefix(sub.CommandPath(), c.Root().Name()+" "))
			listPages(w, sub)
		}
	}
}

// writeMan writes the manual page of c, see man(7) and groff_man(7).
func writeMan(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"shisa\" \"User Commands\"\n", roffArg(strings.ToUpper(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(c.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(c.CommandPath()))
	if use := strings.TrimPrefix(c.UseLine(), c.CommandPath()); use != "" {
		fmt.Fprintf(&b, "%s\n", roff(strings.TrimSpace(use)))
	}
	b.WriteString(".SH DESCRIPTION\n")
	roffText(&b, c.Long)
	if subs := c.Commands(); len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	roffFlags(&b, c)
	if c.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(c.Example))
	}
	b.WriteString(".SH \"EXIT STATUS\"\n")
	if own := c.Annotations[ownStatus]; own != "" {
		roffText(&b, own)
	} else {
		for _, e := range exitStatuses {
			fmt.Fprintf(&b, ".TP\n.B %d\n%s\n", e.status, roff(e.text))
		}
	}
	if c.HasParent() {
		above := strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")
		fmt.Fprintf(&b, ".SH \"SEE ALSO\"\n.BR %s (1)\n", roff(above))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func roffFlags(b *strings.Builder, c *cobra.Command) {
	c.InitDefaultHelpFlag()
	if !c.HasAvailableFlags() {
		return
	}
	b.WriteString(".SH OPTIONS\n")
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n\\fB")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "%s\\fR, \\fB", roff("-"+f.Shorthand))
		}
		fmt.Fprintf(b, "%s\\fR", roff("--"+f.Name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(value))
		}
		fmt.Fprintf(b, "\n%s\n", roff(usage))
		if d := f.DefValue; d != "" && d != "0" && d != "false" && d != "[]" {
			fmt.Fprintf(b, "(default %s)\n", roff(d)) // as the help says it
		}
	})
}

// roffText writes paragraphs; lines that begin with a blank are kept as they are.
func roffText(b *strings.Builder, text string) {
	kept := false
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n")
		if indented := strings.HasPrefix(l, " "); indented != kept {
			kept = indented
			b.WriteString(map[bool]string{true: ".PP\n.nf\n", false: ".fi\n"}[kept])
		}
		if l == "" {
			l = ".PP"
		} else {
			l = roff(l)
		}
		b.WriteString(l + "\n")
	}
	if kept {
		b.WriteString(".fi\n")
	}
}

// roff writes text so that none of it is taken for a request or an escape.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// roffArg writes text as one argument of a request.
func roffArg(text string) string { return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"` }
