// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

func newBaseRecover(s *stdio) *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "recover POOL",
		Short: "bring acts on bases to an end that came to none",
		Long: `recover is for after a crash while bases were set aside, brought back, or removed. It goes by where the files are: what
has its new name was done, what has its old one was not, what has both keeps the one under which machines find it, and
what was about to be removed is in quarantine again. Then whatever is needed and in quarantine is brought back.

It removes no base, and done again it does nothing. The exit status is 5 while another program is at work, and 6 if
something could not be brought to an end.`,
		Example: "  shisa base recover /var/lib/nova/instances",
		Args:    wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := o.decision(c, args[0], s)
			if err != nil {
				return err
			}
			return runBaseRecover(c.Context(), o, d, args[0], s)
		},
	}
	o.actFlags(c)
	o.novaFlag(c)
	o.risksFlag(c)
	return c
}

// unfinishedPool tells whether a path is a pool of base images in which an act came to no end. What cannot be read is no
// such pool for who asks for something else.
func unfinishedPool(ctx context.Context, name string) bool {
	dir, err := refs.BasesIn(ctx, name, "_base", 10*time.Second)
	if err != nil {
		return false
	}
	s, err := pool.Read(ctx, dir, 10*time.Second)
	if err != nil || s.Policy == nil {
		return false
	}
	return len(s.Intents) > 0 || slices.ContainsFunc(s.Held, func(h pool.Held) bool { return h.Claimed })
}

func runBaseRecover(ctx context.Context, o planOptions, by bases.Decision, name string, s *stdio) error {
	act, done, err := o.actOn(ctx, name, s)
	if err != nil {
		return err
	}
	d, err := bases.Recover(ctx, by, act)
	done()
	if err != nil {
		return basesError(err, name)
	}
	if err := o.did(d, s); err != nil {
		return err
	}
	if len(d.Left) > 0 {
		return exitWith(finding.StatusHalfDone)
	}
	return nil
}
