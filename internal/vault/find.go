// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// Suffix ends the name of an undo file; a number may follow.
	Suffix = ".shisa-undo"
	// HeadBytes is how much of an image tells it apart from others, beside its length.
	HeadBytes = 64 << 10
)

// Match says why an undo file or receipt is taken for that of an image.
type Match string

// The matches, strongest first.
const (
	// MatchFile: it was made for this very file, whatever its name is by now.
	MatchFile Match = "file"
	// MatchContent: the image has the length and the first 64 KiB that the change left, so it is a
	// copy of the file.
	MatchContent Match = "content"
	// MatchName: only the name says so. The image was written to since, or is another one.
	MatchName Match = "name"
	// NoMatch: it is of another image.
	NoMatch Match = ""
)

// Candidate is a change that was made to an image, or may have been.
type Candidate struct {
	ID string
	// State is that of the undo file, or of the receipt where that is gone; "" where Err is set.
	State State
	Match Match
	// UndoPath is the undo file, "" where it is gone, and UndoBytes its length.
	UndoPath  string
	UndoBytes int64
	// Receipt is the receipt, or what the undo file has of it; nil where Err is set.
	Receipt *Receipt
	// Err: why the undo file cannot be used, ErrNewer, ErrDamaged or ErrForeign.
	Err error
}

// Image is what tells an image apart from others.
type Image struct {
	Path     string
	Identity diskio.Identity
	// Head is the SHA-256 of its first 64 KiB, in hexadecimal; "" where they cannot be read.
	Head string
}

// Look opens an image for reading and says what tells it apart. Its errors are those of
// diskio.Open.
func (v *Vault) Look(path string) (*Image, error) {
	real, err := v.disk.RealPath(path)
	if err != nil {
		return nil, err
	}
	f, err := v.disk.Open(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ImageOf(real, f)
}

// ImageOf says what tells an open image apart.
func ImageOf(path string, f diskio.Readable) (*Image, error) {
	id, err := f.Identity()
	if err != nil {
		return nil, err
	}
	head, err := HeadOf(f, id.SizeBytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Image{path, id, head}, nil
}

// HeadOf is the SHA-256 of the first 64 KiB of what r reads, or of all of it where it is shorter, in
// hexadecimal. It is "" where the disk is faulty there: an image is known by other signs as well.
func HeadOf(r io.ReaderAt, size int64) (string, error) {
	buf := make([]byte, min(HeadBytes, max(0, size)))
	n, err := r.ReadAt(buf, 0)
	switch {
	case errors.Is(err, syscall.EIO):
		return "", nil
	case err != nil && !(errors.Is(err, io.EOF) && n == len(buf)):
		return "", fmt.Errorf("read the first %d bytes: %w", len(buf), err)
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:]), nil
}

// IsUndoName reports whether a file name is that of an undo file, and gives the name of the image
// beside which it was made.
func IsUndoName(name string) (image string, ok bool) {
	i := strings.LastIndex(name, Suffix)
	if i <= 0 {
		return "", false
	}
	if rest := name[i+len(Suffix):]; rest != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "."))
		if err != nil || n < 2 || rest != "."+strconv.Itoa(n) {
			return "", false
		}
	}
	return name[:i], true
}

// Find lists the changes that were made to an image, newest first: the undo files in its directory
// and in the journal directories, and the receipts. It knows the image also after it was renamed or
// copied. Undo files that cannot be read are candidates by their name; what else could not be read
// is told by the error, beside the others.
func (v *Vault) Find(ctx context.Context, image string) ([]*Candidate, error) {
	i, err := v.Look(image)
	if err != nil {
		return nil, err
	}
	return v.FindOf(ctx, i)
}

// FindOf is Find of an image that was looked at before.
func (v *Vault) FindOf(ctx context.Context, i *Image) ([]*Candidate, error) {
	isUndo := func(name string) bool { _, ok := IsUndoName(name); return ok }
	var errs []error
	var paths []string
	for n, dir := range append([]string{filepath.Dir(i.Path), v.receipts}, v.journals...) {
		got, err := v.disk.List(ctx, dir, false, isUndo)
		if n == 1 {
			err = nil // reading the receipts will tell
		}
		errs, paths = append(errs, err), append(paths, got...)
	}
	receipts, err := v.Receipts(ctx)
	errs = append(errs, err)
	byID, byUndo := map[string]*Receipt{}, map[string]*Receipt{}
	for _, r := range receipts {
		byID[r.ID] = r
		// Those of other images are not looked for: their storage may be one that does not answer.
		if r.State != SetAside && r.names(i) != NoMatch && v.exists(r.Undo()) {
			paths = append(paths, r.Undo())
			byUndo[r.Undo()] = r
		}
	}
	slices.Sort(paths)
	var all []*Candidate
	seen := map[string]bool{}
	for _, path := range slices.Compact(paths) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := v.candidate(ctx, path, i, byID, byUndo[path])
		switch {
		case c == nil:
		case c.ID == "" || !seen[c.ID]:
			all = append(all, c)
			seen[c.ID] = true
		case i.Beside(path):
			// A copy of the image has a copy of the undo file: see Fork.
			all[slices.IndexFunc(all, func(o *Candidate) bool { return o.ID == c.ID })] = c
		}
	}
	for _, r := range receipts {
		if m := r.matches(i); m != NoMatch && !seen[r.ID] {
			all = append(all, &Candidate{ID: r.ID, State: r.State, Match: m, Receipt: r})
		}
	}
	slices.SortStableFunc(all, newerFirst)
	return all, errors.Join(errs...)
}

func newerFirst(a, b *Candidate) int {
	switch {
	case a.Receipt == nil || b.Receipt == nil:
		// What cannot be read comes first: it may be the newest.
		return boolRank(a.Receipt != nil) - boolRank(b.Receipt != nil)
	default:
		return b.Receipt.Created.Compare(a.Receipt.Created)
	}
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (v *Vault) exists(path string) bool {
	f, err := v.disk.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// Beside tells whether an undo file has the name of one that was made beside the image.
func (i *Image) Beside(path string) bool {
	name, _ := IsUndoName(filepath.Base(path))
	return filepath.Dir(path) == filepath.Dir(i.Path) && name == filepath.Base(i.Path)
}

// Speaks reports whether a receipt tells of an undo file, and not of the one of which that is a
// copy.
func (v *Vault) Speaks(r *Receipt, undoPath string) bool {
	return r.Undo() == undoPath || !v.exists(r.Undo())
}

// IsCopy reports whether the image of a candidate is a copy, and the file for which the change was
// made is there as well.
func (v *Vault) IsCopy(c *Candidate, i *Image) bool {
	if c.Match == MatchName || c.Receipt == nil {
		return false
	}
	o, err := v.Look(c.Receipt.Image())
	// In a snapshot of its file system a copy has the same inode, on another device.
	return err == nil && o.Identity.ID != i.Identity.ID && c.Receipt.matches(o) == MatchFile
}

// names is matches, and also by the path where that is a block device: the inode of one is another
// after every start of the host, and the first sector of a change that was cut off is neither as
// before nor as after.
func (r *Receipt) names(i *Image) Match {
	m := r.matches(i)
	if m == NoMatch && i.Identity.Block && r.Image() == i.Path && r.State.Unfinished() {
		return MatchName
	}
	return m
}

// candidate looks at an undo file, nil if it is of another image. named is the receipt of this image
// that names the file, or nil.
func (v *Vault) candidate(ctx context.Context, path string, i *Image, receipts map[string]*Receipt,
	named *Receipt,
) *Candidate {
	beside := i.Beside(path)
	p, err := v.Peek(ctx, path)
	if err == nil {
		err = p.TrustedFor(i.Identity)
	}
	switch {
	case err != nil && named != nil && named.State.Unfinished():
		// It was whole when its receipt was written.
		if errors.Is(err, ErrPartial) || errors.Is(err, ErrNotUndo) {
			err = fmt.Errorf("undo file %s %w: %w", path, ErrDamaged, err)
		}
		return &Candidate{ID: named.ID, Match: named.names(i), UndoPath: path, Err: err}
	case errors.Is(err, ErrNotUndo):
		return nil
	case errors.Is(err, ErrForeign) && !beside && p.Receipt.names(i) == NoMatch:
		return nil
	case err != nil && !beside && !errors.Is(err, ErrForeign):
		return nil // nothing says that it is of this image
	case errors.Is(err, ErrPartial):
		return &Candidate{State: Partial, Match: MatchName, UndoPath: path, UndoBytes: p.Bytes}
	case err != nil:
		return &Candidate{Match: MatchName, UndoPath: path, Err: err}
	}
	c := &Candidate{ID: p.Receipt.ID, State: p.State, Match: p.Receipt.names(i), UndoPath: path,
		UndoBytes: p.Bytes, Receipt: p.Receipt}
	if c.Match == NoMatch && beside {
		c.Match = MatchName
	}
	if c.Match == NoMatch {
		return nil
	}
	if r := receipts[c.ID]; r != nil && v.Speaks(r, path) {
		c.Receipt = r
	}
	return c
}
