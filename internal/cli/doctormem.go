// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

const (
	// maxSeriesBytes bounds what is read and kept of remembered memory.
	maxSeriesBytes = 64 << 20
	// keepEvery is how often a point is kept in the state directory: a year takes 5 MB.
	keepEvery = 10 * time.Minute
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
			if o.every <= 0 || o.span < 0 || o.duration < 0 {
				return usageError(c, "want times above zero")
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
	m := &memoryWatch{file: filepath.Join(dir, filepath.Base(evidence.SeriesPath)), o: o}
	if err := m.recall(); err != nil {
		return err
	}
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
		err = render.Memory(s.out, r, render.Style{Width: s.width, Color: s.colour})
	}
	return cmp.Or(err, exitWith(r.Status[0]))
}

// memoryWatch looks at memory, and keeps points of it.
type memoryWatch struct {
	file   string
	o      doctorMemOptions
	points []evidence.MemoryPoint
	kept   time.Time // of the last point that was kept
}

// recall reads what was kept.
func (m *memoryWatch) recall() error {
	f, err := diskio.Open(m.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read remembered memory: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), maxSeriesBytes)))
	if err != nil {
		return fmt.Errorf("read remembered memory: %w", err)
	}
	m.points, _ = evidence.ParseSeries(text) // lines that are none are as good as points that were not kept
	if n := len(m.points); n > 0 {
		m.kept = m.points[n-1].Time
	}
	return nil
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
	if m.o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.o.duration)
		defer cancel()
	}
	tick := time.NewTicker(m.o.every)
	defer tick.Stop()
	for {
		r, err := m.look(ctx)
		if err == nil {
			err = m.keep()
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
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return exitWith(r.Status[0])
			}
			return exitWith(finding.StatusInterrupted)
		}
	}
}

// keep adds the last point to those that later runs find, if it is time for one.
func (m *memoryWatch) keep() error {
	p := m.points[len(m.points)-1]
	if p.Time.Sub(m.kept) < keepEvery && !p.Time.Before(m.kept) {
		return nil
	}
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := diskio.Append(m.file)
	if err != nil {
		return fmt.Errorf("keep a point of memory: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep a point of memory: %w", err)
	}
	m.kept = p.Time
	return nil
}
