// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// holdAll starts a process that has the files open until the test ends.
func holdAll(t *testing.T, files []*os.File) int {
	t.Helper()
	testenv.Need(t, "sleep")
	cmd := exec.Command("sleep", "100")
	cmd.ExtraFiles = files
	testenv.Start(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func openFile(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The kernel goes through all locks of a file for each fdinfo of it: with thousands of descriptors
// that hold some, reading each took seconds. The only one that is open for writing is seen anyhow.
func TestManyDescriptorsOfOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	files := []*os.File{openFile(t, path, os.O_RDWR|os.O_CREATE)}
	files[0].Close()
	files = files[:0]
	for i := range 400 {
		flags := os.O_RDONLY
		if i == 390 {
			flags = os.O_RDWR
		}
		f := openFile(t, path, flags)
		for _, at := range []int64{100, 201, 203} {
			lk := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
				t.Fatal(err)
			}
		}
		files = append(files, f)
	}
	pid := holdAll(t, files)
	c, err := Open("").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for _, f := range c.files {
		if f.PID == pid && f.Path == path {
			listed++
		}
	}
	if listed != maxAlike {
		t.Errorf("Census lists %d of 400 descriptors of one file, want %d", listed, maxAlike)
	}
	st, real := look(t, path)
	hs := c.Holders(t.Context(), st, real)
	if len(hs) != 1 || hs[0].PID != pid || !hs[0].Writing {
		t.Errorf("Holders(%s) = %+v, want process %d writing", path, hs, pid)
	}
}

// Files that were removed and made anew have one name, and are told apart however many there are.
func TestManyFilesOfOneName(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.qcow2")
	var files []*os.File
	for i := range 3 * maxAlike {
		f := openFile(t, path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		files = append(files, f)
		// Another name keeps the inode, and makes the last one findable.
		if err := os.Link(path, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	pid := holdAll(t, files)
	c, err := Open("").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		st, real := look(t, filepath.Join(dir, fmt.Sprint(i)))
		if hs := c.Holders(t.Context(), st, real); len(hs) != 1 || hs[0].PID != pid {
			t.Errorf("Holders(file %d) = %+v, want process %d", i, hs, pid)
		}
	}
}

// A list that takes too long says that it is not whole.
func TestCensusIsCut(t *testing.T) {
	c := &Census{host: qemuWorld(t), byIno: map[uint64][]int{}, byPath: map[string][]int{}, machines: map[int]bool{}}
	proc, err := openDirectory(unix.AT_FDCWD, c.host.root+"/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	for _, name := range []string{"64", "63"} {
		at := filepath.Join(c.host.root, "proc/60/fd", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink("/pool/x", at)); err != nil {
			t.Fatal(err)
		}
	}
	l := &lister{c: c, ctx: t.Context(), proc: proc, end: time.Now().Add(-time.Second)}
	if err := l.process(60, "60"); !errors.Is(err, errCut) || !strings.Contains(l.cut, "longer than 5s") {
		t.Errorf("process after the end of the time = %v, %q, want %v and why", err, l.cut, errCut)
	}
}

// Evidence of another host may hold anything where a directory is expected; a FIFO is not waited
// for.
func TestCensusOfFifo(t *testing.T) {
	h := fake(t, map[string]string{"proc/1/fd/0": "->/dev/null", "proc/7/comm": "x\n"})
	if err := unix.Mkfifo(filepath.Join(h.root, "proc/7/fd"), 0o600); err != nil {
		t.Fatal(err)
	}
	// One that is waited for has no end: the census would end with its time, and with an error.
	c, err := h.Census(t.Context())
	if err != nil || c.Processes != 1 || c.Protected != 1 {
		t.Fatalf("Census = %+v, %v, want 1 process and 1 protected", c, err)
	}
	if hs := c.Holders(t.Context(), diskio.Stat{}, "/x"); len(hs) != 0 {
		t.Errorf("Holders(/x) = %v, want none", hs)
	}
}
