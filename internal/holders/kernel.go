// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// Kernel reads the kernel's own lists of mounts and of who refers to them, as *probe.Refs does. It walks
// no path and waits for no lock.
type Kernel interface {
	// Mount gives a mount of this process's namespace by its number.
	Mount(ctx context.Context, id int) (probe.Mount, error)
	// MountsOf gives all mounts of a file system.
	MountsOf(ctx context.Context, super uint64) ([]probe.Mount, error)
	// Supers gives the file systems on a device, also those that are mounted nowhere any more.
	Supers(ctx context.Context, dev uint64) ([]probe.Super, error)
	// References gives who refers to any mount of a file system, and who keeps the namespaces that are
	// named. With a *probe.Incomplete it gives what could be looked at.
	References(ctx context.Context, super uint64, namespaces ...uint64) ([]probe.Reference, error)
	// Uncounted tells why no mount has its counter, nil where all have.
	Uncounted() error
}

// Deep reads what is under way as well, where a counter says that somebody is missing. A Kernel may have it.
type Deep interface {
	// Everything is References with calls that wait, requests, and files that are mounted or read by the
	// kernel.
	Everything(ctx context.Context, super uint64, namespaces ...uint64) ([]probe.Reference, error)
}

// noKernel says why the kernel's own lists are not there.
func noKernel(err error) string {
	if err == nil {
		return "the kernel's own lists were not asked"
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return "the kernel tells it root alone: run it as root"
	}
	return err.Error()
}

// references reads who refers to a file system with these mounts. What was not looked into stays in
// s.unlooked.
func (s *scan) references(ctx context.Context, super uint64, mounts []probe.Mount) ([]probe.Reference, error) {
	return s.referencesBy(ctx, s.h.Kernel.References, super, mounts)
}

// everything is references with what is under way. Where that cannot be looked at, it is said.
func (s *scan) everything(ctx context.Context, super uint64, mounts []probe.Mount) ([]probe.Reference, error) {
	if deep, ok := s.h.Kernel.(Deep); ok {
		refs, err := s.referencesBy(ctx, deep.Everything, super, mounts)
		if s.tried = err == nil; s.tried || ctx.Err() != nil {
			return refs, err
		}
		const what = "calls and requests that are under way"
		if s.t.Kind == TargetMount { // its counter tells whether somebody is missing
			s.note(what + " could not be looked at: " + err.Error())
		} else {
			s.unseen(s.t.Path, what, err.Error())
		}
	}
	return s.references(ctx, super, mounts)
}

// asking is a method of Kernel that gives references.
type asking func(ctx context.Context, super uint64, namespaces ...uint64) ([]probe.Reference, error)

func (s *scan) referencesBy(ctx context.Context, ask asking, super uint64, mounts []probe.Mount,
) ([]probe.Reference, error) {
	// Of this process's namespace too, so that it is known which processes the kernel's lists have.
	others := []uint64{s.own}
	seen := map[uint64]bool{0: true, s.own: true}
	for _, m := range mounts {
		if !seen[m.Namespace] {
			seen[m.Namespace] = true
			others = append(others, m.Namespace)
		}
	}
	refs, err := ask(ctx, super, others...)
	s.unlooked = nil
	var some *probe.Incomplete
	if errors.As(err, &some) {
		s.unlooked, err = some.Unread, nil
	}
	s.keepers = map[uint64][]probe.Reference{}
	if s.visible == nil {
		s.visible = map[int]bool{}
	}
	for _, r := range refs {
		if r.Kind == probe.Namespace {
			s.keepers[r.Inode] = append(s.keepers[r.Inode], r)
			s.visible[r.PID] = s.visible[r.PID] || r.FD < 0
		}
	}
	return refs, err
}

// unseenProtected reports whether a protected process is in none of the kernel's lists either: some
// kernels hide processes there too. The first process of a host starts the others and opens no disks.
func (s *scan) unseenProtected() bool {
	return slices.ContainsFunc(s.tasks.Protected, func(pid int) bool { return pid != 1 && !s.visible[pid] })
}

// blindSpots makes blind spots of what was not looked into.
func (s *scan) blindSpots() {
	for _, u := range s.unlooked {
		s.unseen(fmt.Sprintf("process %d", u.PID), fmt.Sprintf("%s, descriptor %d", u.Kind, u.FD), u.Reason)
	}
}

// giveUpKernel goes on without the kernel's lists, which could not be read to the end.
func (s *scan) giveUpKernel(ctx context.Context, why error) error {
	s.h.Kernel, s.h.NoKernel = nil, why
	s.holders, s.mounts, s.byID = []Holder{}, []Mount{}, map[int]int{}
	s.audit, s.unlooked = Audit{Hints: []string{}}, nil
	return s.look(ctx)
}
