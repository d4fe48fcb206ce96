// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/evidence"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/render"
)

// defaultPolls is how long pollers are looked for where nobody says so: most look once a minute or
// more often.
const defaultPolls = time.Minute

// tracing are the options of holders that watch for some time.
type tracing struct {
	trace, pollers, engines, any bool
	duration                     time.Duration
	engine                       string
	onFailure, evidence          string
}

func (o *tracing) flags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.trace, "trace", false, "wait for umounts of these mounts that fail, and tell who held them then")
	f.BoolVar(&o.any, "any", false, "with --trace: wait for those of every mount of this host")
	f.DurationVar(&o.duration, "for", 0, "watch for so `LONG` (default for --pollers 1m, for --trace until Ctrl-C)")
	f.StringVar(&o.engine, "engine", trace.Auto, "watch by `ENGINE`: "+strings.Join(trace.Names(), ", ")+
		"; auto is the first of these that works")
	f.Var((*given)(&o.onFailure), "on-failure", "with --trace: run `COMMAND` by sh at each failure")
	f.Var((*given)(&o.evidence), "evidence", "with --trace: keep what was so at each failure below `DIR`")
	f.BoolVar(&o.pollers, "pollers", false, "tell who looks at mounts again and again")
	f.BoolVar(&o.engines, "engines", false, "tell which ways of watching work here, and what each sees")
	c.MarkFlagsMutuallyExclusive("trace", "pollers", "engines")
	complete(c, map[string]cobra.CompletionFunc{"evidence": directories,
		"engine": firstOf(cobra.ShellCompDirectiveNoFileComp, append([]string{trace.Auto}, trace.Names()...)...)})
}

// ready refuses command lines that make no sense.
func (o *tracing) ready(c *cobra.Command, args []string) error {
	for _, name := range []string{"any", "engine", "on-failure", "evidence"} {
		if c.Flags().Changed(name) && !o.trace {
			return usageError(c, "--%s is for --trace", name)
		}
	}
	switch {
	case o.duration < 0:
		return usageError(c, "--for %s: want a time that is not below zero", o.duration)
	case o.duration > 0 && !o.trace && !o.pollers:
		return usageError(c, "--for is for --trace and --pollers")
	case o.engine != trace.Auto && !slices.Contains(trace.Names(), o.engine):
		return usageError(c, "--engine %s: there is no such engine, want %s or one of %s", o.engine, trace.Auto,
			strings.Join(trace.Names(), ", "))
	case o.trace && o.any == (len(args) > 0):
		return usageError(c, "--trace wants mounts to watch, or --any for every one")
	case (o.pollers || o.engines) && len(args) > 0:
		return usageError(c, "unexpected argument %q: --pollers and --engines are about the whole host", args[0])
	case !o.trace && !o.pollers && !o.engines && len(args) != 1:
		return usageError(c, "want one PATH, DEV or IMAGE")
	}
	return nil
}

// withRights says what a user who is not root is lacking for BPF.
func withRights(err error) error {
	if os.Geteuid() == 0 {
		return finding.WithHint(err,
			"shisa holders --engines tells what works here; shisa holders PATH needs none of it")
	}
	return finding.WithHint(err,
		"run it as root: watching takes BPF programs, perf events and a mount namespace of its own")
}

func runEngines(ctx context.Context, json bool, s *stdio) error {
	all, err := trace.Engines(ctx)
	if err != nil {
		return err
	}
	d := &render.EnginesDocument{Status: []int{finding.StatusFailed}, Engines: all}
	for _, e := range all {
		if e.Usable && d.Auto == "" {
			d.Status, d.Auto = []int{finding.StatusClean}, e.Name
		}
	}
	if json {
		err = render.JSON(s.out, render.EnginesSchema, d)
	} else {
		err = render.Engines(s.out, d, s.style(false))
	}
	if err != nil {
		return err
	}
	return exitWith(d.Status[0])
}

func runPollers(ctx context.Context, o holdersOptions, s *stdio) error {
	d := o.duration
	if d == 0 {
		d = defaultPolls
	}
	r, err := trace.FindPollers(ctx, linux.Open(""), d)
	if err != nil {
		return withRights(err)
	}
	var applies []int
	if len(r.Pollers) > 0 {
		applies = append(applies, finding.StatusFound)
	}
	if r.Lost.Count() > 0 {
		applies = append(applies, finding.StatusCannotTell)
	}
	if ctx.Err() != nil {
		applies = append(applies, finding.StatusInterrupted)
	}
	doc := render.NewPollers(r, finding.OrderStatus(applies...))
	if o.json {
		err = render.JSON(s.out, render.PollersSchema, doc)
	} else {
		err = render.Pollers(s.out, doc, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}

// tracer tells of failed umounts as they come.
type tracer struct {
	o       holdersOptions
	s       *stdio
	keeper  *evidence.Keeper
	applies []int
	mu      sync.Mutex // of s: what is done at once speaks while failures are printed
}

// Write writes to standard error, from wherever.
func (r *tracer) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.s.err.Write(p)
}

// say says what went wrong with one failure.
func (r *tracer) say(err error) { fmt.Fprintf(r, "shisa: %s\n", render.Text(err.Error())) }

// runTrace watches until it is time, or somebody ends it: that is how it ends, and no failure.
func runTrace(ctx context.Context, o holdersOptions, paths []string, s *stdio) (err error) {
	h, done := holdersHost(ctx)
	defer func() { err = errors.Join(err, done()) }()
	mounts, err := mountsNamed(ctx, h, paths)
	if err != nil {
		return err
	}
	stacks, notes := trace.NewStacks(ctx, h.Linux, mounts)
	for _, n := range notes {
		fmt.Fprintf(s.err, "shisa: note: %s\n", render.Text(n))
	}
	r := &tracer{o: o, s: s, keeper: &evidence.Keeper{Host: h, Dir: o.evidence, JSON: render.JSON}}
	options := trace.Options{Host: h.Linux, Mounts: mounts, Engine: o.engine, Stacks: stacks,
		Scan: func(ctx context.Context, id int) (*holders.Report, error) { return scanMount(ctx, h, id) }}
	if o.evidence != "" || o.onFailure != "" {
		options.Moment = r.atOnce
	}
	t, err := trace.Start(ctx, options)
	if err != nil {
		return withRights(err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	e := t.Engine()
	fmt.Fprintf(s.err, "shisa: watching by %s, which %s\n", e.Name, render.Text(render.EngineWords(e)))
	for _, other := range t.Others() {
		does := "does not work here: " + other.Reason
		if other.Usable {
			does = "would work too: " + render.EngineWords(other)
		}
		fmt.Fprintf(s.err, "shisa: --engine %s %s\n", other.Name, render.Text(does))
	}
	if err := r.watch(ctx, t); err != nil {
		return err
	}
	return exitWith(finding.OrderStatus(r.applies...)[0])
}

// mountsNamed gives the mounts of the names.
func mountsNamed(ctx context.Context, h holders.Host, paths []string) ([]linux.Mount, error) {
	table, err := h.Linux.Mounts(ctx, 0)
	if err != nil {
		return nil, err
	}
	var mounts []linux.Mount
	for _, p := range paths {
		t, err := holders.Resolve(ctx, h, p)
		if err != nil {
			return nil, err
		}
		if t.Kind != holders.TargetMount {
			return nil, fmt.Errorf("watch %s: it is no directory", p)
		}
		for _, m := range table {
			if m.ID == t.MountID {
				mounts = append(mounts, m)
			}
		}
	}
	return mounts, nil
}

func scanMount(ctx context.Context, h holders.Host, id int) (*holders.Report, error) {
	t, err := holders.ResolveMount(ctx, h, id)
	if err != nil {
		return nil, err
	}
	return holders.Scan(ctx, h, t, holders.Options{})
}

// watch prints failures until the time is over or ctx ends.
func (r *tracer) watch(ctx context.Context, t *trace.Trace) error {
	until := ctx
	if r.o.duration > 0 {
		var cancel context.CancelFunc
		until, cancel = context.WithTimeout(ctx, r.o.duration)
		defer cancel()
	}
	for {
		f, err := t.Next(until)
		if until.Err() != nil {
			break
		} else if err != nil {
			return err
		}
		if err := r.tell(f); err != nil {
			return err
		}
	}
	for _, f := range t.Tell(context.WithoutCancel(ctx)) {
		if err := r.tell(f); err != nil {
			return err
		}
	}
	lost, err := t.Lost()
	if err != nil {
		return err
	}
	if lost.Count() > 0 {
		r.applies = append(r.applies, finding.StatusCannotTell)
		fmt.Fprintf(r, "shisa: %s\n", render.LostWords(lost))
	}
	return t.Unwatched()
}

// tell prints one failure at once, for others wait for it.
func (r *tracer) tell(f trace.Failure) error {
	doc := &render.TraceDocument{Status: f.Status(), Failure: f}
	r.applies = append(r.applies, doc.Status...)
	if r.o.evidence != "" {
		var err error
		if doc.Evidence, err = r.complete(f); err != nil {
			r.say(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.o.json {
		err = render.JSONLine(r.s.out, render.TraceSchema, doc)
	} else {
		err = render.Trace(r.s.out, doc, r.s.style(r.o.all))
	}
	return errors.Join(err, r.s.flush())
}

func (r *tracer) failure(f trace.Failure) evidence.Failure {
	return evidence.Failure{At: f.At, Mount: f.Mount.ID, Path: f.Mount.Path, Schema: render.TraceSchema,
		Document: &render.TraceDocument{Status: f.Status(), Failure: f}}
}

// atOnce does what is to be done as soon as a umount failed.
func (r *tracer) atOnce(ctx context.Context, f trace.Failure) {
	dir := ""
	if r.o.evidence != "" {
		var err error
		if dir, err = r.keeper.Moment(ctx, r.failure(f)); err != nil {
			r.say(err)
		}
	}
	if r.o.onFailure != "" {
		environ := append(os.Environ(), "SHISA_EVIDENCE="+dir)
		trace.Command(r.o.onFailure, environ, r, r.say)(ctx, f)
	}
}

// complete adds to the evidence of a failure what became known since.
func (r *tracer) complete(f trace.Failure) (string, error) {
	all, err := trace.Bundle(f, nil)
	if err != nil {
		return "", err
	}
	files := map[string][]byte{}
	for _, x := range all {
		if x.Name != "failure.json" { // that is written as everything here is
			files[x.Name] = x.Data
		}
	}
	return r.keeper.Complete(r.failure(f), files)
}
