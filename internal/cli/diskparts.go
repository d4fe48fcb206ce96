// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/render"
)

func newDiskParts(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:   "parts DISK...",
		Short: "show what a guest's disks are divided into",
		Long: `parts shows partitions, logical volumes, arrays and what fills them. Disks that belong together, as of a
volume group, are given together. What is recognised and not read is listed with the reason.

The exit status is 3 if a table is broken, for example if only the backup of a GPT could be used.`,
		Example: `  shisa disk parts vm.qcow2
  shisa disk parts --json root.qcow2 data.qcow2`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			o.more = append(args[1:], o.more...)
			return runDiskParts(c.Context(), o, args[0], s)
		},
	}
	o.flags(c).Lookup("part").Hidden = true // it is for what lists part of a disk
	return c
}

func runDiskParts(ctx context.Context, o guestOptions, arg string, s *stdio) (err error) {
	l, err := o.openWhole(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	doc := render.NewGuestParts(l.Guest)
	if o.json {
		err = render.JSON(s.out, render.GuestPartsSchema, doc)
	} else {
		err = render.GuestParts(s.out, doc, s.style(false))
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}
