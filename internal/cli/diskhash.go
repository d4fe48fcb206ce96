// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"math"

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
escapes of sha256sum, in the order of names. A file with several names is read once for each.

The zeros of holes are part of the digest. They are not read, but hashed: a huge file that is all holes takes as long
as the processor needs for its size, at some hundred MB/s to 2 GB/s.`,
		Example: `  shisa disk hash vm.qcow2:/etc
  shisa disk hash before.qcow2 >a; shisa disk hash after.qcow2 >b; diff a b`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskHash(c.Context(), o, args[0], s) },
	}
	o.pathFlag(o.flags(c))
	return c
}

func runDiskHash(ctx context.Context, o guestOptions, arg string, s *stdio) error {
	return o.into(ctx, arg, true, func(l *look, from *files.Found) error {
		p := newProgress(s, "hashing")
		defer p.Done()
		done, total := int64(0), l.used()
		tell := func(n int64) { done += n; p.Set(min(done, total), total) }
		form := render.GuestListText{Form: render.GuestHash}
		return l.list(s, o.json, form, func(each func(render.GuestEntry, inside.Level) error) error {
			err := inside.Sorted(ctx, l.fs, from, inside.SortedOptions{}, func(at inside.Level) error {
				if at.Err == nil && !at.File.Stat().IsRegular() {
					return nil
				}
				e := render.NewGuestEntry(at.Found)
				if at.Err == nil {
					st := at.File.Stat() // its holes are hashed too, and not in use
					total += min(max(st.Size-st.Sectors*512, 0), math.MaxInt64-total)
					var err error
					if e.SHA256, err = inside.Hash(ctx, at.File, tell); err != nil {
						if ctx.Err() != nil {
							return ctx.Err()
						}
						e.Error = err.Error()
					}
				}
				return each(e, at)
			})
			if err != nil {
				return err
			}
			return l.compare(ctx, from)
		})
	})
}
