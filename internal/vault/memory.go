// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// Memory knows what changes left behind in images: those that were cut off in the middle, and guest
// data that is known to be wrong. It may be asked by several goroutines at once.
type Memory struct {
	v        *Vault
	receipts []*Receipt
	byID     map[string]*Receipt

	mu   sync.Mutex
	dirs map[string]*listed
}

// listed are the undo files of a directory, looked at once whoever asks first.
type listed struct {
	once  sync.Once
	paths []string
	// open are those that tell of an unfinished change, or of guest data that is wrong: their image
	// may have another name by now.
	open []openUndo
	err  error
}

// openUndo is an undo file and what tells the file apart that it was made for.
type openUndo struct {
	path  string
	image diskio.Identity
}

// Memory reads the receipts once, to be asked about many images. Receipts that cannot be read are
// told by the error, beside a memory of the others.
func (v *Vault) Memory(ctx context.Context) (*Memory, error) {
	all, err := v.Receipts(ctx)
	m := &Memory{v: v, byID: map[string]*Receipt{}, dirs: map[string]*listed{}}
	for _, r := range all {
		m.byID[r.ID] = r
		if r.State.Unfinished() || r.hurts() {
			m.receipts = append(m.receipts, r)
		}
	}
	return m, err
}

// hurts reports whether a change is in force that left guest data wrong which nobody put right.
func (r *Receipt) hurts() bool {
	return r.State == Committed && r.Resolved == nil && len(r.Hurt) > 0
}

// Of gives the changes of an image that are unfinished, that left guest data wrong which nobody put
// right since, or whose undo file beside the image cannot be read. An image of which nothing is
// remembered is not opened. The error says what else could not be read.
func (m *Memory) Of(ctx context.Context, image string) ([]*Candidate, error) {
	real, err := m.v.disk.RealPath(image)
	if err != nil {
		return nil, err
	}
	beside, others, err := m.inDir(ctx, real)
	if len(beside)+len(others)+len(m.receipts) == 0 {
		return nil, err
	}
	i, err2 := m.v.Look(real)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	for _, o := range others {
		if o.image.Same(i.Identity) && !slices.Contains(beside, o.path) {
			beside = append(beside, o.path)
		}
	}
	var found []*Candidate
	seen := map[string]bool{}
	for _, path := range beside {
		c := m.v.candidate(ctx, path, i, m.byID, nil)
		if c == nil {
			continue
		}
		seen[c.ID] = true
		hurt := c.Err == nil && c.State == Committed && c.Match != MatchName && c.Receipt.hurts()
		if c.Err != nil || c.State.Unfinished() || hurt {
			found = append(found, c)
		}
	}
	for _, r := range m.receipts {
		match := r.names(i)
		if match == NoMatch || seen[r.ID] {
			continue
		}
		if c := m.fromReceipt(ctx, r, match); c != nil {
			found = append(found, c)
		}
	}
	return found, err
}

// fromReceipt says what is remembered by a receipt, and how far its change came by its undo file.
// It is nil where that ended well.
func (m *Memory) fromReceipt(ctx context.Context, r *Receipt, match Match) *Candidate {
	c := &Candidate{ID: r.ID, State: r.State, Match: match, Receipt: r}
	if !r.State.Unfinished() {
		return c
	}
	if match == MatchContent {
		return nil // it is the file that this one is a copy of that is in the middle
	}
	p, err := m.v.Peek(ctx, r.Undo())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c
	case err != nil:
		return &Candidate{ID: r.ID, Match: match, UndoPath: r.Undo(), Err: err}
	}
	c.State, c.UndoPath, c.UndoBytes = p.State, r.Undo(), p.Bytes
	if !p.State.Unfinished() && !p.Receipt.hurts() {
		return nil
	}
	return c
}

// inDir lists the undo files in the directory of an image: those that are named after it, and those
// that may be of it all the same.
func (m *Memory) inDir(ctx context.Context, image string) ([]string, []openUndo, error) {
	dir := filepath.Dir(image)
	m.mu.Lock()
	l := m.dirs[dir]
	if l == nil {
		l = new(listed)
		m.dirs[dir] = l
	}
	m.mu.Unlock()
	l.once.Do(func() { m.list(ctx, dir, l) })
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if errors.Is(l.err, fs.ErrPermission) {
		return m.probe(image), nil, nil
	}
	var paths []string
	for _, p := range l.paths {
		if name, _ := IsUndoName(filepath.Base(p)); name == filepath.Base(image) {
			paths = append(paths, p)
		}
	}
	return paths, l.open, l.err
}

// list looks at the undo files in a directory. The memory is asked about the images of one run, so a
// list that its end cut short is of no use to anybody.
func (m *Memory) list(ctx context.Context, dir string, l *listed) {
	l.paths, l.err = m.v.disk.List(ctx, dir, false, func(name string) bool {
		_, ok := IsUndoName(name)
		return ok
	})
	for _, path := range l.paths {
		// What cannot be read is of the image that it is named after.
		p, err := m.v.Peek(ctx, path)
		if err == nil && (p.State.Unfinished() || p.Receipt.hurts()) {
			l.open = append(l.open, openUndo{path, p.Receipt.image()})
		}
	}
}

// probe looks for the undo files of an image by their names, where the directory may be used and
// not be listed.
func (m *Memory) probe(image string) (paths []string) {
	for n := 1; n <= maxUndoFiles; n++ {
		path := image + Suffix
		if n > 1 {
			path += "." + strconv.Itoa(n)
		}
		f, err := m.v.disk.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return paths
		}
		if err == nil {
			f.Close()
		}
		paths = append(paths, path)
	}
	return paths
}
