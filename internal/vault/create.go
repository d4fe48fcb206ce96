// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
)

// maxUndoFiles bounds how many undo files of one image lie in a directory.
const maxUndoFiles = 10000

// Draft is an undo file that is to be made.
type Draft struct {
	Plan *plan.Plan
	// Receipt is written into the undo file.
	Receipt *Receipt
	// SectorOld and SectorNew are the first sector of the image before and after, whole: as long as
	// the image where that is shorter. Nil where the plan has no phase Switch.
	SectorOld, SectorNew []byte
	Watches              []Watch
}

// records calls fn for what goes into the file, one record after the other.
func (d *Draft) records(fn func(Record) error) error {
	if f := d.Plan.Fence; f != nil {
		if err := fn(Record{KindFence, f.Offset, f.Old, f.New}); err != nil {
			return err
		}
	}
	for _, w := range d.Plan.Writes {
		if w.Phase == plan.Switch {
			continue // the first sector stands for them
		}
		for at := 0; at < len(w.New); at += maxPieceBytes {
			to := min(at+maxPieceBytes, len(w.New))
			old := w.Old[min(at, len(w.Old)):min(to, len(w.Old))]
			if err := fn(Record{kindOf(w.Phase), w.Offset + int64(at), old, w.New[at:to]}); err != nil {
				return err
			}
		}
	}
	if d.SectorNew != nil {
		if err := fn(Record{KindSwitch, 0, d.SectorOld, d.SectorNew}); err != nil {
			return err
		}
	}
	for _, w := range d.Watches {
		if err := fn(w.record()); err != nil {
			return err
		}
	}
	return nil
}

// layout gives the header, the receipt as JSON and the number of records.
func (d *Draft) layout(undoPath string) (*header, []byte, error) {
	h := &header{
		dev: d.Plan.Object.Dev, ino: d.Plan.Object.Ino, before: d.Plan.Object.SizeBytes,
		after: d.Plan.SizeAfterBytes, modTime: d.Plan.Object.ModTime,
	}
	for _, t := range []struct {
		to   []byte
		text string
	}{
		{h.id[:], d.Plan.ID}, {h.headBefore[:], d.Receipt.HeadBefore},
		{h.headAfter[:], d.Receipt.HeadAfter}, {h.digest[:], d.Receipt.PlanDigest},
	} {
		if raw, err := hex.DecodeString(t.text); err != nil || copy(t.to, raw) != len(raw) {
			return nil, nil, fmt.Errorf("%q is no digest or name", t.text)
		}
	}
	d.Receipt.setUndo(undoPath)
	meta, err := json.Marshal(d.Receipt)
	if err != nil {
		return nil, nil, err
	}
	if err := fits(meta); err != nil {
		return nil, nil, err
	}
	h.metaBytes, h.metaCRC = int64(len(meta)), plan.Checksum(meta)
	h.endBytes = sectorBytes + h.metaBytes + trailerBytes
	n := uint64(0)
	err = d.records(func(r Record) error {
		n++
		h.endBytes += recordHead + int64(len(r.Old)+len(r.New))
		return h.check(r)
	})
	if err == nil && n > math.MaxUint32 {
		err = fmt.Errorf("%d records", n)
	}
	return h, meta, err
}

// Bytes is about how long the undo file becomes, states included.
func (d *Draft) Bytes() (int64, error) {
	h, _, err := d.layout("")
	if err != nil {
		return 0, fmt.Errorf("lay out the undo file: %w", err)
	}
	// The path is not in it yet, and the file system needs a little for the name.
	return h.statesAt() + roomStates*sectorBytes + 4*4096, nil
}

// Create makes the undo file of a draft, beside the image, or in journalDir if that is not "". It
// returns when the file and its name are on the disk, in the state Prepared. After an error
// there is no file, unless the error says so.
func (v *Vault) Create(ctx context.Context, d *Draft, image, journalDir string) (*Undo, error) {
	dir, base := filepath.Dir(image), filepath.Base(image)
	if journalDir != "" {
		dir, base = journalDir, base+"."+d.Plan.ID
	}
	f, path, err := v.freeName(ctx, filepath.Join(dir, base+Suffix))
	if err != nil {
		return nil, fmt.Errorf("make the undo file: %w", err)
	}
	u, err := v.fill(ctx, d, f, path)
	if err == nil {
		err = v.disk.SyncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("write the undo file %s: %w", path, err), v.Discard(path))
	}
	return u, nil
}

// Discard removes the undo file of a change that was never begun.
func (v *Vault) Discard(path string) error {
	err := v.disk.Remove(path)
	if err == nil {
		err = v.disk.SyncDir(filepath.Dir(path))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, diskio.ErrNoSync) {
		return fmt.Errorf("remove the undo file of a change that was not begun: %w", err)
	}
	return nil
}

// asideSuffix comes behind the name of an undo file that was set aside, and before the name of its plan.
const asideSuffix = ".aside-"

// SetAside gives up a change that was left in the middle: its undo file gets a name that is no undo
// file's, and its receipt says so. Nothing is removed, and the image is not touched. It returns the new
// name when all is on the disk, and the receipt, nil if there is none. Done again after it was cut
// off, it is finished.
func (v *Vault) SetAside(u *Undo, why string, now time.Time) (path string, kept *Receipt, err error) {
	fail := func(err error) (string, *Receipt, error) {
		return "", nil, fmt.Errorf("set the undo file %s aside: %w", u.Path(), err)
	}
	path = u.Path() + asideSuffix + u.ID()
	switch f, err := v.disk.Open(path); {
	case err == nil:
		return fail(errors.Join(&fs.PathError{Op: "rename", Path: path, Err: fs.ErrExist}, f.Close()))
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	}
	// The receipt first: until the undo file has its new name, it speaks for the change.
	kept, err = v.Receipt(u.ID())
	switch {
	case errors.Is(err, ErrNotFound):
		kept = nil
	case err != nil:
		return fail(err)
	case !v.Speaks(kept, u.Path()):
		kept = nil // it tells of another copy of the image
	default:
		now = now.UTC()
		kept.State, kept.Finished, kept.Failure = SetAside, &now, why
		kept.setUndo(path)
		if err := v.Put(kept); err != nil {
			return fail(err)
		}
	}
	if err := v.disk.Rename(u.Path(), path); err != nil {
		return fail(err)
	}
	if err := v.disk.SyncDir(filepath.Dir(path)); err != nil {
		return fail(err)
	}
	return path, kept, nil
}

// freeName makes the first of path, path.2, path.3 and so on that is not there.
func (v *Vault) freeName(ctx context.Context, path string) (
	f diskio.Writable, name string, err error,
) {
	for n := 1; n <= maxUndoFiles && ctx.Err() == nil; n++ {
		name = path
		if n > 1 {
			name += "." + strconv.Itoa(n)
		}
		f, err = v.disk.CreateNew(name, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			return f, name, err
		}
	}
	return nil, "", errors.Join(err, ctx.Err())
}

// fill writes all that an undo file holds, up to its first state.
func (v *Vault) fill(ctx context.Context, d *Draft, f diskio.Writable, path string) (*Undo, error) {
	h, meta, err := d.layout(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.NewOffsetWriter(f, 0), maxPieceBytes)
	w := io.MultiWriter(out, sum)
	if _, err = w.Write(append(h.encode(), meta...)); err != nil {
		return nil, err
	}
	var buf []byte
	seq := uint32(0)
	err = d.records(func(r Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = encodeRecord(buf[:0], seq, r)
		seq++
		_, err := w.Write(buf)
		return err
	})
	if err != nil {
		return nil, err
	}
	// The room of later states is taken now: a disk that is full must not keep us from noting one.
	tail := [][]byte{
		encodeTrailer(uint64(seq), sum.Sum(nil)), make([]byte, h.statesAt()-h.endBytes),
		encodeState(h.id, 0, Prepared, d.Receipt.Created), make([]byte, (roomStates-1)*sectorBytes),
	}
	if _, err = out.Write(bytes.Join(tail, nil)); err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.DropCache()
	}
	if err != nil {
		return nil, err
	}
	// Read back from the disk: what is applied later is what stands there, not what was meant to.
	u, err := readUndo(ctx, path, f)
	if err != nil {
		return nil, err
	}
	u.w, u.sure = f, true
	return u, nil
}

// Fork copies an undo file for a copy of its image, beside that or in journalDir, so that the states
// of the two are kept apart. A change that was undone in the other image is in force in the copy. It
// returns when the new file and its name are on the disk.
func (v *Vault) Fork(ctx context.Context, from, image, journalDir string) (string, error) {
	u, err := v.OpenUndo(ctx, from)
	if err != nil {
		return "", err
	}
	defer u.Close()
	kept := len(u.states) - 1
	if u.State() == Undone {
		kept -= 2 // committed came before undoing
	}
	dir, base := filepath.Dir(image), filepath.Base(image)
	if journalDir != "" {
		dir, base = journalDir, base+"."+u.ID()
	}
	f, path, err := v.freeName(ctx, filepath.Join(dir, base+Suffix))
	if err != nil {
		return "", fmt.Errorf("copy the undo file: %w", err)
	}
	end := u.h.statesAt() + int64(kept+1)*sectorBytes
	size := u.h.statesAt() + roomStates*sectorBytes
	buf := make([]byte, maxPieceBytes)
	for at := int64(0); err == nil && at < size; {
		p := buf[:min(int64(len(buf)), size-at)]
		n := int(max(0, min(int64(len(p)), end-at)))
		clear(p[n:])
		if _, err = u.r.ReadAt(p[:n], at); errors.Is(err, io.EOF) {
			err = nil
		}
		if err == nil {
			_, err = f.WriteAt(p, at)
		}
		if err == nil {
			err = ctx.Err()
		}
		at += int64(len(p))
	}
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = v.disk.SyncDir(dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("copy the undo file to %s: %w", path, err), v.Discard(path))
	}
	return path, nil
}
