// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorMemOptions struct {
	json, watch           bool
	duration, every, span time.Duration
	state                 string
}

func newDoctorMem(s *stdio) *cobra.Command {
	var o doctorMemOptions
	c := &cobra.Command{
		Use:   "mem",
		Short: "tell whether the kernel's memory leaks, and when it is used up",
		Long: `mem tells what the kernel's own memory (SUnreclaim) and the available memory do over time: whether they grow or
fall for good, how fast, when memory will be used up, with an interval, and which caches of the kernel are the largest.

It needs points over time. --watch looks once a minute, prints what it sees, and keeps a point every ten minutes in the state
directory, where later runs and "shisa doctor" find them; so does "shisa doctor watch". Less than six hours of points, memory
that grows and falls back again and again, and page cache, which is given back, are no leak: what cannot be told is said.`,
		Example: `  shisa doctor mem
  shisa doctor mem --watch
  shisa doctor mem --watch --every 5s --at-least 10m --for 30m`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.every < time.Millisecond || o.span < 0 || o.duration < 0 {
				return usageError(c, "want --every of %v at least, and no times below zero", time.Millisecond)
			}
			for _, name := range []string{"every", "for"} {
				if c.Flags().Changed(name) && !o.watch {
					return usageError(c, "--%s is for --watch", name)
				}
			}
			return runDoctorMem(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.json)
	f := c.Flags()
	f.BoolVar(&o.watch, "watch", false, "look again and again until Ctrl-C")
	f.DurationVar(&o.every, "every", time.Minute, "with --watch: look so `OFTEN`")
	f.DurationVar(&o.duration, "for", 0, "with --watch: end after so `LONG`")
	f.DurationVar(&o.span, "at-least", doctor.MinSpan, "tell nothing of points over less than this `TIME`")
	stateFlag(c, &o.state, "keep points below `DIR`")
	return c
}

func runDoctorMem(ctx context.Context, o doctorMemOptions, s *stdio) error {
	dir, err := stateDir(o.state)
	if err != nil {
		return err
	}
	series, err := evidence.RecallSeries(dir)
	if err != nil {
		return err
	}
	m := &memoryWatch{o: o, series: series, points: slices.Clone(series.Points)}
	if o.watch {
		return m.watch(ctx, s)
	}
	r, err := m.look(ctx)
	if err != nil {
		return err
	}
	if o.json {
		err = render.JSON(s.out, render.MemorySchema, r)
	} else {
		err = render.Memory(s.out, r, s.style(false))
	}
	return cmp.Or(err, exitWith(r.Status[0]))
}

// memoryWatch looks at memory, and keeps points of it.
type memoryWatch struct {
	o      doctorMemOptions
	series *evidence.Series
	points []evidence.MemoryPoint // those that were kept, and all that were seen since
}

// look reads memory now, and tells what becomes of it.
func (m *memoryWatch) look(ctx context.Context) (*render.MemoryDocument, error) {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	now := time.Now().UTC()
	got, err := evidence.GatherMemory(ctx, t, now)
	if err != nil {
		return nil, err
	}
	m.points = append(m.points, got.Series[len(got.Series)-1])
	got.Series = m.points
	return render.NewMemory(got, doctor.Forecast(got, m.o.span), m.o.span, now), nil
}

// watch looks again and again, prints a line each time, and keeps points.
func (m *memoryWatch) watch(ctx context.Context, s *stdio) error {
	var end <-chan time.Time
	if m.o.duration > 0 {
		end = time.After(m.o.duration) // what is under way then is not cut off
	}
	tick := time.NewTicker(m.o.every)
	defer tick.Stop()
	for {
		r, err := m.look(ctx)
		if err == nil {
			_, err = m.series.Keep(m.points[len(m.points)-1])
		}
		if err == nil && m.o.json {
			err = render.JSONLine(s.out, render.MemorySchema, r)
		} else if err == nil {
			err = render.MemoryLine(s.out, r)
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-end:
			return exitWith(r.Status[0])
		case <-ctx.Done():
			return exitWith(finding.StatusInterrupted)
		}
	}
}
