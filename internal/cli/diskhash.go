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

func newDiskHash(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:   "hash DISK[:PART][:/PATH]",
		Short: "print the SHA-256 of all files of the guest",
		Long: `hash prints the SHA-256 of each regular file below a directory of the guest, in the form and with the
escapes of sha256sum, in the order of names. A file with several names is read once for each.`,
		Example: `  shisa disk hash vm.qcow2:/etc
  shisa disk hash before.qcow2 >a; shisa disk hash after.qcow2 >b; diff a b`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskHash(c.Context(), o, args[0], s) },
	}
	o.pathFlag(o.flags(c))
	return c
}

func runDiskHash(ctx context.Context, o guestOptions, arg string, s *stdio) (err error) {
	l, err := o.into(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	from, err := l.at(ctx, true)
	if err != nil {
		return err
	}
	p := newProgress(s, "hashing")
	defer p.Done()
	used := l.head.FileSystem.SizeBytes - l.head.FileSystem.FreeBytes
	var done int64
	tell := func(n int64) { done += n; p.Set(min(done, used), used) }
	return l.hashed(s, o.json, func(each func(render.GuestEntry) error) error {
		return inside.Sorted(ctx, l.fs, from, inside.SortedOptions{}, func(at inside.Level) error {
			if at.Err == nil && at.File.Stat().Mode&files.TypeMask != files.TypeRegular {
				return nil
			}
			e := render.NewGuestEntry(at.Found)
			if at.Err == nil {
				var err error
				if e.SHA256, err = inside.Hash(ctx, at.File, tell); err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					e.Error = err.Error()
				}
			}
			return each(e)
		})
	})
}

// hashed shows entries that are made by run.
func (l *look) hashed(s *stdio, json bool, run func(each func(render.GuestEntry) error) error) error {
	list := render.NewGuestListText(s.out, render.GuestListText{Form: render.GuestHash, Raw: s.width == 0},
		render.Style{Width: s.width, Color: s.colour})
	if json {
		var err error
		if list, err = render.NewGuestListJSON(s.out, l.head); err != nil {
			return err
		}
	}
	unread := int64(0)
	var write error
	err := run(func(e render.GuestEntry) error {
		if e.Error != "" {
			unread++
		}
		write = list.Entry(e, inside.Level{})
		return write
	})
	if write != nil {
		return write
	}
	end := l.end(unread, err)
	if err := list.End(end); err != nil {
		return err
	}
	return l.finish(s, end, !json)
}
