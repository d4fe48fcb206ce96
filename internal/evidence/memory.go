// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// maxSlabs is how many caches are kept, the largest.
	maxSlabs = 10
	// maxSeriesBytes bounds what is read of remembered memory; a line is below 100 bytes, and a year of
	// minutes is half a million.
	maxSeriesBytes = 64 << 20
	// SeriesPath is where shisa remembers memory, a MemoryPoint in JSON on each line.
	SeriesPath = "/var/lib/shisa/memory.jsonl"
)

// memory reads what the kernel tells of memory (proc_meminfo(5), slabinfo(5), Documentation/accounting/
// psi.rst), and what was seen of it before.
func (g *gatherer) memory(ctx context.Context) {
	g.e.Memory.OOMKills = -1
	g.remembered(ctx)
	if g.t.Kind() == tree.Disk {
		return // it is that of a machine that runs
	}
	const meminfo = "/proc/meminfo"
	text, err := g.t.Read(ctx, meminfo, maxSmallBytes)
	if err != nil {
		g.gap(PartMemory, "", Reason(err))
		return
	}
	g.e.Memory.From = Source{Path: meminfo}
	g.e.Memory.read(text)
	g.slabs(ctx)
	g.pressure(ctx)
	if text := g.optional(ctx, PartMemory, "/proc/vmstat"); text != nil {
		for key, value := range pairs(text) {
			if key == "oom_kill" {
				g.e.Memory.OOMKills = value
			}
		}
	}
	m := &g.e.Memory
	m.Series = append(m.Series, MemoryPoint{Time: g.e.Now, Available: m.Available, SUnreclaim: m.SUnreclaim, Held: g.held(ctx)})
}

// Sizes of what is held: of a dentry, and of the smallest inodes, those of pipes, on 64-bit machines.
const (
	dentryBytes = 192
	inodeBytes  = 600
)

// held is about how many bytes of names and inodes are in use. The kernel counts their caches as reclaimable,
// and so as available, those in use too: each open file, pipe and socket has some. Dentry-state is how many
// there are, how many of them are not used, and, fifth, how many of those stand for a file that there is not;
// inode-state is how many there are, and how many nothing refers to (Documentation/admin-guide/sysctl/fs.rst).
// A dentry that is not used keeps its inode, which can be given back with it.
func (g *gatherer) held(ctx context.Context) int64 {
	dentries, inodes := g.counts(ctx, "/proc/sys/fs/dentry-state", 5), g.counts(ctx, "/proc/sys/fs/inode-state", 2)
	if dentries == nil || inodes == nil {
		return 0
	}
	used := max(dentries[0]-dentries[1], 0)
	open := min(max(inodes[0]-inodes[1]-(dentries[1]-dentries[4]), 0), used)
	return used*dentryBytes + open*inodeBytes
}

// counts reads the first n numbers of a file, nil if they are not known.
func (g *gatherer) counts(ctx context.Context, name string, n int) []int64 {
	text, err := g.t.Read(ctx, name, maxSmallBytes)
	if err != nil {
		if !errors.Is(err, tree.ErrNotCollected) { // as in bundles of before
			g.missed(PartMemory, name, err)
		}
		return nil
	}
	var all []int64
	for _, word := range strings.Fields(string(text)) {
		v, err := strconv.ParseInt(word, 10, 64)
		if err != nil || v < 0 || v > 1<<40 {
			return nil
		}
		all = append(all, v)
	}
	if len(all) < n {
		return nil
	}
	return all
}

// GatherMemory reads memory alone. The last point of its series is that of now. The error says why nothing
// is known.
func GatherMemory(ctx context.Context, t tree.Tree, now time.Time) (*Memory, error) {
	g := &gatherer{t: t, e: &Evidence{Kind: t.Kind(), Now: now}}
	g.memory(ctx)
	if why, known := g.e.Known(PartMemory); !known {
		return nil, fmt.Errorf("read memory: %s", why)
	}
	return &g.e.Memory, ctx.Err()
}

// pairs reads lines of a name and a number: "MemTotal:  16384 kB", "oom_kill 3".
func pairs(text []byte) map[string]int64 {
	all := map[string]int64{}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 || n > 1<<52 {
			continue
		}
		if len(f) > 2 && f[2] == "kB" {
			n <<= 10
		}
		all[strings.TrimSuffix(f[0], ":")] = n
	}
	return all
}

func (m *Memory) read(meminfo []byte) {
	v := pairs(meminfo)
	m.Total, m.Available, m.Free = v["MemTotal"], v["MemAvailable"], v["MemFree"]
	m.SUnreclaim, m.SReclaimable = v["SUnreclaim"], v["SReclaimable"]
	m.Dirty, m.Writeback = v["Dirty"], v["Writeback"]
	m.SwapTotal, m.SwapFree = v["SwapTotal"], v["SwapFree"]
}

// slabs reads the largest caches of /proc/slabinfo, version 2.x:
//
//	# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables ...
//	dentry             81234         90132      192       21           1             : tunables 0 0 0 : ...
//
// which only root may read.
func (g *gatherer) slabs(ctx context.Context) {
	text := g.optional(ctx, PartMemory, "/proc/slabinfo")
	if text == nil {
		return
	}
	var all []Slab
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 6 || f[0] == "#" {
			continue
		}
		objects, size := number(f[2], 0), number(f[3], 0)
		if objects <= 0 || size <= 0 || objects > 1<<40 || size > 1<<24 {
			continue
		}
		all = append(all, Slab{Name: f[0], Objects: objects, Bytes: objects * size})
	}
	slices.SortFunc(all, func(a, b Slab) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Name, b.Name))
	})
	g.e.Memory.Slabs = all[:min(len(all), maxSlabs)]
}

// pressure reads /proc/pressure; a kernel without it has none.
func (g *gatherer) pressure(ctx context.Context) {
	g.e.Memory.Pressure = map[string]float64{}
	for _, of := range []string{"cpu", "io", "memory"} {
		text := g.optional(ctx, PartMemory, "/proc/pressure/"+of)
		for line := range bytes.Lines(text) {
			f := strings.Fields(string(line))
			for _, field := range f[min(1, len(f)):] {
				key, value, _ := strings.Cut(field, "=")
				if v, err := strconv.ParseFloat(value, 64); err == nil && key != "total" {
					g.e.Memory.Pressure[of+"."+f[0]+"."+key] = v
				}
			}
		}
	}
}

// remembered reads what was seen of memory before.
func (g *gatherer) remembered(ctx context.Context) {
	if g.o.Series != nil {
		g.e.Memory.Series = slices.Clone(g.o.Series)
		return
	}
	text, err := g.t.Read(ctx, SeriesPath, maxSeriesBytes)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		if !errors.Is(err, tree.ErrNotCollected) {
			g.missed(PartMemory, SeriesPath, err)
		}
		return
	}
	points, bad := ParseSeries(text)
	g.e.Memory.Series = points
	if bad > 0 {
		g.gap(PartMemory, SeriesPath, strconv.Itoa(bad)+" lines are no points of memory")
	}
	if err != nil {
		g.gap(PartMemory, SeriesPath, Reason(err))
	}
}

// ParseSeries reads remembered points of memory; bad counts the lines that are none. A last line
// without an end is one that is being written.
func ParseSeries(text []byte) (points []MemoryPoint, bad int) {
	s := bufio.NewScanner(bytes.NewReader(text))
	for s.Scan() {
		var p MemoryPoint
		if err := json.Unmarshal(s.Bytes(), &p); err != nil || p.Time.IsZero() {
			bad++
			continue
		}
		points = append(points, p)
	}
	if bad > 0 && len(text) > 0 && text[len(text)-1] != '\n' {
		bad--
	}
	slices.SortStableFunc(points, func(a, b MemoryPoint) int { return a.Time.Compare(b.Time) })
	return points, bad
}

// Span is the time from the first point to the last.
func (m *Memory) Span() time.Duration {
	if len(m.Series) == 0 {
		return 0
	}
	return m.Series[len(m.Series)-1].Time.Sub(m.Series[0].Time)
}
