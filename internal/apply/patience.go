// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// errHung: an operation did not end. It may still do what it was to do, so nothing more is done.
var errHung = errors.New("the storage does not answer")

// syncError marks the error of a sync. What was written before it may be on the disk or not, and no
// later sync tells; so nothing more is done.
type syncError struct{ err error }

func (e *syncError) Error() string { return e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

// stops reports whether after this error nothing more may be done.
func stops(err error) bool {
	var s *syncError
	return errors.Is(err, errHung) || errors.As(err, &s)
}

// patient is a disk whose operations are not waited for without end once the context ended. It is
// used by one goroutine.
type patient struct {
	diskio.Disk
	ctx   context.Context
	grace time.Duration
	hung  bool
}

// wait does fn. A system call that hangs cannot be ended: where it is given up, the goroutine that
// does it stays behind until the storage answers, and what it returns then goes to late.
func wait[T any](p *patient, fn func() (T, error), late func(T)) (T, error) {
	type result struct {
		val T
		err error
	}
	var none T
	if p.hung {
		return none, errHung
	}
	done, gone := make(chan result), make(chan struct{})
	go func() {
		val, err := fn()
		select {
		case done <- result{val, err}:
		case <-gone:
			if err == nil && late != nil {
				late(val)
			}
		}
	}()
	select {
	case r := <-done:
		return r.val, r.err
	case <-p.ctx.Done():
	}
	timer := time.NewTimer(p.grace)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.val, r.err
	case <-timer.C:
		p.hung = true
		close(gone)
		return none, errHung
	}
}

// do is wait for what has an error only.
func (p *patient) do(fn func() error) error {
	_, err := wait(p, func() (struct{}, error) { return struct{}{}, fn() }, nil)
	return err
}

func (p *patient) sync(fn func() error) error {
	if err := p.do(fn); err != nil {
		return &syncError{err}
	}
	return nil
}

func (p *patient) writable(fn func() (diskio.Writable, error)) (diskio.Writable, error) {
	f, err := wait(p, fn, func(f diskio.Writable) { f.Close() })
	if err != nil {
		return nil, err
	}
	return &patientFile{p, f}, nil
}

func (p *patient) Open(path string) (diskio.Readable, error) {
	f, err := wait(p, func() (diskio.Readable, error) { return p.Disk.Open(path) },
		func(f diskio.Readable) { f.Close() })
	if err != nil {
		return nil, err
	}
	return &patientReader{p, f}, nil
}

func (p *patient) OpenForRepair(path string) (diskio.Writable, error) {
	return p.writable(func() (diskio.Writable, error) { return p.Disk.OpenForRepair(path) })
}

func (p *patient) OpenWithoutLocks(path string) (diskio.Writable, error) {
	return p.writable(func() (diskio.Writable, error) { return p.Disk.OpenWithoutLocks(path) })
}

func (p *patient) CreateNew(path string, perm fs.FileMode) (diskio.Writable, error) {
	return p.writable(func() (diskio.Writable, error) { return p.Disk.CreateNew(path, perm) })
}

func (p *patient) List(
	ctx context.Context, dir string, deep bool, keep func(name string) bool,
) ([]string, error) {
	return wait(p, func() ([]string, error) { return p.Disk.List(ctx, dir, deep, keep) }, nil)
}

func (p *patient) RealPath(path string) (string, error) {
	return wait(p, func() (string, error) { return p.Disk.RealPath(path) }, nil)
}

func (p *patient) LookAt(path string) (diskio.Named, error) {
	return wait(p, func() (diskio.Named, error) { return p.Disk.LookAt(path) }, nil)
}

func (p *patient) ReadLink(path string) (string, error) {
	return wait(p, func() (string, error) { return p.Disk.ReadLink(path) }, nil)
}

func (p *patient) MakeLink(to, path string) error {
	return p.do(func() error { return p.Disk.MakeLink(to, path) })
}

func (p *patient) Room(path string) (diskio.Room, error) {
	return wait(p, func() (diskio.Room, error) { return p.Disk.Room(path) }, nil)
}

func (p *patient) Rename(from, to string) error {
	return p.do(func() error { return p.Disk.Rename(from, to) })
}

func (p *patient) Remove(path string) error {
	return p.do(func() error { return p.Disk.Remove(path) })
}

func (p *patient) MakeDir(path string, perm fs.FileMode) error {
	return p.do(func() error { return p.Disk.MakeDir(path, perm) })
}

func (p *patient) SyncDir(path string) error {
	return p.sync(func() error { return p.Disk.SyncDir(path) })
}

// patientReader is a file open for reading on a patient disk.
type patientReader struct {
	p *patient
	diskio.Readable
}

func (f *patientReader) ReadAt(b []byte, off int64) (int, error) {
	return wait(f.p, func() (int, error) { return f.Readable.ReadAt(b, off) }, nil)
}

// patientFile is a file open for a change on a patient disk.
type patientFile struct {
	p *patient
	diskio.Writable
}

func (f *patientFile) ReadAt(b []byte, off int64) (int, error) {
	return wait(f.p, func() (int, error) { return f.Writable.ReadAt(b, off) }, nil)
}

func (f *patientFile) WriteAt(b []byte, off int64) (int, error) {
	return wait(f.p, func() (int, error) { return f.Writable.WriteAt(b, off) }, nil)
}

func (f *patientFile) Truncate(sizeBytes int64) error {
	return f.p.do(func() error { return f.Writable.Truncate(sizeBytes) })
}

func (f *patientFile) Sync() error { return f.p.sync(f.Writable.Sync) }

func (f *patientReader) Identity() (diskio.Identity, error) {
	return wait(f.p, f.Readable.Identity, nil)
}

func (f *patientFile) Identity() (diskio.Identity, error) {
	return wait(f.p, f.Writable.Identity, nil)
}

// Close does not wait for storage that was given up: on a network file system closing may hang, too.
func (f *patientFile) Close() error { return closeIn(f.p, f.Writable) }

func (f *patientReader) Close() error { return closeIn(f.p, f.Readable) }

func closeIn(p *patient, f io.Closer) error {
	if p.hung {
		go f.Close() // nobody waits for anything of it any more
		return errHung
	}
	return p.do(f.Close)
}

func (f *patientFile) DropCache() error { return f.p.do(f.Writable.DropCache) }
