// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
)

// rests are the indexes of the targets that an image rests on, -1 for none. fixed: any image with these names in its
// header rests on them.
type rests struct {
	on    [2]int32
	fixed bool
}

// errWhere: QEMU takes some names as they are, wherever the image lies (block.c, bdrv_get_full_backing_filename).
const errWhere = "it depends on the directory that the program is started in"

// rests finds what an image rests on. The error is that of ctx.
func (t *taking) rests(ctx context.Context, n *named) (r rests, err error) {
	r.fixed = true
	for i, name := range [2]string{n.backing, n.data} {
		r.on[i] = -1
		if name == "" {
			continue
		}
		fixed := false
		if r.on[i], fixed, err = t.resolve(ctx, n, name); err != nil {
			return rests{}, err
		}
		if i == 1 && r.on[i] >= 0 && !t.targets[r.on[i]].there && !filepath.IsAbs(name) {
			t.gap(n.path, "name of the data file", errWhere) // it is taken for one beside the image, where there is none
		}
		r.fixed = r.fixed && fixed
	}
	return r, nil
}

// resolve gives the index of the target that a name in the header of an image means, -1 for none. fixed: it means that
// in any image. The error is that of ctx.
func (t *taking) resolve(ctx context.Context, n *named, name string) (i int32, fixed bool, err error) {
	path, inner, err := disk.PartName(name)
	if inner && err == nil {
		t.gap(n.path, "header of its backing file", "it was not read: it is an image in a part of a file")
	}
	switch {
	case errors.Is(err, disk.ErrProtocol) && remote(name):
		return t.address(name), false, nil
	case err != nil:
		t.gap(n.path, "name of the backing file", err.Error())
		return -1, false, nil
	case !filepath.IsAbs(path) && path != name: // behind json: or file:
		t.gap(n.path, "name of the backing file", errWhere)
		return -1, false, nil
	case !filepath.IsAbs(path):
		path = join(n.dir(), path)
		if dirs := t.relative[n.id]; !slices.Contains(dirs, n.dir()) {
			t.relative[n.id] = append(dirs, n.dir())
		}
	case n.again:
		return -1, false, nil
	default:
		fixed = true
	}
	if i, ok := t.byName[path]; ok {
		t.as(i, name)
		return i, fixed && i >= 0, nil
	}
	i, err = t.target(ctx, n, path, name)
	if err != nil || i == unnamed {
		return -1, false, err
	}
	t.byName[path] = i
	return i, fixed && i >= 0, nil
}

// unnamed is the index of no target, and of none that is to be noted under the name.
const unnamed = -2

// target is resolve for a path that was not met before.
func (t *taking) target(ctx context.Context, n *named, path, name string) (int32, error) {
	st, err := diskio.WithinAt(ctx, path, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(path) }, nil)
	if ctx.Err() != nil {
		return unnamed, ctx.Err()
	}
	switch {
	case err == nil || errors.Is(err, diskio.ErrDirectory) || errors.Is(err, diskio.ErrSpecial):
		t.views = append(t.views, view{st.ID, path})
		i, ok := t.byID[st.ID]
		if ok {
			t.as(i, name)
			return i, nil
		}
		i = int32(len(t.targets))
		t.byID[st.ID] = i
		t.targets = append(t.targets, target{path: path, stat: st, there: true, as: name})
		return i, nil
	case missing(err) && n.aside:
		return unnamed, t.want(ctx, n, path, name)
	case missing(err):
		return t.absent(ctx, path, name)
	}
	t.gap(path, "backing file of "+n.path, reason(err))
	return -1, nil
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
