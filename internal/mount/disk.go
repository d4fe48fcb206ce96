// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// DiskOptions are those of ServeDisk. StateDir must be set.
type DiskOptions struct {
	StateDir string
	// Source is what is shown, for the table of mounts and the record.
	Source string
	// LayerBytes bounds what may be written, all of it in memory; 0 is 512 MiB.
	LayerBytes int64
	// Everybody lets all users open the file who get into its directory, which only the one who calls
	// may. For root only.
	Everybody bool
	// Log is told what could not be read of the volume, each once.
	Log func(text string)
}

// diskPrefix begins the name of a directory of ServeDisk.
const diskPrefix = "disk-"

// Disk is a volume that is shown as a file. What is written to the file stays in memory: the volume is only
// read.
type Disk struct {
	server *fuse.Server
	file   *diskFile
	dir    string
	record *record
	end    sync.Once
	err    error
}

// ServeDisk shows a volume as a file that can be written to, in a new directory of its own, until Close.
// It gives ErrRoot, and the errors of FUSE where there is none.
func ServeDisk(v io.ReaderAt, sizeBytes int64, o DiskOptions) (d *Disk, err error) {
	if o.Everybody && os.Geteuid() != 0 {
		return nil, fmt.Errorf("show %s to other users: %w", o.Source, ErrRoot)
	}
	if o.LayerBytes == 0 {
		o.LayerBytes = defaultLayerBytes
	}
	mode := uint32(0o600)
	if o.Everybody {
		mode = 0o666
	}
	d = &Disk{file: &diskFile{RawFileSystem: fuse.NewDefaultRawFileSystem(), mode: mode,
		layer: newLayer(v, sizeBytes, o.LayerBytes), notes: notes{log: o.Log}}}
	if err := os.MkdirAll(recordsDir(o.StateDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of records: %w", err)
	}
	real, err := target(recordsDir(o.StateDir))
	if err != nil {
		return nil, err
	}
	var unique [8]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return nil, err
	}
	d.dir = filepath.Join(real, diskPrefix+hex.EncodeToString(unique[:]))
	d.record, err = begin(filepath.Dir(real), record{Kind: kindDisk, Dir: []byte(d.dir), Source: []byte(o.Source)})
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, errors.Join(err, d.record.remove())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(d.dir))
		}
	}()
	d.server, err = serve(d.file, d.dir, o.Source, access{flags: quiet, allowOther: o.Everybody, writable: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("show a disk on %s: %w", d.dir, err), d.record.remove())
	}
	if err := d.record.serves(d.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("show a disk on %s: %w", d.dir, err), d.unmount(), d.record.remove())
	}
	return d, nil
}

// Path is the file.
func (d *Disk) Path() string { return filepath.Join(d.dir, diskName) }

// Changed gives what was written and differs from the volume, in order, in runs of whole sectors of 512
// bytes (the volume's end aside). p is valid until fn returns. The error is ErrFull where not all that was
// written could be kept, fn's, or that of reading the volume.
func (d *Disk) Changed(fn func(off int64, p []byte) error) error { return d.file.layer.changed(fn) }

// Close takes the file away, also while it is open. What was changed can still be asked for.
func (d *Disk) Close() error {
	d.end.Do(func() {
		d.err = errors.Join(d.unmount(), d.record.remove(), os.Remove(d.dir))
	})
	return d.err
}

func (d *Disk) unmount() error {
	if err := unmount(d.dir, true); err != nil && !notMounted(err) {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	d.server.Wait()
	return nil
}

// maxRunBytes bounds a run that changed gives.
const maxRunBytes = 1 << 20

// changed is Disk.Changed.
func (l *layer) changed(fn func(off int64, p []byte) error) error {
	if l.full.Load() {
		return ErrFull
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	old := make([]byte, pageBytes)
	var run []byte
	var at int64
	flush := func() error {
		if len(run) == 0 {
			return nil
		}
		err := fn(at, run)
		run = run[:0]
		return err
	}
	for _, no := range slices.Sorted(maps.Keys(l.pages)) {
		off := no * pageBytes
		n := min(pageBytes, l.size-off)
		if _, err := readFull(l.under, old[:n], off); err != nil {
			return err
		}
		for in := int64(0); in < n; in += sectorBytes {
			end := min(in+sectorBytes, n)
			if bytes.Equal(old[in:end], l.pages[no][in:end]) {
				continue
			}
			if len(run) > 0 && (at+int64(len(run)) != off+in || len(run) >= maxRunBytes) {
				if err := flush(); err != nil {
					return err
				}
			}
			if len(run) == 0 {
				at = off + in
			}
			run = append(run, l.pages[no][in:end]...)
		}
	}
	return flush()
}
