// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// overlay reads an image as it will be after the writes of a plan.
type overlay struct {
	img    *image
	size   int64         // of the image now
	writes []*plan.Write // by offset, none overlapping
}

func newOverlay(img *image, p *plan.Plan) *overlay {
	o := &overlay{img, p.Object.SizeBytes, make([]*plan.Write, 0, len(p.Writes))}
	for i := range p.Writes {
		o.writes = append(o.writes, &p.Writes[i])
	}
	// None is equal to another: no write overlaps another.
	slices.SortFunc(o.writes, func(a, b *plan.Write) int { return cmp.Compare(a.Offset, b.Offset) })
	return o
}

// touching gives the writes that touch a range.
func (o *overlay) touching(off, length int64) []*plan.Write {
	from := sort.Search(len(o.writes), func(i int) bool { return o.writes[i].End() > off })
	to := sort.Search(len(o.writes), func(i int) bool { return o.writes[i].Offset >= off+length })
	return o.writes[from:max(from, to)]
}

// ReadAt is io.ReaderAt. What lies past the end is zeros.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if err := o.img.read(p, off, o.size); err != nil {
		return 0, err
	}
	o.put(p, off)
	return len(p), nil
}

// put puts what is written into p, which holds what is at off now, and reports whether that is
// anything.
func (o *overlay) put(p []byte, off int64) bool {
	writes := o.touching(off, int64(len(p)))
	for _, w := range writes {
		at := max(off, w.Offset)
		copy(p[at-off:], w.New[at-w.Offset:])
	}
	return len(writes) > 0
}

// draft compares an image with what a plan was made from, and makes the draft of the undo file. An
// image that is different is a *ChangedError.
func (e *engine) draft(ctx context.Context, img *image, p *plan.Plan) (*vault.Draft, error) {
	id, err := img.f.Identity()
	if err != nil {
		return nil, err
	}
	diff := &ChangedError{Path: img.path, What: "it is not as it was when the plan was made"}
	if o := p.Object; id.Dev != o.Dev || id.Ino != o.Ino || id.SizeBytes != o.SizeBytes {
		diff.What += fmt.Sprintf(": inode %d on device %d with %d bytes, it was inode %d on device %d "+
			"with %d bytes", id.Ino, id.Dev, id.SizeBytes, o.Ino, o.Dev, o.SizeBytes)
		return nil, diff
	}
	// An approval is bound to the digest, and so is the receipt: it must be that of what is done.
	digest, err := p.Digest()
	if err != nil {
		return nil, err
	}
	if p.SHA256 != "" && p.SHA256 != digest {
		return nil, fmt.Errorf("%w: its SHA-256 is %s, and it says %.64q", plan.ErrEdited, digest,
			p.SHA256)
	}
	d := &vault.Draft{Plan: p, Receipt: vault.NewReceipt(p, digest, e.o.Now())}
	if !id.Born.IsZero() {
		d.Receipt.Born = &id.Born
	}
	over := newOverlay(img, p)
	if d.Watches, err = e.watches(ctx, img, p, over, diff); err != nil {
		return nil, err
	}
	if err := e.compareOld(ctx, img, p, diff); err != nil {
		return nil, err
	}
	if len(diff.Ranges) > 0 {
		return nil, diff
	}
	if err := sectors(d, img, over); err != nil {
		return nil, err
	}
	d.Receipt.HeadBefore, err = vault.HeadOf(img.f, p.Object.SizeBytes)
	if err == nil {
		d.Receipt.HeadAfter, err = vault.HeadOf(over, p.SizeAfterBytes)
	}
	return d, err
}

// sectors sets the first sector before and after: it is written whole.
func sectors(d *vault.Draft, img *image, over *overlay) error {
	p := d.Plan
	if n := len(p.Writes); n == 0 || p.Writes[n-1].Phase != plan.Switch {
		return nil
	}
	d.SectorOld = make([]byte, min(sectorBytes, p.Object.SizeBytes))
	if err := img.read(d.SectorOld, 0, p.Object.SizeBytes); err != nil {
		return err
	}
	d.SectorNew = make([]byte, min(sectorBytes, p.SizeAfterBytes))
	_, err := over.ReadAt(d.SectorNew, 0)
	return err
}

// watches compares what the plan relies on, and says how it will be afterwards.
func (e *engine) watches(ctx context.Context, img *image, p *plan.Plan, over *overlay,
	diff *ChangedError,
) ([]vault.Watch, error) {
	total, done := int64(0), int64(0)
	for _, r := range p.Relies {
		if r.Length > max(p.SizeAfterBytes, plan.MaxWriteBytes) || total > math.MaxInt64-r.Length {
			return nil, fmt.Errorf("%w: it relies on %d bytes at %#x", plan.ErrNotPlan, r.Length,
				r.Offset)
		}
		total += r.Length
	}
	buf := make([]byte, min(gapBytes, p.SizeAfterBytes+1))
	var all []vault.Watch
	for _, r := range p.Relies {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		got, err := plan.DigestOf(reading{ctx, img.f}, over.size, r.Offset, r.Length, buf)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", img.path, err)
		}
		if got.CRC32C != r.CRC32C {
			diff.add(r.Offset, r.Length)
		}
		w := vault.Watch{Offset: r.Offset, Length: r.Length, Before: r.CRC32C, After: r.CRC32C}
		switch piece := buf[:min(r.Length, int64(len(buf)))]; {
		case r.Length == int64(len(piece)): // it still holds what was read
			if over.put(piece, r.Offset) {
				w.After = plan.Checksum(piece)
			}
		case len(over.touching(r.Offset, r.Length)) > 0:
			if got, err = plan.DigestOf(reading{ctx, over}, p.SizeAfterBytes, r.Offset, r.Length, buf); err != nil {
				return nil, err
			}
			w.After = got.CRC32C
		}
		all = append(all, w)
		done += r.Length
		e.o.Progress("compare with the plan", done, total)
	}
	return all, nil
}

// compareOld compares the bytes that the plan replaces.
func (e *engine) compareOld(
	ctx context.Context, img *image, p *plan.Plan, diff *ChangedError,
) error {
	var buf []byte
	compare := func(off int64, old []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = slices.Grow(buf[:0], len(old))[:len(old)]
		if err := img.read(buf, off, p.Object.SizeBytes); err != nil {
			return err
		}
		if !bytes.Equal(buf, old) {
			diff.add(off, int64(len(old)))
		}
		return nil
	}
	if f := p.Fence; f != nil {
		if err := compare(f.Offset, f.Old); err != nil {
			return err
		}
	}
	for _, w := range p.Writes {
		if err := compare(w.Offset, w.Old); err != nil {
			return err
		}
	}
	return nil
}

// room refuses a change for which there is not enough space.
func (e *engine) room(img *image, d *vault.Draft, undoDir string) error {
	p := d.Plan
	id, err := img.f.Identity()
	if err != nil {
		return err
	}
	if grows := p.GrowsBy(); grows > 0 && id.Block {
		return &RoomError{Where: img.path, NeedBytes: p.SizeAfterBytes, FreeBytes: id.SizeBytes}
	}
	undo, err := d.Bytes()
	if err != nil {
		return err
	}
	imageDir := filepath.Dir(img.path)
	here, err := e.disk.Room(imageDir)
	if err != nil {
		return err
	}
	there, err := e.disk.Room(undoDir)
	if err != nil {
		return err
	}
	grows := p.GrowsBy()
	if here.Shared(there) {
		undo, grows = undo+grows, 0
	}
	switch {
	case grows > here.FreeBytes:
		return &RoomError{Where: imageDir, NeedBytes: grows, FreeBytes: here.FreeBytes}
	case undo > there.FreeBytes:
		return &RoomError{Where: undoDir, NeedBytes: undo, FreeBytes: there.FreeBytes}
	}
	return nil
}

// unused refuses a plan that was used before, and an image that an earlier change left in the
// middle.
func (e *engine) unused(ctx context.Context, img *image, p *plan.Plan) error {
	_, err := e.v.Receipt(p.ID)
	switch {
	case err == nil:
		return fmt.Errorf("%w: receipt %s", ErrUsed, p.ID)
	case !errors.Is(err, vault.ErrNotFound):
		return err
	}
	return e.finished(ctx, img, p.ID)
}

// finished refuses an image that an earlier change left in the middle, or one that was made from the
// plan named id.
func (e *engine) finished(ctx context.Context, img *image, id string) error {
	i, err := vault.ImageOf(img.path, img.f)
	if err != nil {
		return err
	}
	all, unread := e.v.FindOf(ctx, i)
	for _, c := range all {
		switch {
		case c.ID != "" && c.ID == id:
			return fmt.Errorf("%w: undo file %s", ErrUsed, c.UndoPath)
		case isCopy(c, i):
			// It is the file that this one is a copy of that was changed.
		case c.Err != nil:
			return fmt.Errorf("whether %w cannot be told: %w", ErrUnfinished, c.Err)
		}
		if left, err := e.leftMiddle(ctx, img, i, c); err != nil || left {
			return errors.Join(err, unfinished(c))
		}
	}
	return unread
}

// unfinished is ErrUnfinished with what is known of the change.
func unfinished(c *vault.Candidate) error {
	if c.UndoPath == "" {
		return fmt.Errorf("%w: its undo file %s is gone (receipt %s)", ErrUnfinished, c.Receipt.Undo(), c.ID)
	}
	return fmt.Errorf("%w: undo file %s (%s)", ErrUnfinished, c.UndoPath, c.State)
}

// leftMiddle reports whether a change left an image in the middle. Where only the name of the undo
// file says that it is of this image, another one may have taken its place, as when it was restored
// from a backup: then the bytes decide.
func (e *engine) leftMiddle(
	ctx context.Context, img *image, i *vault.Image, c *vault.Candidate,
) (bool, error) {
	switch {
	case !c.State.Unfinished(), isCopy(c, i):
		return false, nil
	case c.Match != vault.MatchName, c.UndoPath == "", c.State == vault.Partial:
		return true, nil
	}
	u, err := e.v.OpenUndo(ctx, c.UndoPath)
	if err != nil {
		return false, err
	}
	defer u.Close()
	ch, err := e.newChange(ctx, img, u)
	if err == nil {
		err = ch.survey(ctx, wantEither)
	}
	if errors.Is(err, ErrChanged) {
		return false, nil
	}
	return err == nil, err
}

// Finished returns ErrUnfinished where an earlier change left an image in the middle, so that Apply
// would refuse it. It opens the image for reading only and takes no lock; its other errors are those
// of opening and reading.
func Finished(ctx context.Context, image string, o Options) error {
	e, err := newEngine(ctx, o)
	if err != nil {
		return err
	}
	if image, err = e.disk.RealPath(image); err != nil {
		return err
	}
	img, err := e.look(image)
	if err != nil {
		return err
	}
	defer img.Close()
	return e.finished(ctx, img, "")
}
