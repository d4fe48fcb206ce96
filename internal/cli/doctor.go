// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorOptions struct {
	json, sarif, metrics, verbose, write bool

	html htmlPage
	// Of whom the evidence is; all empty means this machine.
	roots, disks, bundles []string
	// policy is by which backing files of disks are opened.
	follow bool
	pools  []string
	// rules is a directory with rules of the user.
	rules string
}

func newDoctor(s *stdio) *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor",
		Short: "tell what is wrong with a machine, and the likely cause",
		Long: `doctor looks at everything between a machine's files and the storage that they live on: mounts and whether
they answer, file systems, disks, the kernel's messages, tasks that wait, memory, images and clusters. It says
what is wrong, what the likely cause is, what to do next, and what could not be looked at.

A machine need not run: --disk reads a dead guest's disk without booting or mounting it, --root a copy of a system's files or a
report of sos, --bundle what "shisa doctor collect" gathered elsewhere. Several of them are
looked at as one picture: what do the sick ones share that the healthy ones do not?

Looking changes nothing. A mount that does not answer is asked by a child process that is left behind, so the
doctor never hangs, and is never what keeps a mount busy.`,
		Example: `  shisa doctor                                      this machine
  shisa doctor --disk vm.qcow2                      a guest that does not start
  shisa doctor --root /mnt/rescue
  shisa doctor --bundle web1.shisa --bundle web2.shisa
  shisa doctor --html report.html --verbose`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.ready(c); err != nil {
				return err
			}
			return runDoctor(c.Context(), o, s)
		},
	}
	o.flags(c)
	c.AddCommand(newDoctorBoots(s), newDoctorTimers(s), newDoctorStall(s), newDoctorRules(s), newDoctorMem(s), newDoctorWatch(s), newDoctorCollect(s))
	return c
}

func (o *doctorOptions) flags(c *cobra.Command) {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.sarif, "sarif", false, "print a SARIF 2.1.0 log, for tools that collect results of checks")
	f.BoolVar(&o.metrics, "openmetrics", false, "print OpenMetrics text, for a monitoring system")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "tell all: every finding with its evidence, its score, and what "+
		"could not be told")
	f.BoolVar(&o.write, "write-probe", false, "ask each mount for a file without a name as well: the only sure sign of "+
		"one that takes no writes")
	o.html.flag(f)
	rulesFlag(c, &o.rules)
	o.sourceFlags(c)
}

// sourceFlags say whose evidence is looked at.
func (o *doctorOptions) sourceFlags(c *cobra.Command) {
	f := c.Flags()
	f.Var((*repeated)(&o.roots), "root", "look at the system whose files are below `DIR` (may be repeated)")
	f.Var((*repeated)(&o.disks), "disk", "look at the guest whose disk is `IMAGE`, or IMAGE:PART (may be repeated)")
	f.BoolVar(&o.follow, "follow", false, "with --disk: open backing files wherever they are")
	f.Var((*repeated)(&o.pools), "pool", "with --disk: open backing files below `DIR` too (may be repeated)")
	f.Var((*repeated)(&o.bundles), "bundle", "look at the evidence in `FILE` (may be repeated)")
}

// ready refuses two forms of one result at once, and a page that could not be written.
func (o *doctorOptions) ready(c *cobra.Command) error {
	n := 0
	for _, form := range []bool{o.json, o.sarif, o.metrics} {
		if form {
			n++
		}
	}
	if n > 1 {
		return usageError(c, "--json, --sarif and --openmetrics are forms of one result, want one of them")
	}
	return o.html.ready()
}

func runDoctor(ctx context.Context, o doctorOptions, s *stdio) error {
	rules, err := userRules(o.rules)
	if err != nil {
		return err
	}
	all, err := o.gather(ctx)
	if err != nil {
		return err
	}
	r := doctor.Examine(all, rules)
	page := o.html.write(o.verbose, func(w io.Writer, info render.PageInfo) error {
		return render.DoctorHTML(w, r, info)
	})
	r.Status, page = withPage(r.Status, page)
	if err := cmp.Or(page, o.show(r, s)); err != nil {
		return err
	}
	return exitWith(r.Status[0])
}

// show prints a report in the form that was asked for.
func (o *doctorOptions) show(r *doctor.Report, s *stdio) error {
	switch {
	case o.json:
		return render.JSON(s.out, render.DoctorSchema, r)
	case o.sarif:
		version, _, _ := buildFacts(debug.ReadBuildInfo())
		return render.DoctorSARIF(s.out, r, version)
	case o.metrics:
		return render.DoctorMetrics(s.out, r)
	}
	return render.Doctor(s.out, r, s.style(o.verbose))
}

// gather gathers the evidence of every machine that is meant. Nothing at all is an error; of several the
// rest is looked at if one cannot be.
func (o *doctorOptions) gather(ctx context.Context) (all []*evidence.Evidence, err error) {
	add := func(name string, open func(context.Context, string) (*evidence.Evidence, error)) error {
		e, err := open(ctx, name)
		if err != nil {
			return err
		}
		all = append(all, e)
		return nil
	}
	if len(o.roots)+len(o.disks)+len(o.bundles) == 0 {
		return all, add("", o.gatherLive)
	}
	for _, of := range []struct {
		names []string
		open  func(context.Context, string) (*evidence.Evidence, error)
	}{{o.roots, gatherRoot}, {o.disks, o.gatherDisk}, {o.bundles, gatherBundle}} {
		for _, name := range of.names {
			if err := add(name, of.open); err != nil {
				return nil, err
			}
		}
	}
	apart(all)
	return all, nil
}

// apart gives machines of one name numbers.
func apart(all []*evidence.Evidence) {
	for i, e := range all {
		name := e.Label
		for n := 2; slices.ContainsFunc(all[:i], func(x *evidence.Evidence) bool { return x.Label == e.Label }); n++ {
			e.Label = name + "#" + strconv.Itoa(n)
		}
	}
}

// gatherLive gathers the evidence of this machine, and asks what only a running one can tell.
func (o *doctorOptions) gatherLive(ctx context.Context, _ string) (*evidence.Evidence, error) {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	now := time.Now()
	files, err := askLive(ctx, t, evidence.ProbeOptions{Now: now, Write: o.write})
	if err != nil {
		return nil, err
	}
	return evidence.Gather(ctx, tree.Overlay(t, files), evidence.Options{Now: now})
}

// askLive asks what only a running machine can tell.
func askLive(ctx context.Context, t tree.Tree, o evidence.ProbeOptions) (map[string][]byte, error) {
	o.Version, _, _ = buildFacts(debug.ReadBuildInfo())
	return evidence.Probe(ctx, t, o)
}

// gatherRoot gathers the evidence of a copy, of a mounted system, or of a bundle that somebody unpacked.
func gatherRoot(ctx context.Context, dir string) (*evidence.Evidence, error) {
	b, info, err := tree.ReadUnpacked(ctx, dir)
	if err == nil {
		return evidence.Gather(ctx, b, evidence.Options{Now: info.Made, Label: info.Label})
	}
	if !errors.Is(err, tree.ErrNotBundle) || !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	t, err := tree.OpenDirectory(ctx, dir)
	if err != nil {
		return nil, err
	}
	e, err := evidence.Gather(ctx, t, evidence.Options{Now: time.Now()})
	return e, errors.Join(err, t.Close())
}

// gatherDisk gathers the evidence of a guest that does not run from its disk.
func (o *doctorOptions) gatherDisk(ctx context.Context, arg string) (e *evidence.Evidence, err error) {
	g := guestOptions{diskOptions: diskOptions{follow: o.follow, pools: o.pools}}
	l, name, err := g.open(ctx, arg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	now := time.Now()
	t, err := inside.System(ctx, l.Guest, name.Part, "", now)
	if err != nil {
		return nil, err
	}
	if e, err = evidence.Gather(ctx, t, evidence.Options{Now: now}); err != nil {
		return nil, err
	}
	for _, f := range l.Changed() {
		e.Gaps = append(e.Gaps, evidence.Gap{Part: evidence.PartFSs, Object: f,
			Reason: "another program changed it meanwhile: what was read may never have been true at one time"})
	}
	return e, nil
}
