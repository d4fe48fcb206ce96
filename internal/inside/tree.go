// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

const (
	// answerTimeout is how long one answer of the disk is waited for; the images may lie on storage that
	// does not answer.
	answerTimeout = 20 * time.Second
	// maxKept and maxKeptNames bound the directories whose names are kept, and how many names one has:
	// most of what is read lies in a few of them.
	maxKept, maxKeptNames = 512, 20_000
	// maxListed bounds one directory that is listed.
	maxListed = 1 << 20
)

// Tree is the files of a Linux system on a guest's disks: its root, with the other volumes where its
// /etc/fstab mounts them. What the system makes only while it runs, and what lies on volumes that are not
// there or cannot be read, is tree.ErrNotCollected.
type Tree struct {
	root    int // index of the volume, -1 if there is no system
	mounts  []linux.FstabEntry
	points  map[string]int    // mount point -> volume
	absent  map[string]string // mount point -> why nothing of it can be read
	systems map[int]files.FS
	names   map[int]string // of all volumes

	dead atomic.Bool // the disk did not answer, and is not asked again
	mu   sync.Mutex  // held by who reads: a Guest is for one at a time
	kept map[keptKey]map[string]files.Entry
}

type keptKey struct {
	volume int
	ino    files.Ino
}

// at is a place in the tree.
type at struct {
	volume int
	file   files.File
}

// NewTree joins the volumes of a guest as its system mounts them. part names the volume of its root, "" for
// the only one that holds a system; where there is none, or several, nothing can be read of it. The error
// is that of ctx, or that no volume is called part.
func NewTree(ctx context.Context, g *Guest, part string) (*Tree, error) {
	t := &Tree{root: -1, points: map[string]int{}, absent: map[string]string{}, systems: map[int]files.FS{},
		kept: map[keptKey]map[string]files.Entry{}, names: map[int]string{}}
	for i, v := range g.Layout.Volumes {
		t.names[i] = v.Name
	}
	var err error
	if t.root, err = g.system(ctx, part); err != nil || t.root < 0 {
		return t, err
	}
	if t.systems[t.root], err = g.FS(ctx, t.root); err != nil {
		return nil, err
	}
	text, err := readFstab(ctx, t.systems[t.root])
	if err != nil {
		t.absent["/etc/fstab"] = err.Error() // who reads it is told the same
		return t, ctx.Err()
	}
	t.mounts, _ = linux.ParseFstab([]byte(text))
	for _, e := range t.mounts {
		if e.Files() && e.Point != "/" && linux.MayHang(e.Type) == "" {
			t.mount(ctx, g, e)
		}
	}
	return t, ctx.Err()
}

// system finds the root of the system: the volume that is meant, or the only one that holds one, -1 if
// there is none.
func (g *Guest) system(ctx context.Context, part string) (int, error) {
	if part != "" {
		return g.Part(ctx, part)
	}
	var found []int
	for _, i := range Readable(g) {
		if g.holdsSystem(ctx, i) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return -1, ctx.Err()
	case 1:
		return found[0], ctx.Err()
	}
	return -1, fmt.Errorf("%w: several hold a Linux system: %s", ErrPart, g.names(found))
}

// mount puts a volume where the system mounts it.
func (t *Tree) mount(ctx context.Context, g *Guest, e linux.FstabEntry) {
	bind := e.Has("bind") || e.Has("rbind")
	part := g.fstabPart(e.Source)
	switch {
	case bind:
		t.absent[e.Point] = "the system shows " + e.Source + " there as well, which is not followed"
		return
	case part < 0:
		t.absent[e.Point] = "the system mounts " + e.Source + " there, which is not on the disk"
		return
	}
	v := g.Layout.Volumes[part]
	if !readable(v) {
		t.absent[e.Point] = fmt.Sprintf("the system mounts part %s there, which is not read (%s)", v.Name, v.Kind)
		return
	}
	system, err := g.FS(ctx, part)
	if err != nil {
		t.absent[e.Point] = err.Error()
		return
	}
	t.points[e.Point], t.systems[part] = part, system
}

// Kind tells that it is a disk.
func (t *Tree) Kind() tree.Kind { return tree.Disk }

// answered runs what reads, one at a time.
func answered[T any](ctx context.Context, t *Tree, name string, fn func() (T, error)) (got T, err error) {
	err = diskio.ErrTimeout
	if !t.dead.Load() {
		got, err = diskio.Within(ctx, answerTimeout, func() (T, error) {
			t.mu.Lock()
			defer t.mu.Unlock()
			return fn()
		}, nil)
	}
	if errors.Is(err, diskio.ErrTimeout) {
		t.dead.Store(true)
		err = &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return got, err
}

// find goes along a name, with the symbolic links in it; the last is followed if follow is set. real is
// the name without them.
func (t *Tree) find(ctx context.Context, name string, follow bool) (place at, real string, err error) {
	clean := path.Clean(name)
	if !path.IsAbs(clean) || strings.ContainsRune(clean, 0) {
		return place, "", &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	rest, links := parts(clean), 0
	real = "/"
	place, err = t.enter(ctx, real, at{volume: t.root})
	for err == nil && len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if part == ".." || part == "." {
			if part == ".." {
				rest = append(parts(path.Dir(real)), rest...)
				real = "/"
				place, err = t.enter(ctx, real, at{volume: t.root})
			}
			continue
		}
		var next at
		next, err = t.child(ctx, place, path.Join(real, part))
		if err != nil {
			break
		}
		if next.file.Stat().Mode&files.TypeMask == files.TypeLink && (follow || len(rest) > 0) {
			var to string
			if to, err = ReadLink(next.file); err != nil {
				break
			}
			if links++; links > maxLinks {
				err = fmt.Errorf("more than %d symbolic links lead to one another", maxLinks)
				break
			}
			rest = append(parts(to), rest...)
			if path.IsAbs(to) {
				real = "/"
				place, err = t.enter(ctx, real, at{volume: t.root})
			}
			continue
		}
		real = path.Join(real, part)
		place = next
	}
	if named := new(fs.PathError); err != nil && !errors.As(err, &named) {
		err = &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return place, real, err
}

func parts(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

// enter gives what is shown at a name: the root of the volume that is mounted there, or what is given.
func (t *Tree) enter(ctx context.Context, name string, below at) (at, error) {
	if why := t.absent[name]; why != "" {
		return below, fmt.Errorf("%w: %s", tree.ErrNotCollected, why)
	}
	volume, mounted := t.points[name]
	if name == "/" {
		volume, mounted = t.root, true
	}
	if !mounted {
		return below, nil
	}
	if volume < 0 {
		return below, fmt.Errorf("%w: no Linux system was found on the disk", tree.ErrNotCollected)
	}
	system := t.systems[volume]
	f, err := system.Open(ctx, system.Info().Root)
	return at{volume, f}, err
}

// child finds a name in a directory.
func (t *Tree) child(ctx context.Context, dir at, name string) (at, error) {
	if why := runs(name); why != "" {
		return at{}, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: %s", tree.ErrNotCollected, why)}
	}
	if !dir.file.Stat().IsDir() {
		return at{}, fs.ErrNotExist
	}
	e, known, err := t.entry(ctx, dir, path.Base(name))
	if err != nil {
		return at{}, err
	}
	if !known {
		return at{}, fs.ErrNotExist
	}
	f, err := t.systems[dir.volume].Open(ctx, e.Ino)
	if err != nil {
		return at{}, err
	}
	return t.enter(ctx, name, at{dir.volume, f})
}

// runs says why what a system has only while it runs is not there, "" for other names.
func runs(name string) string {
	for _, dir := range []string{"/proc", "/sys", "/run", "/dev", "/shisa"} {
		if under(name, dir) {
			return "the machine does not run"
		}
	}
	return ""
}

// entry finds a name among the entries of a directory.
func (t *Tree) entry(ctx context.Context, dir at, name string) (e files.Entry, known bool, err error) {
	key := keptKey{dir.volume, dir.file.Stat().Ino}
	if names, kept := t.kept[key]; kept {
		e, known = names[name]
		return e, known, nil
	}
	names := map[string]files.Entry{}
	err = dir.file.Entries(ctx, func(x files.Entry) error {
		if x.Name == name {
			e, known = x, true
		}
		if len(names) <= maxKeptNames {
			names[x.Name] = x
		}
		return ctx.Err()
	})
	if err == nil && len(names) <= maxKeptNames && len(t.kept) < maxKept {
		t.kept[key] = names
	}
	if known {
		err = nil // what else is in the directory does not matter
	}
	return e, known, err
}

// Read gives a file.
func (t *Tree) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	return answered(ctx, t, name, func() ([]byte, error) {
		p, err := t.regular(ctx, name)
		if err != nil {
			return nil, err
		}
		size := p.file.Stat().Size
		b := make([]byte, min(max(size, 0), limit))
		if n, err := p.file.ReadAt(b, 0); n < len(b) {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if size > limit {
			return b, &fs.PathError{Op: "read", Path: name, Err: tree.ErrTooLarge}
		}
		return b, nil
	})
}

// Attributes gives what nobody may do with a file, as lsattr shows it (FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h).
func (t *Tree) Attributes(ctx context.Context, name string) (tree.Attributes, error) {
	return answered(ctx, t, name, func() (tree.Attributes, error) {
		p, _, err := t.find(ctx, name, true)
		if err != nil {
			return tree.Attributes{}, err
		}
		flags := p.file.Stat().Flags
		return tree.Attributes{Immutable: flags&0x10 != 0, AppendOnly: flags&0x20 != 0}, nil
	})
}

// regular finds a regular file.
func (t *Tree) regular(ctx context.Context, name string) (at, error) {
	p, _, err := t.find(ctx, name, true)
	if err == nil && !p.file.Stat().IsRegular() {
		err = &fs.PathError{Op: "read", Path: name, Err: diskio.ErrSpecial}
	}
	return p, err
}

// Open opens a file that is read in parts.
func (t *Tree) Open(ctx context.Context, name string) (tree.File, error) {
	f, err := answered(ctx, t, name, func() (*treeFile, error) {
		p, err := t.regular(ctx, name)
		return &treeFile{t, name, p.file}, err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// treeFile is a file in the guest that is open.
type treeFile struct {
	t    *Tree
	name string
	file files.File
}

func (f *treeFile) Size() int64      { return f.file.Stat().Size }
func (f *treeFile) Mtime() time.Time { return Time(f.file.Stat().Mtime) }
func (f *treeFile) Close() error     { return nil }

// Born is when the file was made, the zero time where the file system does not keep that.
func (f *treeFile) Born() time.Time {
	if at := f.file.Stat().Birth; at.Seconds > 0 {
		return Time(at)
	}
	return time.Time{}
}

func (f *treeFile) ReadAt(b []byte, off int64) (int, error) {
	type part struct {
		b   []byte
		err error
	}
	got, err := answered(context.Background(), f.t, f.name, func() (part, error) {
		p := part{b: make([]byte, len(b))}
		n, err := f.file.ReadAt(p.b, off)
		p.b, p.err = p.b[:n], err
		return p, nil
	})
	if err != nil {
		return 0, err
	}
	return copy(b, got.b), got.err
}

// Link gives the text of a symbolic link.
func (t *Tree) Link(ctx context.Context, name string) (string, error) {
	return answered(ctx, t, name, func() (string, error) {
		p, _, err := t.find(ctx, name, false)
		if err != nil {
			return "", err
		}
		if p.file.Stat().Mode&files.TypeMask != files.TypeLink {
			return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
		}
		return ReadLink(p.file)
	})
}

// List gives what is in a directory. What a directory has that could not all be read is an error.
func (t *Tree) List(ctx context.Context, name string) ([]tree.Entry, error) {
	return answered(ctx, t, name, func() ([]tree.Entry, error) {
		p, _, err := t.find(ctx, name, true)
		if err == nil && !p.file.Stat().IsDir() {
			err = &fs.PathError{Op: "list", Path: name, Err: fs.ErrInvalid}
		}
		if err != nil {
			return nil, err
		}
		var all []tree.Entry
		err = p.file.Entries(ctx, func(e files.Entry) error {
			if e.Name == "." || e.Name == ".." {
				return nil
			}
			if len(all) == maxListed {
				return tree.ErrTooLarge
			}
			all = append(all, t.listed(ctx, p.volume, e))
			return ctx.Err()
		})
		slices.SortFunc(all, func(a, b tree.Entry) int { return strings.Compare(a.Name, b.Name) })
		if err != nil {
			err = &fs.PathError{Op: "list", Path: name, Err: err}
		}
		return all, err
	})
}

// listed gives one name of a directory. An inode that cannot be read has no size and time.
func (t *Tree) listed(ctx context.Context, volume int, e files.Entry) tree.Entry {
	out := tree.Entry{Name: e.Name, Type: typeOf(e.Type)}
	if f, err := t.systems[volume].Open(ctx, e.Ino); err == nil {
		st := f.Stat()
		out.Type, out.Size, out.Mtime = typeOf(st.Mode&files.TypeMask), st.Size, Time(st.Mtime)
	}
	return out
}

// namesTimeout bounds how long names of inodes are looked for.
const namesTimeout = 30 * time.Second

// Names gives a name for each of some inodes of a volume that has one: of several the first on the disk. The
// names begin where the volume is mounted.
func (t *Tree) Names(ctx context.Context, volume string, inodes []uint64) (map[uint64]string, error) {
	part, point := -1, ""
	for i, name := range t.names {
		if _, read := t.systems[i]; read && name == volume {
			part = i
		}
	}
	for at, i := range t.points {
		if i == part {
			point = at
		}
	}
	if part < 0 || len(inodes) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	found, system := map[uint64]string{}, t.systems[part]
	err := files.Walk(ctx, system, system.Info().Root, "/", func(f *files.Found) error {
		ino := uint64(f.Entry.Ino)
		if _, known := found[ino]; !known && slices.Contains(inodes, ino) {
			found[ino] = path.Join("/", point, f.Path)
		}
		if len(found) == len(inodes) {
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return found, err
}
