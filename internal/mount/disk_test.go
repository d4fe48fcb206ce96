// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestServeDisk: a file takes writes, tells what changed, and the volume stays as it was.
func TestServeDisk(t *testing.T) {
	testenv.Need(t, "fusermount3")
	under := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	under = under[:len(under)-100] // its end is no sector
	was := bytes.Clone(under)
	state := t.TempDir()
	d, err := ServeDisk(bytes.NewReader(under), int64(len(under)), DiskOptions{StateDir: state, Source: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if fi, err := os.Stat(d.Path()); err != nil || fi.Mode() != 0o600 || fi.Size() != int64(len(under)) {
		t.Errorf("the file is %v, %v", fi, err)
	}
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(under)
	for _, w := range []struct {
		at   int
		text string
	}{{1000, "x"}, {1536, "yy"}, {1 << 16, "z"}, {len(under) - 1, "!"}, {5000, "8"}} { // that is what is there
		if _, err := f.WriteAt([]byte(w.text), int64(w.at)); err != nil {
			t.Fatal(err)
		}
		copy(want[w.at:], w.text)
	}
	if _, err := f.WriteAt([]byte("ab"), int64(len(under)-1)); err == nil {
		t.Error("a write past the end went through")
	}
	if err := f.Truncate(10); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Truncate = %v, want %v", err, fs.ErrPermission)
	}
	if err := errors.Join(f.Sync(), f.Close(), d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	got := bytes.Clone(under)
	var runs [][2]int64
	err = d.Changed(func(off int64, p []byte) error {
		copy(got[off:], p)
		runs = append(runs, [2]int64{off, int64(len(p))})
		return nil
	})
	end := int64(len(under)) &^ 511
	wantRuns := [][2]int64{{512, 512}, {1536, 512}, {1 << 16, 512}, {end, int64(len(under)) - end}}
	if err != nil || !slices.Equal(runs, wantRuns) {
		t.Errorf("Changed gives %v, %v, want %v", runs, err, wantRuns)
	}
	if !bytes.Equal(got, want) || !bytes.Equal(under, was) {
		t.Error("what changed is not what was written, or the volume changed")
	}
	nothingLeft(t, state, d.dir)
	if _, err := os.Stat(d.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
}

// TestServeDiskKilled: what a killed process leaves is taken away, its directory too.
func TestServeDiskKilled(t *testing.T) {
	testenv.Need(t, "fusermount3")
	state := t.TempDir()
	c := exec.Command(os.Args[0], diskArg, state)
	out, err := c.StdoutPipe()
	if err := errors.Join(err, c.Start()); err != nil {
		t.Fatal(err)
	}
	dir := make([]byte, 4096)
	n, err := out.Read(dir)
	if err := errors.Join(err, c.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed
	gone, err := Recover(state)
	if err != nil || len(gone) != 1 || !gone[0].Killed || gone[0].Dir != filepath.Dir(string(dir[:n])) {
		t.Errorf("Recover = %+v, %v, want it to take away the directory of %s", gone, err, dir[:n])
	}
	nothingLeft(t, state, filepath.Dir(string(dir[:n])))
}

// diskArg is the argument of a process that shows a disk until it is killed.
const diskArg = "disk-for-tests"

func showDisk(state string) error {
	d, err := ServeDisk(bytes.NewReader(make([]byte, 1<<20)), 1<<20, DiskOptions{StateDir: state})
	if err == nil {
		fmt.Print(d.Path())
		time.Sleep(time.Hour)
	}
	return err
}

// TestServeDiskFull: a layer that is full is an error for who writes, and for who asks for the changes.
func TestServeDiskFull(t *testing.T) {
	testenv.Need(t, "fusermount3")
	d, err := ServeDisk(bytes.NewReader(make([]byte, 1<<20)), 1<<20, DiskOptions{StateDir: t.TempDir(),
		LayerBytes: 2 * pageBytes, Everybody: os.Geteuid() == 0})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 3*pageBytes), 0)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteAt = %v, want %v", err, unix.ENOSPC)
	}
	if err := errors.Join(f.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := d.Changed(func(int64, []byte) error { return nil }); !errors.Is(err, ErrFull) {
		t.Errorf("Changed = %v, want %v", err, ErrFull)
	}
}

// TestKernelWrites: a program writes to a mount by the kernel's driver, and what changed is told after it.
func TestKernelWrites(t *testing.T) {
	w := newWorld(t)
	v := plain(t)
	bytesOf, runs := int64(0), 0
	change := func(script string) (int, error) {
		bytesOf, runs = 0, 0
		w.out.Reset()
		return Kernel(t.Context(), v, w.dir, KernelOptions{StateDir: w.state, Source: "test disk", Env: os.Environ(),
			Command: []string{"sh", "-c", script, "sh", w.dir}, Stdout: &w.out, Stderr: &w.errs, Log: w.log,
			Changed: func(off int64, p []byte) error {
				bytesOf, runs = bytesOf+int64(len(p)), runs+1
				return nil
			}})
	}
	status, err := change(`echo new >"$1"/name && sync && cat "$1"/name`)
	if status != 0 || err != nil || w.out.String() != "new\n" || runs == 0 {
		t.Errorf("Kernel = %d, %v, it said %q, %q; %d runs", status, err, w.out.String(), w.errs.String(), runs)
	}
	t.Logf("%d bytes in %d runs", bytesOf, runs)
	if status, err := change("exit 3"); status != 3 || err != nil || runs > 0 {
		t.Errorf("Kernel = %d, %v, %d runs of a program that failed, want 3 and none", status, err, runs)
	}
	nothingLeft(t, w.state, w.dir)
}
