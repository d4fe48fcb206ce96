// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/fix"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/uml"
)

// fixOptions are the flags of commands that plan to keep units from being started.
type fixOptions struct {
	changeOptions
	how  string // "", or one of fixWays
	unit string
	out  string
	line string // the command line that applies what is saved
}

// The ways of fixing.
const (
	fixMask   = "mask"
	fixUnlink = "unlink"
)

// flags adds the flags. Those of doctorOptions are there already.
func (o *fixOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.how, "fix", "", "plan a change instead, by `WAY`: mask (without a value) masks the unit to blame, unlink "+
		"takes away the links that start it beside its timer")
	f.Lookup("fix").NoOptDefVal = fixMask
	f.StringVar(&o.unit, "unit", "", "with --fix: `UNIT`, instead of the one to blame; nothing else is looked at then")
	f.StringVar(&o.out, "out", "", "with --fix: save the plan in `FILE`, which must not exist yet; it holds bytes of the disk")
	stateFlag(c, &o.state, "with --fix: keep receipts below `DIR`")
	f.Var((*repeated)(&o.risks), "accept-risk", "with --fix: accept a risk for one image, as `RISK:IMAGE`; kernel-mount: "+
		"the driver of this host's kernel reads and writes what the guest wrote, in memory (may be repeated)")
	complete(c, map[string]cobra.CompletionFunc{
		"fix":  cobra.FixedCompletions([]string{fixMask, fixUnlink}, cobra.ShellCompDirectiveNoFileComp),
		"unit": cobra.NoFileCompletions,
		"accept-risk": cobra.FixedCompletions([]string{kernelRisk + ":"},
			cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp),
	})
}

// ready refuses command lines that make no sense, and gives the risks.
func (o *fixOptions) ready(c *cobra.Command, src *doctorOptions) ([]risk, error) {
	o.more = [][2]string{{kernelRisk, ""}}
	if o.how == "" {
		for _, name := range []string{"unit", "out", "state", "accept-risk"} {
			if c.Flags().Changed(name) {
				return nil, usageError(c, "--%s is for --fix", name)
			}
		}
		return nil, nil
	}
	switch {
	case o.how != fixMask && o.how != fixUnlink:
		return nil, usageError(c, "--fix=%s, want mask or unlink", o.how)
	case len(src.bundles) > 0:
		return nil, usageError(c, "--fix changes a machine, and a bundle is none: name its disk or its files")
	case len(src.roots)+len(src.disks) > 1:
		return nil, usageError(c, "--fix is for one machine")
	case o.unit != "" && !fix.ValidUnit(o.unit):
		return nil, usageError(c, "--unit %s: no unit that can be masked has such a name", o.unit)
	case o.unit != "" && o.how == fixUnlink:
		return nil, usageError(c, "--fix=unlink takes the links from what is looked at, and --unit looks at nothing")
	}
	o.json = src.json
	risks, err := o.changeOptions.ready(c)
	if err == nil && o.out != "" {
		o.line = "shisa apply" + stateWord(o.state)
		if src.follow {
			o.line += " --follow"
		}
		for _, dir := range src.pools {
			o.line += " --pool " + render.Word(dir)
		}
		o.line += " " + operand(o.out)
	}
	return risks, cmp.Or(err, newFile(o.out))
}

// cure is what is done about a unit.
type cure struct {
	// rule is whose finding it is about, why says in a sentence what for.
	rule    finding.Rule
	why     string
	changes []fix.Change
	proofs  []finding.Evidence
	costs   []string
}

// cureOf gives what is done about a unit that a person named.
func (o *fixOptions) cureOf(rule finding.Rule) *cure {
	c := &cure{rule: rule, why: o.unit + " is kept from being started"}
	c.changes = append(c.changes, fix.MaskUnit(o.unit))
	if twin := fix.Twin(o.unit); twin != "" {
		c.changes = append(c.changes, fix.MaskUnit(twin)) // to mask one that is not there does no harm
	}
	return c
}

// runFix makes the plan for one machine, and shows or saves it.
func runFix(ctx context.Context, o *fixOptions, src *doctorOptions, c *cure, risks []risk, s *stdio) error {
	if len(src.disks) == 1 {
		return o.fixDisk(ctx, src, c, risks, s)
	}
	return o.fixTree(ctx, src, c, s)
}

// fixTree plans for a tree of files, or for the running machine.
func (o *fixOptions) fixTree(ctx context.Context, src *doctorOptions, c *cure, s *stdio) error {
	root, then := "/", []plan.Told{{Command: "systemctl daemon-reload", Why: "systemd reads what is masked"}}
	if len(src.roots) == 1 {
		root, then = src.roots[0], nil
	}
	files, already, err := fix.Tree(root, c.changes)
	if err != nil {
		return o.fixError(err, root, already, s)
	}
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	p := &plan.Texts{Tool: "shisa " + version, Why: c.why, Files: files, Then: then, Costs: c.costs}
	state, err := stateDir(o.state)
	if err != nil {
		return err
	}
	if err := apply.DraftTexts(ctx, p, apply.Options{StateDir: state}); err != nil {
		return textError(ctx, err, "")
	}
	p.Status = []int{finding.StatusFound}
	if err := p.Seal(); err != nil {
		return err
	}
	if o.out != "" {
		if err := saveDocument(o.out, plan.TextsSchema, p); err != nil {
			return err
		}
	}
	next := cmp.Or(o.line, "shisa apply PLAN, where --out PLAN saved it")
	return o.showTexts(s, p, o.out, next)
}

// fixError gives an error of planning its status and hint. What is so already is no error.
func (o *fixOptions) fixError(err error, name string, already []fix.Change, s *stdio) error {
	refused := func(hint string) error {
		return withStatus(finding.StatusRefused, finding.WithHint(oneLine{err}, hint))
	}
	switch {
	case errors.Is(err, fix.ErrNothing):
		if o.json {
			return withStatus(finding.StatusClean, err)
		}
		for _, c := range already {
			fmt.Fprintf(s.out, "%s: nothing to do for: %s\n", render.Name(name), render.Text(c.String()))
		}
		fmt.Fprintln(s.out, "Nothing was changed.")
		return nil
	case errors.Is(err, uml.ErrUnavailable), errors.Is(err, uml.ErrConfine):
		return refused("install it (Debian: user-mode-linux), or let the driver of this host's kernel make the change, as " +
			"root and if you trust the disk: --accept-risk=" + kernelRisk + ":" + render.Word(name))
	case errors.Is(err, repair.ErrUnsound):
		return refused("mend it first: shisa repair " + operand(name))
	case errors.Is(err, fix.ErrRefused), errors.Is(err, repair.ErrUnwritable):
		return withStatus(finding.StatusRefused, oneLine{err})
	case errors.Is(err, fix.ErrEngine):
		return withStatus(finding.StatusCannotTell, finding.WithHint(oneLine{err}, "check the file system in a copy of the image"))
	case errors.Is(err, mount.ErrRoot):
		return refused("run it as root, or install User Mode Linux and leave --accept-risk out")
	}
	return oneLine{err}
}

// fixDisk plans for a guest's disk.
func (o *fixOptions) fixDisk(ctx context.Context, src *doctorOptions, c *cure, risks []risk, s *stdio) (err error) {
	g := guestOptions{diskOptions: diskOptions{follow: src.follow, pools: src.pools}}
	l, name, err := g.open(ctx, src.disks[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	real, err := diskio.RealPath(name.Disk)
	if err != nil {
		return err
	}
	rest, err := o.mayChange(ctx, real, name)
	if err != nil {
		return err
	}
	part, err := l.Part(ctx, name.Part)
	if err != nil {
		return err
	}
	if err := l.awake(); err != nil {
		return err
	}
	if err := l.ownEtc(ctx, part); err != nil {
		return err
	}
	m, err := o.planDisk(ctx, l, part, real, c, risks, s)
	if err != nil {
		var already []fix.Change
		if m != nil {
			already = m.Already
		}
		return o.fixError(err, name.Disk, already, s)
	}
	p := m.Plan
	p.Blind = append(p.Blind, rest.Unread...)
	p.Status = leftStatuses(p.Remains, p.Blind, true)
	if err := p.Seal(); err != nil {
		return err
	}
	return o.showFix(m, name.Disk, s)
}

// showFix shows and saves the plan of an image.
func (o *fixOptions) showFix(m *fix.Made, name string, s *stdio) error {
	say := warn(s)
	for _, c := range m.Already {
		say("nothing to do for: " + c.String())
	}
	for _, kept := range m.Kept {
		say("the file that the mask takes the place of is kept as " + kept)
	}
	if m.Mounted != "" {
		say("changed is the subvolume of " + m.Mounted)
	}
	if o.out != "" {
		if err := saveDocument(o.out, plan.Schema, m.Plan); err != nil {
			return err
		}
	}
	next := o.commands(name, "")
	next.Apply = cmp.Or(o.line, "shisa apply PLAN, where --out PLAN saved it")
	if err := o.showPlan(s, m.Plan, name, o.out, next); err != nil {
		return err
	}
	return exitWith(m.Plan.Status[0])
}

// mayChange refuses images that are in use, on which others rest, or that an earlier change left in the
// middle.
func (o *fixOptions) mayChange(ctx context.Context, real string, name inside.Name) (*fix.Rest, error) {
	if name.Snapshot != "" {
		return nil, withStatus(finding.StatusRefused, fmt.Errorf("%s: a snapshot is not changed", name.Snapshot))
	}
	if err := unused(ctx, real, 0); err != nil {
		return nil, err
	}
	if _, err := o.earlier(ctx, real); err != nil {
		return nil, changeError(ctx, err, name.Disk)
	}
	places, err := hypervisor.Find(ctx, hypervisor.Options{})
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, p := range places {
		if p.Kind == hypervisor.PlaceDirectory && p.There {
			dirs = append(dirs, p.Path)
		}
	}
	rest, err := fix.RestsOn(ctx, real, dirs)
	if err != nil {
		return nil, err
	}
	if n := len(rest.Overlays); n > 0 {
		err := fmt.Errorf("%s is the base of %s: what is changed in it they would see, torn", name.Disk,
			render.Count(int64(n), "image", "images"))
		return nil, withStatus(finding.StatusRefused, finding.WithHint(err, "change the overlay, as "+operand(rest.Overlays[0])))
	}
	return rest, nil
}

// awake refuses a guest that is hibernated: it would go on with what it has in memory of its file systems, and
// write over what was changed.
func (l *look) awake() error {
	for _, v := range l.Layout.Volumes {
		if strings.Contains(v.Note, "hibernated") {
			return withStatus(finding.StatusRefused, finding.WithHint(
				fmt.Errorf("part %s: the guest is hibernated, and would go on with what it knew of its disk", v.Name),
				"start it and shut it down, or add noresume to its kernel's arguments once"))
		}
	}
	return nil
}

// ownEtc refuses a volume whose guest has its units on another one. Of file systems that are not read here
// nothing is known before a kernel mounts them.
func (l *look) ownEtc(ctx context.Context, part int) error {
	if !slices.Contains(inside.Readable(l.Guest), part) {
		return nil
	}
	fs, err := l.FS(ctx, part)
	if err != nil {
		return err
	}
	if v := fs.View(); v.State == files.Incomplete && len(v.Problems) > 0 {
		return withStatus(finding.StatusRefused, fmt.Errorf("part %s: its file system is damaged, and is to be checked first: %s",
			l.Layout.Volumes[part].Name, v.Problems[0].What))
	}
	for _, dir := range []string{"/etc", fix.UnitDir} {
		if more := l.MountedThere(ctx, fs, dir, false); len(more) > 0 {
			return withStatus(finding.StatusRefused, fmt.Errorf("part %s: units may lie on another file system: %s",
				l.Layout.Volumes[part].Name, more[0]))
		}
	}
	return nil
}

// planDisk has the plan made.
func (o *fixOptions) planDisk(ctx context.Context, l *look, part int, real string, c *cure, risks []risk, s *stdio,
) (*fix.Made, error) {
	state, err := stateDir(o.state)
	if err != nil {
		return nil, err
	}
	f, err := diskio.Open(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	format, err := image.Probe(f, f.Size(), real)
	if err != nil {
		return nil, err
	}
	shown := strings.ToValidUTF8(real, "\uFFFD")
	pieces, err := l.Pieces(ctx, part)
	if err != nil {
		return nil, err
	}
	t := fix.Target{Volume: l.Layout.Volumes[part], Pieces: pieces, Disk: l.Layout.Disks[0].Data, Image: f,
		SizeBytes: f.Size(), Format: string(format), Name: shown}
	opts := fix.Options{StateDir: state, Engine: fix.UML, Log: warn(s),
		Step: plan.Step{Code: c.rule.Code, Name: c.rule.Name, Proofs: c.proofs},
		Repair: repair.Options{Check: qcow2.CheckOptions{Name: shown,
			DataFileBytes: dataFileBytes(ctx, real, f, f.Size())}}}
	if accepted(risks, kernelRisk, real) {
		opts.Engine = fix.Host
	}
	bar := newProgress(s, "a kernel makes the change")
	defer bar.Done()
	m, err := fix.Image(ctx, t, c.changes, opts)
	if err != nil {
		return m, err
	}
	return m, o.describe(m.Plan, f, real)
}

// describe says which file a plan is of. One that was written to meanwhile is refused.
func (o *fixOptions) describe(p *plan.Plan, f *diskio.File, real string) error {
	was := f.Stat()
	now, err := f.StatNow()
	if err != nil {
		return err
	}
	if now.SizeBytes != was.SizeBytes || !now.ModTime.Equal(was.ModTime) || !now.ChangeTime.Equal(was.ChangeTime) {
		return withStatus(finding.StatusRefused, finding.WithHint(fmt.Errorf("%s was written to while it was looked at", real),
			"find out who uses it, and try again"))
	}
	abs, err := filepath.Abs(real)
	if err != nil {
		return err
	}
	obj := &p.Object
	obj.Path, obj.Dev, obj.Ino, obj.ModTime = strings.ToValidUTF8(abs, "\uFFFD"), was.Dev, was.Ino, was.ModTime
	if !utf8.ValidString(abs) {
		obj.PathB64 = base64.StdEncoding.EncodeToString([]byte(abs))
	}
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	p.Tool, p.Created = "shisa "+version, time.Now()
	return nil
}

// bootsCure gives what is done about the unit to blame for boots.
func (o *fixOptions) bootsCure(b *doctor.Boots, e *evidence.Evidence) (*cure, error) {
	if b.Blame == nil || b.Blame.Unit == "" {
		return nil, withStatus(finding.StatusCannotTell, finding.WithHint(
			fmt.Errorf("%s: no unit is known to be to blame: %s", b.Machine, b.Why), "if you know it: --unit UNIT"))
	}
	c := &cure{rule: finding.TM08, why: b.Blame.Unit + ", which takes the machine down at each start, is kept from being started"}
	for _, step := range b.Blame.Chain {
		c.proofs = append(c.proofs, finding.Evidence{Source: cmp.Or(step.Path, "files"), Offset: -1, Text: step.Text})
	}
	for _, x := range b.Breaks {
		c.costs = append(c.costs, fmt.Sprintf("%s does without %s (%s): %s", x.Unit, x.Masked, x.By, x.Effect))
	}
	if o.how == fixUnlink {
		return c, o.unlinks(c, b.Blame.Unit, e)
	}
	for _, unit := range b.Blame.Masks {
		if !fix.ValidUnit(unit) {
			return nil, withStatus(finding.StatusRefused, fmt.Errorf("%s: no unit of such a name can be masked", unit))
		}
		c.changes = append(c.changes, fix.MaskUnit(unit))
	}
	return c, needed(b)
}

// timersCure gives what is done about a timer that restarts the machine when nobody expects it, or about a unit that
// does at each start: the latter comes first, since no timer matters then.
func (o *fixOptions) timersCure(t *doctor.Timers, e *evidence.Evidence) (*cure, error) {
	always := func(a doctor.TimerAct) bool { return a.If == "" && a.Never == "" && len(a.Guards) == 0 }
	if i := slices.IndexFunc(t.AtStart, always); i >= 0 {
		unit := t.AtStart[i].Unit
		c := &cure{rule: finding.TM01, why: unit + ", which takes the machine down at each start, is kept from being started"}
		if o.how == fixUnlink {
			return c, o.unlinks(c, unit, e)
		}
		if !fix.ValidUnit(unit) {
			return nil, withStatus(finding.StatusRefused, fmt.Errorf("%s: no unit of such a name can be masked", unit))
		}
		c.changes = []fix.Change{fix.MaskUnit(unit)}
		return c, nil
	}
	for _, info := range t.Timers {
		rule, found := map[doctor.Danger]finding.Rule{doctor.TimerLoops: finding.TM03, doctor.TimerMayLoop: finding.TM06,
			doctor.TimerSurprise: finding.TM04}[info.Danger]
		if !found || !fix.ValidUnit(info.Unit) {
			continue
		}
		c := &cure{rule: rule, why: info.Unit + ", which restarts the machine when nobody expects it, is kept from being started"}
		for _, text := range info.Says {
			c.proofs = append(c.proofs, finding.Evidence{Source: cmp.Or(info.From.Path, info.Unit), Offset: -1, Text: text})
		}
		if o.how == fixUnlink {
			return c, o.unlinks(c, info.Unit, e)
		}
		c.changes = []fix.Change{fix.MaskUnit(info.Unit)}
		return c, nil
	}
	return nil, withStatus(finding.StatusRefused, finding.WithHint(
		fmt.Errorf("%s: no timer is known that restarts the machine when nobody expects it", t.Machine),
		"if you know one: --unit UNIT"))
}

// unlinks makes a cure of taking away the links that start a unit.
func (o *fixOptions) unlinks(c *cure, unit string, e *evidence.Evidence) error {
	if e.Units == nil {
		return withStatus(finding.StatusCannotTell, fmt.Errorf("%s: its units could not be read", e.Label))
	}
	var err error
	if c.changes, err = fix.Unlinks(e.Units, unit); err != nil {
		return withStatus(finding.StatusRefused, err)
	}
	return nil
}

// needed refuses to mask what the machine cannot start without.
func needed(b *doctor.Boots) error {
	for _, x := range b.Breaks {
		if slices.Contains(fix.Vital(), x.Unit) && x.Effect == "it is not started" {
			return withStatus(finding.StatusRefused, finding.WithHint(
				fmt.Errorf("%s is not masked: %s needs it (%s in %s), and the machine would not start", x.Masked, x.Unit, x.By,
					x.Path), "if only a link starts it: --fix=unlink"))
		}
	}
	return nil
}
