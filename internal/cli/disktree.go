// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskTreeOptions struct {
	guestOptions
	depth int
	dirs  bool
}

func newDiskTree(s *stdio) *cobra.Command {
	var o diskTreeOptions
	c := &cobra.Command{
		Use:     "tree DISK[:PART][:/PATH]",
		Short:   "show a directory of the guest as a tree",
		Long:    "tree shows a directory of the guest and all that is below it as a tree, in the order of names.",
		Example: "  shisa disk tree --depth 2 vm.qcow2\n  shisa disk tree vm.qcow2:/etc/systemd",
		Args:    wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.depth < 0 {
				return usageError(c, "--depth %d, want 0 or more", o.depth)
			}
			return runDiskTree(c.Context(), o, args[0], s)
		},
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.IntVar(&o.depth, "depth", 0, "go down at most `N` levels (0 is all)")
	f.BoolVarP(&o.dirs, "directories", "d", false, "show directories only")
	return c
}

func runDiskTree(ctx context.Context, o diskTreeOptions, arg string, s *stdio) error {
	form := render.GuestListText{Form: render.GuestTree}
	way := inside.SortedOptions{Depth: o.depth, Directories: o.dirs}
	return o.into(ctx, arg, true, func(l *look, from *files.Found) error {
		return l.list(s, o.json, form, func(each func(render.GuestEntry, inside.Level) error) error {
			err := inside.Sorted(ctx, l.fs, from, way, func(at inside.Level) error {
				return each(render.NewGuestEntry(at.Found), at)
			})
			if err != nil {
				return err
			}
			if o.depth > 0 {
				l.only(from, render.Count(int64(o.depth), "level", "levels")+" below ")
				return nil
			}
			return l.compare(ctx, from)
		})
	})
}
