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
	o := planOptions{ends: true}
	c := &cobra.Command{
		Use:   "recover POOL",
		Short: "bring acts on bases to an end that came to none",
		Long: `recover is for after a crash while bases were set aside, brought back, or removed. It goes by where the files are: what
has its new name was done, what has its old one was not, what has both keeps the one under which machines find it, and
what was about to be removed is in quarantine again. Then whatever is needed and in quarantine is brought back.

Each node notes what it did in an audit, a chain of digests. A power cut in the midst of a line, or two programs on a server
without locks, may break it; then nothing is decided, and no act comes to its end. Who knows that it was that takes
--accept-risk=audit:NODE: the file stays beside the others as NODE.ID.damaged, and a new audit begins, in which a line has
its SHA-256.

It removes no base, and done again it does nothing. The exit status is 4 if something could not be read that the pool
keeps, or that may need a base in quarantine, 5 while another program is at work, and 6 if something could not be brought
to an end.`,
		Example: `  shisa base recover /var/lib/nova/instances
  shisa base recover --accept-risk=audit:node1 /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, _ []string) error { return o.recover(c, s) },
	}
	o.actFlags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	o.risksFlag(c)
	return c
}

// basesIn is the directory of the bases of a pool, for commands that are not about pools alone: they do not fail where the
// configuration cannot be read, whatever they are about.
func basesIn(ctx context.Context, name string) (string, error) {
	o := poolOptions{pool: name, baseName: "_base"}
	if err := o.configure(ctx); err != nil {
		o.baseName = "_base"
	}
	return refs.BasesIn(ctx, name, o.baseName, 0)
}

// unfinishedPool tells whether a path is a pool of base images in which an act came to no end. What cannot be read is no
// such pool for who asks for something else.
func unfinishedPool(ctx context.Context, name string) bool {
	dir, err := basesIn(ctx, name)
	if err != nil {
		return false
	}
	s, err := pool.Read(ctx, dir, 10*time.Second)
	if err != nil || s.Policy == nil {
		return false
	}
	return len(s.Intents) > 0 || slices.ContainsFunc(s.Held, func(h pool.Held) bool { return h.Claimed })
}

// recover brings the acts in the pool to an end.
func (o *planOptions) recover(c *cobra.Command, s *stdio) error {
	by, err := o.decision(c, s)
	if err != nil {
		return err
	}
	return o.change(c.Context(), s, finding.StatusHalfDone, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
		return bases.Recover(ctx, by, act)
	})
}
