// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

func newBaseScan(s *stdio) *cobra.Command {
	var o poolOptions
	var index bool
	c := &cobra.Command{
		Use:   "scan [POOL]",
		Short: "tell who needs the base images of a pool",
		Long: `scan lists the bases of a pool with who needs them: those that are needed and missing first. It only reads. Without
POOL it does so for each pool that the configuration names.

With --index the headers of files that did not change since the last scan with --index are remembered and not read again,
which takes a fraction of the time; who needs what is found out anew. The index is kept in the state directory.
A plan to set bases aside or to remove them is never made by it: that takes a scan of everything.

The exit status is 3 if a base is needed and missing, 4 if anything could not be read that may need one.`,
		Example: `  shisa base scan /var/lib/nova/instances
  shisa base scan --also /srv/rescue /var/lib/nova/instances
  shisa base scan --nova /var/lib/shisa/nova.jsonl /var/lib/nova/instances
  shisa base scan --index /var/lib/nova/instances
  shisa base scan --json /var/lib/libvirt/images`,
		Args: wantArgs(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.wantPools(c); err != nil {
				return err
			}
			return o.each(c.Context(), s, func(ctx context.Context, o *poolOptions) (*render.BasePool, error) {
				return o.scan(ctx, index, s)
			})
		},
	}
	o.flags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	c.Flags().BoolVar(&index, "index", false, "do not read again what did not change since the last scan with --index")
	stateFlag(c, &o.state, "with --index: keep the index below `DIR`")
	return c
}

func (o *poolOptions) scan(ctx context.Context, index bool, s *stdio) (*render.BasePool, error) {
	take := o.census
	if index {
		take = o.indexed
	}
	c, err := take(ctx, s)
	if err != nil {
		return nil, err
	}
	if c.Room, err = roomOf(ctx, c.Bases); err != nil {
		return nil, err
	}
	return &render.BasePool{Path: o.pool, Status: c.Status, Scan: c}, nil
}

// indexed is census by the index. One that cannot be kept is told, and takes nothing from what was seen.
func (o *poolOptions) indexed(ctx context.Context, s *stdio) (*refs.Census, error) {
	state, err := stateDir(o.state)
	if err != nil {
		return nil, err
	}
	v, err := vault.New(vault.Options{StateDir: state})
	if err != nil {
		return nil, err
	}
	o.kept = func(key string) ([]byte, error) { return v.Index(key, refs.MaxIndexBytes) }
	c, err := o.census(ctx, s)
	if err != nil {
		return nil, err
	}
	if key, index := c.Next(); index != nil {
		if err := v.PutIndex(key, index); err != nil {
			c.IndexNotes = append(c.IndexNotes, oneLine{err}.Error())
		}
	}
	return c, nil
}
