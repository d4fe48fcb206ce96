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

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Adopt copies the file id to where a base is missing. Who calls it has proved that it is that base; why says by what,
// for the audit. diskio.ErrChanged: the name is another file's by now. An existing name is never written over: ErrThere. After another error the name is not there.
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
	same := func() error {
		st, err := diskio.Look(candidate)
		if err == nil && st.ID != id {
			err = fmt.Errorf("%s: %w", candidate, diskio.ErrChanged)
		}
		return err
	}
	if err := same(); err != nil {
		return nil, err
	}
	progress := func(done, total int64) {
		if k.Progress != nil {
			k.Progress(name, done, total)
		}
	}
	c, err := diskio.CopyNew(ctx, k.Disk, candidate, to, progress)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s %w", to, ErrThere)
	}
	if err != nil {
		return nil, err
	}
	made, err := c.File.Identity()
	adopt.Inode = made.Ino
	if err = errors.Join(err, c.File.Close()); err != nil {
		return d, err
	}
	if err := same(); err != nil {
		return nil, errors.Join(err, k.Disk.Remove(to))
	}
	k.did(adopt, nil)
	d.Restored = append(d.Restored, name)
	return d, k.note(ctx, "adopt", name, made.Ino, candidate, why)
}
