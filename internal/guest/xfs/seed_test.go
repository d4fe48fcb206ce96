// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

// makeSeeds makes the file systems in testdata.
func makeSeeds(t *testing.T) {
	t.Helper()
	for _, crash := range []bool{false, true} {
		for _, version := range []int{4, 5} {
			v := variant{mkfs: []string{"-m", "crc=0"}}
			if version == 5 {
				v.mkfs = nil
			}
			args := append([]string{"mkfs.xfs", "-q", "--unsupported"}, v.mkfs...)
			disk := filestest.Make(t, t.TempDir(), 34<<20, append(args, "-d", "agcount=2", "-l",
				"size=1500b", "DISK")...)
			name, does := "v", "few"
			if crash {
				name, does = "crashed", "crash"
			}
			if version == 4 {
				c := guest(t, disk, does, v, filepath.Join(t.TempDir(), "none"))
				if out, err := c.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			} else {
				dir, unmount := filestest.Mount(t, disk, "xfs")
				few(t, dir, crash)
				if !crash {
					unmount()
				}
			}
			filestest.Pack(t, disk, fmt.Sprintf("testdata/%s%d.gz", name, version))
		}
	}
}

// few makes a few of everything; what is written last is in the log alone, if it is to be.
func few(t *testing.T, dir string, log bool) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	write := func(name string, off int64, n int) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, 0o644)
		must(err)
		_, err = f.WriteAt(make([]byte, n), off)
		must(errors.Join(err, f.Sync(), f.Close()))
	}
	fill := func(at string) {
		for _, d := range []string{"short", "block", "leaf"} {
			must(os.MkdirAll(filepath.Join(dir, at, d), 0o755))
		}
		for i := range 4 {
			write(fmt.Sprintf("%s/short/%d", at, i), 0, 100)
		}
		for i := range 60 {
			must(os.WriteFile(fmt.Sprintf("%s/%s/block/name %d", dir, at, i), nil, 0o644))
		}
		for i := range 150 {
			name := fmt.Sprintf("%s/%s/leaf/%s%d", dir, at, strings.Repeat("l", 40), i)
			must(os.Link(dir+"/"+at+"/short/0", name))
		}
		for i := range 40 {
			write(at+"/fragmented", int64(i)*8192, 4096)
		}
		must(os.Symlink("short", filepath.Join(dir, at, "link")))
		must(os.Symlink(strings.Repeat("l", 900), filepath.Join(dir, at, "long")))
		for i, n := range []int{10, 200, 2000, 6000} {
			must(unix.Setxattr(filepath.Join(dir, at, "short/1"), fmt.Sprintf("user.%d", i),
				make([]byte, n), 0))
		}
	}
	fill("a")
	unix.Sync()
	if log {
		fill("b")
		must(os.RemoveAll(filepath.Join(dir, "a/leaf")))
		write("last", 0, 1)
	}
}
