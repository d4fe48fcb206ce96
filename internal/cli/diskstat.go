// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"

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

func runDiskStat(ctx context.Context, o diskStatOptions, arg string, s *stdio) error {
	form := render.GuestListText{Form: render.GuestStat}
	return o.into(ctx, arg, o.follow, func(l *look, f *files.Found) error {
		l.flat = true
		return l.list(s, o.json, form, func(each func(render.GuestEntry, inside.Level) error) error {
			e, err := statEntry(ctx, f)
			return errors.Join(each(e, inside.Level{Found: f}), err)
		})
	})
}

// maxExtents is how many extents of a file are listed: a disk image in a guest may have some 100,000.
const maxExtents = 1 << 20

// statEntry describes a file with its extended attributes and extents. What could be read of them is
// there also with an error.
func statEntry(ctx context.Context, f *files.Found) (render.GuestEntry, error) {
	e := render.NewGuestEntry(f)
	err := f.File.Xattrs(ctx, func(name string, value []byte) error {
		e.Xattrs = append(e.Xattrs, render.GuestXattr{Name: name, Value: string(value)})
		return nil
	})
	if st := f.File.Stat(); st.IsRegular() || st.IsDir() {
		err = errors.Join(err, f.File.Extents(ctx, func(x files.Extent) error {
			if len(e.Extents) == maxExtents {
				return fmt.Errorf("%w: more than %d extents", files.ErrMany, maxExtents)
			}
			e.Extents = append(e.Extents, render.GuestExtent{Offset: x.Offset, Length: x.Length,
				Place: x.Volume, Unwritten: x.Unwritten, Shared: x.Shared})
			return nil
		}))
	}
	return e, err
}
