// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestPollersRelative holds that a mount is known by whatever way a task names it that stands somewhere:
// each way has it looked at once, and what leads elsewhere is nobody's.
func TestPollersRelative(t *testing.T) {
	on := scratch(t)
	defer on.File.Close()
	p, err := OpenPollers([]Target{on})
	if errors.Is(err, ErrRefused) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sub := filepath.Join(on.Path, "sub", "deep")
	if err := os.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	up, name := filepath.Dir(on.Path), filepath.Base(on.Path)
	grand, middle := filepath.Dir(up), filepath.Base(up)
	var st unix.Stat_t
	var fs unix.Statfs_t
	var stx unix.Statx_t
	at := func(path string, flags int) func(int) error {
		return func(fd int) error { return unix.Fstatat(fd, path, &st, flags) }
	}
	statx := func(path string) func(int) error {
		return func(fd int) error { return unix.Statx(fd, path, 0, unix.STATX_BASIC_STATS, &stx) }
	}
	statfs := func(path string) func(int) error { return func(int) error { return unix.Statfs(path, &fs) } }
	here := func(path string) func(int) error { return func(int) error { return unix.Stat(path, &st) } }
	for _, c := range []struct {
		name, from string
		look       func(fd int) error
		want       int64
	}{
		{"a descriptor", on.Path, func(fd int) error { return unix.Fstatfs(fd, &fs) }, 1},
		{"a descriptor and an empty name", on.Path, at("", unix.AT_EMPTY_PATH), 1},
		{"the directory", on.Path, statfs("."), 1},
		{"the directory with a slash", on.Path, statfs("./"), 1},
		{"of a descriptor", on.Path, statx("."), 1},
		{"a name", up, statfs(name), 1},
		{"a name with a slash", up, here(name + "/"), 1},
		{"a name after a dot", up, at("./"+name, 0), 1},
		{"two names", grand, statx(middle + "/" + name), 1},
		{"above", sub, statfs("../.."), 1},
		{"above, with a slash", sub, here("../../"), 1},
		{"above the root and back", sub, at("../../../"+name, 0), 1},
		{"another name", up, here("."), 0},
		{"beneath", on.Path, statfs("sub"), 0},
		{"the one above", on.Path, here(".."), 0},
		{"a path that is too long", on.Path, here(strings.Repeat("./", 3*maxText/2) + "."), 0},
	} {
		for _, apart := range []bool{false, true} {
			if got := seen(t, p, c.from, apart, c.look); got != c.want {
				t.Errorf("%s, in a namespace of its own %t: %d looks at the mount were seen, want %d",
					c.name, apart, got, c.want)
			}
		}
	}
}

// seen has a task look from a directory, in a mount namespace of its own or in this one, and gives how
// many looks were counted.
func seen(t *testing.T, p *Pollers, from string, apart bool, look func(fd int) error) int64 {
	t.Helper()
	before := looks(t, p)
	dir, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with its directory and its mounts
		flags := unix.CLONE_FS
		if apart {
			flags |= unix.CLONE_NEWNS
		}
		err := unix.Unshare(flags)
		if err == nil {
			err = unix.Chdir(from)
		}
		if err == nil {
			err = look(int(dir.Fd()))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return looks(t, p) - before
}

// looks counts the looks of this process.
func looks(t *testing.T, p *Pollers) (n int64) {
	t.Helper()
	polls, err := p.Polls()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range polls {
		if q.PID == os.Getpid() && q.Children == "" {
			n += q.Calls
		}
	}
	return n
}
