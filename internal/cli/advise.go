// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/umount"
)

// advising are the options of holders that are about a lasting cure.
type advising struct {
	advise bool
	dropin string
	apply  bool
	out    string
	state  string
}

func (o *advising) adviceFlags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.advise, "advise", false, "tell how those who keep looking into the mount are kept from it for good")
	f.StringVar(&o.dropin, "write-dropin", "", "plan a drop-in that keeps `UNIT` from seeing the mount")
	f.BoolVar(&o.apply, "apply", false, "with --write-dropin: carry the plan out at once")
	f.StringVar(&o.out, "out", "", "with --write-dropin: save the plan in `FILE`, which must not exist yet")
	stateFlag(c, &o.state, "with --write-dropin: keep the receipt below `DIR`")
	c.MarkFlagsMutuallyExclusive("advise", "write-dropin")
	c.MarkFlagsMutuallyExclusive("out", "apply")
	for _, name := range []string{"trace", "engines"} {
		c.MarkFlagsMutuallyExclusive("advise", name)
	}
	for _, name := range []string{"trace", "engines", "pollers"} {
		c.MarkFlagsMutuallyExclusive("write-dropin", name)
	}
}

// cures reports whether a lasting cure is asked for; the command line is then looked at here.
func (o *advising) cures(c *cobra.Command, args []string, t *tracing) (bool, error) {
	for _, name := range []string{"apply", "out", "state"} {
		if c.Flags().Changed(name) && !c.Flags().Changed("write-dropin") {
			return true, usageError(c, "--%s is for --write-dropin", name)
		}
	}
	switch {
	case !o.advise && !c.Flags().Changed("write-dropin"):
		return false, nil
	case len(args) != 1:
		return true, usageError(c, "want the PATH of one mount")
	case t.duration < 0:
		return true, usageError(c, "--for %s: want a time that is not below zero", t.duration)
	case t.duration > 0 && !t.pollers:
		return true, usageError(c, "--for is for --pollers")
	}
	for _, name := range []string{"any", "engine", "on-failure", "evidence"} {
		if c.Flags().Changed(name) {
			return true, usageError(c, "--%s is for --trace", name)
		}
	}
	return true, newFile(o.out)
}

// runCure advises, or plans the drop-in. The path is taken as a text: what is mounted there may not
// answer.
func runCure(ctx context.Context, o holdersOptions, name string, s *stdio) error {
	path, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	if o.advise {
		err = runAdvise(ctx, o, path, s)
	} else {
		err = runDropin(ctx, o, path, s)
	}
	if errors.Is(err, umount.ErrRefused) || errors.Is(err, fs.ErrPermission) {
		err = withStatus(finding.StatusRefused, oneLine{err})
	}
	return err
}

// runAdvise looks who holds the mount, and with --pollers who looks at it on a period.
func runAdvise(ctx context.Context, o holdersOptions, path string, s *stdio) (err error) {
	h, done := holdersHost(ctx)
	defer func() { err = errors.Join(err, done()) }()
	o.Mounted = ownMounts()
	mounted, err := umount.IsMounted(ctx, h.Linux, path)
	if err != nil {
		return err
	}
	var seen []umount.Seen
	var applies []int
	if o.pollers {
		d := o.duration
		if d == 0 {
			d = defaultPolls
		}
		r, err := trace.FindPollers(ctx, h.Linux, d)
		if err != nil {
			return err
		}
		seen = umount.SeenPolling(r, path)
		if len(seen) > 0 {
			applies = append(applies, finding.StatusFound)
		}
		if r.Lost.Tables+r.Lost.Drops+r.Lost.Compat > 0 {
			applies = append(applies, finding.StatusCannotTell)
		}
	}
	var blind []finding.Blind
	if mounted { // else the answer would be about the mount that the directory is in
		r, err := scanPath(ctx, h, path, o.Options)
		if err != nil {
			return err
		}
		seen = append(seen, umount.SeenIn(r)...)
		applies, blind = append(applies, r.Status...), r.Blind
	}
	a, err := umount.Advise(context.WithoutCancel(ctx), h.Linux, path, seen)
	if err != nil {
		return err
	}
	a.Blind = append(blind, a.Blind...)
	if len(a.Blind) > 0 {
		applies = append(applies, finding.StatusCannotTell)
	}
	if ctx.Err() != nil {
		applies = append(applies, finding.StatusInterrupted)
	}
	a.Status = finding.OrderStatus(append(applies, finding.StatusClean)...)
	if o.json {
		err = render.JSON(s.out, render.AdviceSchema, a)
	} else {
		err = render.Advice(s.out, a, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(a.Status[0])
}

func scanPath(ctx context.Context, h holders.Host, path string, o holders.Options) (*holders.Report, error) {
	t, err := holders.Resolve(ctx, h, path)
	if err != nil {
		return nil, err
	}
	return holders.Scan(ctx, h, t, o)
}

// runDropin makes the plan of a drop-in, and shows it, saves it or carries it out.
func runDropin(ctx context.Context, o holdersOptions, path string, s *stdio) error {
	p, err := umount.DropinPlan("", o.dropin, path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = finding.WithHint(err, "systemctl list-units lists them; shisa holders --advise tells which one it is")
		}
		return err
	}
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	p.Tool, p.Status = "shisa "+version, []int{finding.StatusClean}
	c := changeOptions{json: o.json, all: o.all, state: o.state}
	opts, err := c.engine(nil, path, newProgress(s, "planning"))
	if err != nil {
		return err
	}
	if err := apply.DraftTexts(ctx, p, opts); err != nil {
		return textError(ctx, err, "")
	}
	next := "shisa holders --write-dropin " + render.Word(o.dropin) + " --apply" + stateWord(o.state) + " " + operand(path)
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

// stateWord is the flag of the state directory on a command line, with a blank before it.
func stateWord(dir string) string {
	if dir == "" {
		return ""
	}
	return " --state " + render.Word(dir)
}
