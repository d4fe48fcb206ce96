// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// kernelThread is PF_KTHREAD of include/linux/sched.h. They all share the directories of the first.
const kernelThread = 0x00200000

// maxTries is how often the memory of a process is looked at that changes meanwhile.
const maxTries = 50

// search is one look at all tasks. Each address that they have is asked about once, whoever shares
// it; what is found is everybody's who has it.
type search struct {
	r          *Refs
	super      uint64
	namespaces map[uint64]bool

	refs   []Reference
	spots  []spot          // of refs
	seen   map[refKey]int  // where it is in refs
	asked  map[uint64]bool // addresses that were looked into
	unread []Unread
	lost   int  // how much went while it was looked at
	deep   bool // into what is under way as well
}

type refKey struct {
	kind    Kind
	holder  uint64
	pid, fd int
}

// owner is a process that has something, by a descriptor or, with fd -1, otherwise.
type owner struct {
	task *refsTaskFound
	fd   int
}

// carrier is something that may hold references itself.
type carrier struct {
	carrierKey
	owners []owner
}

type carrierKey struct {
	what carrierKind
	name uint64 // of a file of the kernel's own, its first eight bytes
	addr uint64
}

type carrierKind int

const (
	aSocket     carrierKind = iota // by struct socket
	aConnection                    // that is not accepted yet, by struct sock
	aMessage
	aKernelFile // a ring, a perf event, ...
	aQueue      // of asynchronous requests
)

func newSearch(r *Refs, super uint64, namespaces []uint64) *search {
	s := &search{r: r, super: super, namespaces: map[uint64]bool{}, seen: map[refKey]int{},
		asked: map[uint64]bool{}}
	for _, n := range namespaces {
		s.namespaces[n] = true
	}
	return s
}

// shared is what several tasks may have together: the address, and one task of each process.
type shared struct {
	addrs  []uint64
	owners map[uint64][]owner
}

func (s *shared) add(addr uint64, t *refsTaskFound) {
	if addr == 0 {
		return
	}
	if s.owners == nil {
		s.owners = map[uint64][]owner{}
	}
	had := s.owners[addr]
	if len(had) == 0 {
		s.addrs = append(s.addrs, addr)
	}
	same := func(o owner) bool {
		return o.task.Tgid == t.Tgid || o.task.Flags&t.Flags&kernelThread != 0
	}
	if !slices.ContainsFunc(had, same) {
		s.owners[addr] = append(had, owner{t, -1})
	}
}

// look looks at all tasks, and into all that was not looked into before.
func (s *search) look(ctx context.Context) error {
	var files, memory, dirs shared
	err := s.r.tasks.run(s.r.refs.Tasks, nil, func(rec record) error {
		t := new(refsTaskFound)
		if err := rec.into(t); err != nil {
			return err
		}
		files.add(t.Files, t)
		memory.add(t.Mm, t)
		dirs.add(t.Fs, t)
		if s.namespaces[uint64(t.Inum)] {
			s.add(Reference{Kind: Namespace, Holder: t.Ns, Inode: uint64(t.Inum)}, owner{t, -1}, spot{})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, addr := range dirs.addrs {
		for _, o := range dirs.owners[addr] {
			s.hold(Root, o, o.task.Root)
			s.hold(Cwd, o, o.task.Pwd)
		}
	}
	for _, addr := range memory.addrs {
		for _, o := range memory.owners[addr] {
			s.hold(Exe, o, o.task.Exe)
		}
	}
	if err := s.ask(ctx, s.r.refs.Areas, Mapping, memory, nil); err != nil {
		return err
	}
	var carriers []carrier
	if err := s.ask(ctx, s.r.refs.Files, OpenFD, files, &carriers); err != nil {
		return err
	}
	return s.unpack(ctx, carriers)
}

func (s *search) hold(k Kind, o owner, h refsHeld) {
	if h.Super == s.super {
		s.add(Reference{Kind: k, Holder: h.File, Mount: h.Mnt, Count: 1}, o,
			spot{dentry: h.Dentry, mount: h.Mnt})
	}
}

// add keeps a reference that an owner has, unless it has it already.
func (s *search) add(ref Reference, o owner, at spot) {
	ref.PID, ref.TID, ref.FD = int(o.task.Tgid), int(o.task.Tid), o.fd
	ref.Comm, ref.Super = text(o.task.Comm[:]), s.super
	key := refKey{ref.Kind, ref.Holder, ref.PID, ref.FD}
	asExe := key
	asExe.kind = Exe // a program is mapped to be run: that is one thing to say
	if i, had := s.seen[key]; had {
		s.refs[i].Write = s.refs[i].Write || ref.Write // of several areas of a file one may be written to
		return
	}
	if _, had := s.seen[asExe]; had && ref.Kind == Mapping {
		return
	}
	s.seen[key] = len(s.refs)
	at.super, at.across = s.super, true
	s.refs, s.spots = append(s.refs, ref), append(s.spots, at)
}

// ask asks about what tasks have; k is what a file is that is found there. What changed while it was
// looked at is looked at again at once, when it is nearly alone and takes microseconds.
func (s *search) ask(ctx context.Context, p *ebpf.Program, k Kind, what shared,
	carriers *[]carrier) error {
	addrs := slices.DeleteFunc(slices.Clone(what.addrs), func(a uint64) bool { return s.asked[a] })
	at := map[carrierKey]int{}
	for try := 0; len(addrs) > 0; try++ {
		var again shared
		qs := make([]question, len(addrs))
		for i, addr := range addrs {
			t := what.owners[addr][0].task
			qs[i] = question{Addr: addr, Super: s.super, Also: t.Task, Of: addr, Want: uint32(t.Pid)}
			s.asked[addr] = true
		}
		err := s.r.tasks.ask(ctx, p, qs, func(rec record) error {
			addr := addrs[rec.question]
			if rec.kind != foundLost {
				return s.take(rec, k, what.owners[addr], true, at, carriers)
			}
			var f found
			if err := rec.into(&f); err != nil {
				return err
			}
			if f.Extra != 0 {
				again.add(addr, what.owners[addr][0].task)
			} else if s.asked[addr] { // the task ended, or runs another program: the next look tells
				s.lost++
				delete(s.asked, addr)
			}
			return nil
		})
		if err != nil {
			return err
		}
		addrs = again.addrs
		if try == maxTries {
			for _, addr := range addrs {
				s.miss(k, what.owners[addr], ErrChanged.Error())
			}
			return nil
		}
	}
	return nil
}

// miss notes what could not be looked into.
func (s *search) miss(k Kind, owners []owner, reason string) {
	for _, o := range owners {
		s.unread = append(s.unread, Unread{Kind: k, PID: int(o.task.Tgid), FD: o.fd, Reason: reason})
	}
}

// take takes a record that was found with owners; own tells that it says their descriptor.
func (s *search) take(rec record, k Kind, owners []owner, own bool, at map[carrierKey]int,
	carriers *[]carrier) error {
	var f found
	if err := rec.into(&f); err != nil {
		return err
	}
	if own {
		owners = slices.Clone(owners)
		for i := range owners {
			owners[i].fd = int(f.Fd)
		}
	}
	if len(s.refs)+len(owners) > maxRecords {
		return fmt.Errorf("more than %d references", maxRecords)
	}
	switch rec.kind {
	case foundEvent:
		if f.Extra != s.super {
			return nil
		}
		fallthrough
	case foundFile, foundPath:
		if k == OpenFD && f.Flags&unix.O_PATH != 0 {
			k = OPath
		}
		ref := Reference{Kind: k, Holder: f.Addr, Mount: f.Mnt, Flags: f.Flags, Count: 1}
		switch {
		case k == Context:
			ref.Count = 0
		case k == Mapping:
			ref.Write = f.Extra != 0
		case rec.kind == foundFile && k != OPath:
			ref.Write = writes(f.Flags)
		}
		for _, o := range owners {
			s.add(ref, o, spot{dentry: f.Dentry, mount: f.Mnt})
		}
	case foundSpace:
		if number := f.Mnt; s.namespaces[number] {
			for _, o := range owners {
				s.add(Reference{Kind: Namespace, Holder: f.Addr, Inode: number, Flags: f.Flags}, o, spot{})
			}
		}
	case foundUnknown:
		s.miss(k, owners, "this kernel keeps it in a way that is not known")
	case foundSocket:
		s.carry(carrierKey{aSocket, 0, f.Extra}, owners, at, carriers)
	case foundMessage:
		if f.Flags != 0 {
			s.carry(carrierKey{aConnection, 0, f.Addr}, owners, at, carriers)
		} else {
			s.carry(carrierKey{aMessage, 0, f.Extra}, owners, at, carriers)
		}
	case foundKernel:
		s.carry(carrierKey{aKernelFile, f.Dentry, f.Extra}, owners, at, carriers)
	}
	return nil
}

// writes reports whether the flags of open(2) are those of a file that may be written to.
func writes(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// carry notes something that may hold references itself, if there is a way to look into it.
func (s *search) carry(key carrierKey, owners []owner, at map[carrierKey]int, carriers *[]carrier) {
	if key.addr == 0 || len(s.ways(key)) == 0 {
		return
	}
	i, had := at[key]
	if !had {
		i = len(*carriers)
		at[key] = i
		*carriers = append(*carriers, carrier{carrierKey: key})
	}
	(*carriers)[i].owners = append((*carriers)[i].owners, owners...)
}

// way is how a carrier is looked into, and what a file in it is.
type way struct {
	program *ebpf.Program
	kind    Kind
	flags   uint32
	late    bool // the program is of those that look at what is under way
}

// ways gives how to look into a carrier.
func (s *search) ways(c carrierKey) []way {
	p := &s.r.refs
	switch c.what {
	case aSocket:
		return []way{{p.Messages, UnixSocket, 1, false}}
	case aConnection:
		return []way{{p.Messages, UnixSocket, 0, false}}
	case aMessage:
		return []way{{p.Passed, InFlight, 0, false}}
	case aQueue:
		return []way{{s.r.underway.Queue, AIO, 0, true}}
	}
	switch c.name {
	case eight("[io_uring]"):
		if s.deep {
			return []way{{p.Rings, IOUring, 0, false}, {s.r.underway.Waiting, IOUring, 0, true}}
		}
		return []way{{p.Rings, IOUring, 0, false}}
	case fuseDevice:
		if s.deep {
			return []way{{s.r.underway.Backings, Backing, 0, true}}
		}
	case eight("[fanotify]"):
		return []way{{p.Events, Fanotify, 0, false}, {p.Events, Fanotify, 1, false}}
	case eight("[perf_event]"):
		return []way{{p.Uprobes, Uprobe, 0, false}}
	case eight("bpf_link"):
		return []way{{p.Uprobes, Uprobe, 1, false}}
	case eight("[fscontext]"), eight("fscontext"):
		return []way{{p.Contexts, Context, 0, false}}
	}
	return nil
}

// fuseDevice stands for the name of /dev/fuse, as refs.c has it.
const fuseDevice = 0x65737566

// eight is the beginning of a name as the program reads it, eight bytes at once.
func eight(name string) uint64 { return binary.NativeEndian.Uint64([]byte(name)) }

// unpack looks into carriers, and into those that are found in them: a socket on its way through a
// socket has messages of its own.
func (s *search) unpack(ctx context.Context, carriers []carrier) error {
	for len(carriers) > 0 {
		var next []carrier
		at := map[carrierKey]int{}
		by := map[way][]carrier{}
		var ways []way
		for _, c := range carriers {
			if s.asked[c.addr] {
				continue
			}
			s.asked[c.addr] = true
			for _, w := range s.ways(c.carrierKey) {
				if by[w] == nil {
					ways = append(ways, w)
				}
				by[w] = append(by[w], c)
			}
		}
		for _, w := range ways {
			if err := s.askCarriers(ctx, w, by[w], at, &next); err != nil {
				return err
			}
		}
		carriers = next
	}
	return nil
}

// askCarriers looks into carriers of one kind; those whose list changed meanwhile again.
func (s *search) askCarriers(ctx context.Context, w way, now []carrier, at map[carrierKey]int,
	next *[]carrier) error {
	for look := 0; len(now) > 0; look++ {
		var again []carrier
		qs := make([]question, len(now))
		for i, c := range now {
			qs[i] = question{Addr: c.addr, Super: s.super, Flags: w.flags}
		}
		desk := s.r.tasks
		if w.late {
			desk = s.r.lateDesk
		}
		err := desk.ask(ctx, w.program, qs, func(rec record) error {
			c := now[rec.question]
			switch {
			case rec.kind != foundLost:
				return s.take(rec, w.kind, c.owners, false, at, next)
			case look+1 < maxLooks:
				again = append(again, c)
			default:
				s.miss(w.kind, c.owners, ErrChanged.Error())
			}
			return nil
		})
		if err != nil {
			return err
		}
		now = again
	}
	return nil
}

// addPaths finds where all that was found is, each place once.
func (s *search) addPaths(ctx context.Context) error {
	at := map[spot]int{}
	var spots []spot
	for _, p := range s.spots {
		if _, had := at[p]; !had && p.dentry != 0 {
			at[p] = len(spots)
			spots = append(spots, p)
		}
	}
	places, err := s.r.places(ctx, spots)
	if err != nil {
		return err
	}
	for i, p := range s.spots {
		if p.dentry == 0 {
			continue
		}
		if place := places[at[p]]; place.known {
			ref := &s.refs[i]
			ref.Path, ref.Inode, ref.Deleted = place.path, place.inode, place.deleted
		}
	}
	return nil
}

func (s *search) sorted() []Reference {
	slices.SortFunc(s.refs, func(a, b Reference) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.TID, b.TID), cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.FD, b.FD), cmp.Compare(a.Holder, b.Holder))
	})
	return s.refs
}
