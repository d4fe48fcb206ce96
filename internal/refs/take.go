// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
)

// maxOutside bounds how many files outside the roots are read because headers name them.
const maxOutside = 100_000

// img is a file whose header names others.
type img struct {
	dir, name string
	id        diskio.ID
	// since is when it was made, or else when it was changed last, in nanoseconds of Unix time.
	since int64
}

func (i *img) path() string { return i.dir + "/" + i.name }

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

	// index is nil where nothing is remembered.
	index *index

	images []img
	// toldIn says of each image in which call of uses it was told last, telling how many of those there were.
	toldIn  []int32
	telling int32
	// files are those in the directory of bases, with their formats.
	files []baseFile
	// odd are images whose first bytes do not tell what they rest on, links are symbolic links.
	odd, links []string

	targets []target
	// byName finds targets by what headers call them, byID those that are there. A name that means no
	// file of this host is -1.
	byName map[string]int32
	byID   map[diskio.ID]int32
	// read are the files whose headers were read.
	read map[diskio.ID]bool
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
}

// found is what one worker found.
type found struct {
	images []named
	files  []baseFile
	odd    []string
	read   []diskio.ID
	gaps   []finding.Blind
	words  map[string]string // names that were met, each kept once
	count  int64
	known  int64 // of those, how many were not read again
}

// sweep reads the beginning of every file below the roots.
func (t *taking) sweep(ctx context.Context) error {
	t.byName, t.byID, t.read = map[string]int32{}, map[diskio.ID]int32{}, map[diskio.ID]bool{}
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
		}
	}
	if err := s.Run(ctx, t.c.Roots); err != nil {
		return err
	}
	t.keep()
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
	h, err := t.told(f)
	if f.Known {
		w.known++
	}
	if f.Dir == t.c.Bases {
		w.files = append(w.files, baseFile{f.Path(), f.Name, f.Stat, string(h.format)})
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
	w.images = append(w.images, named{
		img{f.Dir, w.once(f.Name), f.Stat.ID, since(f.Born, f.Stat.ChangeTime)}, t.shared(h.backing, w), t.shared(h.data, w), false})
}

// since is from when on a file is known to have been there: when it was made, or where its file system does not keep
// that, when it was changed last.
func since(born, changed time.Time) int64 {
	if born.IsZero() {
		return changed.UnixNano()
	}
	return born.UnixNano()
}

// once gives the same string for the same text, so that a hundred thousand names of a hundred bases take
// no more than those.
func (w *found) once(s string) string {
	if w.words == nil {
		w.words = map[string]string{}
	}
	if old, ok := w.words[s]; ok {
		return old
	}
	w.words[strings.Clone(s)] = s
	return s
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
	for i := range w.images {
		if err := t.image(ctx, &w.images[i]); err != nil {
			return err
		}
	}
	return nil
}

// image adds an image and what it rests on. One that has several names is several.
func (t *taking) image(ctx context.Context, n *named) error {
	t.read[n.id] = true
	index := int32(len(t.images))
	t.images = append(t.images, n.img)
	t.c.Looked.Overlays++
	for _, name := range []string{n.backing, n.data} {
		if name == "" {
			continue
		}
		to, err := t.resolve(ctx, n, name)
		if err != nil {
			return err
		}
		if to >= 0 {
			t.targets[to].above = append(t.targets[to].above, index)
		}
	}
	return nil
}

// resolve gives the index of the target that a name in the header of an image means, -1 for none. The
// error is that of ctx.
func (t *taking) resolve(ctx context.Context, n *named, name string) (int32, error) {
	path, _, err := disk.ParseName(name)
	switch {
	case errors.Is(err, disk.ErrProtocol) && remote(name):
		return t.address(name), nil
	case err != nil:
		t.gap(n.path(), "name of the backing file", err.Error())
		return -1, nil
	case !filepath.IsAbs(path) && strings.HasPrefix(name, "json:"):
		t.gap(n.path(), "name of the backing file", "it depends on the directory that the program is started in")
		return -1, nil
	case !filepath.IsAbs(path):
		path = join(n.dir, path)
	}
	if i, ok := t.byName[path]; ok {
		t.as(i, name)
		return i, nil
	}
	st, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	if ctx.Err() != nil {
		return -1, ctx.Err()
	}
	i := int32(-1)
	switch {
	case err == nil || errors.Is(err, diskio.ErrDirectory) || errors.Is(err, diskio.ErrSpecial):
		old, ok := t.byID[st.ID]
		if ok {
			i = old
			t.as(i, name)
			break
		}
		i = int32(len(t.targets))
		t.byID[st.ID] = i
		t.targets = append(t.targets, target{path: path, stat: st, there: true, as: name})
	case missing(err) && n.aside:
		return -1, nil
	case missing(err):
		if i, err = t.absent(ctx, path, name); err != nil {
			return -1, err
		}
	default:
		t.gap(path, "backing file of "+n.path(), reason(err))
	}
	t.byName[path] = i
	return i, nil
}

// as notes a further name by which headers know a target: the first one by its letters is told, so that the same
// world gives the same census.
func (t *taking) as(i int32, name string) {
	if i >= 0 && name < t.targets[i].as {
		t.targets[i].as = name
	}
}

// join completes a relative name as qemu does. A name with ".." only at its beginning leads the same way
// from a directory without symbolic links whether or not it is shortened, so that it is the same for many
// images.
func join(dir, name string) string {
	rest := name
	for strings.HasPrefix(rest, "../") {
		rest = rest[3:]
	}
	if strings.Contains("/"+rest+"/", "/../") {
		return dir + "/" + name
	}
	return filepath.Join(dir, name)
}

// follow reads what the sweep left: images whose first bytes do not tell, symbolic links, and files outside
// the roots that images rest on.
func (t *taking) follow(ctx context.Context) error {
	for _, path := range t.odd {
		if err := t.walk(ctx, path); err != nil {
			return err
		}
	}
	for _, path := range t.links {
		if err := t.link(ctx, path); err != nil {
			return err
		}
	}
	outside := 0
	for i := 0; i < len(t.targets); i++ {
		g := &t.targets[i]
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

// link looks where a symbolic link below a root leads.
func (t *taking) link(ctx context.Context, path string) error {
	st, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, diskio.ErrDirectory):
		real, err := diskio.Within(ctx, t.o.Timeout, func() (string, error) { return diskio.RealPath(path) }, nil)
		if err != nil || !t.below(real) {
			t.gap(path, "directory", "a symbolic link leads out of what was looked at")
		}
		return ctx.Err()
	case errors.Is(err, diskio.ErrSpecial):
		return nil
	case err != nil:
		t.gap(path, "symbolic link", reason(err))
		return nil
	case t.read[st.ID]:
		return nil
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
