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

func newDoctorTimers(s *stdio) *cobra.Command {
	var o doctorOptions
	var fix fixOptions
	c := &cobra.Command{
		Use:   "timers",
		Short: "tell when timers elapse, and whether one makes a reboot loop",
		Long: `timers lists the timers that systemd starts at each boot: their next times, when they elapsed last, and what they start.
Those whose unit restarts or powers off the machine come first, with what becomes of it.

For these, one boot after another is played as systemd acts: with the timer's stamp, whether that can be written and lasts, the zone, the
clock at the start and who sets it right. What is not known is played both ways. So it is told whether the machine ends up in a loop,
how fast that turns and when it ends, and whether it restarts once when nobody expects it.

With --fix it prints a plan that masks the timer, or the unit that acts at each start, in the machine's files or disk, for
shisa apply; shisa undo takes it back.

Times are those of the next start after now; a machine that does not run is taken to be started now.`,
		Example: `  shisa doctor timers --disk vm.qcow2               before a guest is started again
  shisa doctor timers                               this machine
  shisa doctor timers --root /mnt/rescue --verbose  with what happens in each boot, by each clock
  shisa doctor timers --bundle web1.shisa --json
  shisa doctor timers --disk vm.qcow2 --fix --out plan.json; shisa apply plan.json`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			risks, err := fix.ready(c, &o)
			if err != nil {
				return err
			}
			if fix.how != "" {
				return runTimersFix(c.Context(), &fix, &o, risks, s)
			}
			return runDoctorTimers(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.json)
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "list all timers, and what happens in each boot by each clock")
	o.sourceFlags(c)
	fix.flags(c)
	return c
}

// runTimersFix plans what is done about a timer that restarts the machine.
func runTimersFix(ctx context.Context, f *fixOptions, o *doctorOptions, risks []risk, s *stdio) error {
	if f.unit != "" {
		return runFix(ctx, f, o, f.cureOf(finding.TM03), risks, s)
	}
	all, err := o.gather(ctx)
	if err != nil {
		return err
	}
	c, err := f.timersCure(&doctor.ExamineTimers(all).Machines[0], all[0])
	if err != nil {
		return err
	}
	return runFix(ctx, f, o, c, risks, s)
}

func runDoctorTimers(ctx context.Context, o doctorOptions, s *stdio) error {
	all, err := o.gather(ctx)
	if err != nil {
		return err
	}
	r := doctor.ExamineTimers(all)
	if o.json {
		err = render.JSON(s.out, render.TimersSchema, r)
	} else {
		err = render.Timers(s.out, r, s.style(o.verbose))
	}
	return cmp.Or(err, exitWith(r.Status[0]))
}
