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

type diskLsOptions struct {
	guestOptions
	long, recursive, directory bool
}

func newDiskLs(s *stdio) *cobra.Command {
	var o diskLsOptions
	c := &cobra.Command{
		Use:   "ls DISK[:PART][:/PATH]",
		Short: "list a directory of the guest",
		Long: `ls lists a directory of the guest with all its names, those that begin with a dot too, in the order
of their bytes. In a pipe names come out byte for byte; on a terminal, what would move its cursor is shown as \x1b.

The exit status is 4 if something could not be read, so that more may be there than is listed.`,
		Example: `  shisa disk ls vm.qcow2
  shisa disk ls -l vm.qcow2:/var/log
  shisa disk ls -lR --json vm.qcow2:2:/srv`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskLs(c.Context(), o, args[0], s) },
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.BoolVarP(&o.long, "long", "l", false, "with type, mode, owner, size and time")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "list the directories below, too")
	f.BoolVarP(&o.directory, "directory", "d", false, "list the directory itself, not what is in it")
	return c
}

func runDiskLs(ctx context.Context, o diskLsOptions, arg string, s *stdio) error {
	form := render.GuestListText{Base: true, Headings: o.recursive}
	if o.long {
		form.Form = render.GuestLong
	}
	return o.into(ctx, arg, !o.long, func(l *look, from *files.Found) error {
		l.flat = o.directory || !o.recursive
		return l.list(s, o.json, form, func(each func(render.GuestEntry, inside.Level) error) error {
			one := func(f *files.Found) error { return each(render.NewGuestEntry(f), inside.Level{Found: f}) }
			switch {
			case o.directory || !from.File.Stat().IsDir():
				return one(from)
			case !o.recursive:
				return inside.Directory(ctx, l.fs, from, one)
			}
			if err := inside.Recursive(ctx, l.fs, from, one); err != nil {
				return err
			}
			return l.compare(ctx, from)
		})
	})
}
