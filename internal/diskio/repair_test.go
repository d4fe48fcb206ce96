// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestRepairRespectsQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	for _, tc := range []struct {
		name string
		args []string
		used string
	}{
		{"a writer", nil, "consistent read, write, resize"},
		{"a reader", []string{"-r"}, "consistent read"},
		{"a reader that shares", []string{"-r", "-U"}, "consistent read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newImage(t)
			startQemuIO(t, append(tc.args, path)...)
			_, err := diskio.Host().OpenForRepair(path)
			var inUse *diskio.InUseError
			if !errors.Is(err, diskio.ErrInUse) || !errors.As(err, &inUse) || inUse.Path != path {
				t.Fatalf("OpenForRepair = %v, want %v", err, diskio.ErrInUse)
			}
			if got := inUse.Permissions(); got != tc.used {
				t.Errorf("Permissions() = %q, want %q", got, tc.used)
			}
		})
	}
}

// While we have an image open nobody else may open it, and we not twice.
func TestRepairKeepsOthersOut(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := newImage(t)
	w, err := diskio.Host().OpenForRepair(path)
	if err != nil {
		t.Fatal(err)
	}
	// What QEMU says to those who start a machine meanwhile is what they know how to read.
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `Failed to get "write" lock`}, {[]string{"-r"}, `Failed to get shared "write" lock`},
	} {
		out, err := exec.Command("qemu-io", append(tc.args, "-c", "length", path)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) ||
			!strings.Contains(string(out), "Is another process using the image") {
			t.Errorf("qemu-io %v while we have the image = %v: %s, want %s", tc.args, err, out, tc.want)
		}
	}
	// Who says that it shares everything may look, as at any image that runs.
	if out, err := exec.Command("qemu-io", "-r", "-U", "-c", "length", path).CombinedOutput(); err != nil {
		t.Errorf("qemu-io -r -U while we have the image = %v: %s", err, out)
	}
	if got, want := locks(t, path), (diskio.LockState{Used: [4]bool{true, true, false, true},
		NotShared: [4]bool{false, true, false, true}}); got != want {
		t.Errorf("we hold %v, want what QEMU holds: %v", got, want)
	}
	if _, err := diskio.Host().OpenForRepair(path); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("OpenForRepair twice = %v, want %v", err, diskio.ErrInUse)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-io", "-c", "length", path).CombinedOutput(); err != nil {
		t.Errorf("qemu-io after Close: %v: %s", err, out)
	}
}

// Of many who try at the same moment one at most gets the image, and none keeps it from the next.
func TestRepairRace(t *testing.T) {
	path := filepath.Join(tree(t, "a"), "a")
	for range 100 {
		var in, most, got atomic.Int32
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				w, err := diskio.Host().OpenForRepair(path)
				if errors.Is(err, diskio.ErrInUse) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				got.Add(1)
				if n := in.Add(1); n > most.Load() {
					most.Store(n)
				}
				runtime.Gosched()
				in.Add(-1)
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if most.Load() > 1 {
			t.Fatalf("%d have the image at the same time", most.Load())
		}
		w, err := diskio.Host().OpenForRepair(path)
		if err != nil {
			t.Fatalf("after %d had it: %v", got.Load(), err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A block device that the kernel uses is left alone, and one that nobody uses can be changed.
func TestRepairOfDevice(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "losetup", "mount", "umount")
	dir := t.TempDir()
	file, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 8<<20), os.Mkdir(mnt, 0o700)); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			testenv.Lacks(t, strings.Join(args, " ")+": "+string(out))
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.ext4", "-q", file)
	dev := run("losetup", "--find", "--show", file)
	t.Cleanup(func() { run("losetup", "-d", dev) })
	w, err := diskio.Host().OpenForRepair(dev)
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.Identity()
	if err != nil || !id.Block || id.SizeBytes != 8<<20 {
		t.Errorf("Identity = %+v, %v", id, err)
	}
	_, err = w.WriteAt([]byte("boot"), 0)
	if err := errors.Join(err, w.Sync(), w.DropCache(), w.Close()); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b[:4]) != "boot" {
		t.Errorf("the device holds %q, %v", b[:4], err)
	}
	run("mount", dev, mnt)
	defer run("umount", mnt)
	var inUse *diskio.InUseError
	if _, err := diskio.Host().OpenForRepair(dev); !errors.As(err, &inUse) || !inUse.Kernel {
		t.Errorf("OpenForRepair of a mounted device = %v, want that the kernel uses it", err)
	}
}

func TestRepairOpens(t *testing.T) {
	dir := tree(t, "a", "link -> a", "d/", "fifo|", "e/b", "f -> e")
	for name, want := range map[string]error{
		"link": diskio.ErrChanged, "f/b": diskio.ErrChanged, "d": diskio.ErrDirectory,
		"fifo": diskio.ErrSpecial, "none": fs.ErrNotExist,
	} {
		if _, err := diskio.Host().OpenForRepair(filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("OpenForRepair(%s) = %v, want %v", name, err, want)
		}
		if _, err := diskio.Host().OpenWithoutLocks(filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("OpenWithoutLocks(%s) = %v, want %v", name, err, want)
		}
	}
	if _, err := diskio.Host().CreateNew(filepath.Join(dir, "link"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateNew of a link = %v, want %v", err, fs.ErrExist)
	}
}

// A lock that is not QEMU's, and one that keeps us from taking ours.
// sysfs has nothing to write to a disk, and says so as file systems do that cannot sync directories.
func TestSyncDirThatCannot(t *testing.T) {
	if err := diskio.Host().SyncDir("/sys"); !errors.Is(err, diskio.ErrNoSync) {
		t.Errorf("SyncDir(/sys) = %v, want %v", err, diskio.ErrNoSync)
	}
	if err := diskio.Host().SyncDir(t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestRepairForeignLock(t *testing.T) {
	path := filepath.Join(tree(t, "a"), "a")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	_, err = diskio.Host().OpenForRepair(path)
	if !errors.Is(err, diskio.ErrInUse) || !strings.Contains(err.Error(), "write lock") {
		t.Errorf("OpenForRepair = %v, want %v", err, diskio.ErrInUse)
	}
}

func TestRepairWrites(t *testing.T) {
	h, dir := diskio.Host(), t.TempDir()
	sub := filepath.Join(dir, "x/y")
	if err := h.MakeDir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir + "/x", sub} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("MakeDir made %s with %v, %v", d, st.Mode(), err)
		}
	}
	path := filepath.Join(sub, "a")
	w, err := h.CreateNew(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("CreateNew made %v, %v", st.Mode(), err)
	}
	if _, err := h.CreateNew(path, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateNew twice = %v, want %v", err, fs.ErrExist)
	}
	if _, err := w.WriteAt([]byte("hello"), 3); err != nil {
		t.Fatal(err)
	}
	for _, fn := range []func() error{
		func() error { return w.Truncate(6) }, w.Sync, w.DropCache, w.Close,
		func() error { return h.Rename(path, path+"2") },
		func() error { return h.SyncDir(sub) },
	} {
		if err := fn(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path + "2"); err != nil || string(got) != "\x00\x00\x00hel" {
		t.Errorf("wrote %q, %v", got, err)
	}
	r, err := h.Open(path + "2")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before, err := r.Identity()
	if err != nil || before.SizeBytes != 6 {
		t.Errorf("Identity = %+v, %v", before, err)
	}
	if err := h.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(sub); err == nil {
		t.Error("Remove removed a directory")
	}
	room, err := h.Room(dir)
	below, err2 := h.Room(sub)
	if err != nil || err2 != nil || room.FreeBytes <= 0 || room.TotalBytes < room.FreeBytes {
		t.Errorf("Room = %+v, %v, %v", room, err, err2)
	}
	if !room.Shared(below) || room.Shared(diskio.Room{Dev: room.Dev + 1}) {
		t.Errorf("%+v and %+v: Shared is wrong", room, below)
	}
}

func TestSameFile(t *testing.T) {
	dir := tree(t, "a", "b")
	look := func(name string) diskio.Identity {
		t.Helper()
		r, err := diskio.Host().Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		id, err := r.Identity()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	a, b := look("a"), look("b")
	if err := os.Rename(dir+"/a", dir+"/c"); err != nil {
		t.Fatal(err)
	}
	if !a.Same(look("c")) || a.Same(b) {
		t.Error("Same does not know a file by another name, or takes two for one")
	}
	again := a
	again.Born = a.Born.Add(1)
	if !a.Born.IsZero() && a.Same(again) {
		t.Error("Same takes a file for one whose inode number it got")
	}
}

func TestList(t *testing.T) {
	dir := tree(t, "a.x", "b.y", "d/c.x", "d/e/f.x", "l.x -> a.x", "g.x|")
	for deep, want := range map[bool][]string{
		false: {"a.x"}, true: {"a.x", "d/c.x", "d/e/f.x"},
	} {
		got, err := diskio.Host().List(t.Context(), dir, deep, func(name string) bool {
			return strings.HasSuffix(name, ".x")
		})
		for i := range got {
			got[i] = strings.TrimPrefix(got[i], dir+"/")
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("List(deep=%v): %v (-want +got):\n%s", deep, err, diff)
		}
	}
	keep := func(string) bool { return true }
	if _, err := diskio.Host().List(t.Context(), dir+"/a.x", false, keep); !errors.Is(err, diskio.ErrNotDirectory) {
		t.Errorf("List of a file = %v, want %v", err, diskio.ErrNotDirectory)
	}
	if _, err := diskio.Host().List(t.Context(), dir+"/no", true, keep); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing = %v, want %v", err, fs.ErrNotExist)
	}
}
