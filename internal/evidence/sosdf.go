// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// dfFiles are where reports of sos have what df(1) printed, of blocks and of inodes (filesys.py of its plugins).
var dfFiles = [2][]string{
	{"/sos_commands/filesys/df_-al_-x_autofs", "/sos_commands/filesys/df_-al", "/sos_commands/filesys/df_-alP"},
	{"/sos_commands/filesys/df_-ali_-x_autofs", "/sos_commands/filesys/df_-ali", "/sos_commands/filesys/df_-aliP"},
}

// dfLine is a line of it: source, all, used, free for others than root, the share, and the mount point, which may
// have blanks in it.
//
//	Filesystem     1K-blocks    Used Available Use% Mounted on
//	/dev/sda1       20511312 9312040  10132024  48% /
var dfLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\S.*?)\s+(\d+|-)\s+(-?\d+|-)\s+(\d+|-)\s+(\d+%|-)\s+(/.*)$`)
})

// dfEntry is what it says of one mount point.
type dfEntry struct{ all, used, free uint64 }

// parseDF reads what df printed, by mount points; of several at one the last counts. unit is in bytes, 0 where the
// header does not name it.
func parseDF(text string) (by map[string]dfEntry, unit uint64) {
	by = map[string]dfEntry{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "Filesystem" {
			unit = map[string]uint64{"1K-blocks": 1024, "1024-blocks": 1024, "Inodes": 1}[f[1]]
			continue
		}
		m := dfLine().FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil || len(by) == maxMounts {
			continue
		}
		all, err1 := strconv.ParseUint(m[2], 10, 60)
		used, err2 := strconv.ParseUint(m[3], 10, 60)
		free, err3 := strconv.ParseUint(m[4], 10, 60)
		if err1 != nil || err2 != nil || err3 != nil || used > all || free > all {
			delete(by, m[6]) // "-": it has no size, and covers what was there
			continue
		}
		by[m[6]] = dfEntry{all, used, free}
	}
	return by, unit
}

// printedByDF takes how full file systems are from what df printed, in a report that has it.
func (g *gatherer) printedByDF(ctx context.Context) {
	var got [2]map[string]dfEntry
	for i, names := range dfFiles {
		for _, name := range names {
			b, err := g.t.Read(ctx, name, maxTableBytes)
			if err != nil {
				continue // no report, or one without it: that mounts were not asked is told
			}
			by, unit := parseDF(string(b))
			if want := []uint64{1024, 1}[i]; unit == want {
				got[i] = by
			} else {
				g.gap(PartProbes, name, "its header names no unit that is known")
			}
			break
		}
	}
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		b, known := got[0][m.Point]
		last := !slices.ContainsFunc(g.e.Mounts[i+1:], func(x Mount) bool { return x.Own && x.Point == m.Point })
		if !known || m.Probe != nil || !m.Own || m.FS < 0 || !last || b.all == 0 {
			continue
		}
		n := got[1][m.Point]
		m.Probe = &Answer{Errno: -1, WriteErrno: -1, BlockSize: 1024, Blocks: b.all, Free: b.all - b.used, Avail: b.free,
			Inodes: n.all, InodesFree: n.free}
	}
}
