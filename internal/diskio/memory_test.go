// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// memoryOf sweeps a tree of some directories as on a file system that is trusted, and gives what it saw.
func memoryOf(t *testing.T) (*Memory, string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if trustOf(fs.Type) == trustNone { // as in a container
		if dir, err = os.MkdirTemp("/dev/shm", "shisa-memory-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 20 {
		p := filepath.Join(dir, fmt.Sprint("d", i%4), fmt.Sprint("e", i%3))
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprint(p, "/f", i), []byte("text"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("d0", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	l := &Learning{Now: time.Now().Add(time.Hour)}
	s := &Sweep{HeadBytes: 1, Workers: 3, Timeout: time.Minute, Learn: l, Other: func(WalkKind, string, error) {},
		File: func(_ int, f *Swept) { f.Tag, f.Keep = uint32(len(f.Name)), true }}
	if err := s.Run(t.Context(), []string{dir}); err != nil {
		t.Fatal(err)
	}
	return l.Seen, dir
}

// TestMemoryForm: what is written is read again, and what is not in its form is never taken for a memory.
func TestMemoryForm(t *testing.T) {
	m, _ := memoryOf(t)
	b := m.Append(nil)
	got, err := ParseMemory(b, 4)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b, got.Append(nil)); d != "" {
		t.Errorf("written again it is another (-want +got):\n%s", d)
	}
	for n := range len(b) {
		if _, err := ParseMemory(b[:n], 4); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for a memory", n, len(b))
		}
	}
	if _, err := ParseMemory(append(b, 0), 4); err == nil {
		t.Error("a byte too much is taken for a memory")
	}
	if _, err := ParseMemory(b, 2); err == nil {
		t.Error("a tag that there is not is taken for one")
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range testenv.Rounds(2000, 20000, 200000) {
		c := append([]byte{}, b...)
		for range 1 + r.IntN(3) {
			c[r.IntN(len(c))] = byte(r.Uint32())
		}
		if m, err := ParseMemory(c, 4); err == nil {
			walkMemory(m)
		}
	}
}

// walkMemory reads all of a memory, as a sweep would: nothing in it may lead out of it.
func walkMemory(m *Memory) (names int) {
	for i := range m.dirs {
		for _, s := range m.subsOf(&m.dirs[i]) {
			names += len(m.sub(&s))
			if s.dir >= 0 {
				names += len(m.subsOf(&m.dirs[s.dir]))
			}
		}
		for _, f := range m.filesOf(&m.dirs[i]) {
			names += len(m.file(&f))
		}
	}
	return names
}

// TestMemoryOpensNothing: where all is as it was, no file is opened; where one changed, that one is.
func TestMemoryOpensNothing(t *testing.T) {
	m, dir := memoryOf(t)
	if len(m.files) != 20 {
		t.Fatalf("%d files are remembered, want 20", len(m.files))
	}
	for _, change := range []string{"", "d1/e2/f5"} {
		if change != "" {
			time.Sleep(20 * time.Millisecond)
			if err := os.Chmod(filepath.Join(dir, change), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l := &Learning{Known: m, Now: time.Now()}
		opened, files, known := "", 0, 0
		s := &Sweep{HeadBytes: 1, Workers: 1, Timeout: time.Minute, Learn: l, Other: func(WalkKind, string, error) {},
			opening: func(path string) { opened += path[len(dir)+1:] },
			File: func(_ int, f *Swept) {
				files++
				if f.Known {
					known++
				}
				if f.Known == (f.Head != nil) || f.Known && f.Tag != uint32(len(f.Name)) {
					t.Errorf("%s: Known %v, head %q, tag %d", f.Path(), f.Known, f.Head, f.Tag)
				}
			}}
		if err := s.Run(t.Context(), []string{dir}); err != nil {
			t.Fatal(err)
		}
		if opened != change || files != 20 || (change == "") != l.Same || (change == "") != (known == 20) {
			t.Errorf("after a change of %q it opens %q, %d of %d files are known, Same %v", change, opened, known, files, l.Same)
		}
	}
}

// TestMemoryFile: a file is the one that is known if its inode, ctime, size, kind and device are.
func TestMemoryFile(t *testing.T) {
	f := memoryFile{ino: 5, changed: 7e9 + 9, size: 11}
	for i, change := range []func(*unix.Statx_t){
		func(*unix.Statx_t) {},
		func(x *unix.Statx_t) { x.Ino++ },
		func(x *unix.Statx_t) { x.Ctime.Nsec++ },
		func(x *unix.Statx_t) { x.Ctime.Sec++ },
		func(x *unix.Statx_t) { x.Size++ },
		func(x *unix.Statx_t) { x.Mode = unix.S_IFLNK },
		func(x *unix.Statx_t) { x.Dev_minor++ },
	} {
		x := unix.Statx_t{Ino: 5, Size: 11, Mode: unix.S_IFREG | 0o644, Dev_major: 8, Dev_minor: 1,
			Ctime: unix.StatxTimestamp{Sec: 7, Nsec: 9}}
		change(&x)
		if got := f.is(&x, unix.Mkdev(8, 1)); got != (i == 0) {
			t.Errorf("change %d: is = %v", i, got)
		}
	}
}

// TestTrust: changes have to lie so far back, by the clock of the file system that they are on.
func TestTrust(t *testing.T) {
	const s, now, never = int64(time.Second), 1_000_000 * int64(time.Second), int64(-1 << 63)
	for _, c := range []struct {
		fs           int64
		newest, want int64
	}{
		{unix.EXT4_SUPER_MAGIC, now - 100*s, now - 2*s},
		{unix.XFS_SUPER_MAGIC, now + 100*s, now - 2*s}, // a time from the future says nothing
		{unix.BTRFS_SUPER_MAGIC, now, now - 2*s},
		{unix.NFS_SUPER_MAGIC, now - 100*s, now - 160*s}, // the server's clock may be behind
		{unix.NFS_SUPER_MAGIC, now + 100*s, now - 60*s},
		{unix.CEPH_SUPER_MAGIC, now, now - 60*s},
		{unix.OVERLAYFS_SUPER_MAGIC, now, never},
		{unix.FUSE_SUPER_MAGIC, now, never},
		{0x12345678, now, never},
	} {
		r := &sweep{Sweep: &Sweep{Learn: &Learning{Now: time.Unix(0, now)}}, trust: map[uint64]trust{}}
		r.trusts(7, c.fs, "/m")
		if got := r.trusted(7, c.newest); got != c.want {
			t.Errorf("file system %#x, youngest %d: trusted before %d, want %d", c.fs, c.newest, got, c.want)
		}
		if told := len(r.Learn.Distrusted) > 0; told != (c.want == never) {
			t.Errorf("file system %#x: told that it is not trusted: %v", c.fs, told)
		}
	}
}
