// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/doctor/watch"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

// watchMemory is how much memory the watch is to keep to, without its own code: the collector of the
// runtime works harder before it takes more.
const watchMemory = 40 << 20

// minEvery is the shortest time between two examinations.
const minEvery = time.Second

type doctorWatchOptions struct {
	json            bool
	every, duration time.Duration
	metrics         string
	state, rules    string
}

func newDoctorWatch(s *stdio) *cobra.Command {
	var o doctorWatchOptions
	c := &cobra.Command{
		Use:   "watch",
		Short: "follow this machine, and tell what changes",
		Long: `watch hears what the kernel says, examines this machine once a minute, and tells what changed: what is wrong
that was not before, what is no more, and what cannot be told any more. Where the kernel says something that
matters, the machine is examined at once. It prints a line for each event until Ctrl-C.

With --metrics it serves what is so now as OpenMetrics text at /metrics of an address of the loopback; no
other address is taken. Rules for alerts, a board of Grafana and a unit of systemd are in contrib.

It takes below 1 % of one processor: where an examination costs more, there are fewer. A mount that does not
answer is asked by one child, once. Each ten minutes a point of memory is kept for "shisa doctor mem".`,
		Example: `  shisa doctor watch
  shisa doctor watch --json --metrics 127.0.0.1:9477
  shisa doctor watch --every 5m`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.every < minEvery || o.duration < 0 {
				return usageError(c, "want --every of %v at least, and no times below zero", minEvery)
			}
			if o.metrics != "" {
				if err := watch.Loopback(o.metrics); err != nil {
					return usageError(c, "--metrics: %v", err)
				}
			}
			return runDoctorWatch(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.json)
	f := c.Flags()
	f.DurationVar(&o.every, "every", time.Minute, "examine the machine so `OFTEN`")
	f.DurationVar(&o.duration, "for", 0, "end after so `LONG`")
	f.StringVar(&o.metrics, "metrics", "", "serve OpenMetrics at /metrics of `ADDRESS`, such as 127.0.0.1:9477")
	rulesFlag(c, &o.rules)
	stateFlag(c, &o.state, "keep points of memory below `DIR`")
	return c
}

func runDoctorWatch(ctx context.Context, o doctorWatchOptions, s *stdio) error {
	rules, err := userRules(o.rules)
	if err != nil {
		return err
	}
	dir, err := stateDir(o.state)
	if err != nil {
		return err
	}
	series, err := evidence.RecallSeries(dir)
	if err != nil {
		return err
	}
	spaces, err := evidence.RecallSpaces(dir, time.Now())
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(watchMemory)
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	host, _ := os.Hostname() // only until the first examination has read it
	w := watch.Options{Every: o.every, Version: version, Label: host, Rules: rules, Series: series, Spaces: spaces,
		Tell: func(e watch.Event) error { return o.tell(&e, s) },
		Page: func(to io.Writer, st *watch.Status) error { return render.WatchMetrics(to, st) }}
	if o.metrics != "" {
		if w.Listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", o.metrics); err != nil {
			return fmt.Errorf("serve metrics: %w", err)
		}
	}
	if ring, err := tree.FollowRing(); err == nil {
		w.Ring = ring
	} else {
		w.NoRing = err
	}
	return o.follow(ctx, w)
}

// follow follows the machine as long as is wanted.
func (o *doctorWatchOptions) follow(ctx context.Context, w watch.Options) error {
	limited := ctx
	if o.duration > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	if err := watch.Run(limited, w); err != nil {
		return err
	}
	if errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		return nil
	}
	return exitWith(finding.StatusInterrupted)
}

// tell prints an event at once.
func (o *doctorWatchOptions) tell(e *watch.Event, s *stdio) error {
	var err error
	if o.json {
		err = render.JSONLine(s.out, render.WatchSchema, e)
	} else {
		err = render.WatchLine(s.out, e, s.style(false))
	}
	return errors.Join(err, s.flush())
}
