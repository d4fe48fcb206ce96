// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

func newBaseUnprotect(s *stdio) *cobra.Command {
	var o poolOptions
	var u bases.UnprotectOptions
	c := &cobra.Command{
		Use:   "unprotect POOL",
		Short: "take the shields of bases away",
		Long: `unprotect takes back what protect did: each base loses its second name. A shield that is the last name of its
file stays, since a machine may need that; bring such a base back first, see "shisa base missing".

The records of what the bases hold stay, since they prove a copy: --records takes those away too of bases that are in
their place. Pins, what is in quarantine, and the audit stay. All that stays is listed with the reason.

The exit status is 5 if a shield had to stay.`,
		Example: `  shisa base unprotect /var/lib/nova/instances
  shisa base unprotect --records /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.change(c.Context(), s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
				return bases.Unprotect(ctx, u, act)
			})
		},
	}
	o.actFlags(c)
	o.completePool(c, 0, nil)
	c.Flags().BoolVar(&u.Records, "records", false, "take the records of what bases hold away too")
	return c
}
