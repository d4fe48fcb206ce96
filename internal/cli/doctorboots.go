// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

func newDoctorBoots(s *stdio) *cobra.Command {
	var o doctorOptions
	var fix fixOptions
	c := &cobra.Command{
		Use:   "boots",
		Short: "tell why a machine starts again and again, and how to stop it",
		Long: `boots lists when a machine was started, how long it ran and what ended each boot: an order to reboot, power off or
switch kernels, a panic, a watchdog, or a cut of its power; and who asked for it. Of a row of short boots it says whether
they are a loop that a unit of the machine makes, a row of crashes, or restarts that somebody asked for.

It names the unit to blame with the lines of the journal that it rests on, the arguments of the kernel's command line that
start the machine once without that unit, the keys that lead to that line on this machine, and what else does without it.

With --fix it prints a plan that masks that unit in the machine's files or disk, for shisa apply; shisa undo takes it back.
A disk is changed by a kernel of its own, in User Mode Linux, over a layer in memory.

A unit is only named if its own files say that it takes the machine down, or a log says that it did; one that was just
started last is not. Journals are read, and where there are none syslogs or wtmp; those need not be whole.`,
		Example: `  shisa doctor boots --disk vm.qcow2                a guest that starts for ever
  shisa doctor boots                                this machine
  shisa doctor boots --root /mnt/rescue --verbose
  shisa doctor boots --bundle web1.shisa --json
  shisa doctor boots --disk vm.qcow2 --fix --out plan.json; shisa apply plan.json
  shisa doctor boots --disk vm.qcow2 --fix=unlink   its timer goes on to start it`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			risks, err := fix.ready(c, &o)
			if err != nil {
				return err
			}
			if fix.how != "" {
				return runBootsFix(c.Context(), &fix, &o, risks, s)
			}
			return runDoctorBoots(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.json)
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "list all boots and all evidence")
	o.sourceFlags(c)
	fix.flags(c)
	return c
}

// runBootsFix plans what is done about the unit to blame.
func runBootsFix(ctx context.Context, f *fixOptions, o *doctorOptions, risks []risk, s *stdio) error {
	if f.unit != "" {
		return runFix(ctx, f, o, f.cureOf(finding.TM08), risks, s)
	}
	all, err := o.gather(ctx)
	if err != nil {
		return err
	}
	c, err := f.bootsCure(&doctor.ExamineBoots(all).Machines[0], all[0])
	if err != nil {
		return err
	}
	return runFix(ctx, f, o, c, risks, s)
}

func runDoctorBoots(ctx context.Context, o doctorOptions, s *stdio) error {
	all, err := o.gather(ctx)
	if err != nil {
		return err
	}
	r := doctor.ExamineBoots(all)
	if o.json {
		err = render.JSON(s.out, render.BootsSchema, r)
	} else {
		err = render.Boots(s.out, r, s.style(o.verbose))
	}
	return cmp.Or(err, exitWith(r.Status[0]))
}
