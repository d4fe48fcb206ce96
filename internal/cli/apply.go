// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

type applyOptions struct {
	changeOptions
	follow bool
	pools  []string
}

func newApply(s *stdio) *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply PLAN.json",
		Short: "carry out a plan that repair saved",
		Long: `apply carries out a plan that "shisa repair --out" saved; "-" reads it from standard input.
It is refused if any byte of the image that the plan rests on has changed since, if the plan was edited, if
it was carried out before, and while a program uses the image. A plan is for one file on one host: it is not
carried out on a copy.

The old bytes are safe on the disk before the first one is written. Afterwards the whole image is
checked; if that does not end as the plan says, the image gets its old bytes back.

A plan for text files, as "shisa holders --write-dropin" makes one, is carried out the same way. The commands
that put the files into force are told, and not run.`,
		Example: `  shisa repair --out plan.json vm.qcow2
  shisa apply plan.json
  shisa apply --journal /var/tmp plan.json           where there is no room beside the image
  shisa repair --json vm.qcow2 | shisa apply -`,
		Args: wantArgs(1, 1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			risks, err := o.ready(c)
			if err != nil {
				return err
			}
			return runApply(c.Context(), o, risks, args[0], s)
		},
	}
	f := o.flags(c)
	f.BoolVar(&o.follow, "follow", false, "open backing files wherever they are, where the plan rests on them")
	f.Var((*repeated)(&o.pools), "pool", "open backing files below `DIR` too (may be repeated)")
	complete(c, map[string]cobra.CompletionFunc{"pool": directories})
	return c
}

func runApply(ctx context.Context, o applyOptions, risks []risk, name string, s *stdio) error {
	p, texts, err := readPlan(name, s.in)
	switch {
	case errors.As(err, new(*fs.PathError)):
		return err
	case err != nil:
		return changeError(ctx, err, name)
	case texts != nil:
		return o.applyTexts(ctx, texts, s)
	}
	image := vault.PathOf(p.Object)
	if p.Empty() {
		p.Status = leftStatuses(p.Remains, p.Blind, len(p.Hurt) > 0)
		if err := o.showPlan(s, p, image, "", render.Commands{}); err != nil {
			return err
		}
		return exitWith(p.Status[0])
	}
	if err := sameBelow(ctx, p, image, disk.Policy{Dirs: o.pools, Follow: o.follow}); err != nil {
		return err
	}
	return o.carryOut(ctx, p, risks, image, s)
}

// readPlan reads a plan from a file, or from stdin if the name is "-".
// It is one of an image or one of text files, and the other is nil.
func readPlan(name string, stdin io.Reader) (*plan.Plan, *plan.Texts, error) {
	if name == "-" {
		return plan.ReadAny(stdin)
	}
	f, err := diskio.Open(name)
	if err != nil {
		err = fmt.Errorf("read the plan: %w", err)
		if errors.Is(err, diskio.ErrDirectory) {
			err = finding.WithHint(err, "name the file that shisa repair --out saved")
		}
		return nil, nil, err
	}
	defer f.Close()
	p, texts, err := plan.ReadAny(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, texts, nil
}
