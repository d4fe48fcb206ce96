// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// sparse makes a file of 64 MiB with data at its front, in the middle and at its end, and a block of
// zeros that are stored.
func sparse(t *testing.T, path string) []byte {
	t.Helper()
	p := make([]byte, 64<<20+700)
	copy(p, "front")
	copy(p[32<<20+4096:], bytes.Repeat([]byte{7}, 100_000))
	copy(p[len(p)-5:], "at end")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int{0, 32 << 20, 48 << 20} {
		if _, err := f.WriteAt(p[at:at+1<<20], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(p[len(p)-512:], int64(len(p)-512)); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCopyNew(t *testing.T) {
	dir := testenv.DiskDir(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	want := sparse(t, src)
	diskio.RequireUnchanged(t, src)
	var last, total int64
	c, err := diskio.CopyNew(t.Context(), diskio.Host(), src, dst, func(done, all int64) {
		if done < last || all != int64(len(want)) {
			t.Errorf("progress %d of %d after %d", done, all, last)
		}
		last, total = done, all
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.File.Close()
	if !c.Cloned && (last != total || last == 0) {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the copy differs: %d bytes, want %d, %v", len(got), len(want), err)
	}
	a, err := diskio.Look(src)
	if err != nil {
		t.Fatal(err)
	}
	b, err := diskio.Look(dst)
	if err != nil {
		t.Fatal(err)
	}
	if b.AllocatedBytes > a.AllocatedBytes {
		t.Errorf("the copy takes %d bytes, its source %d", b.AllocatedBytes, a.AllocatedBytes)
	}
	if !c.Cloned && c.DataBytes > 1<<20 {
		t.Errorf("%d bytes were copied, want less than 1 MiB: zeros are left out", c.DataBytes)
	}
	if _, err := c.File.WriteAt([]byte("other"), 0); err != nil {
		t.Fatal(err)
	}
}

// TestCopyNewRefuses: no existing name is touched, whatever it is.
func TestCopyNewRefuses(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	other, link, sym := filepath.Join(dir, "other"), filepath.Join(dir, "link"), filepath.Join(dir, "sym")
	dangling := filepath.Join(dir, "dangling")
	for path, text := range map[string]string{src: "source", other: "other"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Link(src, link), os.Symlink(src, sym), os.Symlink("nowhere", dangling)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	diskio.RequireUnchanged(t, src, other)
	for _, dst := range []string{src, other, link, sym, dangling, filepath.Join(dir, ".", "src")} {
		if _, err := diskio.CopyNew(t.Context(), diskio.Host(), src, dst, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("CopyNew to %s = %v, want %v", filepath.Base(dst), err, fs.ErrExist)
		}
		if _, err := os.Lstat(dst); err != nil {
			t.Errorf("%s is gone: %v", dst, err)
		}
	}
	if _, err := diskio.CopyNew(t.Context(), diskio.Host(), filepath.Join(dir, "none"),
		filepath.Join(dir, "new"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CopyNew of no file = %v, want %v", err, fs.ErrNotExist)
	}
}

// plainDisk is a machine whose files cannot share blocks, and of which one fails.
type plainDisk struct {
	diskio.Disk
	writeErr error
	free     int64
	// write is called before every write.
	write func()
}

type plainReader struct{ diskio.Readable }

type plainWriter struct {
	diskio.Writable
	d *plainDisk
}

func (d *plainDisk) Open(path string) (diskio.Readable, error) {
	r, err := d.Disk.Open(path)
	return plainReader{r}, err
}

func (d *plainDisk) CreateNew(path string, perm fs.FileMode) (diskio.Writable, error) {
	w, err := d.Disk.CreateNew(path, perm)
	return plainWriter{w, d}, err
}

func (d *plainDisk) Room(string) (diskio.Room, error) { return diskio.Room{FreeBytes: d.free}, nil }

func (w plainWriter) WriteAt(p []byte, off int64) (int, error) {
	if w.d.write != nil {
		w.d.write()
	}
	if w.d.writeErr != nil {
		return 0, w.d.writeErr
	}
	return w.Writable.WriteAt(p, off)
}

// TestCopyNewFails: after an error there is no copy, not even a part of one.
func TestCopyNewFails(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	want := sparse(t, src)
	ctx, stop := context.WithCancel(t.Context())
	errFull := errors.New("no space left")
	for _, tt := range []struct {
		name string
		d    *plainDisk
		want error
	}{
		{"full", &plainDisk{Disk: diskio.Host(), writeErr: errFull, free: 1 << 40}, errFull},
		{"too small", &plainDisk{Disk: diskio.Host(), free: 100}, diskio.ErrNoSpace},
		{"changed meanwhile", &plainDisk{Disk: diskio.Host(), free: 1 << 40, write: func() {
			if err := os.Truncate(src, int64(len(want)+1)); err != nil {
				t.Error(err)
			}
		}}, diskio.ErrChanged},
		{"stopped", &plainDisk{Disk: diskio.Host(), free: 1 << 40, write: stop}, context.Canceled},
	} {
		_, err := diskio.CopyNew(ctx, tt.d, src, dst, nil)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: CopyNew() = %v, want %v", tt.name, err, tt.want)
		}
		if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a part of the copy is left: %v", tt.name, err)
		}
	}
	c, err := diskio.CopyNew(t.Context(), &plainDisk{Disk: diskio.Host(), free: 1 << 40}, src, dst, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.File.Close()
	got := make([]byte, len(want))
	if _, err := c.File.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) || c.Cloned {
		t.Errorf("the copy differs: %v, cloned %v", err, c.Cloned)
	}
	if c.DataBytes == 0 || c.DataBytes > 1<<20 {
		t.Errorf("%d bytes were copied, want 1 MiB at most: zeros are left out", c.DataBytes)
	}
}

// TestCopyNewOfRunning: an image that a program writes to is not copied.
func TestCopyNewOfRunning(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := newImage(t)
	startQemuIO(t, path)
	_, err := diskio.CopyNew(t.Context(), diskio.Host(), path, path+".copy", nil)
	if !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("CopyNew() = %v, want %v", err, diskio.ErrInUse)
	}
}

// TestCopyNewShares: where the file system can, the copy shares the blocks of its source.
func TestCopyNewShares(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.xfs", "mount", "umount")
	dir := t.TempDir()
	disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 320<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs: %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", disk, mnt).CombinedOutput(); err != nil {
		testenv.Lacks(t, "a mount of XFS on a loop device: "+string(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	src, dst := filepath.Join(mnt, "src"), filepath.Join(mnt, "dst")
	want := sparse(t, src)
	c, err := diskio.CopyNew(t.Context(), diskio.Host(), src, dst, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.File.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if !c.Cloned || err != nil || !bytes.Equal(got, want) {
		t.Errorf("cloned %v, %v, same bytes %v", c.Cloned, err, bytes.Equal(got, want))
	}
}
