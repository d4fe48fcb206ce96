// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseWhy(s *stdio) *cobra.Command {
	var o poolOptions
	c := &cobra.Command{
		Use:   "why POOL NAME",
		Short: "tell all that needs one base image",
		Long: `why lists all evidence for one base: each image that rests on it with those in between, each process that has it
open, each machine that names it, and what could not be read. NAME is the name of its file, or its path.

The exit status is 3 if it is needed and missing, 4 if anything could not be read that may need it.`,
		Example: `  shisa base why /var/lib/nova/instances 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b
  shisa base why --json /var/lib/libvirt/images debian-12.qcow2`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error { return runBaseWhy(c.Context(), o, args[1], s) },
	}
	o.flags(c)
	o.completePool(c, 1, anyBase)
	o.censusFlags(c)
	return c
}

func runBaseWhy(ctx context.Context, o poolOptions, name string, s *stdio) error {
	c, err := o.census(ctx, s)
	if err != nil {
		return err
	}
	one := c.Only(name)
	if len(one.All) == 0 {
		return finding.WithHint(fmt.Errorf("%s: no base of that name, and nothing that was read names one", name),
			"shisa base scan "+render.Word(o.pool)+" lists them")
	}
	if o.json {
		err = render.JSON(s.out, render.BaseScanSchema, one)
	} else {
		err = render.BaseWhy(s.out, one, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(one.Status[0])
}
