// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"errors"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// somebody is a process in our namespace that holds nothing.
func somebody(t *testing.T) int {
	t.Helper()
	c := exec.Command("sleep", "1000")
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.Start(t, c)
	t.Cleanup(func() {
		if err := c.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = c.Wait() // it was killed
	})
	return c.Process.Pid
}

// mapped maps a page of a file that is opened with flags, closes it, and unmaps it at the end.
func mapped(t *testing.T, path string, open, prot, flags int) {
	t.Helper()
	fd, err := unix.Open(path, open|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(fd, 0, 4096, prot, flags)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	})
}

// TestWriting holds what is said of who may write against how this process opened and mapped files.
func TestWriting(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	const all, private, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE, unix.MAP_SHARED
	opened := func(flags int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Close(fd); err != nil {
					t.Error(err)
				}
			})
		}
	}
	mapping := func(open, prot, flags int) func(*testing.T, string) {
		return func(t *testing.T, path string) { mapped(t, path, open, prot, flags) }
	}
	for _, c := range []struct {
		name    string
		make    func(t *testing.T, path string)
		kind    Kind
		want    bool
		writers int64 // that the kernel counts
		hidden  bool  // text does not tell
	}{
		{"read", opened(unix.O_RDONLY), OpenFD, false, 0, false},
		{"written", opened(unix.O_WRONLY), OpenFD, true, 1, false},
		{"both", opened(unix.O_RDWR), OpenFD, true, 1, false},
		{"name alone", opened(unix.O_PATH), OPath, false, 0, false},
		{"mapped, shared", mapping(unix.O_RDWR, all, shared), Mapping, true, 1, false},
		{"mapped, read-only for now", mapping(unix.O_RDWR, unix.PROT_READ, shared), Mapping, true, 1, true},
		{"mapped, opened for reading", mapping(unix.O_RDONLY, unix.PROT_READ, shared), Mapping, false, 0, true},
		// The copy in memory is written to, and not the file, though that was opened for it.
		{"mapped, private", mapping(unix.O_RDWR, all, private), Mapping, false, 1, false},
		{"mapped twice, side by side", sideBySide, Mapping, true, 1, false},
	} {
		for how, h := range hosts(t) {
			t.Run(c.name+", "+how, func(t *testing.T) {
				h.Self = somebody(t)
				d, err := hold.NewDisk(t.Context(), t.TempDir())
				if errors.Is(err, hold.ErrUnavailable) {
					testenv.Lacks(t, err.Error())
				} else if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := d.Close(); err != nil {
						t.Error(err)
					}
				})
				path := d.Mount + "/file"
				grown(t, path)
				c.make(t, path)
				_, r, err := ask(t.Context(), h, d.Mount)
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(r.Holders, func(h Holder) bool { return h.Kind == c.kind && h.Path == path })
				if i < 0 {
					t.Fatalf("holders %+v, want %s of %s", r.Holders, c.kind, path)
				}
				switch got := r.Holders[i].Writing; {
				case got == nil && !(c.hidden && how == "text"):
					t.Errorf("whether it writes is not known, want %t", c.want)
				case got != nil && *got != c.want:
					t.Errorf("it writes: %t, want %t", *got, c.want)
				}
				if how == "kernel" && r.Audit.Writers != c.writers {
					t.Errorf("the kernel counts %d writers, want %d", r.Audit.Writers, c.writers)
				}
			})
		}
	}
}

// grown makes a file of two pages.
func grown(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Ftruncate(fd, 8192), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// sideBySide maps one open file privately and, right behind that, shared: the second may be written to.
func sideBySide(t *testing.T, path string) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const page, prot = 4096, unix.PROT_READ | unix.PROT_WRITE
	at, err := unix.MmapPtr(fd, 0, nil, 2*page, prot, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.MunmapPtr(at, 2*page); err != nil {
			t.Error(err)
		}
	})
	second := unsafe.Add(at, page)
	if _, err := unix.MmapPtr(fd, page, second, page, prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
}
