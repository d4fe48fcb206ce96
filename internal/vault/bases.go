// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
)

const (
	// BaseReceiptSchema is what the receipt of an act on base images begins with.
	BaseReceiptSchema = "shisa.base-receipt/1"
	// maxBaseReceiptBytes bounds such a receipt: some hundred thousand steps.
	maxBaseReceiptBytes = 64 << 20
)

// BaseWhat is what a step of an act does to a pool of base images.
type BaseWhat string

// The steps.
const (
	// BasePolicy: the pool got its directory and its document.
	BasePolicy BaseWhat = "policy"
	// BaseShield: a base got a second name, Path. BaseUnshield: it lost it.
	BaseShield   BaseWhat = "shield"
	BaseUnshield BaseWhat = "unshield"
	// BaseTouch: the file Path was given another time of its last change.
	BaseTouch BaseWhat = "touch"
	// BaseRecord: the digests of what a base holds were written to Path. BaseForget: they were taken away.
	BaseRecord BaseWhat = "record"
	BaseForget BaseWhat = "forget"
	// BaseRestore: a base got its name Path back, from its shield or from quarantine (ID).
	BaseRestore BaseWhat = "restore"
	// BaseAdopt: a copy was put in its place, Path.
	BaseAdopt BaseWhat = "adopt"
	// BasePin: a base is to be kept (ID). BaseUnpin: not any more.
	BasePin   BaseWhat = "pin"
	BaseUnpin BaseWhat = "unpin"
	// BaseQuarantine: a base, Path, was set aside (ID). BasePurge: it was removed for good.
	BaseQuarantine BaseWhat = "quarantine"
	BasePurge      BaseWhat = "purge"
	// BaseMember: a node, Name, became a member by the document Path. BaseRetire: a person said that it does not come
	// back. BaseUnretire: such a document was taken out of force, and has the name Path.
	BaseMember   BaseWhat = "member"
	BaseRetire   BaseWhat = "retire"
	BaseUnretire BaseWhat = "unretire"
)

func (w BaseWhat) known() bool {
	return slices.Contains([]BaseWhat{BasePolicy, BaseShield, BaseUnshield, BaseTouch, BaseRecord, BaseForget, BaseRestore,
		BaseAdopt, BasePin, BaseUnpin, BaseQuarantine, BasePurge, BaseMember, BaseRetire, BaseUnretire}, w)
}

// BaseReceipt says what an act did to the base images of a pool, or is about to do. It is replaced as a
// whole.
type BaseReceipt struct {
	Schema string `json:"schema"`
	ID     string `json:"id"`
	// State is applying, committed, or undone. A committed one of which some steps are undone was taken
	// back as far as nothing was lost by it.
	State State `json:"state"`
	// Act is the command: protect, unprotect, restore, adopt, watch, pin, unpin, quarantine, purge, join, retire.
	Act string `json:"act"`
	// Tool is the program and version, Node the host in the pool's audit.
	Tool string `json:"tool"`
	Node string `json:"node"`
	// Created is when the act was begun, Finished when it ended, Undone when it was taken back. Nil where
	// that did not happen.
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished"`
	Undone   *time.Time `json:"undone"`
	// Bases is the directory of the bases, Pool the UUID of its pool.
	Bases    string `json:"bases"`
	BasesB64 string `json:"bases_b64,omitempty"`
	Pool     string `json:"pool"`
	// Failure says why the act ended early, "" where it did not.
	Failure string `json:"failure"`
	// Steps are in the order in which they are done.
	Steps []BaseStep `json:"steps"`
	// SHA256 is the digest of the document without it, as encoding/json writes that on one line.
	SHA256 string `json:"sha256"`
}

// BaseStep is one thing that is done to one base.
type BaseStep struct {
	What BaseWhat `json:"what"`
	// Name is that of the base, or of a node, Path the file that it is done to, Inode the inode that has that name, or
	// is given it; 0 where it is not known before it is done.
	Name    string `json:"name"`
	Path    string `json:"path"`
	PathB64 string `json:"path_b64,omitempty"`
	Inode   uint64 `json:"inode"`
	// Before and After are the time of the last change before and after a touch, nil for others.
	Before *time.Time `json:"before"`
	After  *time.Time `json:"after"`
	// ID is that of a quarantine or a pin, "" for others.
	ID string `json:"id"`
	// Done: it was done. As long as the act is under way, nobody knows. Undone: it was taken back.
	Done   bool `json:"done"`
	Undone bool `json:"undone"`
	// Why says why it was not done, or not taken back.
	Why string `json:"why"`
}

// SetAt notes the file that a step is done to.
func (s *BaseStep) SetAt(path string) { s.Path, s.PathB64 = textPath(path) }

// At is the file that a step is done to, also where its name is no UTF-8.
func (s *BaseStep) At() string { return rawPath(s.Path, s.PathB64) }

// SetDir notes the directory of the bases.
func (r *BaseReceipt) SetDir(path string) { r.Bases, r.BasesB64 = textPath(path) }

// Dir is the directory of the bases, also where its name is no UTF-8.
func (r *BaseReceipt) Dir() string { return rawPath(r.Bases, r.BasesB64) }

// digest is the SHA-256 of the document without it.
func (r BaseReceipt) digest() (string, error) {
	r.SHA256 = ""
	text, err := json.Marshal(&r)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// decodeBaseReceipt reads a receipt's JSON. Its errors are ErrDamaged and ErrNewer.
func decodeBaseReceipt(raw []byte) (*BaseReceipt, error) {
	damaged := func(format string, args ...any) (*BaseReceipt, error) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
	}
	if len(raw) > maxBaseReceiptBytes {
		return damaged("it is longer than %d bytes", maxBaseReceiptBytes)
	}
	if err := fits(raw); err != nil {
		return damaged("%w", err)
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return damaged("%w", err)
	}
	if name, version, _ := strings.Cut(head.Schema, "/"); name == "shisa.base-receipt" && version != "1" {
		return nil, fmt.Errorf("%w: its schema is %.40q, this one knows %q", ErrNewer, head.Schema, BaseReceiptSchema)
	} else if head.Schema != BaseReceiptSchema {
		return damaged("its schema is %.40q, want %q", head.Schema, BaseReceiptSchema)
	}
	r := new(BaseReceipt)
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return damaged("%w", err)
	}
	switch sum, err := r.digest(); {
	case err != nil:
		return damaged("%w", err)
	case sum != r.SHA256:
		return damaged("it was changed")
	case !IsID(r.ID):
		return damaged("its name is %.40q", r.ID)
	case !filepath.IsAbs(r.Dir()):
		return damaged("its directory is %.80q", r.Bases)
	case !slices.Contains([]State{Applying, Committed, Undoing, Undone}, r.State):
		return damaged("its state is %.40q", r.State)
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		switch {
		case !s.What.known():
			return damaged("step %d is %.40q", i, s.What)
		case !within(r.Dir(), s.At()):
			return damaged("step %d is about %.80q, which is not below %.80q", i, s.Path, r.Bases)
		}
	}
	return r, nil
}

// within tells whether a path is below a directory, by its letters.
func within(dir, path string) bool {
	return filepath.Clean(path) == path && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// BasesDir is the directory of the receipts of acts on base images.
func (v *Vault) BasesDir() string { return filepath.Join(filepath.Dir(v.receipts), "bases") }

// bases is where the receipts of acts on base images are kept.
func (v *Vault) bases() *shelf[BaseReceipt] {
	return &shelf[BaseReceipt]{v: v, dir: v.BasesDir(), maxBytes: maxBaseReceiptBytes, decode: decodeBaseReceipt,
		of: func(r *BaseReceipt) (string, time.Time) { return r.ID, r.Created }}
}

// BaseReceipt reads one receipt. The errors are ErrNotFound, ErrDamaged, ErrNewer, and those of reading.
func (v *Vault) BaseReceipt(id string) (*BaseReceipt, error) { return v.bases().read(id) }

// BaseReceipts lists the receipts of acts on base images, newest first. Those that cannot be read are told
// by the error, beside the others.
func (v *Vault) BaseReceipts(ctx context.Context) ([]*BaseReceipt, error) { return v.bases().list(ctx) }

// PutBase writes the receipt of an act with its digest and returns when it is on the disk. One of the same
// name is replaced, at once or not at all.
func (v *Vault) PutBase(r *BaseReceipt) error {
	// A digest needs letters that are read as they were written.
	valid := func(s *string) { *s = strings.ToValidUTF8(*s, "\uFFFD") }
	valid(&r.Failure)
	for i := range r.Steps {
		valid(&r.Steps[i].Name)
		valid(&r.Steps[i].Why)
	}
	sum, err := r.digest()
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, r.ID, err)
	}
	r.SHA256 = sum
	return v.bases().put(r)
}

// DropBase removes the receipt of an act that changed nothing, or of one that can never be taken back since
// a later one did the same.
func (v *Vault) DropBase(id string) error { return v.bases().drop(id) }

// atWorkSuffix ends the name of the file that is locked while the act of a receipt is under way.
const atWorkSuffix = ".act"

func (v *Vault) baseAtWork(id string) string { return filepath.Join(v.BasesDir(), id+atWorkSuffix) }

// HoldBase says that the act of a receipt is under way, until what it returns is closed or the program ends. Where the
// file system keeps no locks nobody is told so. It comes before the receipt is put: who lists receipts looks who holds them.
func (v *Vault) HoldBase(id string) (io.Closer, error) {
	path := v.baseAtWork(id)
	var f diskio.Writable
	err := v.disk.MakeDir(v.BasesDir(), 0o700)
	if err == nil {
		f, err = v.disk.CreateNew(path, 0o600)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrReceipt, id, err)
	}
	held, err := v.disk.OpenForRepair(path)
	if err != nil && !errors.Is(err, diskio.ErrNoLocks) {
		return nil, errors.Join(fmt.Errorf("%w %s: %w", ErrReceipt, id, err), v.disk.Remove(path))
	}
	return closer(func() error {
		err := v.disk.Remove(path)
		if held != nil {
			err = errors.Join(err, held.Close())
		}
		return err
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }

// BaseUnderWay returns diskio.ErrInUse while the act of a receipt is under way, and takes away what one left that was cut
// off.
func (v *Vault) BaseUnderWay(id string) error {
	path := v.baseAtWork(id)
	if err := v.atWork(path); err != nil {
		return fmt.Errorf("the act %s is under way: %w", id, err)
	}
	if err := v.disk.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leftAfter is how old what says that an act is under way gets before it is taken for what one left that was cut off right
// then: the lock and the receipt follow within moments.
const leftAfter = time.Hour

// DropLeft takes away what acts left that were cut off before their receipt was there, or after it was ended. now is the
// time of the call.
func (v *Vault) DropLeft(ctx context.Context, now time.Time) error {
	paths, err := v.disk.List(ctx, v.BasesDir(), false, func(name string) bool {
		id, ok := strings.CutSuffix(name, atWorkSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever changed
	}
	for _, path := range paths {
		e := v.dropLeft(path, now)
		if !errors.Is(e, fs.ErrNotExist) && !errors.Is(e, diskio.ErrInUse) { // its act ended meanwhile, or goes on
			err = errors.Join(err, e)
		}
	}
	return err
}

func (v *Vault) dropLeft(path string, now time.Time) error {
	f, err := v.disk.Open(path)
	if err != nil {
		return err
	}
	is, err := f.Identity()
	if err = errors.Join(err, f.Close()); err != nil || now.Sub(is.ModTime) < leftAfter {
		return err
	}
	id := strings.TrimSuffix(filepath.Base(path), atWorkSuffix)
	switch r, err := v.BaseReceipt(id); {
	case err == nil && r.State.Unfinished(): // who ends that takes it away
		return nil
	case err != nil && !errors.Is(err, ErrNotFound): // BaseReceipts says so
		return nil
	}
	return v.BaseUnderWay(id)
}

// LockBases keeps other programs from taking acts back until what it returns is closed. The errors are as
// for LockTexts.
func (v *Vault) LockBases() (io.Closer, error) { return v.bases().lock("taking back another act") }
