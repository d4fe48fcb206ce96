// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/vault"
)

// engine is what Apply, Undo and Recover share.
type engine struct {
	o    Options
	disk *patient
	v    *vault.Vault
}

func newEngine(ctx context.Context, o Options) (*engine, error) {
	if o.Disk == nil {
		o.Disk = diskio.Host()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	e := &engine{o: o, disk: &patient{Disk: o.Disk, ctx: ctx, grace: o.Patience}}
	var journals []string
	if o.JournalDir != "" {
		dir, err := e.disk.RealPath(o.JournalDir)
		if err != nil {
			return nil, fmt.Errorf("the journal directory: %w", err)
		}
		e.o.JournalDir, journals = dir, []string{dir}
	}
	var err error
	e.v, err = vault.New(vault.Options{Disk: e.disk, StateDir: o.StateDir, JournalDirs: journals})
	return e, err
}

// image is an image that is open and locked.
type image struct {
	path string
	f    diskio.Writable
	// before and after are the lengths between which it may be.
	before, after int64
}

// open opens an image for a change. Its path has no symbolic links.
func (e *engine) open(path string) (*image, error) {
	f, err := e.disk.OpenForRepair(path)
	if errors.Is(err, diskio.ErrNoLocks) && e.o.AcceptNoLocks {
		f, err = e.disk.OpenWithoutLocks(path)
	}
	if err != nil {
		return nil, err
	}
	return &image{path: path, f: f}, nil
}

func (i *image) Close() error { return i.f.Close() }

// plain reads the image without a bound on the time, and may be used by several goroutines at once:
// what reads for long has its own way to be stopped.
func (i *image) plain() io.ReaderAt {
	if f, ok := i.f.(*patientFile); ok {
		return f.Writable
	}
	return i.f
}

// size is the length of the image now.
func (i *image) size() (int64, error) {
	id, err := i.f.Identity()
	return id.SizeBytes, err
}

// read reads all of p. What lies past the end, at size, is zeros.
func (i *image) read(p []byte, off, size int64) error {
	n := int(max(0, min(int64(len(p)), size-off)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if m, err := i.f.ReadAt(p[:n], off); m < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes of %s at %#x: %w", n, i.path, off, err)
	}
	return nil
}

// write writes all of p, and nothing outside of what the change may touch.
func (i *image) write(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > i.after {
		return fmt.Errorf("write %d bytes to %s at %#x: past the end of the change (%d)", len(p), i.path,
			off, i.after)
	}
	if _, err := i.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("write %d bytes to %s at %#x: %w", len(p), i.path, off, err)
	}
	return nil
}

// resize sets the length, to that before or after the change.
func (i *image) resize(sizeBytes int64) error {
	if sizeBytes != i.before && sizeBytes != i.after {
		return fmt.Errorf("make %s %d bytes long: the change has no such length", i.path, sizeBytes)
	}
	if err := i.f.Truncate(sizeBytes); err != nil {
		return fmt.Errorf("make %s %d bytes long: %w", i.path, sizeBytes, err)
	}
	return nil
}

func (i *image) sync() error {
	if err := i.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", i.path, err)
	}
	return nil
}
