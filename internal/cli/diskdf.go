// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

func newDiskDf(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:   "df DISK[:PART]",
		Short: "show how full the guest's file systems are",
		Long: "df shows size, use and free inodes of each file system of the guest that can be read. " +
			"What else\nis recognised is listed with the reason why it is not read; the exit status is 4 if nothing can be.",
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
	if name.Part != "" || name.Path != "" { // of a path the file system that it is in, as of df(1)
		part, err := l.Part(ctx, name.Part)
		if err != nil {
			return err
		}
		parts = []int{part}
	}
	doc := &render.GuestSpaceDocument{FileSystems: []render.GuestSpace{}}
	unread := int64(0)
	for _, part := range parts {
		row := render.GuestSpace{Part: l.Layout.Volumes[part].Name, FileSystem: render.NewGuestFileSystem(
			files.Info{Kind: string(l.Layout.Volumes[part].Kind)})}
		fs, err := l.FS(ctx, part)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			row.Error = err.Error()
			unread++
		default:
			row.FileSystem = render.NewGuestFileSystem(fs.Info())
			row.State = string(fs.View().State)
		}
		doc.FileSystems = append(doc.FileSystems, row)
	}
	if name.Part == "" && name.Path == "" {
		others := notExamined(l.Guest)
		doc.FileSystems = append(doc.FileSystems, others...)
		if len(parts) == 0 {
			unread += int64(len(others)) // nothing at all is known of this disk
		}
		unread += int64(len(l.Layout.Blind)) // there may be more than was found
	}
	doc.GuestEnd = render.NewGuestEnd(l.Guest, l.View(), unread, nil)
	if o.json {
		err = render.JSON(s.out, render.GuestSpaceSchema, doc)
	} else {
		err = render.GuestSpaces(s.out, doc, s.style(false))
	}
	if err != nil {
		return err
	}
	return l.finish(s, doc.GuestEnd, !o.json)
}

// notExamined lists what a guest has beside the file systems that can be read.
func notExamined(g *inside.Guest) []render.GuestSpace {
	var rows []render.GuestSpace
	can := inside.Readable(g)
	for i, v := range g.Layout.Volumes {
		if v.NotExamined != "" && !slices.Contains(can, i) {
			rows = append(rows, render.GuestSpace{Part: v.Name, Error: v.NotExamined,
				FileSystem: render.NewGuestFileSystem(files.Info{Kind: string(v.Kind)})})
		}
	}
	return rows
}
