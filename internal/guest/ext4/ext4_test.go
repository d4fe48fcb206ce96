// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}

var _ files.FS = (*FS)(nil)

const mib = 1 << 20

// openFS is Open for what takes any file system.
func openFS(ctx context.Context, volume io.ReaderAt, size int64) (files.FS, error) {
	fs, err := Open(ctx, volume, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// openDisk opens the file system in a file, until the end of the test.
func openDisk(t testing.TB, name string) *FS {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(t.Context(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// variant is a way to make the file system.
type variant struct {
	name string
	mkfs string // the options
	kind string // ext4 if empty
	// tune are options of tune2fs for when it is filled: of features that not every kernel writes.
	tune string
	sums bool  // metadata_csum
	size int64 // 256 MiB if 0
	long bool  // only in long sweeps
}

var variants = []variant{
	{name: "4k", mkfs: "-b 4096", sums: true},
	{name: "2k", long: true, mkfs: "-b 2048", sums: true},
	{name: "1k", long: true, mkfs: "-b 1024", sums: true},
	{name: "1k-bigalloc", mkfs: "-b 1024 -O bigalloc -C 16384", sums: true},
	{name: "inline", long: true, mkfs: "-b 4096 -O inline_data -I 512", sums: true},
	{name: "inline-256", mkfs: "-b 4096 -O inline_data -I 256", sums: true},
	{name: "no-64bit", long: true, mkfs: "-b 4096 -O ^64bit", sums: true},
	{name: "meta_bg", mkfs: "-b 1024 -O meta_bg,^resize_inode", sums: true},
	{name: "sparse_super2", long: true, mkfs: "-b 4096 -O sparse_super2", sums: true},
	{name: "no-journal", long: true, mkfs: "-b 4096 -O ^has_journal", sums: true},
	{name: "no-csum", mkfs: "-b 4096 -O ^metadata_csum"},
	{name: "uninit_bg", long: true, mkfs: "-b 4096 -O ^metadata_csum,uninit_bg"},
	{name: "ea_inode", mkfs: "-b 4096 -O ea_inode", sums: true},
	{name: "large_dir", long: true, mkfs: "-b 1024 -O large_dir", sums: true},
	{name: "bigalloc", long: true, mkfs: "-b 4096 -O bigalloc -C 65536", sums: true},
	{name: "orphan_file", long: true, mkfs: "-b 4096 -O orphan_file,metadata_csum_seed", sums: true},
	{name: "quota", long: true, sums: true,
		mkfs: "-b 4096", tune: "-O quota,project -Q usrquota,grpquota,prjquota"},
	{name: "mmp", long: true, mkfs: "-b 4096 -O mmp", sums: true},
	{name: "I128", long: true, mkfs: "-b 4096 -I 128", sums: true},
	{name: "few-groups", long: true, mkfs: "-b 4096 -g 2048 -N 40000", sums: true},
	{name: "ext3", long: true, mkfs: "-b 4096", kind: "ext3"},
	{name: "ext3-1k", mkfs: "-b 1024 -I 128", kind: "ext3"},
	{name: "ext2", long: true, mkfs: "-b 4096", kind: "ext2"},
	{name: "ext2-1k", mkfs: "-b 1024 -O ^filetype", kind: "ext2"},
}

// make makes the file system and fills it through a mount. It gives the file and the directory
// that it was mounted at.
func (v *variant) make(t testing.TB, fill func(dir string)) (disk string) {
	t.Helper()
	kind := v.kind
	if kind == "" {
		kind = "ext4"
	}
	size := v.size
	if size == 0 {
		size = 256 * mib
	}
	args := append([]string{"mkfs." + kind, "-q", "-F"}, strings.Fields(v.mkfs)...)
	disk = filestest.Make(t, t.TempDir(), size, append(args, "DISK")...)
	dir, unmount := filestest.Mount(t, disk, kind)
	fill(dir)
	unmount()
	if v.tune != "" {
		args := append(strings.Fields(v.tune), disk)
		if out, err := exec.Command("tune2fs", args...).CombinedOutput(); err != nil {
			t.Fatalf("tune2fs %s: %v %s", v.tune, err, out)
		}
	}
	return disk
}

// TestAtOnce has several goroutines read one file system.
func TestAtOnce(t *testing.T) {
	v := variant{mkfs: "-b 1024", size: 32 * mib}
	fs := openDisk(t, v.make(t, func(dir string) { fillSmall(t, dir) }))
	want, _, err := filestest.ReadView(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			got, _, err := filestest.ReadView(t.Context(), fs)
			if err != nil {
				t.Error(err)
			}
			for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
				t.Error(line)
			}
		})
	}
	readers.Wait()
}

// TestCalledOff: a context that is over ends every call, and is no damage.
func TestCalledOff(t *testing.T) {
	v := variant{mkfs: "-b 1024", size: 32 * mib}
	disk := v.make(t, func(dir string) { fillSmall(t, dir) })
	fs := openDisk(t, disk)
	root, err := fs.Open(t.Context(), rootIno)
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	fs.meta = newCache(fs.meta.volume, fs.meta.size)
	for name, err := range map[string]error{
		"Inodes":  fs.Inodes(over, func(*files.Stat) error { return nil }),
		"Entries": root.Entries(over, func(files.Entry) error { return nil }),
		"Owners": fs.Owners(over, []files.Range{{Length: 32 * mib}},
			func(files.Owner) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want that it was called off", name, err)
		}
	}
	if view := fs.View(); view.State != files.Clean {
		t.Errorf("the view is %+v", view)
	}
}

// getVersion is FS_IOC_GETVERSION.
const getVersion = 0x80087601

// TestFlags holds flags, generations and projects against what the kernel says.
func TestFlags(t *testing.T) {
	testenv.Need(t, "tune2fs", "debugfs")
	v := variant{mkfs: "-b 4096", tune: "-O quota,project -Q prjquota", size: 64 * mib}
	disk := v.make(t, func(dir string) {
		fillSmall(t, dir)
		for _, attrs := range []string{"+A", "+d", "+S", "=e"} {
			name := filepath.Join(dir, "file"+attrs)
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("chattr", attrs, name).CombinedOutput(); err != nil {
				t.Fatalf("chattr: %v %s", err, out)
			}
		}
	})
	for _, attrs := range []string{"+A", "+d", "+S", "=e"} {
		set := "set_inode_field /file" + attrs + " projid 77"
		if out, err := exec.Command("debugfs", "-w", "-R", set, disk).CombinedOutput(); err != nil {
			t.Fatalf("debugfs: %v %s", err, out)
		}
	}
	fs := openDisk(t, disk)
	dir, _ := filestest.Mount(t, disk, "ext4", "ro")
	err := files.Walk(t.Context(), fs, rootIno, "/", func(f *files.Found) error {
		st := f.File.Stat()
		if !st.IsRegular() && !st.IsDir() {
			return nil
		}
		file, err := os.Open(filepath.Join(dir, f.Path))
		if err != nil {
			return err
		}
		defer file.Close()
		flags, err := unix.IoctlGetUint32(int(file.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || flags != st.Flags {
			t.Errorf("%s has flags 0x%x, want 0x%x, %v", f.Path, st.Flags, flags, err)
		}
		generation, err := unix.IoctlGetUint32(int(file.Fd()), getVersion)
		if err != nil || generation != st.Generation {
			t.Errorf("%s has generation %d, want %d, %v", f.Path, st.Generation, generation, err)
		}
		if project := strings.HasPrefix(f.Path, "/file"); project != (st.Project == 77) {
			t.Errorf("%s has project %d", f.Path, st.Project)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill gives what Populate is to do.
func (v *variant) fill() filestest.Fill {
	return filestest.Fill{ACLs: true, SmallTimes: strings.Contains(v.mkfs, "-I 128")}
}

// TestMounted holds what is read against what the kernel shows.
func TestMounted(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			if v.long {
				testenv.NeedLong(t)
			}
			disk := v.make(t, func(dir string) { filestest.Populate(t, dir, v.fill()) })
			fs := openDisk(t, disk)
			kind := v.kind
			if kind == "" {
				kind = "ext4"
			}
			if got := fs.Info().Kind; got != kind {
				t.Errorf("kind is %s, want %s", got, kind)
			}
			dir, _ := filestest.Mount(t, disk, kind, "ro")
			filestest.Same(t, fs, dir, filestest.Loose{})
			if s := fs.View(); s.State != files.Clean || len(s.Problems) > 0 {
				t.Errorf("the view is %s: %+v", s.State, s.Problems)
			}
		})
	}
}
