// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// patience is far more than a scan takes, and ends a test that hangs.
const patience = 5 * time.Minute

// mute mounts a file system whose server never answers anything, as that of a dead NFS server.
func mute(t testing.TB) (dir string) {
	t.Helper()
	testenv.NeedRoot(t)
	dir = t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Lacks(t, "FUSE")
	}
	t.Cleanup(func() {
		// Its end is that of the connection: all that waits gets an error.
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := unix.Mount("mute", dir, "fuse", 0, options); err != nil {
		t.Fatalf("mount a file system by FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// stuck starts a process that looks at a file there and gets no answer.
func stuck(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	testenv.Need(t, "stat")
	c := exec.Command("stat", path)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Process.Kill(); err != nil {
			t.Error(err)
		}
		if err := c.Wait(); err == nil {
			t.Error("a file system that does not answer did")
		}
	})
	return c
}

// Whether the question is about the mount that hangs or about another one, no scan hangs.
func TestHungMount(t *testing.T) {
	dir := mute(t)
	held, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	sleeper := exec.Command("sleep", "1000")
	sleeper.ExtraFiles = []*os.File{os.NewFile(uintptr(dup(t, held)), dir)}
	testenv.Start(t, sleeper)
	sleeper.ExtraFiles[0].Close()
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	stuck(t, dir+"/file")
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			for i := range 50 {
				about := dir
				if i%5 == 4 {
					about = "/"
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				_, r, err := ask(ctx, h, about)
				cancel()
				if err != nil {
					t.Fatalf("scan %d of %s: %v", i, about, err)
				}
				if about != dir {
					continue
				}
				if r.Verdict != Busy || !namedIn(r, sleeper.Process.Pid, OPath) {
					t.Fatalf("scan %d = %s, %+v, want the handle of process %d", i, r.Verdict, r.Holders,
						sleeper.Process.Pid)
				}
			}
		})
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func namedIn(r *Report, pid int, k Kind) bool {
	for _, h := range r.Holders {
		if h.Process.PID == pid && h.Kind == k && h.SameMount {
			return true
		}
	}
	return false
}

// A name in a mount that hangs is taken for what it stands for by its text.
func TestHungName(t *testing.T) {
	dir := mute(t)
	got, err := Resolve(t.Context(), byText(), filepath.Join(dir, "a/b"))
	if err != nil || got.Kind != TargetMount || got.Path != dir || got.Inside != dir+"/a/b" {
		t.Fatalf("Resolve = %+v, %v, want the mount %s", got, err, dir)
	}
	r, err := Scan(t.Context(), byText(), got, Options{})
	if err != nil || len(r.Notes) != 1 {
		t.Errorf("Scan = %+v, %v, want a note that it does not answer", r, err)
	}
}
