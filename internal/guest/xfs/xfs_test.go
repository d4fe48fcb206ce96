// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(guestDoes) == "" { // the first process of a guest is alone
		if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(testenv.Checked(withGuest{m}).Run())
}

// open opens the file system in a file, which stays open until the end of the test.
func open(t testing.TB, name string) *FS {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), file, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type variant struct {
	name string
	mkfs []string // options
	fill filestest.Fill
	opts []string // of the mount
}

func variants() []variant {
	v4 := filestest.Fill{ACLs: true, SmallTimes: true}
	v5 := filestest.Fill{ACLs: true, Reflink: true}
	old := filestest.Fill{ACLs: true, SmallTimes: true}
	return []variant{
		{"v5", nil, v5, nil},
		{"v5 1k rmapbt", []string{"-b", "size=1024", "-m", "rmapbt=1"}, v5, nil},
		{"v5 64k directory blocks", []string{"-n", "size=65536"}, v5, nil},
		{"v5 old", []string{"-m", "finobt=0,bigtime=0,reflink=0", "-i", "sparse=0"}, old, nil},
		{"v5 nrext64 2k inodes", []string{"-i", "nrext64=1,size=2048"}, v5, []string{"uquota", "pquota"}},
		{"v5 4k sectors many groups", []string{"-s", "size=4096", "-d", "agcount=30"}, v5, nil},
		{"v5 small log", []string{"--unsupported", "-m", "reflink=0", "-l", "size=6m"}, old, nil}, // it wraps
		{"v5 log stripe", []string{"-l", "su=256k", "-i", "size=1024"}, v5, nil},
		{"v4", []string{"-m", "crc=0"}, v4, nil},
		{"v4 512", []string{"-m", "crc=0,finobt=0", "-b", "size=512", "-n", "ftype=0"}, v4, nil},
		{"v4 1k log version 1", []string{"-m", "crc=0", "-b", "size=1024", "-l", "version=1",
			"-i", "size=512"}, v4, nil},
	}
}

// v4 tells whether it is version 4 of the format.
func (v *variant) v4() bool {
	return slices.Contains(v.mkfs, "crc=0") || slices.Contains(v.mkfs, "crc=0,finobt=0")
}

// foreign tells whether the kernel here cannot be relied on to know it: version 4, or quotas.
func (v *variant) foreign() bool { return v.v4() || len(v.opts) > 0 }

// TestMounted compares file systems that the kernel wrote and unmounted with what it shows.
func TestMounted(t *testing.T) {
	for _, v := range variants() {
		if !v.short() {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			args := append([]string{"mkfs.xfs", "-q"}, v.mkfs...)
			disk := filestest.Make(t, t.TempDir(), 3<<30, append(args, "DISK")...)
			var want filestest.Tree
			if v.foreign() {
				want = kernelTree(t, disk, "fill", v)
			} else {
				dir, unmount := filestest.Mount(t, disk, "xfs", v.opts...)
				filestest.Populate(t, dir, v.fill)
				more(t, dir)
				unmount()
				dir, unmount = filestest.Mount(t, disk, "xfs", "ro")
				want = filestest.ReadMounted(t, dir)
				unmount()
			}
			same(t, open(t, disk), want, files.Clean)
		})
	}
}

// more makes what makes btrees of two levels and more: a file in thousands of pieces, attributes in
// hundreds of blocks, of which some are removed again.
func more(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "pieces"))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for i := range int64(4000) {
		binary.BigEndian.PutUint64(b, uint64(i))
		if _, err := f.WriteAt(b, i*16384); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("a value of an attribute "), 65536/24)
	for i := range 250 {
		name := fmt.Sprintf("user.%0*d", 1+i%200, i)
		if err := unix.Setxattr(f.Name(), name, big[:i*i%len(big)], 0); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			if err := unix.Removexattr(f.Name(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestShared has a file whose blocks, each counted as often as it is there, are more than those of the
// file system.
func TestShared(t *testing.T) {
	disk := filestest.Make(t, t.TempDir(), 300<<20, "mkfs.xfs", "-q", "-m", "reflink=1", "DISK")
	dir, unmount := filestest.Mount(t, disk, "xfs")
	const size = 40 << 20
	one := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(filepath.Join(dir, "one"), one, 0o644); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.Create(filepath.Join(dir, "many"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(10) {
		r := unix.FileCloneRange{Src_fd: int64(from.Fd()), Src_length: size, Dest_offset: i * size}
		if err := unix.IoctlFileCloneRange(int(to.Fd()), &r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(from.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
	want := filestest.ReadMounted(t, dir)
	unmount()
	same(t, open(t, disk), want, files.Clean)
}

// TestFresh opens file systems that were never mounted.
func TestFresh(t *testing.T) {
	for _, v := range variants() {
		args := append([]string{"mkfs.xfs", "-q"}, v.mkfs...)
		f := open(t, filestest.Make(t, t.TempDir(), 3<<30, append(args, "DISK")...))
		count, view, err := files.Survey(t.Context(), f, nil)
		if err != nil || view.State != files.Clean || count.Inodes != 1 {
			t.Errorf("%s: %+v, %+v, %v", v.name, count, view, err)
		}
	}
}

// short tells the variants that are looked at in each run of the tests, the others only in long ones.
func (v *variant) short() bool {
	return testenv.Long() || v.name == "v5 1k rmapbt" || v.name == "v5 small log" || v.name == "v4"
}

// same holds what f shows against what a kernel showed.
func same(t *testing.T, f *FS, want filestest.Tree, states ...files.State) {
	t.Helper()
	got, view, err := filestest.ReadView(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
		t.Error(line)
	}
	if !slices.Contains(states, view.State) {
		t.Errorf("the view is %s, want one of %v: %+v", view.State, states,
			view.Problems[:min(5, len(view.Problems))])
	}
}
