// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

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
}

func variants() []variant {
	v4 := filestest.Fill{ACLs: true, SmallTimes: true}
	v5 := filestest.Fill{ACLs: true, Reflink: true}
	old := filestest.Fill{ACLs: true, SmallTimes: true}
	return []variant{
		{"v5", nil, v5},
		{"v5 1k rmapbt", []string{"-b", "size=1024", "-m", "rmapbt=1"}, v5},
		{"v5 64k directory blocks", []string{"-n", "size=65536"}, v5},
		{"v5 old", []string{"-m", "finobt=0,bigtime=0,reflink=0", "-i", "sparse=0"}, old},
		{"v5 nrext64 2k inodes", []string{"-i", "nrext64=1,size=2048"}, v5},
		{"v5 4k sectors, groups", []string{"-s", "size=4096", "-d", "agcount=30"}, v5},
		{"v4", []string{"-m", "crc=0"}, v4},
		{"v4 512", []string{"-m", "crc=0,finobt=0", "-b", "size=512", "-n", "ftype=0"}, v4},
		{"v4 1k, log version 1", []string{"-m", "crc=0", "-b", "size=1024", "-l", "version=1",
			"-i", "size=512"}, v4},
	}
}

// TestMounted compares file systems that the kernel wrote and unmounted with what it shows.
func TestMounted(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			args := append([]string{"mkfs.xfs", "-q"}, v.mkfs...)
			disk := filestest.Make(t, t.TempDir(), 3<<30, append(args, "DISK")...)
			dir, unmount := filestest.Mount(t, disk, "xfs")
			filestest.Populate(t, dir, v.fill)
			unmount()
			dir, _ = filestest.Mount(t, disk, "xfs", "ro")
			f := open(t, disk)
			filestest.Same(t, f, dir, filestest.Loose{})
			if s := f.View().State; s != files.Clean {
				t.Errorf("the view is %s, want clean", s)
			}
		})
	}
}
