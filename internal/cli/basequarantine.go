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
	c := &cobra.Command{
		Use:   "quarantine --plan FILE POOL",
		Short: "set bases aside that nobody needs, as a plan says",
		Long: `quarantine sets aside the bases of which a plan says that they may be: each is renamed into a directory beside the
bases, under an id of its own, where no machine finds it and "shisa base restore" brings it back at any time. Nothing is
removed, and no space is free before "shisa base purge". A base that somebody removed and only its shield keeps gets
such a name beside that, and none among the bases.

Everything is looked at again before, and once more after it: a base that somebody began to use meanwhile is back at
once. A plan that is older than an hour is refused. Nothing sets bases aside by itself.

The exit status is 5 if a base was not set aside, or if all was refused, and 6 if "shisa base recover" is needed.`,
		Example: `  shisa base plan --out plan.json /var/lib/nova/instances
  shisa base quarantine --plan plan.json /var/lib/nova/instances
  shisa base restore /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.wantPlan(c); err != nil {
				return err
			}
			if err := o.quarantineOff(); err != nil {
				return err
			}
			return o.carryOut(c, s, judge.MayQuarantine, "no base may be set aside by this plan",
				func(ctx context.Context, p *judge.Plan, by bases.Decision, act bases.Options) (*pool.Done, error) {
					return bases.Quarantine(ctx, p, by, act)
				})
		},
	}
	o.planFlags(c)
	return c
}

// quarantineOff is why nothing is set aside in the pool by this host, nil where it may be: one of which the configuration tells
// has to be allowed there.
func (o *poolOptions) quarantineOff() error {
	if o.said == nil || o.said.Quarantine {
		return nil
	}
	err := errors.New("setting bases aside is not allowed by the configuration of this host")
	return finding.WithHint(withStatus(finding.StatusRefused, err), "it takes quarantine: true for the pool there")
}
