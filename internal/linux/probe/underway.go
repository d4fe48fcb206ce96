// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// The kinds that Everything finds besides.
const (
	// Waits is a system call that waits in the kernel: the file that it works on, or the place that it
	// has come to on its way to a name.
	Waits   Kind = "system_call"
	AIO     Kind = "aio"          // a request of io_submit(2)
	Image   Kind = "image_mount"  // a file system that is mounted of a file, without a loop device
	Backing Kind = "fuse_backing" // a file that FUSE reads past its server
)

// maxStackBytes is the most that may lie on a stack: the largest stacks there are.
const maxStackBytes = 64 << 10

// modules may have types that the programs know: what is not part of the kernel itself.
var modules = [...]string{"fuse", "erofs"}

// extraTypes are the types of those of modules that are loaded.
func extraTypes() []*btf.Spec {
	var all []*btf.Spec
	for _, name := range modules {
		// One that is part of the kernel, or not loaded, has none of its own.
		if spec, err := btf.LoadKernelModuleSpec(name); err == nil {
			all = append(all, spec)
		}
	}
	return all
}

// late loads the programs that look at what is under way, once.
func (r *Refs) late() error {
	r.lateOnce.Do(func() {
		spec, err := loadUnderway()
		if err == nil {
			err = loadWith("underway", spec, &r.underway, extraTypes())
		}
		if err != nil {
			r.lateErr = err
			return
		}
		r.lateDesk = newDesk(r.underway.Questions, r.underway.Pass)
	})
	return r.lateErr
}

// Everything is References with what is under way in the kernel: calls that wait, requests of io_uring
// and of io_submit(2), file systems that are mounted of a file, files that FUSE reads past its server. Of
// a call that waits it tells by what lies on its stack, so that alone is likely and not certain. It
// matches ErrRefused where the kernel does not take the programs for that.
func (r *Refs) Everything(ctx context.Context, super uint64, namespaces ...uint64) ([]Reference, error) {
	if super == 0 {
		return nil, fmt.Errorf("look for references to no file system: %w", ErrNoMount)
	}
	if err := r.late(); err != nil {
		return nil, err
	}
	s := newSearch(r, super, namespaces)
	s.deep = true
	return s.run(ctx)
}

// more looks at what is under way, when all else was looked at.
func (s *search) more(ctx context.Context) error {
	if err := s.images(ctx); err != nil {
		return err
	}
	all := []*underwaySleeperFound{}
	err := s.r.lateDesk.run(s.r.underway.Sleepers, nil, func(rec record) error {
		f := new(underwaySleeperFound)
		if err := rec.into(f); err != nil {
			return err
		}
		all = append(all, f)
		return nil
	})
	return errors.Join(err, s.queues(ctx, all), s.calls(ctx, all))
}

// ownerOf is the task in the words of the other search.
func ownerOf(f *underwaySleeperFound) owner {
	return owner{&refsTaskFound{Task: f.Task, Pid: f.Pid, Tid: f.Tid, Tgid: f.Tgid, Flags: f.Flags,
		Comm: f.Comm}, -1}
}

// theKernel owns what no process has.
func theKernel() owner { return owner{&refsTaskFound{}, -1} }

// images looks for file systems that are mounted of a file: erofs, since Linux 6.12.
func (s *search) images(ctx context.Context) error {
	supers, err := s.r.Supers(ctx, 0)
	if err != nil {
		return err
	}
	var qs []question
	var of []Super
	for _, u := range supers {
		if u.Type == "erofs" && u.Addr != s.super {
			qs, of = append(qs, question{Addr: u.Addr, Super: s.super}), append(of, u)
		}
	}
	return s.r.lateDesk.ask(ctx, s.r.underway.Image, qs, func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		s.add(Reference{Kind: Image, Holder: f.Addr, Mount: f.Mnt, Flags: f.Flags, Count: 1,
			On: of[rec.question].Dev}, theKernel(), spot{dentry: f.Dentry, mount: f.Mnt})
		return nil
	})
}

// queues looks into the queues of asynchronous requests.
func (s *search) queues(ctx context.Context, all []*underwaySleeperFound) error {
	var memory shared
	for _, f := range all {
		memory.add(f.Mm, ownerOf(f).task)
	}
	qs := make([]question, len(memory.addrs))
	for i, addr := range memory.addrs {
		t := memory.owners[addr][0].task
		qs[i] = question{Addr: addr, Super: s.super, Also: t.Task, Want: uint32(t.Pid)}
	}
	var waiting []carrier
	err := s.r.lateDesk.ask(ctx, s.r.underway.Queues, qs, func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		waiting = append(waiting, carrier{carrierKey{aQueue, 0, f.Extra}, memory.owners[memory.addrs[rec.question]]})
		return nil
	})
	if err != nil {
		return err
	}
	return s.unpack(ctx, waiting)
}

// calls looks for what lies on the stacks of those that wait in the kernel. What is held otherwise as
// well is one reference, which is told of already.
func (s *search) calls(ctx context.Context, all []*underwaySleeperFound) error {
	known := map[uint64]bool{}
	for _, r := range s.refs {
		known[r.Holder] = true
	}
	var qs []question
	var of []*underwaySleeperFound
	for _, f := range all {
		if f.Sp < f.End && f.End-f.Sp <= maxStackBytes && !idles(f.Nr) {
			qs = append(qs, question{Super: s.super, Also: f.Task, From: f.Sp, Of: f.End, Want: uint32(f.Pid)})
			of = append(of, f)
		}
	}
	// A call is at one place of its way; what lies further up its stack is where it was before. That of
	// rename(2) and link(2) is at two, of which one is told.
	type wayKey struct {
		task  int
		mount uint64
	}
	seen := map[wayKey]bool{}
	return s.r.lateDesk.ask(ctx, s.r.underway.Stack, qs, func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		task := of[rec.question]
		ref := Reference{Kind: Waits, Holder: f.Addr, Mount: f.Mnt, Flags: f.Flags, Count: 1, Call: task.Nr}
		switch rec.kind {
		case foundFile:
			if known[f.Addr] {
				return nil
			}
			known[f.Addr] = true
			ref.Write = writes(f.Flags)
		case foundPath:
			key := wayKey{rec.question, f.Mnt}
			if seen[key] || !walks(task.Nr) {
				return nil
			}
			seen[key], ref.Walks = true, true
		default:
			return nil // it ended
		}
		s.add(ref, ownerOf(task), spot{dentry: f.Dentry, mount: f.Mnt})
		return nil
	})
}

// walks reports whether a system call takes a name.
func walks(nr int64) bool {
	for _, c := range calls() {
		if int64(c.nr) == nr {
			return c.class&7 > 0
		}
	}
	return false
}

// idles reports whether a system call waits for no file: what lies on its stack is of calls before it.
func idles(nr int64) bool {
	switch nr {
	case -1, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_FUTEX, unix.SYS_WAIT4, unix.SYS_WAITID,
		unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_RT_SIGSUSPEND,
		unix.SYS_RESTART_SYSCALL:
		return true
	}
	name := CallName(nr)
	return name == "epoll_wait" || name == "pause" // which not every processor has
}
