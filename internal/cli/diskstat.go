// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskStatOptions struct {
	guestOptions
	follow bool
}

func newDiskStat(s *stdio) *cobra.Command {
	var o diskStatOptions
	c := &cobra.Command{
		Use:   "stat DISK[:PART]:/PATH",
		Short: "show all that the guest's file system knows of a file",
		Long: `stat shows a file of the guest with owner, times, extended attributes, and where on the part its content
lies. A symbolic link is shown itself.`,
		Example: `  shisa disk stat vm.qcow2:/etc/shadow
  shisa disk stat --json vm.qcow2:2:/var/lib/mysql/ibdata1`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskStat(c.Context(), o, args[0], s) },
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.BoolVarP(&o.follow, "dereference", "L", false, "show what a symbolic link leads to")
	return c
}

func runDiskStat(ctx context.Context, o diskStatOptions, arg string, s *stdio) (err error) {
	l, err := o.into(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	f, err := l.at(ctx, o.follow)
	if err != nil {
		return err
	}
	list := render.NewGuestListText(s.out, render.GuestListText{Form: render.GuestStat},
		render.Style{Width: s.width, Color: s.colour})
	if o.json {
		if list, err = render.NewGuestListJSON(s.out, l.head); err != nil {
			return err
		}
	}
	e := render.NewGuestEntry(f)
	err = f.File.Xattrs(ctx, func(name string, value []byte) error {
		e.Xattrs = append(e.Xattrs, render.GuestXattr{Name: name, Value: string(value)})
		return nil
	})
	if f.File.Stat().Mode&files.TypeMask == files.TypeRegular || f.File.Stat().IsDir() {
		err = errors.Join(err, f.File.Extents(ctx, func(x files.Extent) error {
			e.Extents = append(e.Extents, render.GuestExtent{Offset: x.Offset, Length: x.Length,
				Place: x.Volume, Unwritten: x.Unwritten, Shared: x.Shared})
			return nil
		}))
	}
	if err := list.Entry(e, inside.Level{Found: f}); err != nil {
		return err
	}
	end := l.end(0, err)
	if err := list.End(end); err != nil {
		return err
	}
	return l.finish(s, end, !o.json)
}
