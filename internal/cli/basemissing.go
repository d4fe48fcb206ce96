// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/refs/ways"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseMissing(s *stdio) *cobra.Command {
	var o poolOptions
	var from []string
	var g glanceOptions
	c := &cobra.Command{
		Use:   "missing [POOL]",
		Short: "list the bases that are gone, and how to bring them back",
		Long: `missing lists each base that is needed and not there, and how it can be brought back, the best way first, with
what proves it: its shield, a process that still has it open, or a file of another node (--from). Such a candidate
is held against the SHA-256 that "shisa base protect" recorded. Where none was, it is held against the images that
rest on the base: they hold pieces of it, and of the right one many times as many as of any other. With --glance, the
image service is asked for the images that the bases were made of.

It only reads. Without POOL it does so for each pool that the configuration names. The exit status is 3 if anything is
missing.`,
		Example: `  shisa base missing /var/lib/nova/instances
  shisa base missing --from /mnt/node2/_base /var/lib/nova/instances
  shisa base missing --glance https://cloud:9292 /var/lib/nova/instances`,
		Args: wantArgs(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.wantPools(c); err != nil {
				return err
			}
			return o.each(c.Context(), s, func(ctx context.Context, o *poolOptions) (*render.BasePool, error) {
				return o.missing(ctx, g, from, s)
			})
		},
	}
	o.flags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	c.Flags().Var((*repeated)(&from), "from", "candidates are `FILE`, or the files in that directory; may be given again")
	g.flags(c)
	return c
}

// ways tells how what is missing in the pool can be brought back.
func (o *poolOptions) ways(ctx context.Context, from []string, s *stdio) (*ways.Report, error) {
	c, err := o.census(ctx, s)
	if err != nil {
		return nil, err
	}
	bar := newProgress(s, "reading candidates")
	defer bar.Done()
	return ways.Find(ctx, c, ways.Options{From: from,
		Progress: func(what string, done, total int64) { bar.Part(filepath.Base(what), done, total) }})
}

func (o *poolOptions) missing(ctx context.Context, g glanceOptions, from []string, s *stdio) (*render.BasePool, error) {
	r, err := o.ways(ctx, from, s)
	if err != nil {
		return nil, err
	}
	if g.url != "" && len(r.Missing) > 0 {
		if err := g.offer(ctx, r); err != nil {
			return nil, err
		}
	}
	return &render.BasePool{Path: o.pool, Status: r.Status, Missing: r}, nil
}
