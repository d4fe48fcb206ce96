// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// storages holds the file systems that a node looked at against those that were noted of it: a storage that is not
// mounted shows the directory that it is mounted on.
func (j *judging) storages(node string, was, is []pool.BaseStorage) {
	for _, b := range lost(was, is) {
		if b.Rule == OtherStorage && !slices.Contains(j.o.OtherStorage, node) ||
			b.Rule == NoOverlays && !slices.Contains(j.o.NoOverlays, node) {
			j.block(b.Rule, node, b.Path, "%s", b.Why)
		}
	}
}

// noteStorages gives what is noted after a look. What a breaker is about stays as it was, and so does what was not seen
// this time.
func (j *judging) noteStorages(node string, was, is []pool.BaseStorage) []pool.BaseStorage {
	other, none := slices.Contains(j.o.OtherStorage, node), slices.Contains(j.o.NoOverlays, node)
	for _, b := range lost(was, is) {
		if b.Rule == OtherStorage && !other || b.Rule == NoOverlays && !none {
			return was
		}
	}
	all := append([]pool.BaseStorage{}, is...)
	for i := range was {
		if s := &was[i]; s.What != pool.Below && find(is, s.What, s.Path) == nil && !other && !none && len(all) < maxNoted {
			all = append(all, *s)
		}
	}
	return all
}

// lost tells what became less, or another, of the file systems that a node looked at.
func lost(was, is []pool.BaseStorage) (all []Blocker) {
	less := func(rule Rule, path, why string) { all = append(all, Blocker{Rule: rule, Path: path, Why: why}) }
	for i := range was {
		s := &was[i]
		now := find(is, s.What, s.Path)
		had := (s.What == pool.OfRoot || s.What == pool.Below) && overlays(was, s.Path, "") > 0 && overlays(is, s.Path, "") == 0
		switch {
		case s.What == pool.AtMount && now == nil && looked(is, s.Path):
			less(OtherStorage, s.Path, "the file system "+s.FS()+" was mounted there, and nothing is: images may lie on it")
		case s.What == pool.AtMount && now != nil && now.FS() != s.FS():
			less(OtherStorage, s.Path, "the file system "+now.FS()+" is mounted there, and "+s.FS()+" was: images may lie on that")
		case (s.What == pool.OfBases || s.What == pool.OfRoot) && now != nil && now.FS() != s.FS():
			less(OtherStorage, s.Path, "it lies on the file system "+now.FS()+", and lay on "+s.FS()+": is everything mounted?")
		}
		switch {
		case s.What == pool.OfRoot && had && now == nil:
			less(NoOverlays, s.Path, "images below it rested on others, and it was not looked through")
		case s.What == pool.OfRoot && had:
			less(NoOverlays, s.Path, "no image below it rests on another, and some did: is everything mounted?")
		case s.What == pool.Below && !had && s.Overlays > 0 && overlays(is, s.Path, s.FS()) == 0:
			less(NoOverlays, s.Path, "images on the file system "+s.FS()+" below it rested on others, and none does: is it mounted?")
		}
	}
	for i := range is {
		// What lies below the place of a mount is not seen, and was when nothing was mounted there.
		if s := &is[i]; s.What == pool.AtMount && find(was, s.What, s.Path) == nil && looked(was, s.Path) {
			less(OtherStorage, s.Path, "the file system "+s.FS()+" is mounted there, and nothing was: images may lie below it")
		}
	}
	return all
}

// looked tells whether one of the directories that were looked through has a path in it.
func looked(all []pool.BaseStorage, path string) bool {
	return slices.ContainsFunc(all, func(s pool.BaseStorage) bool {
		return s.What == pool.OfRoot && strings.HasPrefix(path, strings.TrimSuffix(s.Path, "/")+"/")
	})
}

// find gives the file system of a directory, nil if it was not seen. A node has one directory of bases, whatever it is
// called at the time.
func find(all []pool.BaseStorage, what, path string) *pool.BaseStorage {
	for i := range all {
		if s := &all[i]; s.What == what && (s.Path == path || what == pool.OfBases) {
			return s
		}
	}
	return nil
}

// overlays is how many images below a directory rest on others, on one file system or, for "", on all.
func overlays(all []pool.BaseStorage, path, on string) (n int64) {
	for i := range all {
		if s := &all[i]; s.What != pool.OfBases && s.Path == path && (on == "" || s.FS() == on) {
			n += s.Overlays
		}
	}
	return n
}
