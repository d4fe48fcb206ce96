// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Bounds of a plain directory.
const (
	maxFlatDepth = 16
	maxFlatDirs  = 5000
	maxFlatFiles = 100000
	maxFlatSets  = 100
)

// usualUnits are the targets that every system starts, with what they start (bootup(7)).
func usualUnits() map[string]string {
	return map[string]string{
		"default.target":        "[Unit]\nRequires=graphical.target\n",
		"graphical.target":      "[Unit]\nRequires=multi-user.target\n",
		"multi-user.target":     "[Unit]\nRequires=basic.target\nWants=getty.target remote-fs.target network.target network-online.target\n",
		"basic.target":          "[Unit]\nRequires=sysinit.target\nWants=sockets.target timers.target paths.target\n",
		"sysinit.target":        "[Unit]\nWants=local-fs.target swap.target\n",
		"sockets.target":        "[Unit]\nDescription=x\n",
		"timers.target":         "[Unit]\nDescription=x\n",
		"paths.target":          "[Unit]\nDescription=x\n",
		"local-fs.target":       "[Unit]\nDescription=x\n",
		"remote-fs.target":      "[Unit]\nDescription=x\n",
		"swap.target":           "[Unit]\nDescription=x\n",
		"getty.target":          "[Unit]\nDescription=x\n",
		"network.target":        "[Unit]\nDescription=x\n",
		"network-online.target": "[Unit]\nDescription=x\n",
		"reboot.target":         "[Unit]\nDefaultDependencies=no\n",
		"poweroff.target":       "[Unit]\nDefaultDependencies=no\n",
		"halt.target":           "[Unit]\nDefaultDependencies=no\n",
		"kexec.target":          "[Unit]\nDefaultDependencies=no\n",
		"soft-reboot.target":    "[Unit]\nDefaultDependencies=no\n",
	}
}

// flat is what is in a plain directory.
type flat struct {
	dirs  []string // those with files of units
	near  map[string]string
	names map[string][]string // names of units -> the directories that have them
	files int
	gaps  []Gap
}

// LoadFlat reads unit files that lie anywhere below the root of a tree, as in a repository, as though all of them
// were installed and enabled. Where two directories have units of one name, each such directory is a set of its
// own, together with what the others have besides. What was found is fs.ErrNotExist if there is no unit file at all.
func LoadFlat(ctx context.Context, t tree.Tree) ([]*Set, error) {
	f := &flat{near: map[string]string{}, names: map[string][]string{}}
	f.walk(ctx, t, "/", 0)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(f.dirs) == 0 {
		if len(f.gaps) > 0 {
			return nil, fmt.Errorf("%s: %s", f.gaps[0].Path, f.gaps[0].Reason)
		}
		return nil, fmt.Errorf("there are no unit files: %w", fs.ErrNotExist)
	}
	apart := f.apart()
	if len(apart) > maxFlatSets {
		f.gaps = append(f.gaps, Gap{apart[maxFlatSets], fmt.Sprintf("more than %d directories have units of the same "+
			"names, the rest is not judged", maxFlatSets)})
		apart = apart[:maxFlatSets]
	}
	var sets []*Set
	for _, of := range apart {
		s, err := f.set(ctx, t, of)
		if err != nil {
			return nil, err
		}
		sets = append(sets, s)
	}
	sets[0].Gaps = append(sets[0].Gaps, f.gaps...)
	return sets, nil
}

// walk looks for directories with files of units.
func (f *flat) walk(ctx context.Context, t tree.Tree, dir string, depth int) {
	if ctx.Err() != nil {
		return
	}
	all, err := t.List(ctx, dir)
	if err != nil && !tree.Missing(err) && !errors.Is(err, tree.ErrNotCollected) {
		f.gaps = append(f.gaps, Gap{dir, reason(err)})
	}
	for _, e := range all {
		at := path.Join(dir, e.Name)
		if f.files++; f.files > maxFlatFiles || len(f.dirs) > maxFlatDirs || depth > maxFlatDepth {
			if f.files == maxFlatFiles+1 || depth > maxFlatDepth {
				f.gaps = append(f.gaps, Gap{dir, "there is too much in it, the rest is not looked at"})
			}
			return
		}
		switch {
		case e.Type.IsDir() && e.Name != ".git" && e.Name != "node_modules":
			if subdirectory(e.Name) && valid(strings.TrimSuffix(e.Name, path.Ext(e.Name))) {
				f.dir(dir)
			} else {
				f.walk(ctx, t, at, depth+1)
			}
		case e.Type&(fs.ModeType&^fs.ModeSymlink) != 0:
		case valid(e.Name):
			f.dir(dir)
			f.names[e.Name] = append(f.names[e.Name], dir)
		case f.near[e.Name] == "" && e.Type == 0:
			f.near[e.Name] = at
		}
	}
}

func (f *flat) dir(name string) {
	if !slices.Contains(f.dirs, name) {
		f.dirs = append(f.dirs, name)
	}
}

// apart gives the directories that are judged each by itself; "" if all are judged together.
func (f *flat) apart() []string {
	several := false
	for _, dirs := range f.names {
		several = several || len(dirs) > 1
	}
	if !several {
		return []string{""}
	}
	return f.dirs
}

// set makes the set in which the units of a directory come first.
func (f *flat) set(ctx context.Context, t tree.Tree, of string) (*Set, error) {
	l := newLoader(t)
	l.Flat, l.Of, l.MergedUsr = true, of, true
	l.near, l.usual = f.near, usualUnits()
	if l.dirs = f.dirs; of != "" {
		l.dirs = append([]string{of}, slices.DeleteFunc(slices.Clone(f.dirs), func(d string) bool { return d == of })...)
	}
	if err := l.directories(ctx); err != nil {
		return nil, err
	}
	l.build(ctx)
	l.allActs(ctx)
	l.join()
	return l.Set, ctx.Err()
}

// enableAll links all units as their [Install] sections say, of templates an instance.
func (l *loader) enableAll(ctx context.Context) {
	for _, u := range slices.Clone(l.Units) {
		all := l.installs(ctx, u)
		if u.State == Template && len(all) == 0 {
			if to := l.unit(ctx, withInstance(u.Name, "INSTANCE")); to != nil {
				all = l.installs(ctx, to)
			}
		}
		for _, e := range all {
			if from := l.unit(ctx, e.From); from != nil && from.State == Loaded {
				from.Links = append(from.Links, e)
			}
		}
	}
}
