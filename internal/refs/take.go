// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// maxOutside bounds how many files outside the roots are read because headers name them.
const maxOutside = 100_000

// img is a file whose header names others.
type img struct {
	// path is its name; the first bytes of it are the directory by which names in its header are seen.
	path     string
	dirBytes int
	id       diskio.ID
	// since is when it was made, or else when it was changed last, in nanoseconds of Unix time; 0 if that is not known.
	since int64
}

// imgOf is an image of a name without what is not known of it.
func imgOf(dir, name string) img { return img{path: dir + "/" + name, dirBytes: len(dir)} }

func (i *img) dir() string { return i.path[:i.dirBytes] }

// target is a file that headers name.
type target struct {
	path  string
	stat  diskio.Stat
	there bool
	// byName: it is not known to be one of the bases but by its name, and that of its directory.
	byName bool
	// as is one of the names by which headers know it.
	as string
	// above are the indexes of the images that name it, named are the machines that do.
	above []int32
	named []Reference
}

// taking is a census under way.
type taking struct {
	o     Options
	c     *Census
	plain bool
	// dir is the directory of the bases, zero if it could not be looked at; places are directories that are named.
	dir    diskio.ID
	places map[string]place

	// state is what the pool keeps about itself, as it was after the sweep.
	state *pool.State
	// index is nil where nothing is remembered.
	index *index

	images []img
	// toldIn says of each image in which call of uses it was told last, telling how many of those there were.
	toldIn  []int32
	telling int32
	// files are those in the directory of bases, with their formats.
	files []baseFile
	// odd are images whose first bytes do not tell what they rest on, links are symbolic links, special what is no file.
	odd, links, special []string
	// relative has, for each image that names others by where it lies itself, the directories that this was taken from;
	// views are the names that lead to files.
	relative map[diskio.ID][]string
	views    []view
	// wanted are uses of bases that are gone and not missing, by their names: one that was set aside rests on them, or no image.
	wanted map[string][]Reference

	// shieldNames are the names that each file with shields had when it got those.
	shieldNames map[diskio.ID][]string

	targets []target
	// byName finds targets by what headers call them, byID those that are there. A name that means no
	// file of this host is -1.
	byName map[string]int32
	byID   map[diskio.ID]int32
	// mountTable is what is mounted, nil if that was not asked.
	mountTable []linux.Mount
	// read are the files whose headers were read.
	read map[diskio.ID]bool
}

// view is one name of a file.
type view struct {
	id   diskio.ID
	path string
}

// baseFile is a file in the directory of bases.
type baseFile struct {
	path, name string
	stat       diskio.Stat
	format     string
}

// named is an image with the names in its header.
type named struct {
	img
	backing, data string
	// aside: it has no name in the directory of the bases, see there.
	aside bool
	// again: its names were taken, but for those that depend on where it lies.
	again bool
}

// overlay is an image that rests on others; head is the number of what its header tells.
type overlay struct {
	img
	head uint32
}

// found is what one worker found.
type found struct {
	images []overlay
	files  []baseFile
	odd    []string
	read   []diskio.ID
	gaps   []finding.Blind
	heads  heads // without an index, which has those of all workers
	count  int64
	known  int64 // of those, how many were not read again
}

// sweep reads the beginning of every file below the roots.
func (t *taking) sweep(ctx context.Context) error {
	t.byName, t.byID = map[string]int32{}, map[diskio.ID]int32{}
	t.relative, t.wanted = map[diskio.ID][]string{}, map[string][]Reference{}
	var told atomic.Int64
	own := filepath.Join(t.c.Bases, stateDir)
	s := &diskio.Sweep{HeadBytes: headBytes, Workers: t.o.Workers, Timeout: t.o.Timeout,
		Enter: func(path string) bool { return path != own }}
	if t.remember(); t.index != nil {
		s.Learn = &t.index.learn
	}
	all := make([]found, s.Slots())
	s.File = func(worker int, f *diskio.Swept) {
		t.file(&all[worker], f)
		if n := told.Add(1); n%1024 == 0 && t.o.Progress != nil {
			t.o.Progress(n)
		}
	}
	s.Other = func(kind diskio.WalkKind, path string, err error) {
		switch kind {
		case diskio.WalkBlind:
			t.gap(path, "file or directory", reason(err))
		case diskio.WalkSymlink:
			t.links = append(t.links, path)
		case diskio.WalkSpecial:
			t.special = append(t.special, path)
		}
	}
	if err := s.Run(ctx, t.c.Roots); err != nil {
		return err
	}
	t.keep()
	images, read := 0, 0
	for i := range all {
		images, read = images+len(all[i].images), read+len(all[i].read)
	}
	t.images, t.read = make([]img, 0, images), make(map[diskio.ID]bool, images+read)
	for i := range all {
		if err := t.take(ctx, &all[i]); err != nil {
			return err
		}
	}
	return nil
}

// file looks at one file; it may run several times at once for different workers.
func (t *taking) file(w *found, f *diskio.Swept) {
	w.count++
	head, h, err := t.told(w, f)
	if f.Known {
		w.known++
	}
	if f.Dir == t.c.Bases || f.In == t.dir {
		w.files = append(w.files, baseFile{t.c.Bases + "/" + f.Name, f.Name, f.Stat, string(h.format)})
	}
	switch {
	case errors.Is(err, errMore):
		w.odd = append(w.odd, f.Path())
		return
	case err != nil:
		w.gaps = append(w.gaps, blind(f.Path(), "header", err.Error()))
		return
	}
	if h.backing == "" && h.data == "" {
		if h.format != "raw" {
			w.read = append(w.read, f.Stat.ID)
		}
		return
	}
	w.images = append(w.images, overlay{img{f.Path(), len(f.Dir), f.Stat.ID, since(f.Born, f.Stat.ChangeTime)}, head})
}

// since is from when on a file is known to have been there: when it was made, or where its file system does not keep
// that, when it was changed last.
func since(born, changed time.Time) int64 {
	if born.IsZero() {
		return changed.UnixNano()
	}
	return born.UnixNano()
}

// take adds what a worker found.
func (t *taking) take(ctx context.Context, w *found) error {
	t.c.Looked.Files += w.count
	t.c.Remembered += w.known
	t.c.Looked.Images += int64(len(w.read) + len(w.images) + len(w.odd))
	t.c.Gaps = append(t.c.Gaps, w.gaps...)
	t.files = append(t.files, w.files...)
	t.odd = append(t.odd, w.odd...)
	for _, id := range w.read {
		t.read[id] = true
	}
	t.c.Looked.Overlays += int64(len(w.images))
	heads := w.heads.all
	if t.index != nil {
		heads = t.index.all
	}
	// What rests on the same names rests on the same files, unless those are seen from its directory.
	memo := make([]rests, len(heads))
	for i := range w.images {
		o := &w.images[i]
		on := &memo[o.head]
		if !on.fixed {
			var err error
			if *on, err = t.rests(ctx, &named{img: o.img, backing: heads[o.head].backing, data: heads[o.head].data}); err != nil {
				return err
			}
		}
		t.addImage(&o.img, on)
	}
	return nil
}

// addImage adds an image with what it rests on. One that has several names is several.
func (t *taking) addImage(i *img, on *rests) {
	t.read[i.id] = true
	index := int32(len(t.images))
	t.images = append(t.images, *i)
	for _, to := range on.on {
		if to >= 0 {
			t.targets[to].above = append(t.targets[to].above, index)
		}
	}
}

// image finds what an image rests on, and adds it. One that is looked at again is one more if it rests on anything else.
func (t *taking) image(ctx context.Context, n *named) error {
	on, err := t.rests(ctx, n)
	if err != nil {
		return err
	}
	if n.again && on.on[0] < 0 && on.on[1] < 0 {
		return nil
	}
	t.addImage(&n.img, &on)
	if !n.again {
		t.c.Looked.Overlays++
	}
	return nil
}

// follow reads what the sweep left: images whose first bytes do not tell, symbolic links, devices, and files outside
// the roots that images rest on.
func (t *taking) follow(ctx context.Context) error {
	for _, path := range t.odd {
		if err := t.walk(ctx, path); err != nil {
			return err
		}
	}
	for _, path := range append(t.links, t.special...) {
		if err := t.link(ctx, path); err != nil {
			return err
		}
	}
	outside, seen := 0, 0
	for i := 0; i < len(t.targets) || seen < len(t.views); {
		if i == len(t.targets) {
			seen++
			if err := t.from(ctx, t.views[seen-1]); err != nil {
				return err
			}
			continue
		}
		g := &t.targets[i]
		i++
		if !g.there || t.read[g.stat.ID] {
			continue
		}
		if outside++; outside > maxOutside {
			t.gap(g.path, "image", "more than 100000 images outside the pool are rested on")
			return nil
		}
		if err := t.walk(ctx, g.path); err != nil {
			return err
		}
	}
	return nil
}

// from takes the names in the header of an image that depend on where it lies, if it has such, as they are seen by one more
// of its own names.
func (t *taking) from(ctx context.Context, v view) error {
	dirs := t.relative[v.id]
	if len(dirs) == 0 {
		return nil
	}
	dir, err := t.dirOf(ctx, v.path)
	if err != nil || dir == "" || slices.Contains(dirs, dir) {
		return err
	}
	return t.header(ctx, named{img: imgOf(dir, filepath.Base(v.path)), again: true})
}

// link looks where a symbolic link below a root leads, or what is no file and no link: a block device may hold an image.
func (t *taking) link(ctx context.Context, path string) error {
	st, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, diskio.ErrDirectory):
		real, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (string, error) { return diskio.RealPath(path) }, nil)
		if err != nil || !t.below(real) {
			t.gap(path, "directory", "a symbolic link leads out of what was looked at")
		}
		return ctx.Err()
	case errors.Is(err, diskio.ErrSpecial):
		return nil // a pipe, a socket or a character device, which hold no image and are not opened
	case err != nil:
		t.gap(path, "symbolic link", reason(err))
		return nil
	case t.read[st.ID]:
		return t.from(ctx, view{st.ID, path})
	}
	return t.walk(ctx, path)
}

// below tells whether a path without symbolic links lies in one of the roots.
func (t *taking) below(path string) bool {
	for _, r := range t.c.Roots {
		if path == r || strings.HasPrefix(path, strings.TrimSuffix(r, "/")+"/") {
			return true
		}
	}
	return false
}

// missing tells of an error that says no more than that something is not there.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// reason is the text of an error without the path, which stands beside it.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

func blind(object, what, reason string) finding.Blind {
	return finding.Blind{Object: object, What: what, Reason: reason, Host: []finding.Range{}, Guest: []finding.Range{}}
}
