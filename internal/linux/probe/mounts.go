// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// maxLooks is how often something is read that changes meanwhile, before it is given up.
const maxLooks = 5

// ErrNoMount means that no mount has the number.
var ErrNoMount = errors.New("no such mount")

// Mount is a mount as the kernel has it.
type Mount struct {
	Addr  uint64 // of struct mount
	Super uint64 // of its super block

	// ID is the number that /proc/PID/mountinfo shows, UniqueID the one that is never used again
	// (Linux 6.8, 0 before).
	ID       int
	UniqueID uint64

	// Count is the kernel's count of references, Writers of those who may write; Counted tells that
	// they were read. Nobody stops the kernel meanwhile: only a count that is the same again is one.
	Count, Writers int64
	Counted        bool
	// Baseline is what Count is without anybody: one for being mounted, one for being the root of a
	// namespace, and before Linux 6.17 one for each of Children.
	Baseline int64

	Dev           uint64 // device number as stat(2) has it
	Namespace     uint64 // inode number of its mount namespace, 0: it is in none
	NamespaceAddr uint64
	Parent        uint64 // address of the mount that it hangs on, 0: none
	ParentID      int
	Root          string // what of the file system is shown, a path from its root
	RootInode     uint64
	Point         string // where it is mounted, from the root of its namespace; empty: nowhere
	PointAddr     uint64 // of the directory it is mounted on: the same for all copies of a parent's
	Children      int    // mounts that hang on it

	// Peer groups, 0: none. A mount shares what is mounted below it with its Group and gets that of
	// Master; where its parent does, a copy of this mount can be what keeps it busy.
	Group, Master, ParentGroup, ParentMaster int
	Flags                                    uint32 // MNT_* of include/linux/mount.h

	// Internal tells that the kernel made it for itself, such as an overlay of a layer.
	Internal bool
}

// Super is a super block: a file system that the kernel has, mounted or not.
type Super struct {
	Addr     uint64
	Root     uint64 // address of its uppermost directory, 0 while it is taken down
	Dev      uint64 // device number as stat(2) has it
	BlockDev uint64 // of the block device below it, 0: none, or one that does not say (btrfs)
	Type, ID string
	Active   int  // references to it: 1 for all mounts together
	Frozen   bool // by fsfreeze(8) or a snapshot
}

// Mount finds a mount of our own namespace by its number, without a path. It matches ErrNoMount if
// there is none.
func (r *Refs) Mount(ctx context.Context, id int) (Mount, error) {
	return r.MountIn(ctx, 0, id)
}

// MountIn is Mount in the namespace of which another mount gave the address, 0: our own.
func (r *Refs) MountIn(ctx context.Context, namespaceAddr uint64, id int) (Mount, error) {
	if id <= 0 {
		return Mount{}, fmt.Errorf("look for mount %d: %w", id, ErrNoMount)
	}
	// Nobody holds the tree of mounts still, and a branch that is moved while it is gone through may
	// be missed: none is none only after several looks.
	for range maxLooks {
		ms, err := r.walk(ctx, r.mounts.MountsOfNamespace,
			question{Addr: namespaceAddr, Want: uint32(id)})
		switch {
		case err != nil:
			return Mount{}, fmt.Errorf("look for mount %d: %w", id, err)
		case len(ms) > 0:
			return ms[0], nil
		}
	}
	return Mount{}, fmt.Errorf("look for mount %d: %w", id, ErrNoMount)
}

// MountsIn gives the mounts of the namespace of which a mount gave the address, 0: our own.
func (r *Refs) MountsIn(ctx context.Context, namespaceAddr uint64) ([]Mount, error) {
	var before []Mount
	for look := range maxLooks {
		ms, err := r.walk(ctx, r.mounts.MountsOfNamespace, question{Addr: namespaceAddr})
		if err != nil {
			return nil, fmt.Errorf("list the mounts of a namespace: %w", err)
		}
		// As for one mount: all are all only if they are so twice.
		same := func(a, b Mount) bool { return a.Addr == b.Addr && a.ID == b.ID }
		if look > 0 && slices.EqualFunc(before, ms, same) {
			return ms, nil
		}
		before = ms
	}
	return nil, fmt.Errorf("list the mounts of a namespace: %w", ErrChanged)
}

// MountsOf gives all mounts of a super block, in every namespace or none.
func (r *Refs) MountsOf(ctx context.Context, super uint64) ([]Mount, error) {
	if super == 0 {
		return nil, fmt.Errorf("list the mounts of no file system: %w", ErrNoMount)
	}
	ms, err := r.walk(ctx, r.mounts.MountsOfSuper, question{Addr: super})
	if err != nil {
		return nil, fmt.Errorf("list the mounts of a file system: %w", err)
	}
	return ms, nil
}

// Again reads a mount once more, most of all its counter. It matches ErrNoMount if it is gone.
func (r *Refs) Again(ctx context.Context, m Mount) (Mount, error) {
	ms, lost, err := r.list(ctx, r.mounts.Mount, question{Addr: m.Addr, Super: m.Super})
	if err == nil && (lost || len(ms) != 1 || ms[0].ID != m.ID || ms[0].UniqueID != m.UniqueID) {
		err = ErrNoMount
	}
	if err != nil {
		return Mount{}, fmt.Errorf("look at mount %d again: %w", m.ID, err)
	}
	return ms[0], nil
}

// walk lists mounts until a walk was not disturbed by others that mount and unmount.
func (r *Refs) walk(ctx context.Context, p *ebpf.Program, q question) ([]Mount, error) {
	for range maxLooks {
		ms, lost, err := r.list(ctx, p, q)
		if err != nil || !lost {
			return ms, err
		}
	}
	return nil, ErrChanged
}

// list lists mounts and all that is to be said of them; lost tells that one went meanwhile.
func (r *Refs) list(ctx context.Context, p *ebpf.Program, q question) (ms []Mount, lost bool,
	err error) {
	var raw []mountsMountFound
	seen := map[uint64]bool{}
	err = r.desk.ask(ctx, p, []question{q}, func(rec record) error {
		switch rec.kind {
		case foundLost:
			lost = true
		case foundMount:
			var f mountsMountFound
			if err := rec.into(&f); err != nil {
				return err
			}
			if !seen[f.Addr] {
				seen[f.Addr] = true
				raw = append(raw, f)
			}
		}
		return nil
	})
	if err != nil || lost {
		return nil, lost, err
	}
	ms = make([]Mount, len(raw))
	for i, f := range raw {
		ms[i] = Mount{Addr: f.Addr, Super: f.Super, ID: int(f.Id), UniqueID: f.Unique,
			Dev: userDev(f.Dev), Namespace: uint64(f.Inum), NamespaceAddr: f.Ns, Parent: f.Parent,
			ParentID: int(f.ParentId), RootInode: f.RootIno, PointAddr: f.Point, Group: int(f.Group),
			Master: int(f.Master), ParentGroup: int(f.ParentGroup), ParentMaster: int(f.ParentMaster),
			Flags: f.Flags}
		if ms[i].Namespace == anonymousNamespace {
			ms[i].Namespace = 0
		}
		ms[i].Internal = f.About&uint32(mountsMountFlagMOUNT_INTERNAL) != 0
	}
	for _, more := range []func(context.Context, []Mount, []mountsMountFound) (bool, error){
		r.addChildren, r.addPaths, r.addCounts, // the counts last: nearest to when they are used
	} {
		if gone, err := more(ctx, ms, raw); err != nil || gone {
			return nil, gone, err
		}
	}
	for i, f := range raw {
		ms[i].Baseline = baseline(ms[i], mountsMountFlag(f.About))
	}
	return ms, false, nil
}

func baseline(m Mount, about mountsMountFlag) int64 {
	n := int64(0)
	if m.Parent != 0 || m.Internal {
		n++
	}
	if about&mountsMountFlagMOUNT_ROOT != 0 {
		n++
	}
	if about&mountsMountFlagMOUNT_PINS_PARENT != 0 {
		n += int64(m.Children)
	}
	return n
}

// anonymousNamespace is the number of every mount namespace that only holds detached mounts
// (MNT_NS_ANON_INO, Linux 6.18); before, they have 0.
const anonymousNamespace = 0xEFFFFFF7

func (r *Refs) addChildren(ctx context.Context, ms []Mount, _ []mountsMountFound) (lost bool,
	err error) {
	qs := make([]question, len(ms))
	for i, m := range ms {
		qs[i] = question{Addr: m.Addr, Super: m.Super}
	}
	err = r.desk.ask(ctx, r.mounts.Children, qs, func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		lost = lost || rec.kind == foundLost
		ms[rec.question].Children += int(f.Extra)
		return nil
	})
	return lost, err
}

func (r *Refs) addPaths(ctx context.Context, ms []Mount, raw []mountsMountFound) (bool, error) {
	var spots []spot
	for i, m := range ms {
		spots = append(spots, spot{dentry: raw[i].Root, super: m.Super},
			spot{dentry: m.PointAddr, mount: m.Parent, across: true})
	}
	places, err := r.places(ctx, spots)
	if err != nil {
		return false, err
	}
	for i := range ms {
		ms[i].Root = places[2*i].path
		if ms[i].Parent != 0 {
			ms[i].Point = places[2*i+1].path
		}
	}
	return false, nil
}

func (r *Refs) addCounts(ctx context.Context, ms []Mount, raw []mountsMountFound) (lost bool,
	err error) {
	if r.uncounted != nil {
		return false, nil
	}
	qs := make([]question, len(ms))
	for i, m := range ms {
		qs[i] = question{Addr: m.Addr, Super: m.Super, Also: raw[i].Pcp, Want: uint32(r.cpus)}
	}
	err = r.desk.ask(ctx, r.mounts.Counts, qs, func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		lost = lost || rec.kind == foundLost
		m := &ms[rec.question]
		m.Count, m.Writers, m.Counted = m.Count+int64(f.Mnt), m.Writers+int64(f.Extra), true
		return nil
	})
	return lost, err
}

// Supers gives the super blocks that are of the device: those whose files have its number, and
// those that lie on it, mounted, lazily unmounted or pinned otherwise. 0 stands for all devices.
func (r *Refs) Supers(ctx context.Context, dev uint64) ([]Super, error) {
	return r.supers(ctx, 0, func(s Super) bool { return dev == 0 || s.Dev == dev || s.BlockDev == dev })
}

// Super gives the super block at an address, also while the kernel takes it down; none once it is gone
// with all that it had. Another one may have its address then, with another Root.
func (r *Refs) Super(ctx context.Context, addr uint64) ([]Super, error) {
	return r.supers(ctx, addr, func(s Super) bool { return s.Addr == addr })
}

// supers gives those of all super blocks that are wanted; that at addr with or without a root.
func (r *Refs) supers(ctx context.Context, addr uint64, want func(Super) bool) ([]Super, error) {
	for range maxLooks {
		var all []Super
		lost := false
		err := r.desk.ask(ctx, r.mounts.Supers, []question{{Addr: addr}}, func(rec record) error {
			if rec.kind == foundLost {
				lost = true
				return nil
			}
			var f mountsSuperFound
			if err := rec.into(&f); err != nil {
				return err
			}
			s := Super{Addr: f.Addr, Root: f.Root, Dev: userDev(f.Dev), BlockDev: userDev(f.Bdev),
				Type: text(f.Type[:]), ID: text(f.Id[:]), Active: int(f.Active), Frozen: f.Frozen != 0}
			if want(s) {
				all = append(all, s)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list the file systems that the kernel has: %w", err)
		}
		if !lost {
			return all, nil
		}
	}
	return nil, fmt.Errorf("list the file systems that the kernel has: %w", ErrChanged)
}

// findCPUs learns where each CPU has its own counters. Before Linux 5.19 a program learns that only
// of the CPU that it runs on, so there this thread goes to each in turn.
func (r *Refs) findCPUs(ctx context.Context) error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	if most := int(r.mounts.Bases.MaxEntries()); n > most {
		return fmt.Errorf("%d CPUs, more than %d", n, most)
	}
	qs := make([]question, n)
	for i := range qs {
		qs[i].Addr = uint64(i)
	}
	bases := make([]uint64, n)
	take := func(rec record) error {
		var f found
		if err := rec.into(&f); err != nil {
			return err
		}
		if f.Addr < uint64(n) && f.Extra != 0 {
			bases[f.Addr] = f.Extra
		}
		return nil
	}
	if err := r.desk.ask(ctx, r.mounts.Cpus, qs, take); err != nil {
		return err
	}
	for i := range bases {
		if bases[i] != 0 {
			continue
		}
		err := onCPU(i, func() error { return r.desk.ask(ctx, r.mounts.Cpus, qs[i:i+1], take) })
		if err == nil && bases[i] == 0 {
			err = errors.New("the kernel does not say where it is")
		}
		if err != nil {
			return fmt.Errorf("find what CPU %d counts: %w", i, err)
		}
	}
	keys := make([]uint32, n)
	for i := range keys {
		keys[i] = uint32(i)
	}
	_, err = r.mounts.Bases.BatchUpdate(keys, bases, nil)
	r.cpus = n
	return err
}

// onCPU runs f on a thread that is bound to one CPU, and waits for it. The thread ends with it.
func onCPU(cpu int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not to be used again
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
