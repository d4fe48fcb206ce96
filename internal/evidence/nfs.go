// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

func isNFS(fsType string) bool { return fsType == "nfs" || fsType == "nfs4" }

// mountedNFS reads the options of an NFS mount (nfs(5)).
func mountedNFS(m *linux.Mount) *NFS {
	n := &NFS{Ops: -1, Retransmits: -1, Timeouts: -1, Idle: -1, Waiting: -1}
	n.Server, n.Export = shareOf(m.Source)
	if m.Type == "nfs4" {
		n.Vers = "4"
	}
	for _, list := range []string{m.Options, m.Super} {
		for option := range strings.SplitSeq(list, ",") {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "vers", "nfsvers":
				n.Vers = value
			case "soft", "softerr":
				n.Soft = true
			case "hard":
				n.Soft = false
			case "nolock":
				n.NoLock = true
			case "local_lock":
				n.NoLock = n.NoLock || value == "all" || value == "posix"
			case "addr":
				n.Addr = value
			case "timeo":
				n.Timeo = whole(value)
			case "retrans":
				n.Retrans = whole(value)
			}
		}
	}
	return n
}

// shareOf takes "server:/export" apart; an address of IPv6 stands in brackets.
func shareOf(source string) (server, export string) {
	i := strings.Index(source, ":/")
	if strings.HasPrefix(source, "[") {
		if end := strings.Index(source, "]:"); end >= 0 {
			return source[1:end], source[end+2:]
		}
	}
	if i < 0 {
		return source, ""
	}
	return source[:i], source[i+1:]
}

// whole reads a number of options; what is none is 0.
func whole(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// Stats is what mountstats tells of one mount of NFS.
type stats struct {
	point                      string
	ops, transmitted, timeouts int64
	sends, received, idle      int64
	transports                 int
}

// parseStats reads /proc/PID/mountstats (fs/nfs/super.c, nfs_show_stats, and net/sunrpc/xprtsock.c,
// xs_tcp_print_stats, of Linux 6.12):
//
//	device srv:/e mounted on /mnt with fstype nfs4 statvers=1.1
//		xprt:	tcp 780 0 1 0 12 3411 3409 0 3409 0 2 0 2   port, binds, connects, time of these, idle,
//		                                                    sends, receives, bad ...
//		READ: 20 21 1 ...                                   operations, transmissions, major timeouts
func parseStats(text string) []stats {
	var all []stats
	var now *stats
	for line := range strings.Lines(text) {
		if rest, is := strings.CutPrefix(line, "device "); is {
			now = nil
			source, rest, found := strings.Cut(rest, " mounted on ")
			point, kind, ok := cutLast(rest, " with fstype ")
			if found && ok && source != "" && isNFS(strings.Fields(kind + " -")[0]) {
				all = append(all, stats{point: linux.Decode(point), idle: -1})
				now = &all[len(all)-1]
			}
			continue
		}
		if now != nil {
			now.line(strings.Fields(line))
		}
	}
	return all
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// line takes in one line of a mount.
func (s *stats) line(f []string) {
	switch {
	case len(f) >= 10 && f[0] == "xprt:" && f[1] == "tcp":
		n := numbers(f[2:])
		s.transports++
		s.sends += n[5]
		s.received += n[6]
		if s.idle < 0 || n[4] < s.idle {
			s.idle = n[4] // of several transports one may be idle
		}
	case len(f) >= 9 && strings.HasSuffix(f[0], ":") && f[0] == strings.ToUpper(f[0]):
		n := numbers(f[1:])
		s.ops += n[0]
		s.transmitted += n[1]
		s.timeouts += n[2]
	}
}

// numbers reads numbers; what is none is 0.
func numbers(f []string) []int64 {
	all := make([]int64, len(f))
	for i, s := range f {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			all[i] = n
		}
	}
	return all
}

// waiting is how many requests wait for an answer at least: those that were sent and not received, less
// those that were sent more than once.
func (s *stats) waiting() int64 {
	return max(0, s.sends-s.received-max(0, s.transmitted-s.ops))
}

// nfs reads what the kernel counts of NFS mounts. Of each namespace one process tells.
func (g *gatherer) nfs(ctx context.Context, spaces []space) {
	for _, s := range spaces {
		has := false
		for i := range g.e.Mounts {
			has = has || g.e.Mounts[i].NFS != nil && g.e.Mounts[i].Namespace == s.id
		}
		if !has {
			continue
		}
		name := "/proc/" + s.pid + "/mountstats"
		text, err := g.t.Read(ctx, name, maxTableBytes)
		if err != nil && !errors.Is(err, tree.ErrTooLarge) {
			if !tree.Missing(err) {
				g.gap(PartMounts, name, Reason(err))
			}
			continue
		}
		by := map[string]stats{}
		for _, n := range parseStats(string(text)) {
			by[n.point] = n // of two on one directory the later covers the other
		}
		for i := range g.e.Mounts {
			m := &g.e.Mounts[i]
			n, known := by[m.Point]
			if m.NFS == nil || m.Namespace != s.id || !known {
				continue
			}
			m.NFS.Ops, m.NFS.Timeouts = n.ops, n.timeouts
			m.NFS.Retransmits = max(0, n.transmitted-n.ops)
			if n.transports > 0 {
				m.NFS.Waiting, m.NFS.received = n.waiting(), n.received
				m.NFS.Idle = time.Duration(n.idle) * time.Second
			}
		}
	}
}
