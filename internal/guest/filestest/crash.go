// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Crash makes a file system of a kind and takes copies of its disk while programs change what is in
// it, as a power cut would leave it. For each it calls judge with the name of the copy, and with
// what the kernel makes of a copy of that after its own replay.
func Crash(t testing.TB, kind string, sizeBytes int64, mkfs []string, copies int, seed uint64,
	judge func(copyOfDisk string, kernel Tree),
) {
	t.Helper()
	outside := CloneDir(t, 4*sizeBytes+(1<<30))
	disk := Make(t, outside, sizeBytes, mkfs...)
	dir, unmount := Mount(t, disk, kind)
	var (
		stop    = make(chan struct{})
		workers sync.WaitGroup
		failed  = make(chan error, 2)
	)
	for n := range uint64(2) {
		l := &load{dir: filepath.Join(dir, fmt.Sprintf("worker%d", n)), kind: kind,
			rng: rand.New(rand.NewPCG(seed, n))}
		workers.Go(func() { failed <- l.run(stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 99))
	names := make([]string, copies)
	for i := range names {
		time.Sleep(time.Duration(20+rng.IntN(180)) * time.Millisecond)
		names[i] = filepath.Join(outside, fmt.Sprintf("copy%d", i))
		Clone(t, disk, names[i])
	}
	close(stop)
	workers.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	for _, name := range names {
		judge(name, replayed(t, name, kind))
	}
}

// replayed is what the kernel shows of a copy of a disk.
func replayed(t testing.TB, disk, kind string) Tree {
	t.Helper()
	second := disk + ".kernel"
	Clone(t, disk, second)
	var options []string
	if kind == "xfs" {
		// The mount of another copy may live on for a moment, in somebody's namespace.
		options = append(options, "nouuid")
	}
	dir, unmount := Mount(t, second, kind, options...)
	tree := ReadMounted(t, dir)
	unmount()
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	return tree
}

// load is a program that changes files at random.
type load struct {
	dir  string
	kind string
	rng  *rand.Rand
}

// run works until stop is closed.
func (l *load) run(stop chan struct{}) error {
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
