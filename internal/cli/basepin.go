// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
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
			return runBasePin(c.Context(), o, p, args[0], args[1], s)
		},
	}
	o.actFlags(c)
	c.Flags().StringVar(&p.Reason, "reason", "", "`TEXT` for everybody who asks why")
	c.Flags().StringVar(&until, "until", "", "the pin ends at `TIME`, as 2027-01-31 or 2027-01-31T12:00:00Z (default never)")
	return c
}

// pinTime reads a day, whose end is meant, or a time.
func pinTime(text string) (time.Time, error) {
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	return time.Parse(time.RFC3339, text)
}

func runBasePin(ctx context.Context, o poolOptions, p bases.PinOptions, name, base string, s *stdio) error {
	act, done, err := o.actOn(ctx, name, s)
	if err != nil {
		return err
	}
	p.By = who()
	d, err := bases.Pin(ctx, base, p, act)
	done()
	switch {
	case errors.Is(err, bases.ErrNoBase):
		return finding.WithHint(err, "shisa base scan "+render.Word(name)+" lists them")
	case errors.Is(err, bases.ErrSeveral):
		return withStatus(finding.StatusRefused, err)
	case err != nil:
		return basesError(err, name)
	}
	return o.did(d, s)
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
			return runBaseUnpin(c.Context(), o, reason, args[0], args[1], s)
		},
	}
	o.actFlags(c)
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit")
	return c
}

func runBaseUnpin(ctx context.Context, o poolOptions, reason, name, base string, s *stdio) error {
	act, done, err := o.actOn(ctx, name, s)
	if err != nil {
		return err
	}
	d, err := bases.Unpin(ctx, base, who()+": "+reason, act)
	done()
	switch {
	case errors.Is(err, bases.ErrNoPin):
		return finding.WithHint(oneLine{err}, "shisa base why "+render.Word(name)+" "+render.Word(base)+" lists them")
	case errors.Is(err, bases.ErrNodePin):
		return withStatus(finding.StatusRefused, err)
	case err != nil:
		return basesError(err, name)
	}
	return o.did(d, s)
}
