// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/notice"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

// newPoolRisk is accepted for a directory that is another pool than it was.
const newPoolRisk = "new-pool:"

// newPool adds the flag that says that a directory is another pool than it was.
func newPool(c *cobra.Command, risks *[]string) {
	c.Flags().Var((*repeated)(risks), "accept-risk", "take a `RISK`: new-pool:POOL, it is not the pool that it was, and is "+
		"protected all the same")
}

// checkNewPools refuses a risk that is not that of a pool which the command is about. The error is one of the command line.
func (o *poolOptions) checkNewPools(c *cobra.Command, risks []string) error {
	for _, r := range risks {
		if name, ok := strings.CutPrefix(r, newPoolRisk); !ok || !slices.Contains(o.paths(), name) {
			return usageError(c, "the only risk that can be taken here is %s%s", newPoolRisk,
				strings.Join(o.paths(), " or "+newPoolRisk))
		}
	}
	return nil
}

func newBaseProtect(s *stdio) *cobra.Command {
	var o poolOptions
	var p bases.ProtectOptions
	var watch bool
	var risks []string
	c := &cobra.Command{
		Use:   "protect [POOL]",
		Short: "keep bases from being lost, whoever removes them",
		Long: `protect gives every base of a pool a shield, a second hard link beside it that takes no space: who removes the
base takes one of its two names away, and "shisa base restore" gives it back. One that is needed and gone gets its name
back here too. Bases that are needed, or may be, are touched, so that Nova's cleaner does not take them for old; and what
each base holds is recorded as digests.

It only adds, acts at once, and may be done again and again, as by a timer every 20 minutes. "shisa base unprotect"
takes the shields away. Without POOL it is for all pools that the configuration names.

With --watch it goes on until it is stopped: it looks at everything every ten minutes, tells who removes a base, and
gives one that is needed its name back at once. What other nodes remove from a shared directory it sees at its next
look.

A directory of its own, .shisa, beside the bases keeps all that. Nova leaves it alone.

The exit status is 3 if a base is needed and still missing, 4 if anything could not be read that may need one, or not be
done.`,
		Example: `  shisa base protect /var/lib/nova/instances
  shisa base protect --no-record --keepalive 1h /var/lib/nova/instances
  shisa base protect --watch --json /var/lib/nova/instances`,
		Args: wantArgs(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if p.KeepAlive < 0 {
				return usageError(c, "--keepalive is negative")
			}
			if err := o.wantPools(c); err != nil {
				return err
			}
			if err := o.checkNewPools(c, risks); err != nil {
				return err
			}
			goOn := func(ctx context.Context, o *poolOptions, s *stdio) error { return o.watch(ctx, p, risks, s) }
			switch {
			case watch && o.pool == "":
				return o.together(c.Context(), restart, s, goOn)
			case watch:
				return o.alone(c.Context(), s, goOn)
			}
			return o.each(c.Context(), s, func(ctx context.Context, o *poolOptions) (*render.BasePool, error) {
				return o.protect(ctx, p, risks, s)
			})
		},
	}
	o.actFlags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	newPool(c, &risks)
	f := c.Flags()
	f.DurationVar(&p.KeepAlive, "keepalive", 0, "touch bases that are needed when they are older than `D` (default "+
		"6h, or 20m where Nova resized one)")
	f.BoolVar(&watch, "watch", false, "go on until stopped, and put back what somebody removes; with --json one object a line")
	f.BoolVar(&p.NoRecord, "no-record", false, "do not read the bases to record what they hold")
	return c
}

// restart is how long is waited until what ended with an error is begun again, of several that go on.
const restart = 30 * time.Second

// keepalive is how old a base may become before it is touched, by the command line or else the configuration.
func (o *poolOptions) keepalive(p bases.ProtectOptions) bases.ProtectOptions {
	if p.KeepAlive == 0 && o.said != nil {
		p.KeepAlive = o.said.KeepAlive
	}
	return p
}

func (o *poolOptions) protect(ctx context.Context, p bases.ProtectOptions, risks []string, s *stdio) (*render.BasePool, error) {
	var c *refs.Census
	d, err := o.done(ctx, s, func(ctx context.Context, act bases.Options) (_ *pool.Done, err error) {
		if c, err = o.census(ctx, s); err != nil {
			return nil, err
		}
		act.NewPool = slices.Contains(risks, newPoolRisk+o.pool)
		return bases.Protect(ctx, c, o.keepalive(p), act)
	})
	switch {
	case err != nil && d != nil && d.Receipt != "" && ctx.Err() != nil: // what it did until then is in force
		d.Failure = "interrupted"
		return &render.BasePool{Path: o.pool, Status: []int{finding.StatusInterrupted}, Done: d}, err
	case err != nil && d != nil && d.Did() && ctx.Err() == nil:
		p := o.failed(err, s)
		d.Failure = p.Error.Text
		return &render.BasePool{Path: o.pool, Status: p.Status, Done: d}, nil
	case err != nil:
		return nil, err
	}
	still := c.Without(d.Restored)
	style := render.Style{Width: s.barWidth, All: o.all}
	err = errors.Join(render.BaseLacks(s.err, still, style), render.BaseClocks(s.err, c, style), o.warnOfRoom(ctx, c, s))
	if err != nil {
		return nil, err
	}
	status := slices.Clone(still.Status)
	if len(d.Left) > 0 {
		status = append(status, finding.StatusCannotTell)
	}
	return &render.BasePool{Path: o.pool, Status: finding.OrderStatus(status...), Done: d}, nil
}

// warnOfRoom tells of the space that only shields keep where it will be wanted.
func (o *poolOptions) warnOfRoom(ctx context.Context, c *refs.Census, s *stdio) (err error) {
	if c.Kept.Files == 0 {
		return nil
	}
	if c.Room, err = roomOf(ctx, c.Bases); err != nil || !c.Room.Wanted {
		return err
	}
	return render.BaseKept(s.err, c, render.Style{Width: s.barWidth})
}

// watch protects a pool until it is stopped. A risk was taken for what was there at the start: what is begun anew may be a
// directory whose storage was taken away in between.
func (o *poolOptions) watch(ctx context.Context, p bases.ProtectOptions, risks []string, s *stdio) (err error) {
	act, end, err := o.act(ctx, s)
	if err != nil {
		return err
	}
	defer end()
	act.NewPool = !o.anew && slices.Contains(risks, newPoolRisk+o.pool)
	w := bases.WatchOptions{Protect: o.keepalive(p),
		Census: func(ctx context.Context) (*refs.Census, error) { return o.census(ctx, s) },
		Tell:   func(h pool.Happened) error { return o.tell(h, act.Bases, s) }}
	events, err := hearOf(act.Bases, s)
	if err != nil {
		return err
	}
	if events != nil {
		defer func() { err = errors.Join(err, events.Close()) }()
		w.Events = events
		if err := events.Unsure(); err != nil {
			fmt.Fprintf(s.err, "shisa: of a process that ends as soon as it removed a base only the number is told: %s\n",
				render.Text(oneLine{err}.Error()))
		}
	}
	return poolError(bases.Watch(ctx, w, act), o.pool)
}

// tell prints what happened to the bases of a directory: at once, and whole, since others may have something to tell.
func (o *poolOptions) tell(h pool.Happened, dir string, s *stdio) (err error) {
	var text bytes.Buffer
	if h.Bases = dir; o.json {
		err = render.JSONLine(&text, render.BaseEventSchema, h)
	} else {
		err = render.BaseEvent(&text, &h, o.among, s.style(o.all))
	}
	if err != nil {
		return err
	}
	_, err = s.out.Write(text.Bytes())
	return errors.Join(err, s.flush())
}

// hearOf has the kernel tell who takes names from a directory; nil where it cannot, which is said.
func hearOf(dir string, s *stdio) (*notice.Watcher, error) {
	events, err := notice.Watch(dir, linux.Open(""))
	if errors.Is(err, notice.ErrNot) {
		fmt.Fprintf(s.err, "shisa: %s; a base that is removed comes back at the next look\n", render.Text(err.Error()))
		return nil, nil
	}
	return events, err
}
