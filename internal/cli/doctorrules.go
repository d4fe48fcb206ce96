// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorRulesOptions struct {
	json bool
	dir  string
}

func newDoctorRules(s *stdio) *cobra.Command {
	var o doctorRulesOptions
	c := &cobra.Command{
		Use:   "rules [CODE]",
		Short: "list the rules, or explain one",
		Long: `rules lists what the doctor knows how to find, with the harm that it stands for. With a code it explains the
rule: what it needs to know, against which false alarms it stands, how it was tested, and what to do.

With --rules it lists those of a directory as well, and says what is wrong with them.`,
		Example: `  shisa doctor rules
  shisa doctor rules FS01
  shisa doctor rules --rules /etc/shisa/rules`,
		Args: wantArgs(0, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var codes []string
			for _, r := range doctor.Rules() {
				codes = append(codes, r.Code)
			}
			return codes, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error { return runDoctorRules(o, args, s) },
	}
	jsonFlag(c, &o.json)
	rulesFlag(c, &o.dir)
	return c
}

// rulesFlag adds --rules.
func rulesFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "rules", "", "ask the rules in `DIR` too: files *.yaml, as doctor.md describes")
}

func runDoctorRules(o doctorRulesOptions, args []string, s *stdio) error {
	all, err := allRules(o.dir)
	if err != nil {
		return err
	}
	explain := len(args) > 0
	if explain {
		i := slices.IndexFunc(all, func(r doctor.Rule) bool {
			return strings.EqualFold(r.Code, args[0]) || r.Name == args[0]
		})
		if i < 0 {
			return withStatus(finding.StatusUsage, finding.WithHint(fmt.Errorf("no rule has the code %q", args[0]),
				"shisa doctor rules lists them"))
		}
		all = all[i : i+1]
	}
	if o.json {
		return render.JSON(s.out, render.RulesSchema, render.NewRules(all))
	}
	return render.Rules(s.out, all, explain, s.style(false))
}

// allRules are our own rules and those of a directory, if there is one.
func allRules(dir string) ([]doctor.Rule, error) {
	further, err := userRules(dir)
	return append(doctor.Rules(), further...), err
}

// userRules are those of a directory, none if there is none.
func userRules(dir string) ([]doctor.Rule, error) {
	if dir == "" {
		return nil, nil
	}
	return doctor.ReadRules(dir)
}
