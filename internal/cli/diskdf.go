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

func newDiskDf(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:     "df DISK[:PART]",
		Short:   "show how full the guest's file systems are",
		Long:    "df shows size, use and free inodes of each file system of the guest that can be read.",
		Example: "  shisa disk df vm.qcow2\n  shisa disk df --json root.qcow2 --disk data.qcow2",
		Args:    wantArgs(1, 1),
		RunE:    func(c *cobra.Command, args []string) error { return runDiskDf(c.Context(), o, args[0], s) },
	}
	o.flags(c)
	return c
}

func runDiskDf(ctx context.Context, o guestOptions, arg string, s *stdio) (err error) {
	l, name, err := o.open(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	parts := inside.Readable(l.Guest)
	if name.Part != "" {
		part, err := l.Part(ctx, name.Part)
		if err != nil {
			return err
		}
		parts = []int{part}
	}
	doc := &render.GuestSpaceDocument{FileSystems: []render.GuestSpace{}}
	var applies []int
	for _, part := range parts {
		row := render.GuestSpace{Part: l.Layout.Volumes[part].Name,
			FileSystem: render.NewGuestFileSystem(files.Info{})}
		fs, err := l.FS(ctx, part)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			row.Error = err.Error()
			applies = append(applies, finding.StatusCannotTell)
		default:
			row.FileSystem = render.NewGuestFileSystem(fs.Info())
			row.State = string(fs.View().State)
			if row.State == string(files.Incomplete) {
				applies = append(applies, finding.StatusCannotTell)
			}
		}
		doc.FileSystems = append(doc.FileSystems, row)
	}
	doc.Status = finding.OrderStatus(applies...)
	if o.json {
		err = render.JSON(s.out, render.GuestSpaceSchema, doc)
	} else {
		err = render.GuestSpaces(s.out, doc, render.Style{Width: s.width, Color: s.colour})
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}
