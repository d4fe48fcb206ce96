// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBasePin(s *stdio) *cobra.Command {
	var o poolOptions
	var p bases.PinOptions
	var until string
	c := &cobra.Command{
		Use:   "pin POOL NAME --reason TEXT",
		Short: "keep a base, whoever is found to need it",
		Long: `pin says that a base is to be kept: it counts like a machine that needs it, on all nodes that share the pool. One that
is in quarantine is pinned there, and is then to be brought back. "shisa base unpin" takes it back.`,
		Example: `  shisa base pin /var/lib/nova/instances golden --reason "rescue image of the lab"
  shisa base pin /var/lib/nova/instances golden --reason audit --until 2027-01-31`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.TrimSpace(p.Reason) == "" {
				return usageError(c, "--reason is missing")
			}
			if until != "" {
				var err error
				if p.Until, err = pinTime(until); err != nil {
					return usageError(c, "--until: %v", err)
				}
			}
			return o.change(c.Context(), s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
				p.By = who()
				d, err := bases.Pin(ctx, args[1], p, act)
				switch {
				case errors.Is(err, bases.ErrNoBase):
					err = finding.WithHint(err, "shisa base scan "+render.Word(o.pool)+" lists them")
				case errors.Is(err, bases.ErrSeveral):
					err = withStatus(finding.StatusRefused, err)
				}
				return d, err
			})
		},
	}
	o.actFlags(c)
	o.completePool(c, 1, anyBase)
	c.Flags().StringVar(&p.Reason, "reason", "", "`TEXT` for everybody who asks why")
	c.Flags().StringVar(&until, "until", "", "the pin ends at `TIME`, as 2027-01-31 or 2027-01-31T12:00:00Z (default never)")
	return c
}

// pinTime reads a day, whose end is meant, or a time.
func pinTime(text string) (time.Time, error) {
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%q is no time such as 2027-01-31 or 2027-01-31T12:00:00Z", text)
	}
	return at, nil
}

func newBaseUnpin(s *stdio) *cobra.Command {
	var o poolOptions
	var reason string
	c := &cobra.Command{
		Use:   "unpin POOL NAME|ID --reason TEXT",
		Short: "take the pins of a base back",
		Long: `unpin takes the pins of a base back, or the one with an id. A pin that stands for what a retired node used has to be
named by its id: "shisa base why" lists them. The documents stay, out of force, beside those that are in force.`,
		Example: `  shisa base unpin /var/lib/nova/instances golden --reason "the lab has a new one"`,
		Args:    wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usageError(c, "--reason is missing")
			}
			return o.change(c.Context(), s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
				d, err := bases.Unpin(ctx, args[1], who()+": "+reason, act)
				switch {
				case errors.Is(err, bases.ErrNoPin):
					err = finding.WithHint(oneLine{err}, "shisa base why "+render.Word(o.pool)+" "+render.Word(args[1])+" lists them")
				case errors.Is(err, bases.ErrNodePin):
					err = withStatus(finding.StatusRefused, err)
				}
				return d, err
			})
		},
	}
	o.actFlags(c)
	o.completePool(c, 1, pinnedBases)
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit")
	return c
}
