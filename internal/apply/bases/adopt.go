// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Adopt puts the file id where a base is missing: a copy of it, or a further name of the file itself where it lies
// beside the bases already (a NewFile, or what a client of NFS renamed instead of removing it). Who calls it has proved
// that it is that base; why says by what, for the audit. diskio.ErrChanged: the name is another file's by now. An
// existing name is never written over: ErrThere. After another error the name is not there.
func Adopt(ctx context.Context, candidate string, id diskio.ID, name, why string, o Options) (
	d *pool.Done, err error,
) {
	k := newKeeper(o).as("adopt")
	if strings.ContainsRune(name, '/') || name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("%q is no name in a directory", name)
	}
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	to := filepath.Join(k.Bases, name)
	if _, err := diskio.LookEntry(to); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %w", to, ErrThere)
	}
	adopt := stepAt(vault.BaseAdopt, name, to, 0)
	if err := k.will(adopt); err != nil {
		return nil, err
	}
	if err := k.step(ctx, "copy "+name); err != nil {
		return d, err
	}
	if beside(k.Bases, candidate) {
		adopt.Inode, err = id.Ino, k.linkNew(id, candidate, to)
	} else {
		adopt.Inode, err = k.copyNew(ctx, id, candidate, to, name)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s %w", to, ErrThere)
	}
	if err != nil {
		return nil, err
	}
	k.did(adopt, nil)
	d.Restored = append(d.Restored, name)
	return d, k.note(ctx, "adopt", name, adopt.Inode, candidate, why)
}

// beside tells whether a file lies where a further name of it can be a base: a new one of ours, or what a client of NFS
// called .nfsXXXX when somebody removed it, until the last program closes it.
func beside(bases, path string) bool {
	dir, name := filepath.Dir(path), filepath.Base(path)
	return dir == pool.Path(bases) && strings.HasSuffix(name, newSuffix) ||
		dir == bases && strings.HasPrefix(name, ".nfs")
}

// linkNew gives a file that lies beside the bases the name of one, and the time of now: a cleaner removes at once what
// looks old.
func (k *keeper) linkNew(id diskio.ID, from, to string) error {
	if err := k.Links.Link(id, from, to); err != nil {
		return err
	}
	if err := k.Links.Touch(id, to, time.Time{}); err != nil {
		return errors.Join(err, k.Links.Unlink(id, to))
	}
	return nil
}

// copyNew copies the file id to a new name, and gives the inode of the copy.
func (k *keeper) copyNew(ctx context.Context, id diskio.ID, from, to, name string) (uint64, error) {
	same := func() error {
		st, err := diskio.Look(from)
		if err == nil && st.ID != id {
			err = fmt.Errorf("%s: %w", from, diskio.ErrChanged)
		}
		return err
	}
	if err := same(); err != nil {
		return 0, err
	}
	progress := func(done, total int64) {
		if k.Progress != nil {
			k.Progress(name, done, total)
		}
	}
	c, err := diskio.CopyNew(ctx, k.Disk, from, to, progress)
	if err != nil {
		return 0, err
	}
	made, err := c.File.Identity()
	err = errors.Join(err, c.File.Close())
	if err == nil {
		err = same()
	}
	if err != nil {
		return 0, errors.Join(err, k.Disk.Remove(to))
	}
	return made.Ino, nil
}
