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
)

// lockName is the file of a shelf that is locked while somebody changes what its receipts tell of.
const lockName = "lock"

// shelf is a directory of receipts that are all there is of a change: each is one JSON document,
// ID.json, which is replaced as a whole.
type shelf[R any] struct {
	v   *Vault
	dir string
	// maxBytes bounds one document.
	maxBytes int
	// decode reads a document; its errors are ErrDamaged and ErrNewer.
	decode func([]byte) (*R, error)
	// of tells the ID of a receipt, and when it was made.
	of func(*R) (id string, created time.Time)
}

func (s *shelf[R]) path(id string) string { return filepath.Join(s.dir, id+receiptSuffix) }

// read reads one receipt. The errors are ErrNotFound, ErrDamaged, ErrNewer, and those of reading.
func (s *shelf[R]) read(id string) (*R, error) {
	if !IsID(id) {
		return nil, fmt.Errorf("%w: %.40q", ErrNotFound, id)
	}
	path := s.path(id)
	f, err := s.v.disk.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, id, s.dir)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, int64(s.maxBytes)+1))
	if err != nil {
		return nil, fmt.Errorf("read the receipt %s: %w", path, err)
	}
	r, err := s.decode(raw)
	if err == nil {
		if own, _ := s.of(r); own != id {
			err = fmt.Errorf("%w: it is that of %.40q", ErrDamaged, own)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the receipt %s %w", path, err)
	}
	return r, nil
}

// list lists the receipts, newest first. Those that cannot be read are told by the error, beside the others.
func (s *shelf[R]) list(ctx context.Context) ([]*R, error) {
	paths, err := s.v.disk.List(ctx, s.dir, false, func(name string) bool {
		id, ok := strings.CutSuffix(name, receiptSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever changed
	}
	errs := []error{err}
	var all []*R
	for _, p := range paths {
		r, err := s.read(strings.TrimSuffix(filepath.Base(p), receiptSuffix))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *R) int {
		one, madeOne := s.of(a)
		two, madeTwo := s.of(b)
		if c := madeTwo.Compare(madeOne); c != 0 {
			return c
		}
		return strings.Compare(one, two)
	})
	return all, errors.Join(errs...)
}

// put writes a receipt and returns when it is on the disk. One of the same name is replaced, at once or
// not at all.
func (s *shelf[R]) put(r *R) error {
	id, _ := s.of(r)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(r)
	if err == nil {
		// What cannot be read again could not be taken back.
		_, err = s.decode(b.Bytes())
	}
	if err == nil {
		err = s.v.disk.MakeDir(s.dir, 0o700)
	}
	if err == nil {
		path := s.path(id)
		err = s.v.replace(path, strings.TrimSuffix(path, receiptSuffix)+freshSuffix, b.Bytes())
	}
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrReceipt, id, err)
	}
	return nil
}

// drop removes a receipt that tells of nothing.
func (s *shelf[R]) drop(id string) error {
	err := s.v.disk.Remove(s.path(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove the receipt of a change that was not begun: %w", err)
	}
	return s.v.disk.SyncDir(s.dir)
}

// cutOff lists what was written of receipts when the program was cut off.
func (s *shelf[R]) cutOff(ctx context.Context) ([]string, error) {
	paths, err := s.v.disk.List(ctx, s.dir, false, func(name string) bool {
		id, ok := strings.CutSuffix(name, freshSuffix)
		return ok && IsID(id)
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return paths, err
}

func (s *shelf[R]) dropCutOff(ctx context.Context) error {
	paths, err := s.cutOff(ctx)
	for _, path := range paths {
		err = errors.Join(err, s.v.disk.Remove(path))
	}
	return err
}

// lock keeps other programs from changing what the receipts tell of until what it returns is closed. The
// errors are diskio.ErrInUse where one is at it, diskio.ErrNoLocks, and those of making a file.
func (s *shelf[R]) lock(what string) (io.Closer, error) {
	if err := s.v.disk.MakeDir(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	path := filepath.Join(s.dir, lockName)
	f, err := s.v.disk.OpenForRepair(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = s.v.disk.CreateNew(path, 0o600)
		if err == nil {
			err = f.Close()
		}
		// It is opened as by the next one: making a file does not mind a file system without locks.
		if err == nil || errors.Is(err, fs.ErrExist) {
			f, err = s.v.disk.OpenForRepair(path)
		}
	}
	var busy *diskio.InUseError
	switch {
	case errors.As(err, &busy):
		return nil, fmt.Errorf("%s is under way: %w", what, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	return f, nil
}
