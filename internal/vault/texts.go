// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/plan"
)

const (
	// TextReceiptSchema is what the receipt of a change of text files begins with.
	TextReceiptSchema = "shisa.text-receipt/1"
	// maxTextReceiptBytes bounds such a receipt: all files before and after, each character of one
	// written as six in the worst case.
	maxTextReceiptBytes = plan.MaxTexts * plan.MaxTextBytes * 8
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

// texts is where the receipts of text changes are kept.
func (v *Vault) texts() *shelf[TextReceipt] {
	return &shelf[TextReceipt]{v: v, dir: v.TextsDir(), maxBytes: maxTextReceiptBytes, decode: decodeTextReceipt,
		of: func(r *TextReceipt) (string, time.Time) { return r.ID, r.Created }}
}

// TextReceiptPath is the path of the receipt of a text change.
func (v *Vault) TextReceiptPath(id string) string { return v.texts().path(id) }

// TextReceipt reads one receipt. The errors are ErrNotFound, ErrDamaged, ErrNewer, and those of
// reading.
func (v *Vault) TextReceipt(id string) (*TextReceipt, error) { return v.texts().read(id) }

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
func (v *Vault) TextReceipts(ctx context.Context) ([]*TextReceipt, error) { return v.texts().list(ctx) }

// PutText writes the receipt of a text change and returns when it is on the disk. One of the same name
// is replaced, at once or not at all.
func (v *Vault) PutText(r *TextReceipt) error { return v.texts().put(r) }

// DropText removes the receipt of a text change that was never begun.
func (v *Vault) DropText(id string) error { return v.texts().drop(id) }

// TextsCutOff reports whether the writing of a receipt was cut off.
func (v *Vault) TextsCutOff(ctx context.Context) (bool, error) {
	paths, err := v.texts().cutOff(ctx)
	return len(paths) > 0, err
}

// DropTextsCutOff removes what was written of receipts when the program was cut off: what counts is
// the receipt before. The caller holds the lock.
func (v *Vault) DropTextsCutOff(ctx context.Context) error { return v.texts().dropCutOff(ctx) }

// LockTexts keeps other programs from changing text files until what it returns is closed. The errors
// are diskio.ErrInUse where one is at it, diskio.ErrNoLocks, and those of making a file.
func (v *Vault) LockTexts() (io.Closer, error) { return v.texts().lock("another change of text files") }
