// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package busy changes the files of a mounted file system at random, so that a copy of its disk is as
// a power cut would leave it. For tests and the bench only.
package busy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// load is a program that changes files at random.
type load struct {
	dir string
	rng *rand.Rand
}

// Change makes dir and changes what is in it until stop is closed. The error is what a full disk or
// names that are chosen at random do not explain.
func Change(dir string, rng *rand.Rand, stop <-chan struct{}) error {
	l := &load{dir: dir, rng: rng}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		err := l.step()
		switch {
		case err == nil, errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrExist),
			errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSPC),
			errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL),
			errors.Is(err, unix.ELOOP), errors.Is(err, unix.EPERM):
			// Names are chosen at random.
		default:
			return err
		}
	}
}

// name gives one of a few hundred names, some of which exist.
func (l *load) name() string {
	d := l.rng.IntN(12)
	if d == 0 {
		return filepath.Join(l.dir, fmt.Sprintf("name%d", l.rng.IntN(60)))
	}
	return filepath.Join(l.dir, fmt.Sprintf("dir%d", d), fmt.Sprintf("name%d", l.rng.IntN(25)))
}

// step does one thing.
func (l *load) step() error {
	switch n := l.rng.IntN(100); {
	case n < 8:
		return os.Mkdir(filepath.Join(l.dir, fmt.Sprintf("dir%d", l.rng.IntN(12))), 0o755)
	case n < 45:
		return l.write()
	case n < 57:
		return os.Remove(l.name())
	case n < 68:
		return os.Rename(l.name(), l.name())
	case n < 73:
		return os.Link(l.name(), l.name())
	case n < 78:
		return os.Symlink(fmt.Sprintf("target %0*d", l.rng.IntN(200), 1), l.name())
	case n < 84:
		return os.Truncate(l.name(), int64(l.rng.IntN(200_000)))
	case n < 90:
		return unix.Setxattr(l.name(), fmt.Sprintf("user.n%d", l.rng.IntN(5)),
			make([]byte, l.rng.IntN(300)), 0)
	case n < 93:
		return os.Chmod(l.name(), os.FileMode(l.rng.IntN(0o777)))
	case n < 96:
		return l.many()
	case n < 98:
		return l.clone()
	default:
		return l.held()
	}
}

// write writes somewhere into a file, and sometimes waits until it is on the disk.
func (l *load) write() error {
	f, err := os.OpenFile(l.name(), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	content := make([]byte, l.rng.IntN(20_000))
	for i := range content {
		content[i] = byte(l.rng.Uint32())
	}
	_, err = f.WriteAt(content, int64(l.rng.IntN(100_000)))
	if l.rng.IntN(4) == 0 {
		err = errors.Join(err, f.Sync())
	}
	return errors.Join(err, f.Close())
}

// many makes a directory large, or takes it away again.
func (l *load) many() error {
	dir := filepath.Join(l.dir, fmt.Sprintf("many%d", l.rng.IntN(2)))
	if l.rng.IntN(3) == 0 {
		return os.RemoveAll(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for range 150 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("one of many %d", l.rng.IntN(1000))))
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// clone shares the bytes of a file with another.
func (l *load) clone() error {
	src, err := os.Open(l.name())
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(l.name(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	return errors.Join(err, src.Close(), dst.Close())
}

// held removes a file that is still open, so that a crash finds an inode without a name.
func (l *load) held() error {
	f, err := os.OpenFile(l.name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = os.Remove(f.Name())
	for range 20 {
		if err == nil {
			err = l.write()
		}
	}
	return errors.Join(err, f.Close())
}
