// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/nova"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// place says what a directory is to the pool, by what it is and not by what it is called: one file system may be
// mounted at several places, and a part of it bound to others.
type place int

const (
	// elsewhere: it is another directory. unseen: that cannot be told.
	elsewhere place = iota
	unseen
	// here: it is the directory of the bases. nowhere: there is no directory of that name on this host.
	here
	nowhere
)

// placeOf tells what a directory is. Its error is that of ctx.
func (t *taking) placeOf(ctx context.Context, dir string) (place, error) {
	if dir == t.c.Bases {
		return here, nil
	}
	if p, ok := t.places[dir]; ok {
		return p, nil
	}
	st, err := diskio.WithinAt(ctx, dir, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(dir) }, nil)
	if ctx.Err() != nil {
		return unseen, ctx.Err()
	}
	p := unseen
	switch {
	case errors.Is(err, diskio.ErrDirectory) && t.dir != diskio.ID{} && st.ID == t.dir:
		p = here
	case errors.Is(err, diskio.ErrDirectory) && t.dir != diskio.ID{}:
		p = elsewhere
	case err != nil && missing(err):
		p = nowhere
	}
	t.places[dir] = p
	return p, nil
}

// whereabouts looks at the directory of the bases itself. One that cannot be looked at is a gap.
func (t *taking) whereabouts(ctx context.Context) error {
	t.places = map[string]place{}
	st, err := diskio.WithinAt(ctx, t.c.Bases, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(t.c.Bases) }, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case err == nil: // it was one a moment ago
		t.gap(t.c.Bases, "directory of the bases", "it is a file")
		return nil
	case !errors.Is(err, diskio.ErrDirectory):
		t.gap(t.c.Bases, "directory of the bases", reason(err))
		return nil
	}
	t.dir = st.ID
	return nil
}

// instances adds directories of instances whose bases are those of the pool: that directory may be a symbolic link to it, or
// another mount of it, so that the pool does not lie where those who rest on it do. Its error is that of ctx.
func (t *taking) instances(ctx context.Context) error {
	if !t.plain {
		t.c.Instances = t.c.Roots[:1:1]
	}
	name := cmp.Or(t.o.BaseName, novaBase)
	known := slices.Clone(t.o.BaseDirs)
	for _, dir := range t.o.Roots {
		known = append(known, filepath.Join(dir, name))
	}
	if h := t.o.Host; h != nil {
		places, err := hypervisor.FindNova(ctx, hypervisor.Options{Root: h.Root, Timeout: t.o.Timeout})
		if err != nil {
			return err
		}
		for i := range places { // what could not be read of its configuration is told by configured
			if places[i].Bases {
				known = append(known, places[i].Path)
			}
		}
	}
	for i, dir := range known {
		p, err := t.placeOf(ctx, dir)
		if err == nil && p == nowhere && i < len(t.o.BaseDirs) {
			err = t.unmounted(ctx, filepath.Dir(dir))
		}
		switch {
		case err != nil:
			return err
		case p == unseen && t.dir != diskio.ID{}:
			t.gap(dir, "directory of the bases", "whether it is that of this pool could not be told")
		}
		if p != here {
			continue
		}
		real, err := t.o.real(ctx, filepath.Dir(dir))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			t.gap(dir, "directory of instances", reason(err))
			continue
		}
		t.plain = false
		if !slices.Contains(t.c.Roots, real) {
			t.c.Roots = append(t.c.Roots, real)
		}
		if !slices.Contains(t.c.Instances, real) {
			t.c.Instances = append(t.c.Instances, real)
		}
	}
	return nil
}

// unmounted makes a gap of a directory of instances without a directory of bases, unless it is that of the bases itself. Its
// error is that of ctx.
func (t *taking) unmounted(ctx context.Context, dir string) error {
	p, err := t.placeOf(ctx, dir)
	if err == nil && p != here {
		t.gap(dir, "directory of instances", "its directory of bases is not there: is its storage mounted?")
	}
	return err
}

// belong makes a gap of a directory of images with bases of Nova: machines that rest on those lie elsewhere.
func (t *taking) belong() {
	if t.plain && slices.ContainsFunc(t.files, func(f baseFile) bool { return nova.IsBase(f.name) }) {
		t.gap(t.c.Bases, "directory of instances", "there are bases of Nova in it, and the directory of instances that they belong to "+
			"is not known: name the pool by that")
	}
}

// mounted makes a gap of each further directory that has no names: somebody said that images lie there, and the
// storage that they lie on may not be mounted. The error is that of ctx.
func (t *taking) mounted(ctx context.Context) error {
	for _, r := range t.o.Roots {
		empty, err := diskio.WithinAt(ctx, r, t.o.Timeout, func() (bool, error) { return diskio.IsEmpty(r) }, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, syscall.ENOTDIR):
			t.gap(r, "directory", reason(err))
		case empty:
			t.gap(r, "directory", "it is empty: is its storage mounted?")
		}
	}
	return nil
}

// absent adds a file that headers name and that is not there. In the directory of the bases it is one of those,
// whatever the directory is called there; in one of that name that this host does not have it may be: the image may
// be another node's. Where the name is a symbolic link it is what that leads to.
func (t *taking) absent(ctx context.Context, path, name string) (int32, error) {
	g, err := t.gone(ctx, path, name)
	if err != nil || g.path == "" {
		return -1, err
	}
	if i, ok := t.byName[g.path]; ok && !g.byName && i >= 0 {
		t.as(i, name)
		return i, nil
	}
	i := int32(len(t.targets))
	t.targets = append(t.targets, g)
	if !g.byName {
		t.byName[g.path] = i
	}
	return i, nil
}

// gone is the target that absent adds; it has no path where a gap tells why.
func (t *taking) gone(ctx context.Context, path, name string) (g target, err error) {
	end, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (string, error) { return diskio.LinkEnd(path) }, nil)
	if ctx.Err() != nil {
		return g, ctx.Err()
	}
	if err != nil {
		t.gap(path, "symbolic link", reason(err))
		return g, nil
	}
	path = end
	p, err := t.placeOf(ctx, filepath.Dir(path))
	if err != nil {
		return g, err
	}
	g = target{path: path, as: name}
	switch {
	case p == here:
		g.path = filepath.Join(t.c.Bases, filepath.Base(path))
	case p == nowhere && t.alike(filepath.Dir(path)):
		g.path, g.byName = filepath.Join(t.c.Bases, filepath.Base(path)), true
	}
	return g, nil
}

// ours tells whether a file that was removed, and that a process has open, was one of the bases. What cannot be told
// is.
func (t *taking) ours(ctx context.Context, c *linux.Census, f *linux.OpenFile) (bool, error) {
	dir := filepath.Dir(f.Path)
	named := dir == t.c.Bases || t.alike(dir)
	if !named {
		// One that cannot be looked at has another name as well: nothing says that it is a base.
		id, err := c.Behind(ctx, *f)
		if ctx.Err() != nil || err != nil || id.Dev != t.dir.Dev {
			return false, ctx.Err()
		}
	}
	if f.PID > 0 {
		// The path is as the process sees it, which may have mounts of its own.
		dir = fmt.Sprintf("/proc/%d/root%s", f.PID, dir)
	}
	switch p, err := t.placeOf(ctx, dir); {
	case err != nil:
		return false, err
	case p == elsewhere:
		return false, nil
	case p == here:
		return true, nil
	}
	// Of a process that has ended no directory is known, and it has nothing open any more.
	return named && !c.Closed(*f), nil
}

// layout says which directory holds the bases, and where images are looked for. Plain: any image may be a
// base, since the directory has none for them alone. The directory of bases may be a symbolic link: it is where that
// leads to, which is looked through as well.
func (o *Options) layout(ctx context.Context) (bases string, roots []string, plain bool, err error) {
	name := cmp.Or(o.BaseName, novaBase)
	pool, err := o.real(ctx, o.Pool)
	if err != nil {
		return "", nil, false, err
	}
	given, err := filepath.Abs(o.Pool)
	if err != nil {
		return "", nil, false, err
	}
	switch {
	case filepath.Base(given) == name:
		if pool, err = o.real(ctx, filepath.Dir(given)); err != nil {
			return "", nil, false, err
		}
	case filepath.Base(pool) == name:
		pool = filepath.Dir(pool)
	}
	roots = []string{pool}
	for _, r := range o.Roots {
		real, err := o.real(ctx, r)
		if err != nil {
			return "", nil, false, err
		}
		roots = append(roots, real)
	}
	sub := filepath.Join(pool, name)
	_, err = diskio.WithinAt(ctx, sub, o.Timeout, func() (diskio.Stat, error) { return diskio.Look(sub) }, nil)
	switch {
	case errors.Is(err, diskio.ErrDirectory):
		real, err := o.real(ctx, sub)
		if err == nil && real != sub {
			roots = append(roots, real)
		}
		return real, roots, false, err
	case err != nil && !missing(err):
		return "", nil, false, err
	}
	return pool, roots, true, o.directory(ctx, pool)
}

// directory returns an error unless a name is one of a directory.
func (o *Options) directory(ctx context.Context, name string) error {
	_, err := diskio.WithinAt(ctx, name, o.Timeout, func() (diskio.Stat, error) { return diskio.Look(name) }, nil)
	switch {
	case errors.Is(err, diskio.ErrDirectory):
		return nil
	case err == nil, errors.Is(err, diskio.ErrSpecial):
		return finding.WithHint(fmt.Errorf("%s is no directory", name),
			"a pool is the directory of instances, that of the bases in it, or one of images")
	}
	return err
}

// real is a name without symbolic links.
func (o *Options) real(ctx context.Context, name string) (string, error) {
	real, err := diskio.WithinAt(ctx, name, o.Timeout, func() (string, error) { return diskio.RealPath(name) }, nil)
	if err != nil {
		return "", err
	}
	return filepath.Abs(real)
}

// remote tells of a name that leads to another machine and so to no file of a directory. What json: describes may
// lead to a file by ways that are not understood, and so may drivers that stand before one (blkdebug, quorum).
func remote(name string) bool {
	protocol, _, _ := strings.Cut(name, ":")
	protocol, _, _ = strings.Cut(protocol, "+")
	switch protocol {
	case "nbd", "http", "https", "ftp", "ftps", "rbd", "iscsi", "iser", "gluster", "ssh", "sftp", "nfs", "sheepdog", "vxhs":
		return true
	}
	return false
}

// headed tells of a name that leads to another machine, to an image that may rest on others by its format: QEMU finds out
// by its first bytes what it is where none is said. What a program of this host serves may be a base itself.
func headed(name, format string) bool { return format != "raw" && remote(name) || bySocket(name) }

// bySocket tells of a name that leads to a program of this host: to a socket of NBD that has a path.
func bySocket(name string) bool {
	return strings.HasPrefix(name, "nbd+unix:") || strings.HasPrefix(name, "nbd:unix:")
}

// address gives the index of the target that a name means which leads to another machine, -1 for none. A server may
// have the directory of the bases as well: a file of such a directory is taken for the base of that name.
func (t *taking) address(name string) int32 {
	if i, ok := t.byName[name]; ok {
		return i
	}
	u, err := url.Parse(name)
	if err != nil || !t.alike(path.Dir(u.Path)) || !pool.IsName(path.Base(u.Path)) {
		return -1
	}
	t.targets = append(t.targets, target{path: filepath.Join(t.c.Bases, path.Base(u.Path)), as: name, byName: true})
	i := int32(len(t.targets) - 1)
	t.byName[name] = i
	return i
}
