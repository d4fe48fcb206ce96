// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/render"
)

type demoOptions struct {
	look lookOptions
	dir  string
	keep bool
}

func newDemo(s *stdio) *cobra.Command {
	o := demoOptions{look: lookOptions{readTimeout: check.DefaultReadTimeout}}
	c := &cobra.Command{
		Use:   "demo",
		Short: "make a small broken world and scan it",
		Long: `demo makes the disks of a few machines in a new directory, most of them hurt: a lost mapping, two
writers, a base image that was removed, a copy that broke off, harmless leaks, and sound ones. Then
it does what shisa scan does there. Nothing else on this host is looked at or changed.

The directory is removed at the end unless it is named or kept. The exit status is that of the scan, so 3.`,
		Example: `  shisa demo
  shisa demo --keep
  shisa demo --dir /tmp/world --html report.html`,
		Args:              wantArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.look.ready(c); err != nil {
				return err
			}
			return runDemo(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.look.json)
	f := c.Flags()
	f.BoolVar(&o.look.all, "all", false, "list everything instead of at most 20 of a kind")
	o.look.html.flag(f)
	f.StringVar(&o.dir, "dir", "", "make the world in `DIR`, which must not exist yet, and leave it there")
	f.BoolVar(&o.keep, "keep", false, "do not remove the directory at the end")
	return c
}

func runDemo(ctx context.Context, o demoOptions, s *stdio) error {
	w, err := lab.NewWorld(ctx, o.dir)
	if err != nil {
		err = fmt.Errorf("make the world: %w", err)
		if o.dir != "" && errors.Is(err, fs.ErrExist) {
			err = finding.WithHint(withStatus(finding.StatusRefused, err),
				"nothing is ever written over: choose a name that does not exist")
		}
		return err
	}
	kept := o.keep || o.dir != ""
	fmt.Fprintf(s.err, "In %s there are now:\n", render.Text(w.Dir))
	for _, i := range w.Images {
		fmt.Fprintf(s.err, "  %-24s %s\n", i.Path, i.What)
	}
	fmt.Fprintf(s.err, "\n$ shisa scan %s\n", render.Text(w.Dir))
	err = runScan(ctx, scanOptions{lookOptions: o.look}, []string{w.Dir}, s)
	if !kept {
		if rm := w.Remove(); rm != nil {
			return fmt.Errorf("remove the world: %w", rm)
		}
		fmt.Fprint(s.err, "\nThe directory is gone again. To keep it and look closer: shisa demo --keep\n")
		return err
	}
	fmt.Fprintf(s.err, "\nThe directory is still there. Look closer:\n"+
		"  shisa check --all %[1]s/machines/mail.qcow2\n  shisa repair %[1]s/machines/mail.qcow2\n  shisa info --backing-chain %[1]s/machines/web-1.qcow2\n"+
		"  shisa scan --html report.html %[1]s\n  rm -r %[1]s\n", render.Text(w.Dir))
	return err
}
