// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func stuckScenarios() []Scenario {
	return []Scenario{
		{"delay", "Everything on the disk takes 5 ms more.", delayed},
		{"hang-writer", "The disk does not answer writes; a program waits for one.", hangWriter},
		{"frozen-writer", "The file system was frozen and not thawed; a program waits to write.",
			frozenWriter},
		{"dead-fuse", "The daemon of a FUSE mount is gone.", deadFUSE},
		{"stuck-fuse", "The daemon of a FUSE mount is stopped; one program reads, one looks.", stuckFUSE},
		{"stuck-fuse-killed", "A FUSE mount does not answer; a program that waits for it was killed.",
			stuckFUSEKilled},
		{"many-mounts", "One of 50 mounts does not answer.", manyMounts},
		{"autofs-trap", "A mount point of autofs, which nobody is to trigger.", autofsTrap},
		{"healthy", "Nothing is wrong with an ext4, an xfs and a btrfs that are in use.", healthy},
	}
}

func delayed(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	if err := w.set("any delay=5ms"); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(d.Mount+"/slow", []byte("text"), 0o644), d.Sync()); err != nil {
		return err
	}
	return w.Fault.Hit()
}

func hangWriter(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	w.Hangs = true
	if err := w.set("write hang"); err != nil {
		return err
	}
	return errors.Join(w.write(d), w.Fault.Waiting())
}

// write has a program write to the file of a disk, and wait for that.
func (w *World) write(d *Disk) error {
	u, err := Use('D', nil, "dd", "if=/dev/zero", "of="+d.Mount+"/file", "bs=4k", "count=1",
		"conv=notrunc,fsync", "status=none")
	w.stuck(u)
	return err
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	freezeFS = 0xc0045877
	thawFS   = 0xc0045878
)

func frozenWriter(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	fd, err := unix.Open(d.Mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, freezeFS, 0); err != nil {
		return errors.Join(fmt.Errorf("freeze %s: %w", d.Mount, err), unix.Close(fd))
	}
	w.Hangs = true
	w.thaw = func() error { return errors.Join(unix.IoctlSetInt(fd, thawFS, 0), unix.Close(fd)) }
	return w.write(d)
}

func deadFUSE(_ context.Context, w *World) error {
	fs, err := w.fuse("fuse", true)
	if err != nil {
		return err
	}
	w.Mount = fs.Dir
	if err := fs.Kill(); err != nil {
		return err
	}
	return until(func() (bool, error) {
		err := unix.Access(fs.Dir, unix.F_OK)
		return errors.Is(err, unix.ENOTCONN), nil
	})
}

// fuse mounts a file system with one file, which is no disk.
func (w *World) fuse(name string, cached bool) (*FS, error) {
	const fileBytes = 1 << 20
	dir, err := w.dir(name)
	if err != nil {
		return nil, err
	}
	store := w.Dir + "/" + name + ".store"
	if err := os.WriteFile(store, make([]byte, fileBytes), 0o600); err != nil {
		return nil, err
	}
	w.later(func() error { return os.Remove(store) })
	fs, err := Mount(dir, Stored{Name: "data", Store: store, Cached: cached})
	if err != nil {
		return nil, err
	}
	w.later(fs.Close)
	w.served = append(w.served, fs)
	return fs, nil
}

func stuckFUSE(_ context.Context, w *World) error {
	fs, err := w.fuse("fuse", true)
	if err != nil {
		return err
	}
	w.Mount, w.File, w.Hangs = fs.Dir, fs.Dir+"/data", true
	f, err := os.Open(w.File)
	if err != nil {
		return err
	}
	if err := fs.Freeze(); err != nil {
		return errors.Join(err, f.Close())
	}
	reader, err := Use('D', f, "cat")
	w.stuck(reader)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	looker, err := Use('S', nil, "stat", "-f", fs.Dir)
	w.stuck(looker)
	return err
}

func stuckFUSEKilled(_ context.Context, w *World) error {
	fs, err := w.fuse("fuse", false)
	if err != nil {
		return err
	}
	w.Mount, w.File, w.Hangs = fs.Dir, fs.Dir+"/data", true
	if w.Fault, err = fs.Set("data", "read hang"); err != nil {
		return err
	}
	if _, err := fs.Set("data", "look hang after=32"); err != nil {
		return err
	}
	reader, err := Use('S', nil, "cat", w.File)
	w.stuck(reader)
	return errors.Join(err, w.Fault.Waiting(), reader.Kill())
}

func manyMounts(_ context.Context, w *World) error {
	const memory = 48
	for i := range memory {
		dir, err := w.dir(fmt.Sprintf("tmpfs%d", i))
		if err != nil {
			return err
		}
		if err := mountTmpfs(dir, 1<<20); err != nil {
			return err
		}
		w.later(func() error { return takeDown(dir) })
		w.Others = append(w.Others, dir)
	}
	alive, err := w.fuse("alive", true)
	if err != nil {
		return err
	}
	w.Others = append(w.Others, alive.Dir)
	stuck, err := w.fuse("stuck", true)
	if err != nil {
		return err
	}
	w.Mount, w.Hangs = stuck.Dir, true
	return stuck.Freeze()
}

// Trap is a mount point of autofs that counts who triggers it.
type Trap struct{ fs *FS }

// Hits tells how often it was triggered.
func (t *Trap) Hits() (int64, error) {
	r, err := t.fs.order(order{Verb: "count"})
	return r.Count.Hit, err
}

func autofsTrap(_ context.Context, w *World) error {
	dir, err := w.dir("auto")
	if err != nil {
		return err
	}
	fs, err := start(setup{Dir: dir, Autofs: true})
	if err != nil {
		return err
	}
	w.later(fs.Close)
	w.Mount, w.Trap = dir, &Trap{fs}
	return nil
}

func healthy(ctx context.Context, w *World) error {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		d, err := w.disk(ctx, kind, DiskOptions{Type: kind})
		if err != nil {
			return err
		}
		if err := os.WriteFile(d.Mount+"/file", markedContent(0), 0o644); err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), unix.Access(d.Mount+"/file", unix.R_OK)); err != nil {
			return err
		}
		w.Others = append(w.Others, d.Mount)
	}
	w.Hurt, w.Mount = nil, ""
	return nil
}
