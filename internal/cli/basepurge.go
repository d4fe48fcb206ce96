// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

func newBasePurge(s *stdio) *cobra.Command {
	var o planOptions
	var approve string
	c := &cobra.Command{
		Use:   "purge --plan FILE --approve DIGEST POOL",
		Short: "remove bases for good that are in quarantine",
		Long: `purge removes bases for good of which a plan says that they may be, with their second names: only then is their space
free. It is the only command that removes a base, and cannot be taken back.

It takes all of this: the pool allows it (allow_purge in .shisa/pool.json beside the bases), the configuration of this
host allows it (purge: true), the base was in quarantine for min_quarantine of the pool (14 days), every node that
ever used the pool has seen it there and looked for uses since, nothing names a use of it, and a person gives the digest
of the plan. Each base is claimed first; then everything is looked at once more.

The exit status is 5 if a base was not removed, or if all was refused, and 6 if "shisa base recover" is needed.`,
		Example: `  shisa base plan --out plan.json /var/lib/nova/instances
  shisa base purge --plan plan.json --approve DIGEST /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.wantPlan(c); err != nil {
				return err
			}
			if approve == "" {
				return usageError(c, "--approve DIGEST is missing: who read the plan gives the digest that it ends with")
			}
			g := bases.PurgeOptions{Approve: approve, Allowed: o.said != nil && o.said.Purge, By: who()}
			return o.carryOut(c, s, judge.MayPurge, "no base may be removed for good by this plan",
				func(ctx context.Context, p *judge.Plan, by bases.Decision, act bases.Options) (*pool.Done, error) {
					return bases.Purge(ctx, p, g, by, act)
				})
		},
	}
	o.planFlags(c)
	c.Flags().StringVar(&approve, "approve", "", "the `DIGEST` of the plan, from who read it")
	return c
}
