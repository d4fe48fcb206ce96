// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// load changes names, sizes and attributes below dir for good.
func load(dir string, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	content := make([]byte, 200_000)
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	name := func() string {
		return filepath.Join(dir, fmt.Sprintf("d%d/d%d/%s%d", rng.IntN(5), rng.IntN(5),
			strings.Repeat("n", rng.IntN(40)), rng.IntN(60)))
	}
	// What is not there, or there already, is part of the load: errors are not looked at.
	for {
		a := name()
		switch rng.IntN(12) {
		case 0, 1, 2, 3:
			os.MkdirAll(filepath.Dir(a), 0o755)
			os.WriteFile(a, content[:rng.IntN(len(content))>>rng.IntN(12)], 0o644)
		case 4:
			os.Remove(a)
		case 5:
			os.Rename(a, name())
		case 6:
			os.Link(a, name())
		case 7:
			os.Symlink(string(content[:1+rng.IntN(700)]), a)
		case 8:
			unix.Setxattr(a, fmt.Sprintf("user.%d", rng.IntN(9)), content[:rng.IntN(3000)], 0)
		case 9:
			os.Truncate(a, int64(rng.IntN(500_000)))
		case 10:
			if f, err := os.OpenFile(a, os.O_RDWR, 0); err == nil {
				for range rng.IntN(30) {
					f.WriteAt(content[:4096], int64(rng.IntN(300))*8192)
				}
				if rng.IntN(2) == 0 {
					f.Sync()
				}
				f.Close()
			}
		case 11:
			if rng.IntN(20) == 0 {
				os.RemoveAll(filepath.Dir(a))
			}
		}
	}
}

// TestCrashed copies file systems while they are written to and compares each copy with what the
// kernel makes of it.
func TestCrashed(t *testing.T) {
	copies := 3
	if testenv.Long() {
		copies = 20
	}
	for _, v := range variants() {
		if !v.short() {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			judge := func(disk string, want filestest.Tree) {
				f := open(t, disk)
				// One that was taken before the first change is clean.
				same(t, f, want, files.Recovered, files.Clean)
				wholeMap(t, f)
				view := f.View()
				if dirty := f.Info().Record.Dirty; dirty != (view.State == files.Recovered) {
					t.Errorf("dirty is %v, and the view %s", dirty, view.State)
				}
				t.Logf("%d names, %d transactions, %d blocks", len(want), view.Transactions, view.Blocks)
			}
			mkfs := append(append([]string{"mkfs.xfs", "-q"}, v.mkfs...), "DISK")
			if v.foreign() {
				crashed(t, v, mkfs, copies, judge)
			} else {
				filestest.Crash(t, "xfs", 3<<30, mkfs, copies, 1, judge)
			}
		})
	}
}

// TestAhead has a file, under two names, for which the kernel kept space behind its end when the
// machine stopped. Some kernels give that back as soon as a reader closes the file: what they show
// before that is what is compared.
func TestAhead(t *testing.T) {
	disk := filestest.Make(t, t.TempDir(), 300<<20, "mkfs.xfs", "-q", "DISK")
	c := guest(t, disk, "ahead", variant{}, filepath.Join(t.TempDir(), "none"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f := open(t, disk)
	kernel := filepath.Join(t.TempDir(), "kernel")
	if out, err := exec.Command("cp", "--sparse=always", disk, kernel).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := kernelTree(t, kernel, "show", variant{})
	if st := want["/two"].Stat; st.Sectors*basicBlock < st.Size+(64<<10) {
		t.Errorf("no space is kept behind the end: %d bytes, %d sectors", st.Size, st.Sectors)
	}
	same(t, f, want, files.Recovered)
}

// ahead appends to a file that has two names and leaves it open.
func ahead(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "one"))
	if err == nil {
		err = os.Link(f.Name(), filepath.Join(dir, "two"))
	}
	for range 300 {
		if err == nil {
			_, err = f.Write(make([]byte, 8192))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Error(err)
	}
}

// wholeMap requires that each part of a recovered volume has an owner, and none two by mistake.
func wholeMap(t *testing.T, f *FS) {
	t.Helper()
	if err := f.Owners(t.Context(), []files.Range{{Length: f.size}}, func(o files.Owner) error {
		if o.Use == files.UseUnknown {
			t.Errorf("nobody owns %+v", o)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if v := f.View(); len(v.Problems) > 0 {
		t.Errorf("problems: %+v", v.Problems)
	}
}

// crashed is filestest.Crash for what the kernel here does not know.
func crashed(t *testing.T, v variant, mkfs []string, copies int, judge func(string, filestest.Tree)) {
	dir := filestest.CloneDir(t, 4<<30)
	disk := filestest.Make(t, dir, 3<<30, mkfs...)
	end := run(t, disk, v, "load")
	var clones []string
	for i := range copies {
		time.Sleep(300 * time.Millisecond)
		clones = append(clones, filepath.Join(dir, fmt.Sprintf("copy%d", i)))
		filestest.Clone(t, disk, clones[i])
	}
	end()
	for _, name := range clones {
		kernel := name + ".kernel"
		filestest.Clone(t, name, kernel)
		judge(name, kernelTree(t, kernel, "show", v))
	}
}

// run puts a load on a file system, and gives what ends it.
func run(t *testing.T, disk string, v variant, does string) (end func()) {
	c := guest(t, disk, does, v, filepath.Join(t.TempDir(), "none"))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		// It is several processes, which go with their group only.
		for syscall.Kill(-c.Process.Pid, syscall.SIGKILL) == nil {
			syscall.Wait4(c.Process.Pid, nil, syscall.WNOHANG, nil)
			time.Sleep(10 * time.Millisecond)
		}
		c.Wait()
	}
	t.Cleanup(end)
	underway(t, disk, c.Process.Pid)
	return end
}

// underway waits until a guest has written to its disk again and again.
func underway(t *testing.T, disk string, pid int) {
	t.Helper()
	const writes = 8 // the first ones are those of the mount
	var last unix.Timespec
	for n := 0; n <= writes; time.Sleep(10 * time.Millisecond) {
		var st unix.Stat_t
		if err := unix.Stat(disk, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mtim != last {
			n, last = n+1, st.Mtim
		}
		if ended, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); ended != 0 || err != nil {
			t.Fatalf("the guest ended before it wrote (%d, %v)", ended, err)
		}
	}
}
