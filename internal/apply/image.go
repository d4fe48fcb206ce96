// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
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
	if o.Settings == nil {
		o.Settings = diskio.KernelSettings()
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
	o.Progress = seldom(o.Progress)
	if o.Looked == nil {
		o.Looked = func(Place) {}
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

// seldom tells progress on only where there is some: a change has many small pieces. What is done a
// second time begins at its beginning.
func seldom(tell func(string, int64, int64)) func(string, int64, int64) {
	const step = 256 << 10
	var last string
	var before, next int64
	return func(what string, done, total int64) {
		again := done < before
		before = done
		if what == last && !again && done < next && done < total {
			return
		}
		last, next = what, done+step
		tell(what, done, total)
	}
}

// image is an image that is open and locked.
type image struct {
	path string
	f    diskio.Writable
	// before and after are the lengths between which it may be.
	before, after int64
	// window is what was read last, from windowOff on. A change has many small pieces.
	window    []byte
	windowOff int64
	// faulty is the end of the last window that could not be read: a second try may take as long.
	faulty int64
}

// windowBytes is how much is read at once where less is wanted.
const windowBytes = 64 << 10

// open opens an image for a change. Its path has no symbolic links.
func (e *engine) open(path string) (*image, error) {
	f, err := e.disk.OpenForRepair(path)
	if errors.Is(err, diskio.ErrNoLocks) && e.o.AcceptNoLocks {
		f, err = e.disk.OpenWithoutLocks(path)
	}
	if err != nil {
		return nil, err
	}
	if err := e.locksSeen(f, path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &image{path: path, f: f}, nil
}

// look opens an image for reading only, and takes no lock.
func (e *engine) look(path string) (*image, error) {
	f, err := e.disk.Open(path)
	if err != nil {
		return nil, err
	}
	return &image{path: path, f: onlyRead{f}}, nil
}

// onlyRead is an image that is only looked at.
type onlyRead struct{ diskio.Readable }

func (onlyRead) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (onlyRead) Truncate(int64) error               { return errors.ErrUnsupported }
func (onlyRead) Sync() error                        { return errors.ErrUnsupported }
func (onlyRead) DropCache() error                   { return nil }

// locksSeen returns diskio.ErrNoLocks where the locks of a file are kept by this host alone: then
// they say nothing of machines on other hosts.
func (e *engine) locksSeen(f diskio.Writable, path string) error {
	if e.o.AcceptNoLocks {
		return nil
	}
	id, err := f.Identity()
	if err != nil {
		return err
	}
	why, err := linux.Open(e.o.Root).LocalLocks(id.Dev)
	if err != nil || why == "" {
		return nil // without a list of mounts the locks are believed, as QEMU does
	}
	return fmt.Errorf("%w that other hosts see: %s (%s)", diskio.ErrNoLocks, path, why)
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

// read reads all of p. What lies past the end, at size, is zeros. Where little is wanted it reads
// more, and remembers it until something is written; a fault of the storage beside what is wanted is
// none of p.
func (i *image) read(p []byte, off, size int64) error {
	n := int(max(0, min(int64(len(p)), size-off)))
	clear(p[n:])
	p = p[:n]
	for n > 0 && n < windowBytes {
		if at := off - i.windowOff; at >= 0 && at < int64(len(i.window)) {
			m := copy(p, i.window[at:])
			p, off, n = p[m:], off+int64(m), n-m
			continue
		}
		start := off &^ (windowBytes - 1)
		if start+windowBytes == i.faulty {
			break
		}
		if i.window == nil {
			i.window = make([]byte, windowBytes)
		}
		i.window = i.window[:min(windowBytes, size-start)]
		if err := i.readAll(i.window, start); err != nil {
			i.forget()
			i.faulty = start + windowBytes
			break
		}
		i.windowOff = start
	}
	return i.readAll(p, off)
}

// forget drops what was read: the image may be different now.
func (i *image) forget() { i.window = i.window[:0] }

// dropCache makes the next reads come from the disk.
func (i *image) dropCache() error {
	i.forget()
	return i.f.DropCache()
}

// readAll reads all of p, which ends before the image does.
func (i *image) readAll(p []byte, off int64) error {
	n := len(p)
	if n == 0 {
		return nil
	}
	if m, err := i.f.ReadAt(p, off); m < n {
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
	i.forget()
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
	i.forget()
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

const (
	// batchBytes bounds what is gathered for one write.
	batchBytes = 256 << 10
	// pageBytes is what kernels write at once at least.
	pageBytes = 4096
)

// batch gathers writes of the same page, and of pages that touch. What lies between two of them is
// written as it is: the image is locked, so it cannot change meanwhile, and it is of pages that are
// written anyhow.
type batch struct {
	img  *image
	size int64 // of the image
	off  int64
	buf  []byte
}

// put writes p at off, now or later.
func (b *batch) put(p []byte, off int64) error {
	if b.joins(off, len(p)) {
		n, end := len(b.buf), b.off+int64(len(b.buf))
		b.buf = slices.Grow(b.buf, int(off-end)+len(p))[:n+int(off-end)]
		if err := b.img.read(b.buf[n:], end, b.size); err == nil {
			b.buf = append(b.buf, p...)
			return nil
		}
		// What cannot be read cannot be written as it is. It is no part of the change, and must not
		// keep the old bytes of the rest from being put back.
		b.buf = b.buf[:n]
	}
	if err := b.flush(); err != nil {
		return err
	}
	b.off, b.buf = off, append(b.buf, p...)
	return nil
}

// joins tells whether n bytes at off go together with what was gathered.
func (b *batch) joins(off int64, n int) bool {
	end := b.off + int64(len(b.buf))
	return len(b.buf) > 0 && off >= end && off/pageBytes-(end-1)/pageBytes <= 1 &&
		off+int64(n)-b.off <= batchBytes
}

// flush writes what was gathered.
func (b *batch) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	err := b.img.write(b.buf, b.off)
	b.buf = b.buf[:0]
	return err
}
