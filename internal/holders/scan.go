// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// maxLooks is how often the kernel's lists are read while the counter moves.
	maxLooks = 3
	// maxHolders bounds what is listed.
	maxHolders = 1 << 18
	// maxTables is how many processes of one namespace are asked for its mounts, where none of them has
	// the namespace's own root.
	maxTables = 8
)

// scan is one look at everything.
type scan struct {
	h Host
	t Target
	o Options
	// tasks are the threads of the host; tables the mounts of each namespace that some process is in.
	tasks  *linux.Tasks
	tables map[uint64][]linux.Mount
	trees  map[uint64]*tree // made of the tables
	own    uint64           // the namespace of this process
	// inside is the namespace of each thread that tasks tells one of.
	inside map[linux.Thread]uint64
	// where tells of each mount in those tables which namespace it is in.
	where map[int]located

	audit   Audit
	mounts  []Mount
	byID    map[int]int // in mounts
	holders []Holder
	notes   []string
	blind   []finding.Blind
	// ownOn are the references of this process on each mount.
	ownOn map[int]int64
	// keepers are who keeps each namespace, unlooked what the kernel's lists could not be looked at for.
	keepers  map[uint64][]probe.Reference
	unlooked []probe.Unread
	// visible are the processes that the kernel's lists have, as far as they were asked for.
	visible map[int]bool
	// counted: the kernel's own lists were read.
	counted bool
	// tried: what is under way was looked at.
	tried bool
	// hidden: the kernel has copies of the mount that nothing explains.
	hidden bool
	// details are the processes that were read.
	details map[int]Process
}

// located is a mount in the table of a namespace.
type located struct {
	linux.Mount
	namespace uint64
}

// newScan reads what every question needs.
func newScan(ctx context.Context, h Host, t Target, o Options) (*scan, error) {
	s := &scan{h: h, t: t, o: o, tables: map[uint64][]linux.Mount{}, trees: map[uint64]*tree{}, byID: map[int]int{}, where: map[int]located{},
		details: map[int]Process{}, ownOn: map[int]int64{}, audit: Audit{Hints: []string{}},
		mounts: []Mount{}, holders: []Holder{}, notes: []string{}, blind: []finding.Blind{}}
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	mine, err := h.Linux.Mounts(ctx, 0)
	if err != nil {
		return nil, err
	}
	s.own = s.namespaceOf(h.Self, h.Self)
	s.table(s.own, mine)
	for _, ns := range slices.Sorted(keys(s.tasks.Namespaces)) {
		if ns == s.own {
			continue
		}
		if err := s.readTable(ctx, ns); err != nil {
			return nil, err
		}
	}
	if h.Kernel == nil {
		for _, gap := range s.tasks.Gaps {
			s.unseen("processes", "all of them", gap)
		}
	}
	if t.mute {
		s.notes = append(s.notes, fmt.Sprintf("%s does not answer: what it is was told by its name alone", t.Inside))
	}
	return s, nil
}

// look reads what the threads of the host hold; where the kernel's lists can be read, only what those do
// not tell.
func (s *scan) look(ctx context.Context) (err error) {
	if s.tasks, err = s.h.Linux.Tasks(ctx, linux.TasksOptions{Files: s.h.Kernel == nil}); err != nil {
		return err
	}
	s.inside = nil
	return nil
}

func keys[K comparable, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// namespaceOf gives the mount namespace that a thread was found in, 0 if none.
func (s *scan) namespaceOf(pid, tid int) uint64 {
	if s.inside == nil {
		s.inside = map[linux.Thread]uint64{}
		for ns, threads := range s.tasks.Namespaces {
			for _, t := range threads {
				s.inside[t] = ns
			}
		}
	}
	return cmp.Or(s.inside[linux.Thread{PID: pid, TID: tid}], s.inside[linux.Thread{PID: pid, TID: pid}])
}

// readTable reads the mounts of another namespace, by the processes in it: one whose root is that of
// the namespace sees all, others see what is below their own root. The error is that of ctx.
func (s *scan) readTable(ctx context.Context, ns uint64) error {
	asked, last := 0, error(nil)
	for _, whole := range []bool{true, false} {
		for _, t := range s.tasks.Namespaces[ns] {
			root, err := s.h.Linux.RootOf(t.TID)
			if err != nil {
				last = err
				continue
			}
			if whole != (root == "/") {
				continue
			}
			if asked++; asked > maxTables {
				break
			}
			mounts, err := s.h.Linux.Mounts(ctx, t.TID)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				last = err
				continue
			}
			for i := range mounts {
				if root != "/" {
					mounts[i].Point = strings.TrimSuffix(root+mounts[i].Point, "/")
				}
			}
			s.table(ns, mounts)
			if whole {
				return nil
			}
		}
	}
	if s.tables[ns] == nil && last != nil && !errors.Is(last, fs.ErrNotExist) && !errors.Is(last, unix.ESRCH) {
		s.unseen(fmt.Sprintf("mount namespace %d", ns), "its mounts", last.Error())
	}
	return nil
}

// table takes in the mounts of a namespace.
func (s *scan) table(ns uint64, mounts []linux.Mount) {
	for _, m := range mounts {
		if _, twice := s.where[m.ID]; !twice {
			s.where[m.ID] = located{m, ns}
			s.tables[ns] = append(s.tables[ns], m)
		}
	}
}

// unseen notes what could not be looked at.
func (s *scan) unseen(object, what, reason string) {
	s.blind = append(s.blind, finding.Blind{Object: object, What: what, Reason: reason,
		Host: []finding.Range{}, Guest: []finding.Range{}})
}

// unread is unseen for an error; something that is not there is nothing that was missed.
func (s *scan) unread(what string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.unseen(s.t.Path, what, err.Error())
	}
}

// add lists a holder. What this very process holds is counted and not listed.
func (s *scan) add(h Holder) {
	h.Certainty = cmp.Or(h.Certainty, Static)
	if h.Writing == nil {
		h.Writing = writingOf(h.Kind)
	}
	if h.AlsoFDs == nil {
		h.AlsoFDs = []int{}
	}
	if h.Process.PID > 0 && h.Process.PID == s.h.Self {
		s.ownOn[h.MountID] += h.References
		return
	}
	if len(s.holders) == maxHolders {
		s.unseen(s.t.Path, "holders", fmt.Sprintf("more than %d, the others were left out", maxHolders))
	}
	if len(s.holders) <= maxHolders {
		s.holders = append(s.holders, h)
	}
}

// process is what is known of a process, read once.
func (s *scan) process(ctx context.Context, pid, tid int, comm string) Process {
	if pid <= 0 {
		return Process{Comm: "kernel", Cmdline: []string{}, UID: 0}
	}
	p, ok := s.details[pid]
	if !ok {
		// What cannot be read leaves it with its number and name: it holds all the same.
		d, err := s.h.Linux.Detail(ctx, pid)
		p = Process{PID: pid, PPID: d.Parent, Comm: cmp.Or(d.Comm, comm), Parent: d.ParentComm,
			Cmdline: slices.Clone(d.Args), Exe: d.Exe, UID: d.UID, Unit: d.Unit, UserUnit: d.UserUnit,
			Container: d.Container, Cgroup: d.Cgroup, MountNamespace: d.MountNamespace}
		if d.Emulator() {
			p.Machine = d.Machine()
		}
		if err != nil && d.Comm == "" {
			p.Comm = comm
		}
		if p.Cmdline == nil {
			p.Cmdline = []string{}
		}
		s.details[pid] = p
	}
	p.TID = cmp.Or(tid, pid)
	return p
}

// locate gives the mount that a path of a namespace is on, by its text.
func (s *scan) locate(ns uint64, path string) (Mount, bool) {
	t := s.trees[ns]
	if t == nil {
		t = newTree(s.tables[ns])
		s.trees[ns] = t
	}
	m, ok := t.at(path)
	if !ok {
		return Mount{}, false
	}
	return s.mountByID(m.ID)
}

// mountByID gives a mount of the file system that is asked about.
func (s *scan) mountByID(id int) (Mount, bool) {
	i, ok := s.byID[id]
	if !ok || id == 0 {
		return Mount{}, false
	}
	return s.mounts[i], true
}

// on fills in which mount a holder holds, and what that keeps from happening.
func (h Holder) on(m Mount) Holder {
	h.MountID, h.MountNamespace, h.SameMount = m.ID, m.Namespace, m.Asked
	h.Blocks = BlocksSuperblock
	if m.Asked || m.Follows {
		h.Blocks = BlocksUmount
	}
	return h
}
