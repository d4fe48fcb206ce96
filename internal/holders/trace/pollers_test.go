// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestPollers(t *testing.T) {
	table := []linux.Mount{{Point: "/a"}, {Point: "/b"}, {Point: "/c"}}
	agent := func(target int, statfs bool) probe.Poll {
		return probe.Poll{PID: 10, Start: 1, Comm: "vmtoolsd", Target: target, Statfs: statfs, Calls: 40, Polls: 20,
			Period: time.Duration(700+target) * time.Millisecond, CV: 0.03}
	}
	change := func(p probe.Poll, fn func(*probe.Poll)) probe.Poll {
		fn(&p)
		return p
	}
	for _, c := range []struct {
		name  string
		polls []probe.Poll
		want  []string // pid, children, calls, paths, period
	}{
		{"nobody", nil, nil},
		{"three mounts, both ways", []probe.Poll{agent(0, true), agent(1, false), agent(2, true)},
			[]string{"10  [stat statfs] [/a /b /c] 701ms"}},
		{"too few", []probe.Poll{change(agent(0, true), func(p *probe.Poll) { p.Polls = 3 })}, nil},
		{"no period", []probe.Poll{change(agent(0, true), func(p *probe.Poll) { p.CV = 0.6 })}, nil},
		{"a loop", []probe.Poll{change(agent(0, true), func(p *probe.Poll) { p.Period = 60 * time.Millisecond })}, nil},
		{"two processes of one number", []probe.Poll{agent(0, true), change(agent(1, true), func(p *probe.Poll) {
			p.Start = 2
		})}, []string{"10  [statfs] [/a] 700ms", "10  [statfs] [/b] 701ms"}},
		{"df, sent each time", []probe.Poll{
			change(agent(0, true), func(p *probe.Poll) { p.Children = "df" }),
			{PID: 20, Parent: 10, Comm: "df", Target: 0, Polls: 1}, {PID: 21, Parent: 10, Comm: "df", Target: 0, Polls: 1},
		}, []string{"10 df [statfs] [/a] 700ms"}},
		{"a child that stays", []probe.Poll{
			change(agent(0, true), func(p *probe.Poll) { p.PID, p.Comm, p.Children = 1, "init", "vmtoolsd" }),
			change(agent(0, true), func(p *probe.Poll) { p.Parent = 1 }),
		}, []string{"10  [statfs] [/a] 700ms"}},
	} {
		var got []string
		for _, p := range pollers(c.polls, table) {
			got = append(got, fmt.Sprint(p.Process.PID, " ", p.Children, " ", p.Calls, " ", p.Paths, " ",
				time.Duration(p.PeriodNS)))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestFindPollers has this process poll a mount for as long as it takes to do so on a period: a machine
// that does other things lets nobody.
func TestFindPollers(t *testing.T) {
	p := newMountpoint(t)
	for !polls(t, p) {
	}
}

// polls has this process poll a mount, and holds that it is found if it did so on a period.
func polls(t *testing.T, p mountpoint) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	type answer struct {
		r   *PollReport
		err error
	}
	done := make(chan answer, 1)
	go func() {
		r, err := FindPollers(ctx, linux.Open(""), time.Hour)
		done <- answer{r, err}
	}()
	const period = 150 * time.Millisecond
	// BPF programs are loaded at the same time: what is polled until then does not count.
	var periods []float64
	last := time.Now()
	for range 16 {
		var st unix.Statfs_t
		if err := unix.Statfs(p.target, &st); err != nil {
			t.Error(err)
		}
		time.Sleep(period)
		periods, last = append(periods, float64(time.Since(last))), time.Now()
	}
	cancel()
	a := <-done
	if a.err != nil {
		testenv.Lacks(t, a.err.Error())
	}
	i := slices.IndexFunc(a.r.Pollers, func(q Poller) bool { return q.Process.PID == os.Getpid() && q.Children == "" })
	if i < 0 {
		least, most := slices.Min(periods), slices.Max(periods)
		if most < least*1.2 && float64(a.r.WatchedNS) > 8*most {
			t.Fatalf("this process looked every %v to %v, and is not among the pollers: %+v",
				time.Duration(least), time.Duration(most), a.r)
		}
		return false
	}
	q := a.r.Pollers[i]
	if !slices.Contains(q.Paths, p.target) || !slices.Equal(q.Calls, []string{"statfs"}) ||
		q.PeriodNS < period.Nanoseconds() || q.Process.Comm == "" || len(q.Process.Cmdline) == 0 {
		t.Errorf("%+v, want statfs of %s", q, p.target)
	}
	return true
}
