// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

func newBaseQuarantine(s *stdio) *cobra.Command {
	var o planOptions
	var file string
	c := &cobra.Command{
		Use:   "quarantine --plan FILE POOL",
		Short: "set bases aside that nobody needs, as a plan says",
		Long: `quarantine sets aside the bases of which a plan says that they may be: each is renamed into a directory beside the
bases, under an id of its own, where no machine finds it and "shisa base restore" brings it back at any time. Nothing is
removed, and no space is free before "shisa base purge".

Everything is looked at again before, and once more after it: a base that somebody began to use meanwhile is back at
once. A plan that is older than an hour is refused. Nothing sets bases aside by itself.

The exit status is 5 if a base was not set aside, or if all was refused, and 6 if "shisa base recover" is needed.`,
		Example: `  shisa base plan --out plan.json /var/lib/nova/instances
  shisa base quarantine --plan plan.json /var/lib/nova/instances
  shisa base restore /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := o.decision(c, args[0], s)
			switch {
			case err != nil:
				return err
			case file == "":
				return usageError(c, "--plan is missing")
			}
			return runBaseQuarantine(c.Context(), o, d, file, args[0], s)
		},
	}
	o.actFlags(c)
	o.novaFlag(c)
	o.risksFlag(c)
	c.Flags().StringVar(&file, "plan", "", "the `FILE` that \"shisa base plan --out\" made; - for standard input")
	return c
}

func runBaseQuarantine(ctx context.Context, o planOptions, by bases.Decision, file, name string, s *stdio) error {
	p, err := readBasePlan(file, s)
	if err != nil {
		return basesError(err, name)
	}
	if o.said != nil && !o.said.Quarantine {
		err := errors.New("setting bases aside is not allowed by the configuration of this host")
		return finding.WithHint(withStatus(finding.StatusRefused, err), "it takes quarantine: true for the pool there")
	}
	if len(p.With(judge.MayQuarantine)) == 0 {
		return withStatus(finding.StatusRefused, errors.New("no base may be set aside by this plan"))
	}
	act, done, err := o.actOn(ctx, name, s)
	if err != nil {
		return err
	}
	d, err := bases.Quarantine(ctx, p, by, act)
	done()
	return o.acted(d, err, name, s)
}

// acted prints what an act did that a plan was for, and gives its error, or that something was refused.
func (o *poolOptions) acted(d *pool.Done, err error, name string, s *stdio) error {
	if d != nil && (err == nil || !o.json) {
		if err := o.did(d, s); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return basesError(err, name)
	case len(d.Left) > 0 || len(d.Restored) > 0 && len(d.Quarantined) > 0:
		return exitWith(finding.StatusRefused)
	}
	return nil
}
