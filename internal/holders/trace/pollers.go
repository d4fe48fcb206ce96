// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// minPolls is how often a mount must be looked at for a period to be told: three distances.
	minPolls = 4
	// maxCV is how irregular a period may be: the standard deviation as a share of it. A program with
	// a timer has less than 0.1 on an idle host; people at a shell have more than 0.5.
	maxCV = 0.35
	// minPeriod tells a loop from a timer: calls within 50 ms are one poll.
	minPeriod = 100 * time.Millisecond
)

// PollReport says who looks at mounts again and again.
type PollReport struct {
	Pollers []Poller `json:"pollers"`
	// WatchedNS is how long it was watched, Mounts how many mounts.
	WatchedNS int64 `json:"watched_ns"`
	Mounts    int   `json:"mounts"`
	// Lost is what was not counted: tables that were full, 32-bit system calls.
	Lost Lost `json:"lost"`
}

// Poller is a process that looks at mounts on a period, or one whose children do.
type Poller struct {
	Process holders.Process `json:"process"`
	// Children is the name of those that it sends each time, "" where it looks by itself.
	Children string `json:"children"`
	// Calls are the kinds of calls: stat, statfs.
	Calls []string `json:"calls"`
	// PeriodNS is the time between polls in ns, the median of its mounts; CV how irregular it is: the
	// standard deviation as a share of it.
	PeriodNS int64   `json:"period_ns"`
	CV       float64 `json:"cv"`
	// Polls is how often it polled the mount that it polled most.
	Polls int64 `json:"polls"`
	// Paths are the mounts.
	Paths []string `json:"paths"`
}

// FindPollers watches for as long as ctx allows, at most for as long as d, who looks at the mounts of
// this process's namespace.
func FindPollers(ctx context.Context, host *linux.Host, d time.Duration) (*PollReport, error) {
	table, err := host.Mounts(ctx, 0)
	if err != nil {
		return nil, err
	}
	targets := make([]probe.Target, len(table))
	for i, m := range table {
		targets[i] = probe.Target{ID: m.ID, Dev: m.Dev, Path: m.Point}
	}
	p, err := probe.OpenPollers(targets)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	from := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	polls, err := p.Polls()
	if err != nil {
		return nil, fmt.Errorf("read who looked at mounts: %w", err)
	}
	r := &PollReport{WatchedNS: time.Since(from).Nanoseconds(), Mounts: len(table), Pollers: pollers(polls, table)}
	if r.Lost.Tables, r.Lost.Compat, err = p.Lost(); err != nil {
		return nil, err
	}
	for i := range r.Pollers {
		// One that ended meanwhile keeps what was seen of it.
		q := &r.Pollers[i].Process
		if d, err := host.Detail(context.WithoutCancel(ctx), q.PID); err == nil && d.Comm == q.Comm {
			q.Cmdline, q.Exe, q.Cgroup, q.Unit = d.Args, d.Exe, d.Cgroup, d.Unit
			q.UserUnit, q.Container = d.UserUnit, d.Container
		}
		if q.Cmdline == nil {
			q.Cmdline = []string{}
		}
	}
	return r, nil
}

// who is one poller: a process, or a process with those that it sends.
type who struct {
	pid      int
	start    int64
	children string
}

// pollers gives those who poll on a period, those with most mounts first.
func pollers(polls []probe.Poll, table []linux.Mount) []Poller {
	groups := map[who][]probe.Poll{}
	for _, p := range polls {
		if p.Polls < minPolls || p.CV > maxCV || p.Period < minPeriod || p.Target >= len(table) {
			continue
		}
		k := who{p.PID, p.Start, p.Children}
		groups[k] = append(groups[k], p)
	}
	out := []Poller{}
	for k, all := range groups {
		if k.children != "" && byItself(polls, k) {
			continue
		}
		out = append(out, poller(all, table))
	}
	slices.SortFunc(out, func(a, b Poller) int {
		return cmp.Or(cmp.Compare(len(b.Paths), len(a.Paths)), cmp.Compare(a.PeriodNS, b.PeriodNS),
			cmp.Compare(a.Process.PID, b.Process.PID))
	})
	return out
}

// byItself tells that the children of a process were seen often enough each: they are pollers of
// their own, and their parent sends nobody.
func byItself(polls []probe.Poll, parent who) bool {
	return slices.ContainsFunc(polls, func(p probe.Poll) bool {
		return p.Children == "" && p.Parent == parent.pid && p.Comm == parent.children && p.Polls >= minPolls
	})
}

func poller(all []probe.Poll, table []linux.Mount) Poller {
	slices.SortFunc(all, func(a, b probe.Poll) int { return cmp.Compare(a.Period, b.Period) })
	first, middle := all[0], all[len(all)/2]
	out := Poller{Children: first.Children, PeriodNS: middle.Period.Nanoseconds(), CV: middle.CV,
		Process: holders.Process{PID: first.PID, TID: first.PID, PPID: first.Parent, Comm: first.Comm,
			Parent: first.ParentComm, UID: first.UID, MountNamespace: first.Namespace, Cmdline: []string{}},
		Calls: []string{}, Paths: []string{}}
	for _, p := range all {
		call := "stat"
		if p.Statfs {
			call = "statfs"
		}
		out.Calls = append(out.Calls, call)
		out.Paths = append(out.Paths, table[p.Target].Point)
		out.Polls = max(out.Polls, p.Polls)
	}
	for _, list := range []*[]string{&out.Calls, &out.Paths} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return out
}
