// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package bases keeps the base images of a pool from being lost, and brings them back. What it does only adds
// names, or gives a file another time: nothing that a machine needs is ever taken away by it.
//
// A shield is a second hard link of a base, in a directory beside it. Whoever removes the base takes away one
// of two names, and the file stays as it is.
package bases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

var (
	// ErrThere: the name is there, and nothing is ever written over.
	ErrThere = errors.New("is there already")
	// ErrNoShield: no shield of that name is kept.
	ErrNoShield = errors.New("no shield of that name")
	// ErrSeveral: more than one file had the name, and which is meant cannot be told.
	ErrSeveral = errors.New("several files had that name")
	// ErrLast: it is the last name of the file, which is needed or may be.
	ErrLast = errors.New("is the last name of a base that may be needed")
)

// Options are what an act needs beside what it is done to.
type Options struct {
	// Bases is the directory of the bases.
	Bases string
	// Node is the name of this host in the audit.
	Node string
	// Timeout is how long one name is waited for; 0 is ten seconds.
	Timeout time.Duration
	// Disk, Links and Now are the machine's where they are nil.
	Disk  diskio.Disk
	Links diskio.Links
	Now   func() time.Time
	// Step, if set, is called before each change with what comes next; its error ends the act there.
	Step func(what string) error
	// Receipts, if set, is where the act leaves what it did, and Tool the program and version in that.
	Receipts *vault.Vault
	Tool     string
	// NewPool: the directory may be another pool than it was, see ErrOtherPool.
	NewPool bool
	// within is the act that this one is a part of, "" for none.
	within string
	// Progress, if set, is told of bytes that were read.
	Progress func(what string, done, total int64)
}

// keeper is an act under way.
type keeper struct {
	Options
	// last is the digest of the last line of this node's audit, as long as that has auditBytes.
	last       string
	auditBytes int64
	// act is what the receipt calls it, pool the UUID of the pool once that is known, and receipt nil as long as
	// nothing is to be changed.
	act, pool string
	receipt   *vault.BaseReceipt
	// instances are the directories of instances that the bases belong to, as far as a census told.
	instances []string
	hold      io.Closer // says that the act is under way
}

func newKeeper(o Options) *keeper {
	if o.Disk == nil {
		o.Disk = diskio.Host()
	}
	if o.Links == nil {
		o.Links = diskio.HostLinks()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	return &keeper{Options: o}
}

func (k *keeper) path(parts ...string) string { return pool.Path(k.Bases, parts...) }

// step says what comes next.
func (k *keeper) step(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.Step == nil {
		return nil
	}
	return k.Step(what)
}

// put writes a document under a name that is not there yet.
func (k *keeper) put(path string, text []byte) error {
	id, err := plan.NewID()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+id+".new")
	f, err := k.Disk.CreateNew(tmp, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = k.Disk.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, k.Disk.Remove(tmp))
	}
	return k.syncDir(filepath.Dir(path))
}

func (k *keeper) syncDir(dir string) error {
	err := k.Disk.SyncDir(dir)
	if errors.Is(err, diskio.ErrNoSync) {
		return nil
	}
	return err
}

// begin makes the directories of the pool and its policy, where they are not there. The error is ErrOtherPool where
// it was another pool.
func (k *keeper) begin(ctx context.Context, s *pool.State) error {
	if err := k.known(ctx, s); err != nil {
		return err
	}
	var p *pool.Policy
	switch _, err := diskio.LookEntry(k.path(pool.File)); {
	case s.Policy != nil:
		k.pool = s.Policy.UUID
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is there and could not be read: %w", k.path(pool.File), errors.Join(s.Unread...))
	case len(s.Unread) > 0: // there may be a pool
		return errors.Join(s.Unread...)
	default:
		uuid, err := newUUID()
		if err != nil {
			return err
		}
		made := pool.NewPolicy(uuid, k.Now())
		p, k.pool = &made, uuid
		if err := k.will(stepAt(vault.BasePolicy, pool.File, k.path(pool.File), 0)); err != nil {
			return err
		}
	}
	for _, dir := range []string{pool.Shields, pool.Objects, pool.Audit} {
		if err := k.step(ctx, "make "+dir); err != nil {
			return err
		}
		// Whoever may read the bases may read their second names.
		if err := k.Disk.MakeDir(k.path(dir), 0o755); err != nil {
			return err
		}
	}
	if p == nil {
		return nil
	}
	if err := k.step(ctx, "make "+pool.File); err != nil {
		return err
	}
	text, err := p.Text()
	if err == nil {
		err = k.put(k.path(pool.File), text)
	}
	if err != nil {
		return err
	}
	s.Policy = p
	k.did(stepAt(vault.BasePolicy, pool.File, k.path(pool.File), 0), nil)
	return nil
}

// read gives the bytes of an open base to w, and tells of the progress.
func (k *keeper) copyTo(ctx context.Context, w io.Writer, f io.ReaderAt, name string, size int64) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		off += int64(n)
		if err != nil && (!errors.Is(err, io.EOF) || off < size) {
			return fmt.Errorf("read %s at %#x: %w", name, off, err)
		}
		if k.Progress != nil {
			k.Progress(name, off, size)
		}
	}
	return nil
}

// now is the clock of the file system that the bases lie on: ages are told by one clock, whichever node
// asks.
func (k *keeper) now(ctx context.Context) (time.Time, error) {
	path := k.path(pool.Clock)
	if _, err := diskio.LookEntry(path); errors.Is(err, fs.ErrNotExist) {
		if err := k.put(path, nil); err != nil {
			return time.Time{}, err
		}
	}
	e, err := diskio.LookEntry(path)
	if err != nil {
		return time.Time{}, err
	}
	if err := k.Links.Touch(e.ID, path, time.Time{}); err != nil {
		return time.Time{}, err
	}
	if e, err = diskio.LookEntry(path); err != nil {
		return time.Time{}, err
	}
	return e.ModTime, ctx.Err()
}

// needed tells whether somebody needs a base, or may: what was not seen may need any.
func needed(c *refs.Census, b *refs.Base) bool { return len(b.Uses) > 0 || !c.Complete() }
