// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorStallOptions struct {
	doctorOptions
	duration time.Duration
	device   string
	// set is the timeout that is planned, in seconds; 0 for none.
	set   int
	apply bool
	out   string
	state string
}

// usualStall is how long storage does not answer where nothing else is asked.
const usualStall = 10 * time.Minute

func newDoctorStall(s *stdio) *cobra.Command {
	o := doctorStallOptions{duration: usualStall}
	c := &cobra.Command{
		Use:   "stall",
		Short: "tell what fires first when storage stops answering",
		Long: `stall tells for each disk of a machine what happens when its storage stops answering for a while: which timer
fires first, when the disk is set offline, when its file systems take no writes any more, when a cluster takes over.
Every time has an earliest and a latest value, and says where they come from. Disks whose timeout does nothing at all, as
those behind virtio and on Hyper-V, are named.

--set plans another timeout: a rule of udev in /etc that is for these disks alone, and the value in force at once. It tells what
that costs, and changes nothing without --apply; "shisa undo" takes both back. It is refused where the timeout does
nothing.

A machine need not run: see "shisa doctor". Of one that does not, rules, options of modules and settings tell less, and what
cannot be known then is said.`,
		Example: `  shisa doctor stall                                what 10 minutes without storage do to this machine
  shisa doctor stall --for 45s --html stall.html
  shisa doctor stall --disk vm.qcow2
  shisa doctor stall --device sda --set 300         a plan, with what it costs
  shisa doctor stall --device sda --set 300 --apply`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(c); err != nil {
				return err
			}
			if c.Flags().Changed("set") {
				return runStallSet(c.Context(), o, s)
			}
			return runDoctorStall(c.Context(), o, s)
		},
	}
	o.stallFlags(c)
	return c
}

func (o *doctorStallOptions) stallFlags(c *cobra.Command) {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVarP(&o.verbose, "verbose", "v", false, "tell all events, with where their times come from")
	o.html.flag(f)
	f.DurationVar(&o.duration, "for", o.duration, "storage does not answer for so `LONG`")
	f.StringVar(&o.device, "device", "", "look at the disk `NAME` alone")
	f.IntVar(&o.set, "set", 0, "plan a timeout of so many `SECONDS`")
	f.BoolVar(&o.apply, "apply", false, "with --set: carry the plan out at once")
	f.StringVar(&o.out, "out", "", "with --set: save the plan in `FILE`, which must not exist yet")
	stateFlag(c, &o.state, "with --set: keep the receipt below `DIR`")
	f.Var((*repeated)(&o.roots), "root", "look at the system whose files are below `DIR` (may be repeated)")
	f.Var((*repeated)(&o.disks), "disk", "look at the guest whose disk is `IMAGE`, or IMAGE:PART (may be repeated)")
	f.BoolVar(&o.follow, "follow", false, "with --disk: open backing files wherever they are")
	f.Var((*repeated)(&o.pools), "pool", "with --disk: open backing files below `DIR` too (may be repeated)")
	f.Var((*repeated)(&o.bundles), "bundle", "look at the evidence in `FILE` (may be repeated)")
	c.MarkFlagsMutuallyExclusive("out", "apply")
	for _, name := range []string{"root", "disk", "bundle", "html", "for"} {
		c.MarkFlagsMutuallyExclusive("set", name)
	}
}

// check refuses what makes no sense.
func (o *doctorStallOptions) check(c *cobra.Command) error {
	set := c.Flags().Changed("set")
	for _, name := range []string{"apply", "out", "state"} {
		if c.Flags().Changed(name) && !set {
			return usageError(c, "--%s is for --set", name)
		}
	}
	switch {
	case o.duration <= 0 || o.duration > 365*24*time.Hour:
		return usageError(c, "--for %s: want a time above zero, of a year at most", o.duration)
	case set && (o.set < doctor.MinTimeoutSeconds || o.set > doctor.MaxTimeoutSeconds):
		return usageError(c, "--set %d: want %d to %d seconds", o.set, doctor.MinTimeoutSeconds, doctor.MaxTimeoutSeconds)
	case c.Flags().Changed("device") && o.device == "":
		return usageError(c, "--device: want the name of a disk")
	}
	return cmp.Or(o.html.ready(), newFile(o.out))
}

// gatherStall gathers the evidence. Of this machine the mounts are not asked: nothing depends on whether
// they answer, and a stall may be under way.
func (o *doctorStallOptions) gatherStall(ctx context.Context) ([]*evidence.Evidence, error) {
	if len(o.roots)+len(o.disks)+len(o.bundles) > 0 {
		return o.gather(ctx)
	}
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, err
	}
	e, err := evidence.GatherSettings(ctx, t, evidence.Options{Now: time.Now()})
	return []*evidence.Evidence{e}, errors.Join(err, t.Close())
}

func runDoctorStall(ctx context.Context, o doctorStallOptions, s *stdio) error {
	all, err := o.gatherStall(ctx)
	if err != nil {
		return err
	}
	var stalls []*doctor.Stall
	disks := 0
	for _, e := range all {
		one := doctor.StallOf(e, o.duration, o.device)
		disks += len(one.Disks)
		stalls = append(stalls, one)
	}
	if o.device != "" && disks == 0 {
		return finding.WithHint(fmt.Errorf("%.80q %w", o.device, doctor.ErrNoDevice), "shisa doctor stall lists them")
	}
	d := render.NewStall(stalls, o.duration)
	page := o.html.write(o.verbose, func(w io.Writer, info render.PageInfo) error {
		return render.StallHTML(w, d, info)
	})
	d.Status, page = withPage(d.Status, page)
	if o.json {
		err = render.JSON(s.out, render.StallSchema, d)
	} else {
		err = render.Stall(s.out, d, s.style(o.verbose))
	}
	if err := cmp.Or(page, err); err != nil {
		return err
	}
	return exitWith(d.Status[0])
}

// runStallSet makes the plan of a timeout, and shows it, saves it or carries it out.
func runStallSet(ctx context.Context, o doctorStallOptions, s *stdio) error {
	all, err := o.gatherStall(ctx)
	if err != nil {
		return err
	}
	p, err := doctor.TimeoutPlan(all[0], o.device, o.set)
	switch {
	case errors.Is(err, doctor.ErrInert):
		return withStatus(finding.StatusRefused, finding.WithHint(oneLine{err}, "shisa doctor stall tells what happens instead"))
	case errors.Is(err, doctor.ErrNoDevice):
		return finding.WithHint(oneLine{err}, "shisa doctor stall lists them")
	case err != nil:
		return withStatus(finding.StatusRefused, oneLine{err})
	}
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	p.Tool, p.Status = "shisa "+version, []int{finding.StatusClean}
	c := changeOptions{json: o.json, all: o.verbose, state: o.state}
	opts, err := c.engine(nil, p.Files[0].Path, newProgress(s, "planning"))
	if err != nil {
		return err
	}
	if err := apply.DraftTexts(ctx, p, opts); err != nil {
		return textError(ctx, err, "")
	}
	next := "shisa doctor stall --set " + strconv.Itoa(o.set)
	if o.device != "" {
		next += " --device " + render.Word(o.device)
	}
	next += " --apply" + stateWord(o.state)
	switch {
	case o.apply && !p.Empty():
		return c.carryOutTexts(ctx, p, s)
	case o.out != "":
		if err := saveDocument(o.out, p.Schema, p); err != nil {
			return err
		}
		next = "shisa apply" + stateWord(o.state) + " " + operand(o.out)
	}
	return c.showTexts(s, p, o.out, next)
}
