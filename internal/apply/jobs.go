// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/vault"
)

// job is one change that Recover looks at.
type job struct {
	id    string
	image string // "" where it is not known
	undo  string // "" where it is gone
	// copied: the image has the content of the one that the change was made for, and is another file.
	copied bool
	// ended: its undo file says that it is finished.
	ended   bool
	created time.Time
}

// jobs lists what a target means.
func (e *engine) jobs(ctx context.Context, target string) ([]job, error) {
	if target == "" {
		return e.jobsOfHost(ctx)
	}
	real, err := e.disk.RealPath(target)
	if errors.Is(err, fs.ErrNotExist) && vault.IsID(target) {
		r, err := e.v.Receipt(target)
		if err != nil {
			return nil, err
		}
		return []job{e.jobOf(r)}, nil
	}
	if err != nil {
		return nil, err
	}
	undoFiles, err := e.disk.List(ctx, real, true, isUndo)
	switch {
	case errors.Is(err, diskio.ErrNotDirectory):
		return e.jobsOfFile(ctx, real)
	case err != nil && len(undoFiles) == 0:
		return nil, err
	}
	e.o.Looked(Place{Path: real, UndoFiles: len(undoFiles)})
	known := map[string]job{}
	below, err2 := e.jobsOf(ctx, func(r *vault.Receipt) bool {
		known[r.ID] = e.jobOf(r)
		return within(real, r.Image()) || within(real, r.Undo())
	})
	jobs := []job{}
	for _, path := range undoFiles {
		jobs = append(jobs, e.jobOfUndo(ctx, path, known))
	}
	return without(jobs, below), errors.Join(err, err2)
}

// without adds to jobs those others whose undo file is not among them.
func without(jobs, others []job) []job {
	for _, j := range others {
		if !slices.ContainsFunc(jobs, func(k job) bool { return k.undo == j.undo }) {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// jobsOfHost lists what is known in the state directory: the receipts that are not finished, those
// that were cut off themselves, and the undo files that lie there or in the journal directory.
func (e *engine) jobsOfHost(ctx context.Context) ([]job, error) {
	known := map[string]job{}
	jobs, err := e.jobsOf(ctx, func(r *vault.Receipt) bool { known[r.ID] = e.jobOf(r); return true })
	cut, err2 := e.v.CutOff(ctx)
	errs := []error{err, err2}
	for _, r := range cut {
		known[r.ID] = e.jobOf(r)
		if j := e.jobOfUndo(ctx, r.Undo(), known); !j.ended {
			jobs = append(jobs, j)
		}
	}
	dirs := []string{e.v.ReceiptsDir()}
	if e.o.JournalDir != "" && e.o.JournalDir != dirs[0] {
		dirs = append(dirs, e.o.JournalDir)
	}
	for n, dir := range dirs {
		undoFiles, err := e.disk.List(ctx, dir, false, isUndo)
		e.o.Looked(Place{Path: dir, UndoFiles: len(undoFiles)})
		if n > 0 { // the receipts told of the first one
			errs = append(errs, err)
		}
		for _, path := range undoFiles {
			if j := e.jobOfUndo(ctx, path, known); !j.ended {
				jobs = without(jobs, []job{j})
			}
		}
	}
	return jobs, errors.Join(errs...)
}

func isUndo(name string) bool { _, ok := vault.IsUndoName(name); return ok }

func within(dir, path string) bool {
	return dir == "/" || strings.HasPrefix(path, dir+"/")
}

// jobsOf lists the unfinished receipts that pick wants.
func (e *engine) jobsOf(ctx context.Context, pick func(*vault.Receipt) bool) ([]job, error) {
	all, err := e.v.Receipts(ctx)
	e.o.Looked(Place{Path: e.v.ReceiptsDir(), Receipts: len(all)})
	var jobs []job
	for _, r := range all {
		if pick(r) && r.State.Unfinished() {
			jobs = append(jobs, e.jobOf(r))
		}
	}
	return jobs, err
}

func (e *engine) jobOf(r *vault.Receipt) job {
	return job{id: r.ID, image: r.Image(), undo: r.Undo(), created: r.Created}
}

// jobsOfFile lists what is known of an image, or the one undo file.
func (e *engine) jobsOfFile(ctx context.Context, path string) ([]job, error) {
	if _, ok := vault.IsUndoName(filepath.Base(path)); ok {
		known := map[string]job{}
		_, err := e.jobsOf(ctx, func(r *vault.Receipt) bool { known[r.ID] = e.jobOf(r); return false })
		return []job{e.jobOfUndo(ctx, path, known)}, err
	}
	i, err := e.v.Look(path)
	if err != nil {
		return nil, err
	}
	all, err := e.v.FindOf(ctx, i)
	of := Place{Path: path}
	defer func() { e.o.Looked(of) }()
	var jobs []job
	for _, c := range all {
		if c.UndoPath != "" {
			of.UndoFiles++
		} else {
			of.Receipts++
		}
		j := job{id: c.ID, image: path, undo: c.UndoPath}
		if c.Receipt != nil {
			j.created = c.Receipt.Created
		}
		if isCopy(c, i) || e.v.IsCopy(c, i) && !i.Beside(c.UndoPath) {
			// What became of the change elsewhere is not for this one to say.
			if j.copied = true; c.UndoPath != "" && c.State.Unfinished() {
				jobs = append(jobs, j)
			}
			continue
		}
		switch {
		case c.UndoPath == "" && c.State.Unfinished():
			j.undo = c.Receipt.Undo()
			jobs = append(jobs, j)
		case c.Receipt == nil, c.State.Unfinished(), c.State != c.Receipt.State:
			jobs = append(jobs, j)
		}
	}
	return jobs, err
}

// isCopy reports whether only its content tells that a change was one of this image: then it was made
// for another file, or for this one before it was moved to another file system.
func isCopy(c *vault.Candidate, i *vault.Image) bool {
	return c.Match == vault.MatchContent && !i.Beside(c.UndoPath)
}

// jobOfUndo says which image an undo file is of: the one beside it, or the one that its receipt in
// the vault names. The path in the undo file itself is not believed: whoever may write to the
// directory of an image could name any file there.
func (e *engine) jobOfUndo(ctx context.Context, path string, known map[string]job) job {
	j := job{undo: path}
	name, _ := vault.IsUndoName(filepath.Base(path))
	if p, err := e.v.Peek(ctx, path); err == nil {
		j.id, j.created, j.ended = p.Receipt.ID, p.Receipt.Created, !p.State.Unfinished()
	}
	if k, ok := known[j.id]; ok {
		j.image = k.image
	}
	beside := filepath.Join(filepath.Dir(path), name)
	if f, err := e.disk.Open(beside); err == nil {
		f.Close()
		j.image = beside
	}
	return j
}
