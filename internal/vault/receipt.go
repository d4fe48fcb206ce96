// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
)

const (
	// ReceiptSchema is what a receipt's JSON document begins with.
	ReceiptSchema = "shisa.receipt/1"
	// maxReceiptBytes bounds a receipt: its lists come from a plan, where they may be cut.
	maxReceiptBytes = 256 << 20
	// maxReceiptObjects bounds what it takes in memory: an object of two characters may become a
	// finding of some hundred bytes, and whoever may write to the directory of an image can put an undo
	// file there.
	maxReceiptObjects = 1 << 20
	receiptSuffix     = ".json"
	// freshSuffix ends the name of a receipt while it is written.
	freshSuffix = receiptSuffix + ".new"
)

// Receipt says what a change did to an image, or is about to do.
type Receipt struct {
	Schema string `json:"schema"`
	// ID is that of the plan and of the undo file.
	ID    string `json:"id"`
	State State  `json:"state"`
	// Created is when the undo file was made; Finished when the change was committed or rolled
	// back; Undone when it was undone. Nil where that did not happen.
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished"`
	Undone   *time.Time `json:"undone"`
	// Tool is the program and version that made the plan.
	Tool string `json:"tool"`
	// PlanDigest is the SHA-256 of the plan's document, in hexadecimal.
	PlanDigest string `json:"plan_digest"`
	// Object is the image as it was before.
	Object plan.Object `json:"object"`
	// Born is when the image file was made; nil where the file system does not say.
	Born           *time.Time `json:"born"`
	SizeAfterBytes int64      `json:"size_after_bytes"`
	// HeadBefore and HeadAfter are the SHA-256 of the first 64 KiB of the image, in hexadecimal; ""
	// where they could not be read.
	HeadBefore string `json:"head_before"`
	HeadAfter  string `json:"head_after"`
	// UndoPath is where the undo file was made, UndoBytes its length.
	UndoPath    string `json:"undo_path"`
	UndoPathB64 string `json:"undo_path_b64,omitempty"`
	UndoBytes   int64  `json:"undo_bytes"`
	// Steps say what is done and why; Before and After count what a check finds.
	Steps  []plan.Step `json:"steps"`
	Before plan.State  `json:"before"`
	After  plan.State  `json:"after"`
	// Remains is what was not repaired, and Blind what could not be looked at, and why.
	Remains []finding.Finding `json:"remains"`
	Blind   []finding.Blind   `json:"blind"`
	// Hurt are guest ranges whose data is wrong all the same; Resolved is when a person said that
	// they were put right, nil as long as nobody did.
	Hurt     []plan.Hurt `json:"hurt"`
	Resolved *time.Time  `json:"resolved"`
	// Failure says why the change was rolled back, "" where it was not.
	Failure string `json:"failure"`
}

// Image is the path of the image as it was when the change was made.
func (r *Receipt) Image() string { return PathOf(r.Object) }

// PathOf is the path of a plan's file, also where it is no UTF-8.
func PathOf(o plan.Object) string { return rawPath(o.Path, o.PathB64) }

// Undo is the path of the undo file.
func (r *Receipt) Undo() string { return rawPath(r.UndoPath, r.UndoPathB64) }

// rawPath gives the bytes of a path of a document.
func rawPath(path, b64 string) string {
	if b64 == "" {
		return path
	}
	if raw, err := base64.StdEncoding.DecodeString(b64); err == nil {
		return string(raw)
	}
	return path
}

// SetImage notes which file the image is.
func (r *Receipt) SetImage(path string, id diskio.Identity) {
	r.Object.Path, r.Object.PathB64 = textPath(path)
	r.Object.Dev, r.Object.Ino, r.Born = id.Dev, id.Ino, nil
	if !id.Born.IsZero() {
		r.Born = &id.Born
	}
}

// setUndo notes the path of the undo file.
func (r *Receipt) setUndo(path string) { r.UndoPath, r.UndoPathB64 = textPath(path) }

// textPath gives a path as documents have it.
func textPath(path string) (text, b64 string) {
	if utf8.ValidString(path) {
		return path, ""
	}
	b64 = base64.StdEncoding.EncodeToString([]byte(path))
	return strings.ToValidUTF8(path, "\uFFFD"), b64
}

// NewReceipt begins the receipt of a plan with what the plan says.
func NewReceipt(p *plan.Plan, digest string, now time.Time) *Receipt {
	return Receipt{
		Schema: ReceiptSchema, ID: p.ID, State: Prepared, Created: now.UTC(), Tool: p.Tool,
		PlanDigest: digest, Object: p.Object, SizeAfterBytes: p.SizeAfterBytes,
		Steps: orEmpty(slices.Clone(p.Steps)), Before: p.Before, After: p.After,
		Remains: orEmpty(slices.Clone(p.Remains)), Blind: orEmpty(p.Blind), Hurt: orEmpty(p.Hurt),
	}.brief()
}

// maxKept is how many ranges and observations of a step or finding a receipt keeps: every check of
// any image reads all receipts, and a plan may list millions. The undo file has all that was written.
const maxKept = 1000

// brief cuts the lists of a new receipt.
func (r Receipt) brief() *Receipt {
	for i := range r.Steps {
		s := &r.Steps[i]
		s.Host, s.HostCut = firstOf(s.Host, s.HostCut)
		s.Guest, s.GuestCut = firstOf(s.Guest, s.GuestCut)
		s.Proofs, _ = firstOf(s.Proofs, 0)
	}
	for i := range r.Remains {
		f := &r.Remains[i]
		f.Host, f.HostCut = firstOf(f.Host, f.HostCut)
		f.Guest, f.GuestCut = firstOf(f.Guest, f.GuestCut)
		f.Evidence, f.EvidenceCut = firstOf(f.Evidence, f.EvidenceCut)
	}
	return &r
}

// firstOf gives the first items of a list, and the number of those left out.
func firstOf[T any](list []T, cut int64) ([]T, int64) {
	if len(list) <= maxKept {
		return list, cut
	}
	return list[:maxKept:maxKept], cut + int64(len(list)-maxKept)
}

// orEmpty makes a list that is [] in JSON, not null.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// IsID reports whether s has the form of a receipt's name: 32 hexadecimal digits.
func IsID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16 && s == strings.ToLower(s)
}

func (v *Vault) receiptPath(id string) string { return filepath.Join(v.receipts, id+receiptSuffix) }
func (v *Vault) freshPath(id string) string   { return filepath.Join(v.receipts, id+freshSuffix) }

// Receipt reads one receipt. The errors are ErrNotFound, ErrDamaged and ErrNewer.
func (v *Vault) Receipt(id string) (*Receipt, error) {
	if !IsID(id) {
		return nil, fmt.Errorf("%w: %.40q", ErrNotFound, id)
	}
	r, err := v.readReceipt(v.receiptPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, id, v.receipts)
	}
	if err == nil && r.ID != id {
		return nil, fmt.Errorf("the receipt %s %w: it is that of %.40q", v.receiptPath(id), ErrDamaged,
			r.ID)
	}
	return r, err
}

func (v *Vault) readReceipt(path string) (*Receipt, error) {
	f, err := v.disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, maxReceiptBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the receipt %s: %w", path, err)
	}
	r := new(Receipt)
	if err := decodeReceipt(raw, r); err != nil {
		return nil, fmt.Errorf("the receipt %s %w", path, err)
	}
	return r, nil
}

// decodeReceipt reads a receipt's JSON. Its errors are ErrDamaged and ErrNewer.
func decodeReceipt(raw []byte, r *Receipt) error {
	if err := fits(raw); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	name, version, _ := strings.Cut(head.Schema, "/")
	n, err := strconv.Atoi(version)
	switch {
	case name != "shisa.receipt" || err != nil || n < 1:
		return fmt.Errorf("%w: its schema is %.40q, want %q", ErrDamaged, head.Schema, ReceiptSchema)
	case n > 1:
		return fmt.Errorf("%w: its schema is %.40q, this one knows %q", ErrNewer, head.Schema,
			ReceiptSchema)
	}
	if err := json.Unmarshal(raw, r); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !IsID(r.ID) {
		return fmt.Errorf("%w: its name is %.40q", ErrDamaged, r.ID)
	}
	return nil
}

// fits refuses a receipt that is too long to be read.
func fits(raw []byte) error {
	if len(raw) > maxReceiptBytes {
		return fmt.Errorf("its receipt is longer than %d bytes", maxReceiptBytes)
	}
	if n := bytes.Count(raw, []byte("{")); n > maxReceiptObjects {
		return fmt.Errorf("its receipt has %d objects, %d at most", n, maxReceiptObjects)
	}
	return nil
}

// Receipts lists all receipts, newest first. Those that cannot be read are told by the error,
// beside the others.
func (v *Vault) Receipts(ctx context.Context) ([]*Receipt, error) {
	paths, err := v.disk.List(ctx, v.receipts, false, func(name string) bool {
		id, ok := strings.CutSuffix(name, receiptSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever changed
	}
	errs := []error{err}
	var all []*Receipt
	for _, p := range paths {
		r, err := v.readReceipt(p)
		if err != nil {
			errs = append(errs, err)
		} else {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Receipt) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, errors.Join(errs...)
}

// CutOff lists the receipts that were being written for the first time when the program was cut off,
// as far as they are whole and their undo files are there: of changes that were prepared and not
// begun.
func (v *Vault) CutOff(ctx context.Context) ([]*Receipt, error) {
	paths, err := v.disk.List(ctx, v.receipts, false, func(name string) bool {
		id, ok := strings.CutSuffix(name, freshSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []*Receipt
	for _, path := range paths {
		id := strings.TrimSuffix(filepath.Base(path), freshSuffix)
		if v.exists(v.receiptPath(id)) || v.atWork(path) != nil {
			continue // it was to replace that one, or somebody is writing it
		}
		if r, err := v.readReceipt(path); err == nil && v.exists(r.Undo()) {
			all = append(all, r)
		}
	}
	return all, err
}

// atWork returns diskio.ErrInUse where a program holds the lock of a file that it writes.
func (v *Vault) atWork(path string) error {
	f, err := v.disk.OpenForRepair(path)
	switch {
	case errors.Is(err, diskio.ErrInUse):
		return err
	case err == nil:
		f.Close() // nothing was written to it
	}
	return nil
}

// Put writes a receipt and returns when it is on the disk. One of the same name is replaced, at
// once or not at all.
func (v *Vault) Put(r *Receipt) error {
	if !IsID(r.ID) {
		return fmt.Errorf("%w: its name is %.40q", ErrReceipt, r.ID)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	if err := fits(b.Bytes()); err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	if err := v.disk.MakeDir(v.receipts, 0o700); err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	path := v.receiptPath(r.ID)
	if err := v.replace(path, v.freshPath(r.ID), b.Bytes()); err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	return nil
}

// replace puts a new file in the place of path.
func (v *Vault) replace(path, fresh string, content []byte) error {
	f, err := v.disk.CreateNew(fresh, 0o600)
	if errors.Is(err, fs.ErrExist) {
		// Left by a write that was cut off, or another program is at it: then the file is locked.
		if err := v.atWork(fresh); err != nil {
			return err
		}
		if err = v.disk.Remove(fresh); err == nil {
			f, err = v.disk.CreateNew(fresh, 0o600)
		}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = v.disk.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, v.disk.Remove(fresh))
	}
	return v.disk.SyncDir(filepath.Dir(path))
}

// Drop removes the receipt of a change that was never begun.
func (v *Vault) Drop(id string) error {
	err := v.disk.Remove(v.receiptPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		if f, err2 := v.disk.Open(v.receiptPath(id)); errors.Is(err2, fs.ErrNotExist) {
			return nil // a file system that cannot be written to does not look before it says so
		} else if err2 == nil {
			f.Close()
		}
		return fmt.Errorf("remove the receipt of a change that was not begun: %w", err)
	}
	if err = v.disk.SyncDir(v.receipts); errors.Is(err, diskio.ErrNoSync) {
		return nil // should it be there again, its undo file says that nothing was begun
	}
	return err
}

// Resolve notes that a person put right the guest data that a change left hurt.
func (v *Vault) Resolve(id string, now time.Time) (*Receipt, error) {
	r, err := v.Receipt(id)
	if err != nil || r.Resolved != nil {
		return r, err
	}
	now = now.UTC()
	r.Resolved = &now
	return r, v.Put(r)
}

// image is what tells the file apart that a change was made to.
func (r *Receipt) image() diskio.Identity {
	was := diskio.Identity{Stat: diskio.Stat{ID: diskio.ID{Dev: r.Object.Dev, Ino: r.Object.Ino}}}
	if r.Born != nil {
		was.Born = *r.Born
	}
	return was
}

// matches reports whether the image of a receipt is the file that id and head tell of.
func (r *Receipt) matches(i *Image) Match {
	before, after := r.Object.SizeBytes == i.Identity.SizeBytes && r.HeadBefore == i.Head,
		r.SizeAfterBytes == i.Identity.SizeBytes && r.HeadAfter == i.Head
	switch {
	case r.image().Same(i.Identity):
		return MatchFile
	case i.Head == "":
		return NoMatch
	case after && r.State != RolledBack, before && r.State != Committed:
		return MatchContent
	}
	return NoMatch
}
