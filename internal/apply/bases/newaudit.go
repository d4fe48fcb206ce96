// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// newAudit sets the audit of a node aside that does not hold, as a power cut or two programs without locks may leave it,
// and has the one of this node tell of that, with the digest of what it was. Nothing of it is lost: the file stays beside
// the others under another name, and the history of a base tells of it for ever. One that holds stays as it is.
//
// A node may have one by its raw name too, and a person may name the file and not the node.
func (k *keeper) newAudit(ctx context.Context, node string, d *pool.Done) error {
	err := k.newAuditOf(ctx, node, pool.AuditName(node), d)
	raw := pool.RawAuditName(node)
	if raw == "" || raw == pool.AuditName(node) {
		return err
	}
	switch e := k.newAuditOf(ctx, node, raw, d); {
	case errors.Is(e, fs.ErrNotExist):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return e
	default:
		return errors.Join(err, e)
	}
}

// newAuditOf is newAudit for one file.
func (k *keeper) newAuditOf(ctx context.Context, node, name string, d *pool.Done) (err error) {
	file := k.path(pool.Audit, name)
	e, err := diskio.LookEntry(file)
	if errors.Is(err, fs.ErrNotExist) {
		// It may have been set aside before, by who then could not go on.
		done, look := k.Disk.List(ctx, filepath.Dir(file), false, func(other string) bool { return pool.IsDamagedOf(other, name) })
		if look != nil || len(done) > 0 {
			return look
		}
	}
	if err != nil {
		return err
	}
	_, _, wrong := pool.ReadAuditFile(ctx, file, k.Timeout)
	if !errors.Is(wrong, pool.ErrChain) {
		return wrong // what cannot be read may hold
	}
	f, err := k.whole(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	if err := k.copyTo(ctx, sum, f, file, e.SizeBytes); err != nil {
		return err
	}
	id, err := plan.NewID()
	if err != nil {
		return err
	}
	to := k.path(pool.Audit, pool.DamagedName(name, id))
	if err := k.step(ctx, "set aside the audit of "+node); err != nil {
		return err
	}
	if _, err := k.move(e.ID, file, to); err != nil {
		return err
	}
	k.auditBytes = -1 // it may have been that of this node
	why := fmt.Sprintf("the audit of %s, now %s, SHA-256 %s, did not hold: %v", node, filepath.Base(to),
		hex.EncodeToString(sum.Sum(nil)), wrong)
	d.Recovered = append(d.Recovered, why)
	return k.note(ctx, "new_audit", "", e.Ino, to, why)
}

// whole opens an audit of which no other program writes a line now.
func (k *keeper) whole(ctx context.Context, file string) (diskio.Writable, error) {
	for begun := time.Now(); ; {
		f, err := k.Disk.OpenForRepair(file)
		if errors.Is(err, diskio.ErrNoLocks) {
			return k.Disk.OpenWithoutLocks(file)
		}
		if !errors.Is(err, diskio.ErrInUse) || time.Since(begun) > k.Timeout {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockEvery):
		}
	}
}
