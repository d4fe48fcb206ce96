// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
)

// Advice says how those who keep a mount busy again and again are kept from it for good.
type Advice struct {
	// Status lists every exit status that applies, the one to exit with first.
	Status []int `json:"status"`
	// Path is the mount; Mounted: something is mounted there now.
	Path    string `json:"path"`
	Mounted bool   `json:"mounted"`
	Cures   []Cure `json:"cures"`
	// Wrong says why the setting that comes to mind first is the wrong one.
	Wrong string `json:"wrong"`
	// Blind is what could not be looked at, and why.
	Blind []finding.Blind `json:"blind"`
}

// How somebody came to be advised about.
type How string

// The ways, the surest first.
const (
	Polls How = "polls" // it was seen to look at the mount on a period
	Holds How = "holds" // it held the mount when that was looked at
	Runs  How = "runs"  // it is known to look at all mounts, and it runs here
)

// Seen is somebody to keep away.
type Seen struct {
	Process holders.Process
	How     How
	// PeriodNS is the time between two looks in nanoseconds, 0 if not known.
	PeriodNS int64
}

// Cure is what to do about one program.
type Cure struct {
	Process  holders.Process `json:"process"`
	How      How             `json:"how"`
	PeriodNS int64           `json:"period_ns"`
	// Agent is the known program that it is, "" for others.
	Agent string `json:"agent"`
	// Ways are what can be done, the best first.
	Ways []Way `json:"ways"`
}

// WayKind is what kind of cure it is.
type WayKind string

// The kinds.
const (
	WayOption      WayKind = "option"      // a setting of the program's own
	WayDropin      WayKind = "dropin"      // a drop-in for its unit
	WayUserDropin  WayKind = "user_dropin" // a drop-in for a unit of a user's own manager
	WayPropagation WayKind = "propagation" // how the container gets the host's mounts
	WayNone        WayKind = "none"        // there is none, and why
)

// Way is one cure.
type Way struct {
	Kind WayKind `json:"kind"`
	// What says what it does, and what it costs.
	What string `json:"what"`
	// File is where Text goes, "" where it is none.
	File string `json:"file"`
	Text string `json:"text"`
	// Commands put it into force; shisa runs none of them.
	Commands []string `json:"commands"`
}

// SeenIn are the processes that hold what a report is about.
func SeenIn(r *holders.Report) []Seen {
	var all []Seen
	for _, h := range r.Holders {
		if h.Process.PID > 0 {
			all = append(all, Seen{Process: h.Process, How: Holds})
		}
	}
	return all
}

// SeenPolling are those that look at path on a period.
func SeenPolling(r *trace.PollReport, path string) []Seen {
	var all []Seen
	for _, p := range r.Pollers {
		if slices.Contains(p.Paths, path) {
			all = append(all, Seen{p.Process, Polls, p.PeriodNS})
		}
	}
	return all
}

// IsMounted reports whether something is mounted at path, by the kernel's table alone.
func IsMounted(ctx context.Context, h *linux.Host, path string) (bool, error) {
	table, err := h.Mounts(ctx, 0)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(table, func(m linux.Mount) bool { return m.Point == path }), nil
}

// Advise gives the cures for those who were seen, and for programs that run here and are known to look at
// every mount. The errors are ErrRefused for a path that nobody can be kept from, and those of reading
// the table of mounts.
func Advise(ctx context.Context, h *linux.Host, path string, seen []Seen) (*Advice, error) {
	if err := fitsPath(path); err != nil {
		return nil, err
	}
	a := &Advice{Path: path, Wrong: WrongCure, Cures: []Cure{}, Blind: []finding.Blind{}}
	var err error
	if a.Mounted, err = IsMounted(ctx, h, path); err != nil {
		return nil, err
	}
	running, err := a.running(ctx, h)
	if err != nil {
		return nil, err
	}
	for _, s := range once(append(slices.Clone(seen), running...)) {
		a.Cures = append(a.Cures, cureOf(s, path))
	}
	return a, ctx.Err()
}

// running looks for known agents.
func (a *Advice) running(ctx context.Context, h *linux.Host) ([]Seen, error) {
	tasks, err := h.Tasks(ctx, linux.TasksOptions{})
	if err != nil {
		return nil, err
	}
	blind := func(what, reason string) {
		a.Blind = append(a.Blind, finding.Blind{Object: a.Path, What: what, Reason: reason,
			Host: []finding.Range{}, Guest: []finding.Range{}})
	}
	pids := map[int]bool{}
	for _, threads := range tasks.Namespaces {
		for _, t := range threads {
			pids[t.PID] = true
		}
	}
	for _, pid := range tasks.Protected {
		pids[pid] = true // their names may be read all the same
	}
	var all []Seen
	for _, pid := range slices.Sorted(maps.Keys(pids)) {
		p, err := h.Process(ctx, pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it ended
		case err != nil && !errors.Is(err, diskio.ErrTimeout):
			blind(fmt.Sprintf("process %d", pid), err.Error())
			continue
		}
		if agentOf(holders.Process{Comm: p.Comm, Cmdline: p.Args}) == nil {
			continue
		}
		d, err := h.Detail(ctx, pid)
		if err != nil && !errors.Is(err, diskio.ErrTimeout) {
			if !errors.Is(err, fs.ErrNotExist) {
				blind(fmt.Sprintf("process %d (%s)", pid, p.Comm), err.Error())
			}
			continue
		}
		all = append(all, Seen{How: Runs, Process: holders.Process{PID: pid, TID: pid, PPID: d.Parent, Comm: d.Comm,
			Parent: d.ParentComm, Cmdline: append([]string{}, d.Args...), Exe: d.Exe, UID: d.UID, Unit: d.Unit,
			UserUnit: d.UserUnit, Container: d.Container, Cgroup: d.Cgroup, MountNamespace: d.MountNamespace}})
	}
	return all, nil
}

// once keeps of each unit, or process where it has none, the surest sight, in the order of the sights.
func once(all []Seen) []Seen {
	rank := func(s Seen) int { return slices.Index([]How{Polls, Holds, Runs}, s.How) }
	slices.SortStableFunc(all, func(a, b Seen) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Process.PID, b.Process.PID))
	})
	known := map[string]bool{}
	return slices.DeleteFunc(all, func(s Seen) bool {
		p := s.Process
		key := fmt.Sprint(p.Container, "\x00", p.Unit, "\x00", p.UserUnit)
		if p.Container == "" && !strings.HasSuffix(p.Unit, ".service") || p.UserUnit != "" {
			key = fmt.Sprint(p.PID)
		}
		was := known[key]
		known[key] = true
		return was
	})
}

// cureOf says what to do about one.
func cureOf(s Seen, path string) Cure {
	c := Cure{Process: s.Process, How: s.How, PeriodNS: s.PeriodNS, Ways: []Way{}}
	if c.Process.Cmdline == nil {
		c.Process.Cmdline = []string{}
	}
	a := agentOf(s.Process)
	if a != nil {
		c.Agent = a.name
		if w, ok := a.way(s.Process, path); ok {
			c.Ways = append(c.Ways, w)
		}
	}
	if w, ok := wayAround(s, path, a != nil); ok || len(c.Ways) == 0 {
		c.Ways = append(c.Ways, w)
	}
	return c
}

// wayAround keeps a program from a path without its help. ok is false where that cannot be had, and
// then the way says why.
func wayAround(s Seen, path string, known bool) (w Way, ok bool) {
	p := s.Process
	none := func(format string, args ...any) (Way, bool) {
		return Way{Kind: WayNone, What: fmt.Sprintf(format, args...), Commands: []string{}}, false
	}
	switch {
	case p.Machine != "":
		return none("it is the virtual machine %s, which works there: it ends when that does", p.Machine)
	case p.Container != "":
		return propagation(p.Container), true
	case p.UserUnit != "":
		w, err := userDropin(p, path)
		if err != nil {
			return none("%v", err)
		}
		return w, true
	case !strings.HasSuffix(p.Unit, ".service"):
		return none("it belongs to no service of systemd that a drop-in could be for: end it, or start it as one")
	}
	t, err := Dropin(p.Unit, path)
	if err != nil {
		return none("%v", err)
	}
	what := "its unit does not see what is mounted there, whatever the program does"
	if s.How == Holds && !known {
		what += "; only if it has no business there: it would lose what it works with"
	}
	return Way{Kind: WayDropin, What: what, File: t.Path, Text: t.Content, Commands: []string{
		"shisa holders --write-dropin " + quoteUnit(p.Unit) + " --apply " + finding.Word(path),
		"systemctl daemon-reload", "systemctl restart " + quoteUnit(p.Unit)}}, true
}

// propagation is the cure for a container that has the host's mounts: its copies go with the host's
// where it receives what happens there. Sources: Docker, "Bind mounts", "Configure bind propagation" (rslave;
// podman-run(1), --volume, has the same word); Kubernetes, "Volumes", "Mount propagation" (HostToContainer
// is rslave in mount(8)).
func propagation(container string) Way {
	what := "give it the host's directories with rslave, so that an umount goes to its copies as well, and do not " +
		"let it look at the mount"
	text := "-v /:/host:ro,rslave"
	switch runtime, _, _ := strings.Cut(container, ":"); runtime {
	case "kubernetes":
		text = "volumeMounts:\n- mountPropagation: HostToContainer\n"
	case "docker", "podman":
	default:
		what = "have its runtime give it the host's directories with the propagation rslave, so that an umount goes " +
			"to its copies as well, and do not let it look at the mount"
		text = ""
	}
	return Way{Kind: WayPropagation, What: what, Text: text, Commands: []string{}}
}

// baseOf is the last part of a program's path, without what the kernel says of one that was replaced.
func baseOf(exe string) string { return filepath.Base(strings.TrimSuffix(exe, " (deleted)")) }
