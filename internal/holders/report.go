// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// hints says what the references may be that are not explained.
func (s *scan) hints(ctx context.Context) {
	if s.audit.Read && s.audit.Unexplained == 0 {
		return
	}
	hint := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(s.audit.Hints, text) {
			s.audit.Hints = append(s.audit.Hints, text)
		}
	}
	for _, u := range s.tasks.Uses {
		switch {
		case u.Kind == linux.UseFanotify && slices.ContainsFunc(u.Info.Marks, s.marks):
			p := s.process(ctx, u.PID, 0, "")
			hint("an event of fanotify that %s (%d) has not read: it watches this file system with descriptor %d",
				p.Comm, u.PID, u.FD)
		case u.Kind == linux.UseSocket && u.Info.InFlight > 0:
			p := s.process(ctx, u.PID, 0, "")
			hint("a descriptor sent to %s (%d) over its socket %d, which it has not received", p.Comm, u.PID, u.FD)
		}
	}
	if n := s.relativeSockets(ctx); n > 0 {
		hint("one of %d unix sockets that are bound to names without a directory", n)
	}
	if !s.audit.Read {
		return
	}
	if n := len(s.tasks.Protected); n > 0 {
		hint("%s", map[bool]string{true: "the process that is protected", false: "one of the processes that are protected"}[n == 1])
	}
	if s.audit.Changed {
		hint("a program that takes and drops it again and again: trace it with --trace")
	}
	if _, ok := s.mountedAs("tracefs"); !ok {
		hint("a probe in tracefs, which is not mounted")
	}
	if _, ok := s.mountedAs("binfmt_misc"); !ok {
		hint("an interpreter of binfmt_misc, which is not mounted")
	}
	for _, e := range s.exported(ctx) {
		hint("the NFS server, which exports %s: exportfs -f", e)
	}
	for _, text := range s.served(ctx) {
		hint("%s", text)
	}
	if s.tried {
		hint("a read or write of io_submit(2) or io_uring that storage has not answered")
		hint("a file that poll(2) waits for, and that was closed meanwhile")
	} else {
		hint("a system call that waits, or a request to io_uring or of io_submit(2)")
	}
	if at, ok := s.mountedLike("erofs"); ok {
		hint("a further image of the erofs on %s", at)
	}
	if at, ok := s.mountedLike("fuse"); ok {
		hint("a file that the FUSE on %s passes on", at)
	}
	hint("a probe made with perf_event_open on a program there")
	hint("a descriptor sent over a socket that was itself sent over a socket and never received")
}

// mountedLike gives where a file system of a type is mounted, in any namespace; of FUSE there are several.
func (s *scan) mountedLike(kind string) (string, bool) {
	for _, ns := range slices.Sorted(keys(s.tables)) {
		for _, m := range s.tables[ns] {
			if m.Type == kind || strings.HasPrefix(m.Type, kind+".") {
				return m.Point, true
			}
		}
	}
	return "", false
}

// marks reports whether a mark of fanotify is on the file system that is asked about.
func (s *scan) marks(m linux.Mark) bool {
	return m.Mount != 0 && m.Mount == s.t.MountID || m.Dev != 0 && m.Dev == s.t.dev
}

// relativeSockets counts the sockets whose place their names do not tell.
func (s *scan) relativeSockets(ctx context.Context) int {
	if s.audit.Read {
		return 0 // they are in the kernel's lists
	}
	n := 0
	for _, pid := range s.tasks.Net {
		bound, err := s.h.Linux.UnixSockets(ctx, pid)
		s.unread("unix sockets", err)
		for _, b := range bound {
			if !strings.HasPrefix(b.Path, "/") {
				n++
			}
		}
	}
	return n
}

// exported are the directories of the file system that the NFS server exports.
func (s *scan) exported(ctx context.Context) []string {
	all, err := s.h.Linux.Exports(ctx)
	s.unread("exports of the NFS server", err)
	return slices.DeleteFunc(all, func(path string) bool {
		m, ok := s.locate(s.own, path)
		return !ok || !m.Asked
	})
}

// maxServedHints bounds the clients of the NFS server that are named.
const maxServedHints = 8

// served says for which clients the NFS server has files of the file system open. How many references
// these make is not known.
func (s *scan) served(ctx context.Context) (hints []string) {
	all, err := s.h.Linux.Served(ctx)
	s.unread("files that the NFS server has open", err)
	files := map[linux.Served][]string{} // by client
	var clients []linux.Served
	for _, f := range all {
		if f.Dev != s.t.dev {
			continue
		}
		c := linux.Served{Client: f.Client, Address: f.Address}
		if _, known := files[c]; !known {
			clients = append(clients, c)
		}
		if name := cmp.Or(f.Name, fmt.Sprintf("inode %d", f.Inode)); !slices.Contains(files[c], name) {
			files[c] = append(files[c], name)
		}
	}
	for i, c := range clients {
		if i == maxServedHints {
			return append(hints, fmt.Sprintf("the NFS server, for %d more clients", len(clients)-i))
		}
		what := files[c][0]
		if n := len(files[c]) - 1; n > 0 {
			what += fmt.Sprintf(" and %d more", n)
		}
		hints = append(hints, fmt.Sprintf("the NFS server, which has %s open for the client %s (%s)", what, c.Client,
			c.Address))
	}
	return hints
}

// report puts together what was found.
func (s *scan) report(context.Context) *Report {
	for i := range s.holders {
		h := &s.holders[i]
		h.Release = h.release()
		if dir, ok := s.o.Mounted[h.Process.PID]; ok && h.Process.PID > 0 {
			h.Release = "shisa disk umount " + finding.Word(dir)
		}
	}
	for pid, dir := range s.o.Mounted {
		if s.t.Kind == TargetMount && s.t.Path == dir {
			s.note(fmt.Sprintf("process %d of shisa disk mount serves it: shisa disk umount %s", pid, finding.Word(dir)))
		}
	}
	slices.SortStableFunc(s.holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(blockOrder(a), blockOrder(b)), cmp.Compare(kindOrder(a.Kind), kindOrder(b.Kind)),
			cmp.Compare(a.Process.PID, b.Process.PID), cmp.Compare(a.FD, b.FD), cmp.Compare(a.Path, b.Path))
	})
	slices.SortFunc(s.mounts, func(a, b Mount) int {
		return cmp.Or(boolOrder(b.Asked, a.Asked), boolOrder(b.Follows, a.Follows),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	r := &Report{Target: s.t, Audit: s.audit, Mounts: s.mounts, Holders: s.holders,
		NotLooked: len(s.tasks.Protected), Notes: s.notes, Blind: s.blind}
	r.Verdict = s.verdict()
	r.Status = s.status(r.Verdict)
	return r
}

func blockOrder(h Holder) int {
	n := slices.Index([]Blocks{BlocksUmount, BlocksDevice, BlocksSuperblock}, h.Blocks) * 2
	if !h.SameMount {
		n++
	}
	return n
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// verdict is the answer in one word.
func (s *scan) verdict() Verdict {
	busy, peer, nested, pinned := false, false, false, false
	for _, h := range s.holders {
		switch {
		case h.Blocks == BlocksSuperblock && s.t.Kind == TargetMount:
			pinned = true
		case s.t.Kind != TargetMount:
			busy = true
		case h.Kind == NestedMount:
			nested = true
		case h.SameMount:
			busy = true
		default:
			peer = true
		}
	}
	switch {
	case busy:
		return Busy
	case nested:
		return Nested
	case peer:
		return BusyPeer
	case s.uncertain():
		return Unknown
	case pinned:
		return Pinned
	}
	return Free
}

// uncertain reports whether somebody may be there who was not seen.
func (s *scan) uncertain() bool {
	if s.t.Kind != TargetMount {
		return len(s.blind) > 0 || s.unseenProtected()
	}
	return !s.audit.Read || !s.settled()
}

// status gives every exit status that applies. What only pins the file system counts where that was
// asked for.
func (s *scan) status(v Verdict) []int {
	var all []int
	switch v {
	case Busy, BusyPeer, Nested:
		all = append(all, finding.StatusFound)
	case Pinned:
		if s.o.AllSuperblock {
			all = append(all, finding.StatusFound)
		}
	}
	if s.o.AllSuperblock && slices.ContainsFunc(s.holders, func(h Holder) bool { return h.Blocks == BlocksSuperblock }) {
		all = append(all, finding.StatusFound)
	}
	if s.uncertain() || s.hidden && s.o.AllSuperblock {
		all = append(all, finding.StatusCannotTell)
	}
	return finding.OrderStatus(append(all, finding.StatusClean)...)
}

// Self is the number of this process.
func Self() int { return os.Getpid() }
