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
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// SpaceDir is where shisa remembers the room of file systems, a SpacePoint in JSON on each line, a file for
	// each month: space-2026-11.jsonl.
	SpaceDir = "/var/lib/shisa"
	// SpaceKept is how far back points are used. Older ones stay in their files.
	SpaceKept = 14 * 24 * time.Hour
	// maxSpaces bounds the file systems of one point: a month of them has 13 MB then.
	maxSpaces = 32
)

// SpacePoint is the room in file systems at one time.
type SpacePoint struct {
	Time time.Time `json:"time"`
	Of   []Space   `json:"of"`
}

// Space is the room in one file system, in bytes and inodes. Free is what is left for others than root.
type Space struct {
	// Key is the UUID of the file system, or else its device.
	Key        string `json:"key"`
	Free       uint64 `json:"free"`
	Size       uint64 `json:"size"`
	InodesFree uint64 `json:"inodes_free"`
	Inodes     uint64 `json:"inodes"`
}

// SpaceKey is by what a file system is known from one point to the next, "" for one that is not remembered: one
// without a device has no place that could be filled for good, and a server's is the server's.
func (f *FS) SpaceKey() string {
	if f.Device == "" || Sealed(f.Type) {
		return ""
	}
	return cmp.Or(f.UUID, f.Device)
}

// SpaceNow is the room of the file systems that answered.
func (e *Evidence) SpaceNow() SpacePoint {
	p := SpacePoint{Time: e.Now, Of: []Space{}}
	for i := range e.FSs {
		f := &e.FSs[i]
		key := f.SpaceKey()
		if key == "" || len(p.Of) == maxSpaces || slices.ContainsFunc(p.Of, func(s Space) bool { return s.Key == key }) {
			continue
		}
		for _, m := range f.Mounts {
			a := e.Mounts[m].Probe
			if a == nil || a.StatfsErrno != 0 || a.Blocks == 0 || a.BlockSize > 1<<30 || a.Blocks > 1<<60/max(1, a.BlockSize) {
				continue
			}
			p.Of = append(p.Of, Space{key, min(a.Avail, a.Blocks) * a.BlockSize, a.Blocks * a.BlockSize, a.InodesFree, a.Inodes})
			break
		}
	}
	return p
}

// spaceFiles are those in which points of the last SpaceKept are, the older first.
func spaceFiles(now time.Time) []string {
	name := func(at time.Time) string { return "space-" + at.UTC().Format("2006-01") + ".jsonl" }
	return slices.Compact([]string{name(now.Add(-SpaceKept)), name(now)})
}

// room takes in what was seen of the room in file systems before, and now.
func (g *gatherer) room(ctx context.Context) {
	if g.o.Spaces != nil {
		g.e.Spaces = slices.Clone(g.o.Spaces)
	} else {
		for _, name := range spaceFiles(g.e.Now) {
			file := path.Join(SpaceDir, name)
			text, err := g.t.Read(ctx, file, maxSeriesBytes)
			if errors.Is(err, tree.ErrNotCollected) {
				continue
			}
			if g.missed(PartMounts, file, err); err != nil && !errors.Is(err, tree.ErrTooLarge) {
				continue
			}
			points, bad := ParseSpaces(text)
			g.e.Spaces = append(g.e.Spaces, points...)
			if bad > 0 {
				g.gap(PartMounts, file, fmt.Sprintf("%d lines are no points of space", bad))
			}
		}
	}
	g.e.Spaces = slices.DeleteFunc(g.e.Spaces, func(p SpacePoint) bool {
		return p.Time.Before(g.e.Now.Add(-SpaceKept)) || p.Time.After(g.e.Now)
	})
	if now := g.e.SpaceNow(); len(now.Of) > 0 {
		g.e.Spaces = append(g.e.Spaces, now)
	}
}

// GatherRoom reads mounts, their file systems, and what was seen of the room in those, alone: o.Spaces, nil for what the
// tree remembers. The error says why nothing is known, or is that of ctx.
func GatherRoom(ctx context.Context, t tree.Tree, o Options) (*Evidence, error) {
	g := &gatherer{t: t, o: o, byDev: map[systemKey]int{}, e: &Evidence{Kind: t.Kind(), Now: o.Now.UTC()}}
	for _, part := range []func(context.Context){g.mounts, g.systems, g.room} {
		part(ctx)
	}
	if why, known := g.e.Known(PartMounts); !known {
		return nil, fmt.Errorf("read the mounts: %s", why)
	}
	return g.e, ctx.Err()
}

// ParseSpaces reads remembered points; bad counts the lines that are none. A last line without an end is one
// that is being written.
func ParseSpaces(text []byte) (points []SpacePoint, bad int) {
	s := bufio.NewScanner(bytes.NewReader(text))
	for s.Scan() {
		var p SpacePoint
		if err := json.Unmarshal(s.Bytes(), &p); err != nil || p.Time.IsZero() || len(p.Of) > maxSpaces {
			bad++
			continue
		}
		points = append(points, p)
	}
	if s.Err() != nil {
		bad++ // a line that is longer than any point
	}
	if bad > 0 && len(text) > 0 && text[len(text)-1] != '\n' {
		bad--
	}
	slices.SortStableFunc(points, func(a, b SpacePoint) int { return a.Time.Compare(b.Time) })
	return points, bad
}

// SpaceSeries remembers the room in file systems over time in the files of a directory.
type SpaceSeries struct {
	// Points are those of the last SpaceKept that were kept, the oldest first.
	Points []SpacePoint

	dir  string
	kept time.Time // of the last point
}

// RecallSpaces reads what was kept in a directory; there may be nothing yet.
func RecallSpaces(dir string, now time.Time) (*SpaceSeries, error) {
	s := &SpaceSeries{dir: dir, Points: []SpacePoint{}}
	for _, name := range spaceFiles(now) {
		f, err := diskio.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read remembered space: %w", err)
		}
		text, err := io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), maxSeriesBytes)))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read remembered space: %w", err)
		}
		points, _ := ParseSpaces(text) // lines that are none are as good as points that were not kept
		s.Points = append(s.Points, points...)
	}
	if n := len(s.Points); n > 0 {
		s.kept = s.Points[n-1].Time
	}
	s.forget(now)
	return s, nil
}

// forget leaves out what is no longer used.
func (s *SpaceSeries) forget(now time.Time) {
	s.Points = slices.DeleteFunc(s.Points, func(p SpacePoint) bool { return p.Time.Before(now.Add(-SpaceKept)) })
}

// Keep adds a point to the file of its month, if it is time for one.
func (s *SpaceSeries) Keep(p SpacePoint) (kept bool, err error) {
	if len(p.Of) == 0 || p.Time.Sub(s.kept) < KeepEvery && !p.Time.Before(s.kept) {
		return false, nil
	}
	line, err := json.Marshal(p)
	if err != nil {
		return false, err
	}
	names := spaceFiles(p.Time)
	f, err := diskio.Append(filepath.Join(s.dir, names[len(names)-1]))
	if err != nil {
		return false, fmt.Errorf("keep a point of space: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("keep a point of space: %w", err)
	}
	s.kept = p.Time
	s.Points = append(s.Points, p)
	s.forget(p.Time)
	return true, nil
}
