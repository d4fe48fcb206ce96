// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/qemuimg"
	"github.com/shisa-vm/shisa/internal/render"
)

type infoOptions struct {
	diskOptions
	chain    bool
	format   string
	snapshot string
	all      bool
	output   outputForm
}

func newInfo(s *stdio) *cobra.Command {
	var o infoOptions
	c := &cobra.Command{
		Use:   "info IMAGE...",
		Short: "describe disk images",
		Long: `info says what disk images are: format, sizes, clusters, encryption, internal snapshots, bitmaps, and
the files that they rest on, with what became of those. No data of a guest is read.

With --backing-chain the images below are described too. They are opened where they lie in or below the image's own
directory or a --pool; --follow opens them anywhere.

--output gives the form and the fields of qemu-img info.`,
		Example: `  shisa info vm.qcow2
  shisa info --backing-chain --follow vm.qcow2
  shisa info --json *.qcow2
  shisa info --output=json vm.qcow2`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.output.ready(c, o.json); err != nil {
				return err
			}
			if o.output != "" && (len(args) > 1 || o.snapshot != "") {
				return usageError(c, "--output shows one whole image, as qemu-img does")
			}
			return runInfo(c.Context(), o, args, s)
		},
	}
	f := o.flags(c)
	f.BoolVar(&o.chain, "backing-chain", false, "describe the images below as well")
	f.StringVarP(&o.format, "format", "f", "", "take the image for one of format `FMT` instead of looking at its content")
	f.Var((*given)(&o.snapshot), "snapshot", "of the internal snapshots, show the one with that id or `NAME` only")
	f.BoolVar(&o.all, "all", false, "list every snapshot and bitmap instead of at most 20")
	o.output.flag(c)
	return c
}

func runInfo(ctx context.Context, o infoOptions, paths []string, s *stdio) error {
	d, err := disk.Describe(ctx, paths, disk.Options{
		Policy: o.policy(), Format: o.format, Snapshot: o.snapshot, Single: !o.chain,
	})
	if err != nil {
		return err
	}
	switch {
	case len(paths) == 1 && d.Disks[0].Err != nil && !o.json:
		return diskError(d.Disks[0].Err)
	case o.output != "":
		return qemuInfo(ctx, o, d, s)
	case o.json:
		err = render.JSON(s.out, render.InfoSchema, d)
	default:
		err = render.Info(s.out, d, s.style(o.all))
	}
	if err != nil {
		return err
	}
	said := map[string]bool{"": true}
	for i := range d.Disks {
		e := d.Disks[i].Err
		if e == nil {
			continue
		}
		fmt.Fprintf(s.err, "shisa: %s\n", render.Text(e.Error()))
		if hint := hintFor(e); !said[hint] { // the same advice for many images is given once
			said[hint] = true
			fmt.Fprintf(s.err, "hint: %s\n", render.Text(hint))
		}
	}
	return exitWith(d.Status[0])
}

// qemuInfo shows what qemu-img info shows of an image that Describe could describe. The images
// below are only opened if the policy let Describe open them too.
func qemuInfo(ctx context.Context, o infoOptions, d *disk.Description, s *stdio) error {
	chain := d.Disks[0].Chain
	if last := chain[len(chain)-1]; o.chain && last.Backing != nil && last.Backing.State == disk.LinkNotFollowed {
		return diskError(last.Backing.Link.Err(last.Path, "backing file"))
	}
	argv := []string{"shisa", "info", "--output=" + string(o.output)}
	if o.format != "" {
		argv = append(argv, "-f", o.format)
	}
	if o.chain {
		argv = append(argv, "--backing-chain")
	}
	argv = append(argv, "--", disk.PlainName(chain[0].Path))
	code := qemuimg.Run(ctx, qemuimg.Env{Stdout: s.out, Stderr: s.err}, argv)
	return exitWith(code)
}
