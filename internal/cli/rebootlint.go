// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type rebootLintOptions struct {
	json, sarif, verbose bool
}

func newRebootLint(s *stdio) *cobra.Command {
	var o rebootLintOptions
	c := &cobra.Command{
		Use:   "lint DIR",
		Short: "find unit files that would restart a machine again and again",
		Long: `lint judges unit files of systemd by the rules of the doctor, without running anything: units that restart a machine
or turn it off each time it starts, timers that do so soon after each start, that catch up a restart which was missed, or that
loop where their stamp is lost or the clock starts slow, what the first boot would enable, and restarts that never happen since
their program is missing. Wrapper scripts are followed.

DIR is the root of a system, as an unpacked image, or any directory with unit files in it, as a repository. Of a repository all
units are judged as though they were installed and enabled, since [Install] says where; scripts are found by their names. A repository
tells nothing of zones, clocks and stamps: its timers are played on every machine that there may be, and a finding names those
that it holds for.

What depends on something that files do not tell is a note, and no fault.`,
		Example: `  shisa reboot lint deploy/systemd
  shisa reboot lint --verbose /mnt/image
  shisa reboot lint --sarif . > reboot.sarif`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.json && o.sarif {
				return usageError(c, "--json and --sarif are forms of one result, want one of them")
			}
			return runRebootLint(c.Context(), o, args[0], s)
		},
	}
	jsonFlag(c, &o.json)
	f := c.Flags()
	f.BoolVar(&o.sarif, "sarif", false, "print a SARIF 2.1.0 log, for tools that collect results of checks")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "tell notes too, and all lines that a finding rests on")
	return c
}

func runRebootLint(ctx context.Context, o rebootLintOptions, dir string, s *stdio) error {
	t, err := tree.OpenDirectory(ctx, dir)
	if err != nil {
		return err
	}
	r, err := doctor.Lint(ctx, t, dir, time.Now())
	if err = errors.Join(err, t.Close()); errors.Is(err, fs.ErrNotExist) {
		return finding.WithHint(fmt.Errorf("%s: there are no unit files in it", dir),
			"name a directory with files like nightly.service, or the root of a system")
	} else if err != nil {
		return err
	}
	switch {
	case o.json:
		err = render.JSON(s.out, render.LintSchema, r)
	case o.sarif:
		version, _, _ := buildFacts(debug.ReadBuildInfo())
		err = render.LintSARIF(s.out, r, version)
	default:
		err = render.Lint(s.out, r, s.style(o.verbose))
	}
	return cmp.Or(err, exitWith(r.Status[0]))
}
