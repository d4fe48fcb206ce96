// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

func newDiskTar(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:   "tar DISK[:PART][:/PATH]",
		Short: "write a directory of the guest as a tar archive",
		Long: `tar writes a file, or a directory with all that is in it, to standard output as a tar archive
(POSIX.1-2001), with owners, times, links, devices and extended attributes. Where a file has 64 KiB
of holes or more they stay holes, in the form that GNU tar reads (PAX, GNU.sparse 1.0).

A file that cannot be read to its end is filled up with zeros, which is said, and the exit status is 4.`,
		Example: `  shisa disk tar vm.qcow2:/srv | zstd >srv.tar.zst
  shisa disk tar vm.qcow2:/home | tar -x --xattrs --xattrs-include='*'`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskTar(c.Context(), o, args[0], s) },
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.Lookup("json").Hidden = true
	return c
}

func runDiskTar(ctx context.Context, o guestOptions, arg string, s *stdio) error {
	switch {
	case o.json:
		return withStatus(finding.StatusUsage, errors.New("tar writes an archive, which is no JSON"))
	case s.width > 0:
		return withStatus(finding.StatusUsage, finding.WithHint(errors.New("an archive is nothing for a terminal"),
			"send it to a file or a program, as: shisa disk tar "+arg+" >FILE"))
	}
	return o.into(ctx, arg, true, func(l *look, from *files.Found) error {
		p := newProgress(s, "archiving")
		done, err := inside.Tar(ctx, from, l.fs, s.out, func(bytes, _ int64) {
			p.Set(min(bytes, l.used()), l.used())
		})
		p.Done()
		if err == nil {
			err = l.compare(ctx, from)
		}
		end := l.end(done.Lost, err)
		if done.Lost+done.Unset > 0 {
			doc := render.NewGuestCopy(l.head, "the archive", done, end)
			if err := render.GuestCopy(s.err, doc, render.Style{Width: s.width}); err != nil {
				return err
			}
		}
		return l.finish(s, end, true)
	})
}
