// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"math"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/render"
)

type mapOptions struct {
	diskOptions
	format   string
	snapshot string
	output   outputForm
	start    byteSize
	length   byteSize
}

func newMap(s *stdio) *cobra.Command {
	o := mapOptions{length: math.MaxInt64}
	c := &cobra.Command{
		Use:   "map IMAGE",
		Short: "show where the parts of a disk are stored",
		Long: `map shows, range by range, which image of a chain holds the bytes of a disk and where they stand in
its file. It reads metadata only.

The images below are opened where they lie in or below the image's own directory or a --pool; --follow opens them
anywhere.

--output gives the form and the fields of qemu-img map.`,
		Example: `  shisa map vm.qcow2
  shisa map --follow --start-offset 1G --max-length 64M vm.qcow2
  shisa map --snapshot before-update vm.qcow2
  shisa map --output=json vm.qcow2`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.output.ready(c, o.json); err != nil {
				return err
			}
			return runMap(c.Context(), o, args[0], s)
		},
	}
	f := o.flags(c)
	f.StringVarP(&o.format, "format", "f", "", "take the image for one of format `FMT` instead of looking at its content")
	f.Var((*given)(&o.snapshot), "snapshot", "map the internal snapshot with that id or `NAME`")
	f.VarP(&o.start, "start-offset", "s", "begin at this place of the disk")
	f.VarP(&o.length, "max-length", "l", "map at most so many bytes")
	f.Lookup("max-length").DefValue = ""
	o.output.flag(c)
	return c
}

func runMap(ctx context.Context, o mapOptions, path string, s *stdio) (err error) {
	chain, err := disk.Open(ctx, path, disk.Options{Policy: o.policy(), Format: o.format, Snapshot: o.snapshot})
	if err != nil {
		return diskError(err)
	}
	defer func() { err = errors.Join(err, chain.Close()) }()
	r := render.MapRange{Start: int64(o.start), Length: int64(o.length)}
	var end render.MapEnd
	switch {
	case o.output == formJSON:
		return render.QemuMapJSON(ctx, s.out, chain, r)
	case o.output == formHuman:
		return render.QemuMap(ctx, s.out, chain, r)
	case o.json:
		end, err = render.MapJSON(ctx, s.out, chain, r)
	default:
		end, err = render.Map(ctx, s.out, chain, r, s.style(false))
	}
	if err != nil {
		return err
	}
	if end.Error != "" {
		return withStatus(end.Status[0], errors.New(end.Error))
	}
	return exitWith(end.Status[0])
}
