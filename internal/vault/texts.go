// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
)

const (
	// TextReceiptSchema is what the receipt of a change of text files begins with.
	TextReceiptSchema = "shisa.text-receipt/1"
	// maxTextReceiptBytes bounds such a receipt: all files before and after, each character of one
	// written as six in the worst case.
	maxTextReceiptBytes = plan.MaxTexts * plan.MaxTextBytes * 8
	textLockName        = "lock"
)

// TextReceipt says what a change did to text files, or is about to do, and is all that is needed to
// finish it or to take it back. It is replaced as a whole.
type TextReceipt struct {
	Schema string `json:"schema"`
	// ID is that of the plan.
	ID    string `json:"id"`
	State State  `json:"state"`
	// Created is when the change was begun; Finished when it was committed, rolled back or given up;
	// Undone when it was undone. Nil where that did not happen.
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished"`
	Undone   *time.Time `json:"undone"`
	// Failure says why the change was rolled back or given up, "" where it was not.
	Failure string `json:"failure"`
	// Plan is the plan as it was carried out.
	Plan *plan.Texts `json:"plan"`
	// Before is what was there, one for each file of the plan.
	Before []TextBefore `json:"before"`
}

// TextBefore is a file as it was.
type TextBefore struct {
	Path string `json:"path"`
	// Absent: there was none; then Content is empty.
	Absent  bool       `json:"absent"`
	Content plan.Bytes `json:"content"`
}

// TextsDir is the directory of the receipts of text changes.
func (v *Vault) TextsDir() string { return filepath.Join(filepath.Dir(v.receipts), "texts") }

// TextReceiptPath is the path of the receipt of a text change.
func (v *Vault) TextReceiptPath(id string) string {
	return filepath.Join(v.TextsDir(), id+receiptSuffix)
}

// TextReceipt reads one receipt. The errors are ErrNotFound, ErrDamaged, ErrNewer, and those of
// reading.
func (v *Vault) TextReceipt(id string) (*TextReceipt, error) {
	if !IsID(id) {
		return nil, fmt.Errorf("%w: %.40q", ErrNotFound, id)
	}
	path := v.TextReceiptPath(id)
	f, err := v.disk.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, id, v.TextsDir())
	case err != nil:
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, maxTextReceiptBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the receipt %s: %w", path, err)
	}
	r, err := decodeTextReceipt(raw)
	if err == nil && r.ID != id {
		err = fmt.Errorf("%w: it is that of %.40q", ErrDamaged, r.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("the receipt %s %w", path, err)
	}
	return r, nil
}

// decodeTextReceipt reads a receipt's JSON. Its errors are ErrDamaged and ErrNewer.
func decodeTextReceipt(raw []byte) (*TextReceipt, error) {
	damaged := func(format string, args ...any) (*TextReceipt, error) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
	}
	if len(raw) > maxTextReceiptBytes {
		return damaged("it is longer than %d bytes", maxTextReceiptBytes)
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return damaged("%w", err)
	}
	if name, version, _ := strings.Cut(head.Schema, "/"); name == "shisa.text-receipt" && version != "1" {
		return nil, fmt.Errorf("%w: its schema is %.40q, this one knows %q", ErrNewer, head.Schema,
			TextReceiptSchema)
	} else if head.Schema != TextReceiptSchema {
		return damaged("its schema is %.40q, want %q", head.Schema, TextReceiptSchema)
	}
	r := new(TextReceipt)
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return damaged("%w", err)
	}
	if r.Plan == nil || r.ID != r.Plan.ID || len(r.Before) != len(r.Plan.Files) {
		return damaged("its plan is another one")
	}
	if err := r.Plan.Validate(); err != nil {
		return damaged("%w", err)
	}
	if sum, err := r.Plan.Digest(); err != nil || sum != r.Plan.SHA256 {
		return damaged("its plan was changed")
	}
	for i, b := range r.Before {
		f := &r.Plan.Files[i]
		switch {
		case b.Path != f.Path || b.Absent != (f.Before == nil) || b.Absent && len(b.Content) > 0:
			return damaged("what it keeps of file %d is of another one", i)
		case !b.Absent && !f.Before.Of(b.Content):
			return damaged("what it keeps of %.80q is not what was there", b.Path)
		}
	}
	known := []State{Applying, Committed, RolledBack, Undoing, Undone, SetAside}
	if !slices.Contains(known, r.State) {
		return damaged("its state is %.40q", r.State)
	}
	return r, nil
}

// TextReceipts lists the receipts of text changes, newest first. Those that cannot be read are told by
// the error, beside the others.
func (v *Vault) TextReceipts(ctx context.Context) ([]*TextReceipt, error) {
	paths, err := v.disk.List(ctx, v.TextsDir(), false, func(name string) bool {
		id, ok := strings.CutSuffix(name, receiptSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever changed
	}
	errs := []error{err}
	var all []*TextReceipt
	for _, p := range paths {
		r, err := v.TextReceipt(strings.TrimSuffix(filepath.Base(p), receiptSuffix))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *TextReceipt) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, errors.Join(errs...)
}

// PutText writes the receipt of a text change and returns when it is on the disk. One of the same name
// is replaced, at once or not at all.
func (v *Vault) PutText(r *TextReceipt) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(r)
	if err == nil {
		// What cannot be read again could not be taken back.
		_, err = decodeTextReceipt(b.Bytes())
	}
	if err == nil {
		err = v.disk.MakeDir(v.TextsDir(), 0o700)
	}
	if err == nil {
		path := v.TextReceiptPath(r.ID)
		err = v.replace(path, strings.TrimSuffix(path, receiptSuffix)+freshSuffix, b.Bytes())
	}
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	return nil
}

// DropText removes the receipt of a text change that was never begun.
func (v *Vault) DropText(id string) error {
	err := v.disk.Remove(v.TextReceiptPath(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove the receipt of a change that was not begun: %w", err)
	}
	return v.disk.SyncDir(v.TextsDir())
}

// TextsCutOff reports whether the writing of a receipt was cut off.
func (v *Vault) TextsCutOff(ctx context.Context) (bool, error) {
	paths, err := v.textsCutOff(ctx)
	return len(paths) > 0, err
}

func (v *Vault) textsCutOff(ctx context.Context) ([]string, error) {
	paths, err := v.disk.List(ctx, v.TextsDir(), false, func(name string) bool {
		id, ok := strings.CutSuffix(name, freshSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return paths, err
}

// DropTextsCutOff removes what was written of receipts when the program was cut off: what counts is
// the receipt before. The caller holds the lock.
func (v *Vault) DropTextsCutOff(ctx context.Context) error {
	paths, err := v.textsCutOff(ctx)
	for _, path := range paths {
		err = errors.Join(err, v.disk.Remove(path))
	}
	return err
}

// LockTexts keeps other programs from changing text files until what it returns is closed. The errors
// are diskio.ErrInUse where one is at it, diskio.ErrNoLocks, and those of making a file.
func (v *Vault) LockTexts() (io.Closer, error) {
	if err := v.disk.MakeDir(v.TextsDir(), 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	path := filepath.Join(v.TextsDir(), textLockName)
	f, err := v.disk.OpenForRepair(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = v.disk.CreateNew(path, 0o600)
		if err == nil {
			err = f.Close()
		}
		// It is opened as by the next one: making a file does not mind a file system without locks.
		if err == nil || errors.Is(err, fs.ErrExist) {
			f, err = v.disk.OpenForRepair(path)
		}
	}
	var busy *diskio.InUseError
	switch {
	case errors.As(err, &busy):
		return nil, fmt.Errorf("another change of text files is under way: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	return f, nil
}
