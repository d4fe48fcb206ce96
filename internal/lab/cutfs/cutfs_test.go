// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// mounted is a directory with the files of t, for the time of a test.
func mounted(tb testing.TB, t *Tree) (*FS, string) {
	tb.Helper()
	testenv.NeedRoot(tb)
	dir := tb.TempDir()
	f, err := Mount(dir, t)
	if errors.Is(err, ErrUnavailable) {
		testenv.Lacks(tb, "FUSE: "+err.Error())
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			tb.Error(err)
		}
	})
	return f, dir
}

// do runs fn on the directory's thread and fails the test with its error.
func do(tb testing.TB, f *FS, fn func() error) {
	tb.Helper()
	if err := f.Do(fn); err != nil {
		tb.Fatal(err)
	}
}

// content reads a file of a tree whole; "-" stands for no file.
func contentOf(tb testing.TB, t *Tree, path string) string {
	tb.Helper()
	n := t.find(path)
	if n == nil {
		return "-"
	}
	p := make([]byte, n.data.size)
	if _, err := t.ReadAt(path, p, 0); err != nil {
		tb.Fatal(err)
	}
	return string(p)
}

func write(path string, off int64, text string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), off)
	return errors.Join(err, f.Close())
}

func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// TestSurvivors: what is synced is there, and nothing else is sure to be.
func TestSurvivors(t *testing.T) {
	base := t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "old"), []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	start, err := Load(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		run  func(dir string) error
		// Of the files old and new; "-" is none.
		none, all [2]string
	}{
		{"nothing synced", func(dir string) error {
			return errors.Join(write(dir+"/old", 0, "AFTER!"), write(dir+"/new", 0, "x"))
		}, [2]string{"before", "-"}, [2]string{"AFTER!", "x"}},
		{"file synced", func(dir string) error {
			return errors.Join(write(dir+"/old", 0, "AFTER!"), fsync(dir+"/old"), write(dir+"/old", 6, "more"))
		}, [2]string{"AFTER!", "-"}, [2]string{"AFTER!more", "-"}},
		{"file synced, name not", func(dir string) error {
			return errors.Join(write(dir+"/new", 0, "x"), fsync(dir+"/new"))
		}, [2]string{"before", "-"}, [2]string{"before", "x"}},
		{"name synced, file not", func(dir string) error {
			return errors.Join(write(dir+"/new", 0, "x"), fsync(dir))
		}, [2]string{"before", ""}, [2]string{"before", "x"}},
		{"both synced", func(dir string) error {
			return errors.Join(write(dir+"/new", 0, "x"), fsync(dir+"/new"), fsync(dir))
		}, [2]string{"before", "x"}, [2]string{"before", "x"}},
		{"renamed", func(dir string) error {
			return os.Rename(dir+"/old", dir+"/new")
		}, [2]string{"before", "-"}, [2]string{"-", "before"}},
		{"replaced as it should be", func(dir string) error {
			return errors.Join(write(dir+"/tmp", 0, "y"), fsync(dir+"/tmp"), os.Rename(dir+"/tmp", dir+"/old"),
				fsync(dir))
		}, [2]string{"y", "-"}, [2]string{"y", "-"}},
		{"replaced without sync of the file", func(dir string) error {
			return errors.Join(write(dir+"/tmp", 0, "y"), os.Rename(dir+"/tmp", dir+"/old"), fsync(dir))
		}, [2]string{"", "-"}, [2]string{"y", "-"}},
		{"unlinked", func(dir string) error { return os.Remove(dir + "/old") },
			[2]string{"before", "-"}, [2]string{"-", "-"}},
		{"unlinked and synced", func(dir string) error {
			return errors.Join(os.Remove(dir+"/old"), fsync(dir))
		}, [2]string{"-", "-"}, [2]string{"-", "-"}},
		{"truncated", func(dir string) error { return os.Truncate(dir+"/old", 2) },
			[2]string{"before", "-"}, [2]string{"be", "-"}},
		{"linked and synced", func(dir string) error {
			return errors.Join(os.Link(dir+"/old", dir+"/new"), fsync(dir))
		}, [2]string{"before", "before"}, [2]string{"before", "before"}},
		{"in a new directory", func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/d", 0o755), write(dir+"/d/f", 0, "x"), fsync(dir+"/d/f"),
				fsync(dir+"/d"), os.Rename(dir+"/d/f", dir+"/new"), fsync(dir), fsync(dir+"/d"))
		}, [2]string{"before", "x"}, [2]string{"before", "x"}},
		{"made, unlinked and made again", func(dir string) error {
			return errors.Join(write(dir+"/new", 0, "x"), fsync(dir+"/new"), os.Remove(dir+"/new"),
				write(dir+"/new", 0, "z"), fsync(dir+"/new"), fsync(dir))
		}, [2]string{"before", "z"}, [2]string{"before", "z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, dir := mounted(t, start)
			do(t, f, func() error { return c.run(dir) })
			for m, want := range map[Mode][2]string{None: c.none, All: c.all} {
				got := f.Survivors(m, 0)
				pair := [2]string{contentOf(t, got, "old"), contentOf(t, got, "new")}
				if pair != want {
					t.Errorf("Survivors(%v) = %q, want %q\n%s", m, pair, want, strings.Join(f.Log(), "\n"))
				}
			}
		})
	}
	if got := contentOf(t, start, "old"); got != "before" {
		t.Errorf("the tree that it began with holds %q, want %q", got, "before")
	}
}

// TestTornWrites: of writes that were not synced any sectors may survive, whole ones only.
func TestTornWrites(t *testing.T) {
	const sector = 512
	f, dir := mounted(t, newTree())
	a, b := strings.Repeat("a", 8*sector), strings.Repeat("b", 8*sector)
	do(t, f, func() error {
		return errors.Join(write(dir+"/f", 0, a), fsync(dir+"/f"), fsync(dir), write(dir+"/f", 0, b))
	})
	seen := map[string]bool{}
	for seed := range uint64(200) {
		s := f.Survivors(Random, seed)
		got := contentOf(t, s, "f")
		if other := contentOf(t, f.Survivors(Random, seed), "f"); other != got {
			t.Fatalf("Survivors(%d) gives two different files", seed)
		}
		pattern := ""
		for i := range 8 {
			part := got[i*sector : (i+1)*sector]
			if part != a[:sector] && part != b[:sector] {
				t.Fatalf("Survivors(%d): sector %d is torn", seed, i)
			}
			pattern += part[:1]
		}
		seen[pattern] = true
	}
	if !seen["aaaaaaaa"] || !seen["bbbbbbbb"] || len(seen) < 20 {
		t.Errorf("%d different ends of one write, want all, nothing and many between", len(seen))
	}
}

// TestCut: the k-th changing call fails and everything after it, reading too.
func TestCut(t *testing.T) {
	f, dir := mounted(t, newTree())
	do(t, f, func() error { return write(dir+"/f", 0, "one") })
	if got := f.Calls(); got != 2 {
		t.Fatalf("Calls = %d, want 2: create and write", got)
	}
	f.CutAt(2)
	do(t, f, func() error {
		h, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer h.Close()
		if _, err := h.WriteAt([]byte("two"), 0); err != nil {
			return err
		}
		if err := h.Sync(); err != nil {
			return err
		}
		p := make([]byte, 3)
		if _, err := h.ReadAt(p, 0); err != nil || f.Cut() {
			return fmt.Errorf("before the cut: %v, cut %v", err, f.Cut())
		}
		_, werr := h.WriteAt([]byte("XXX"), 0)
		_, rerr := h.ReadAt(p, 0)
		_, serr := os.Stat(dir + "/f")
		for i, err := range []error{werr, rerr, serr, h.Sync(), os.Mkdir(dir+"/d", 0o755),
			os.Remove(dir + "/f"), write(dir+"/f", 0, "")} {
			if !errors.Is(err, unix.EIO) {
				t.Errorf("call %d after the cut = %v, want EIO", i, err)
			}
		}
		return nil
	})
	if !f.Cut() || f.Calls() != 4 {
		t.Errorf("cut %v after %d calls, want after 4", f.Cut(), f.Calls())
	}
	if got := contentOf(t, f.Survivors(All, 0), "f"); got != "two" {
		t.Errorf("Survivors(all) = %q, want %q", got, "two")
	}
	seen := map[string]bool{}
	for seed := range uint64(50) {
		seen[contentOf(t, f.Survivors(Random, seed), "f")] = true
	}
	// Its name was not synced; the write in flight may be on the disk.
	if want := map[string]bool{"-": true, "two": true, "XXX": true}; !cmp.Equal(seen, want) {
		t.Errorf("Survivors(random) = %v, want %v", seen, want)
	}
}

// TestLocks: QEMU's locks work, and are seen by another open file.
func TestLocks(t *testing.T) {
	f, dir := mounted(t, newTree())
	do(t, f, func() error {
		if err := write(dir+"/f", 0, "x"); err != nil {
			return err
		}
		a, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer a.Close()
		b, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer b.Close()
		lock := func(h *os.File, cmd int, typ int16) (int16, error) {
			l := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: 100, Len: 1}
			err := unix.FcntlFlock(h.Fd(), cmd, &l)
			return l.Type, err
		}
		if _, err := lock(a, unix.F_OFD_SETLK, unix.F_RDLCK); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if got, err := lock(b, unix.F_OFD_GETLK, unix.F_WRLCK); err != nil || got != unix.F_RDLCK {
			t.Errorf("F_OFD_GETLK = %d, %v, want a read lock", got, err)
		}
		if got, err := lock(a, unix.F_OFD_GETLK, unix.F_WRLCK); err != nil || got != unix.F_UNLCK {
			t.Errorf("F_OFD_GETLK of the holder = %d, %v, want none", got, err)
		}
		if _, err := lock(b, unix.F_OFD_SETLK, unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("a write lock beside the read lock = %v, want EAGAIN", err)
		}
		if _, err := lock(b, unix.F_OFD_SETLK, unix.F_RDLCK); err != nil {
			t.Errorf("a second read lock = %v", err)
		}
		a.Close()
		if got, err := lock(b, unix.F_OFD_GETLK, unix.F_WRLCK); err != nil || got != unix.F_UNLCK {
			t.Errorf("F_OFD_GETLK after close = %d, %v, want none", got, err)
		}
		return nil
	})
}

// TestHoles: holes can be made, found, and kept by Load and WriteTo.
func TestHoles(t *testing.T) {
	f, dir := mounted(t, newTree())
	const mib = 1 << 20
	do(t, f, func() error {
		h, err := os.Create(dir + "/f")
		if err != nil {
			return err
		}
		defer h.Close()
		if _, err := h.WriteAt(bytes.Repeat([]byte{7}, mib), mib); err != nil {
			return err
		}
		fd := int(h.Fd())
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, mib, mib/2+512); err != nil {
			return fmt.Errorf("punch: %w", err)
		}
		if err := unix.Fallocate(fd, 0, 2*mib, mib); err != nil {
			return fmt.Errorf("fallocate: %w", err)
		}
		if err := unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, mib); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("collapse = %v, want EOPNOTSUPP", err)
		}
		for _, c := range []struct {
			from   int64
			whence int
			want   int64
		}{{0, unix.SEEK_DATA, mib + mib/2}, {mib + mib/2, unix.SEEK_HOLE, 2 * mib}, {0, unix.SEEK_HOLE, 0}} {
			if got, err := unix.Seek(fd, c.from, c.whence); err != nil || got != c.want {
				t.Errorf("Seek(%d, %d) = %d, %v, want %d", c.from, c.whence, got, err, c.want)
			}
		}
		if _, err := unix.Seek(fd, 2*mib, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
			t.Errorf("Seek for data behind all of it = %v, want ENXIO", err)
		}
		return nil
	})
	now := f.Now()
	out := t.TempDir()
	if err := now.WriteTo(out); err != nil {
		t.Fatal(err)
	}
	back, err := Load(out)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := now.Digest("f"), back.Digest("f"); a != b || a == "" {
		t.Errorf("digest %q, after WriteTo and Load %q", a, b)
	}
	var st unix.Stat_t
	if err := unix.Stat(out+"/f", &st); err != nil || st.Size != 3*mib || st.Blocks*512 > mib {
		t.Errorf("file of %d bytes with %d on disk, %v, want %d with half a MiB", st.Size, st.Blocks*512, err, 3*mib)
	}
	want := append(make([]byte, mib/2+512), bytes.Repeat([]byte{7}, mib/2-512)...)
	got := make([]byte, mib)
	if _, err := back.ReadAt("f", got, mib); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the punched MiB reads wrongly, %v", err)
	}
}

// TestPrograms: other programs see the directory, with every way of caching, and nobody else does.
func TestPrograms(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	f, dir := mounted(t, newTree())
	run := func(args ...string) {
		t.Helper()
		do(t, f, func() error {
			c := exec.Command(args[0], args[1:]...)
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
			}
			return nil
		})
	}
	image := dir + "/a.qcow2"
	run("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	for i, cache := range []string{"writeback", "none", "writethrough", "directsync", "unsafe"} {
		run("qemu-io", "-f", "qcow2", "-t", cache, "-c", fmt.Sprintf("write -P %d %dM 1M", i+1, i), image)
		run("qemu-io", "-f", "qcow2", "-t", cache, "-c", fmt.Sprintf("read -P %d %dM 1M", i+1, i), image)
		run("qemu-img", "check", "-q", "-T", cache, image)
	}
	run("qemu-img", "convert", "-O", "raw", image, dir+"/raw")
	run("qemu-img", "compare", "-q", image, dir+"/raw")
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("outside there are %v, %v, want nothing", names, err)
	}
	if got, want := f.Now().Names(), []string{"a.qcow2", "raw"}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q", got, want)
	}
	if len(f.Writes()) == 0 || f.Writes()[0].Path != "a.qcow2" {
		t.Errorf("Writes = %v, want those to a.qcow2 first", f.Writes())
	}
	run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64k", "-c", "flush", image)
	before := f.Pending()
	run("qemu-io", "-f", "qcow2", "-t", "unsafe", "-c", "write -P 9 0 64k", image)
	if f.Pending() <= before {
		t.Errorf("Pending = %d after a write that is never flushed, want more than %d", f.Pending(), before)
	}
}

// TestNames: a file has as many links as names, the time that it is given, and a wrong answer is given once.
func TestNames(t *testing.T) {
	f, dir := mounted(t, newTree())
	do(t, f, func() error {
		if err := errors.Join(write(dir+"/a", 0, "x"), os.Link(dir+"/a", dir+"/b")); err != nil {
			return err
		}
		look := func(name string) (st unix.Stat_t) {
			if err := unix.Lstat(dir+"/"+name, &st); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return st
		}
		before := look("a")
		when := time.Unix(1583035200, 5)
		if err := os.Chtimes(dir+"/b", when, when); err != nil {
			return err
		}
		after := look("a")
		if before.Nlink != 2 || !time.Unix(after.Mtim.Unix()).Equal(when) || after.Ctim == before.Ctim {
			t.Errorf("%d links, changed %v and at %v, want 2, %v and another time", before.Nlink, after.Mtim, after.Ctim, when)
		}
		if err := os.Rename(dir+"/a", dir+"/b"); err != nil || look("b").Nlink != 2 {
			t.Errorf("rename of one name onto the other: %v, want that it does nothing", err)
		}
		f.LieAt(2, Lie{Done: true, Errno: unix.EIO})
		errs := []error{os.Link(dir+"/a", dir+"/c"), unix.Unlink(dir + "/c"), unix.Unlink(dir + "/b")}
		if errs[0] != nil || !errors.Is(errs[1], unix.EIO) || errs[2] != nil || look("a").Nlink != 1 {
			t.Errorf("link, unlink and unlink = %v, want the second to say %v", errs, unix.EIO)
		}
		return nil
	})
	if got := f.Told(); len(got) != 1 || f.Names() != 3 || len(f.Now().Files()) != 1 {
		t.Errorf("told %q after %d changes, and there are %v; want one lie after 3, and one name", got, f.Names(), f.Now().Files())
	}
}
