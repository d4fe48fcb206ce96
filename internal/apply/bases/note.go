// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// lockEvery is how often a lock is tried that another program of this node holds for a moment.
const lockEvery = 5 * time.Millisecond

// note adds a line to the audit of this node. Several programs of a node may do so at once: each locks it for its
// line, and looks what was added since its last one.
func (k *keeper) note(ctx context.Context, act, name string, inode uint64, path, why string) (err error) {
	file := k.path(pool.Audit, pool.AuditName(k.Node))
	f, err := k.openAudit(ctx, file)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("note in %s: %w", file, err)
		}
	}()
	at := k.auditBytes
	e := pool.Entry{Time: k.Now(), Node: k.Node, Act: act, Name: name, Inode: inode, Path: path, Why: why}
	line, sum, err := e.Line(k.last)
	if err != nil {
		return err
	}
	k.auditBytes = -1 // nobody knows, until it is on the disk
	if _, err := f.WriteAt(line, at); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	k.last, k.auditBytes = sum, at+int64(len(line))
	return nil
}

// openAudit opens the audit of this node, locked where its file system keeps locks.
func (k *keeper) openAudit(ctx context.Context, file string) (diskio.Writable, error) {
	for begun := time.Now(); ; {
		f, err := k.Disk.OpenForRepair(file)
		if errors.Is(err, diskio.ErrNoLocks) {
			f, err = k.Disk.OpenWithoutLocks(file)
		}
		if errors.Is(err, fs.ErrNotExist) {
			if f, err = k.Disk.CreateNew(file, 0o600); err == nil {
				err = k.syncDir(k.path(pool.Audit))
			}
		}
		if err == nil {
			err = k.uncut(ctx, f, file)
		}
		if err == nil {
			return f, nil
		}
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		again := errors.Is(err, diskio.ErrInUse) || errors.Is(err, diskio.ErrChanged) || errors.Is(err, fs.ErrExist)
		if !again || time.Since(begun) > k.Timeout {
			return nil, fmt.Errorf("open %s: %w", file, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockEvery):
		}
	}
}

// uncut finds out what the next line of the open audit follows. The error is diskio.ErrChanged unless it is the one of
// that name and its last line has an end: after a power cut in the midst of a line it may have none, and what follows would
// become a part of it. Then that audit gets another name, and stays.
func (k *keeper) uncut(ctx context.Context, f diskio.Writable, file string) error {
	id, err := f.Identity()
	if err != nil {
		return err
	}
	switch e, err := diskio.LookEntry(file); {
	case errors.Is(err, fs.ErrNotExist), err == nil && e.ID != id.ID:
		return fmt.Errorf("%s: %w", file, diskio.ErrChanged)
	case err != nil:
		return err
	case id.SizeBytes == k.auditBytes:
		return nil
	}
	all, cut, err := pool.ReadAuditFile(ctx, file, k.Timeout)
	if err != nil {
		return err
	}
	if !cut {
		if k.last, k.auditBytes = "", id.SizeBytes; len(all) > 0 {
			k.last = all[len(all)-1].Sum
		}
		return nil
	}
	k.auditBytes = -1
	other, err := plan.NewID()
	if err != nil {
		return err
	}
	if err := k.Disk.Rename(file, k.path(pool.Audit, pool.AuditAside(filepath.Base(file), other))); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", file, diskio.ErrChanged)
}
