// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/render"
)

// wantPools is for commands that are about POOL, or where it is not given about all pools of the configuration.
func (o *poolOptions) wantPools(c *cobra.Command) error {
	if o.pool == "" && len(o.several) == 0 {
		return usageError(c, "nothing to work on: no POOL is given, and %s names none, want: %s POOL",
			render.Word(o.configName()), c.CommandPath())
	}
	return nil
}

func (o *poolOptions) configName() string {
	if o.config == "" {
		return config.Default
	}
	return o.config
}

// paths are the pools that the command is about.
func (o *poolOptions) paths() (all []string) {
	if o.pool != "" {
		return []string{o.pool}
	}
	for i := range o.several {
		all = append(all, o.several[i].pool)
	}
	return all
}

// each does something with POOL, or where that is not given with every pool of the configuration, and prints what came
// of it. Of several one that fails keeps nobody from the others.
func (o *poolOptions) each(
	ctx context.Context, s *stdio, do func(ctx context.Context, o *poolOptions) (*render.BasePool, error),
) error {
	if o.pool != "" {
		p, err := do(ctx, o)
		switch {
		case err != nil && p != nil:
			return errors.Join(err, o.print(p, s))
		case err != nil:
			return err
		}
		return o.show(p, s)
	}
	doc := render.BasePoolsDocument{Pools: []render.BasePool{}}
	for i := range o.several {
		one := &o.several[i]
		p, err := do(ctx, one)
		switch {
		case ctx.Err() != nil && p != nil && o.json:
			doc.Status, doc.Pools = []int{finding.StatusInterrupted}, append(doc.Pools, *p.Told())
			return errors.Join(context.Cause(ctx), render.JSON(s.out, render.BasePoolsSchema, doc))
		case ctx.Err() != nil && p != nil:
			return errors.Join(context.Cause(ctx), one.print(p, s))
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			p = one.failed(err, s)
		case !o.json:
			if s.out.used {
				fmt.Fprintln(s.out)
			}
			if p.Done != nil || p.Missing != nil && len(p.Missing.Missing) > 0 { // the others name it themselves
				fmt.Fprintf(s.out, "%s:\n", render.Name(p.Path))
			}
			if err := p.Text(s.out, s.style(o.all)); err != nil {
				return err
			}
		}
		doc.Pools = append(doc.Pools, *p.Told())
	}
	doc.Status = poolsStatus(doc.Pools)
	if o.json {
		if err := render.JSON(s.out, render.BasePoolsSchema, doc); err != nil {
			return err
		}
	}
	return exitWith(doc.Status[0])
}

// show prints what came of one pool.
func (o *poolOptions) show(p *render.BasePool, s *stdio) error {
	if err := o.print(p, s); err != nil {
		return err
	}
	return exitWith(p.Status[0])
}

func (o *poolOptions) print(p *render.BasePool, s *stdio) error {
	if o.json {
		return p.JSON(s.out)
	}
	return p.Text(s.out, s.style(o.all))
}

// failed tells that nothing came of one pool of several.
func (o *poolOptions) failed(err error, s *stdio) *render.BasePool {
	status := finding.StatusFailed
	if se := new(statusError); errors.As(err, &se) {
		status = se.status
	}
	text, hint := oneLine{err}.Error(), hintFor(err)
	where := ""
	if !strings.Contains(text, o.pool) {
		where = o.pool + ": "
	}
	fmt.Fprintf(s.err, "shisa: %s\n", render.Text(where+text))
	if hint != "" {
		fmt.Fprintf(s.err, "hint: %s\n", render.Text(hint))
	}
	return &render.BasePool{Path: o.pool, Status: []int{status}, Error: &render.BasePoolError{Text: text, Hint: hint}}
}

// poolsStatus is how it went with several: that one could not be looked at is a gap, as long as any could.
func poolsStatus(all []render.BasePool) []int {
	ok := slices.ContainsFunc(all, func(p render.BasePool) bool { return p.Error == nil })
	var status []int
	for i := range all {
		for _, v := range all[i].Status {
			if v == finding.StatusFailed && ok {
				v = finding.StatusCannotTell
			}
			status = append(status, v)
		}
	}
	return finding.OrderStatus(status...)
}

// together does something with all pools of the configuration at once, until ctx ends. One that ends with an error is
// told of and begun again after a rest: storage that is not mounted takes nothing from the others. Paths that lead to one
// pool are one of these, whenever they come to do that.
func (o *poolOptions) together(
	ctx context.Context, rest time.Duration, s *stdio, do func(ctx context.Context, o *poolOptions, s *stdio) error,
) error {
	ctx, stop := context.WithCancelCause(diskio.WithHung(ctx))
	defer stop(nil)
	quiet := *s
	quiet.barWidth = 0 // bars would draw over each other
	var all sync.WaitGroup
	for i := range o.joint.all {
		all.Go(func() {
			told := "" // what is so at each try is told once
			for anew := false; ctx.Err() == nil; anew = true {
				one, err := o.lead(ctx, i)
				if err == nil && one != nil {
					one.anew = anew
					err = do(ctx, one, &quiet)
				}
				if ctx.Err() != nil {
					return
				}
				if lost := s.flush(); lost != nil {
					stop(lost) // nobody hears what happens
					return
				}
				if errors.Is(err, errJoined) {
					continue // it goes on leading, with what is said of it now
				}
				o.joint.end(i)
				if err != nil && err.Error() != told {
					told = err.Error()
					(&poolOptions{pool: o.joint.all[i].Path}).failed(err, s)
				}
				select {
				case <-ctx.Done():
				case <-time.After(rest):
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// lead gives what is said now of one of the pools of the configuration, nil where the program goes on with it by another path.
func (o *poolOptions) lead(ctx context.Context, i int) (*poolOptions, error) {
	o.joint.look(ctx)
	with, ok := o.joint.lead(i)
	if !ok {
		return nil, nil
	}
	one, err := o.one(i, with)
	one.goesOn = true
	return one, err
}

// alone does something with POOL until ctx ends, and begins it anew where the configuration says other things of that now.
func (o *poolOptions) alone(ctx context.Context, s *stdio, do func(ctx context.Context, o *poolOptions, s *stdio) error) error {
	ctx = diskio.WithHung(ctx)
	if o.joint == nil {
		return do(ctx, o, s)
	}
	for anew := false; ; anew = true {
		one := *o.plain
		one.joint, one.goesOn, one.anew = o.joint, true, anew
		err := one.join(len(o.joint.all), o.joint.with(len(o.joint.all)))
		if err == nil {
			err = do(ctx, &one, s)
		}
		if !errors.Is(err, errJoined) {
			return err
		}
	}
}
