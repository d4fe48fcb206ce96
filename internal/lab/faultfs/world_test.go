// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// claim is what the kernel is to show of a disk that is hurt.
type claim struct {
	stat, list, write unix.Errno
	readOnly          bool
	// options and super are what the options of the mount (rw, if not said) and of the file system
	// begin with.
	options, super string
	// sys are files below /sys/fs with what begins their content. Where that is no number, none of
	// what counts errors is next: Linux 6.1 counts each write that it refuses.
	sys map[string]string
	// copy is what the superblock of an ext4 says in a copy of the disk.
	copy string
	// full is what statfs counts none of: "blocks", "available" or "inodes".
	full string
}

// claims are those of each scenario with a disk that does not hang.
func claims() map[string]claim {
	one, none := map[string]string{"errors_count": ""}, map[string]string{"errors_count": "0"}
	const noted, unnoted = "errors, to be recovered", "clean, to be recovered"
	return map[string]claim{
		"ext4-journal-eio": {write: unix.EROFS, super: "rw", sys: one, copy: noted},
		// What could not be written cannot say that it could not.
		"ext4-disk-eio":      {write: unix.EROFS, super: "rw", sys: one, copy: unnoted},
		"ext4-error-logical": {write: unix.EROFS, super: "rw", sys: one, copy: noted},
		"ext4-data-eio":      {super: "rw", sys: none, copy: unnoted},
		"ext4-shutdown":      {write: unix.EIO, super: "rw", sys: none, copy: unnoted},
		// The superblock is changed by the journal, which is not read here.
		"ext4-read-only": {write: unix.EROFS, readOnly: true, options: "ro", super: "ro", sys: none,
			copy: "clean"},
		"ext4-errors-continue": {super: "rw", sys: one, copy: unnoted},
		"xfs-log-eio":          {stat: unix.EIO, list: unix.EIO, write: unix.EIO, super: "rw"},
		"xfs-goingdown":        {stat: unix.EIO, list: unix.EIO, write: unix.EIO, super: "rw"},
		"xfs-writeback-eio":    {super: "rw"},
		"btrfs-abort": {list: unix.EIO, write: unix.EROFS, readOnly: true, super: "ro",
			sys: map[string]string{"error_stats": "write_errs "}},
		"btrfs-read-eio": {super: "rw", sys: map[string]string{"error_stats": "write_errs 0 read_errs "}},
		"btrfs-corrupt": {super: "rw",
			sys: map[string]string{"error_stats": "write_errs 0 read_errs 0 flush_errs 0 corruption_errs "}},
		"ext4-full":          {write: unix.ENOSPC, super: "rw", sys: none, full: "available"},
		"ext4-reserved-only": {super: "rw", sys: none, full: "available"},
		"ext4-inodes-full":   {write: unix.ENOSPC, super: "rw", sys: none, full: "inodes"},
		"enospc-under":       {super: "rw", sys: none},
		"enospc-journal":     {write: unix.EROFS, super: "rw", sys: one},
		"delay":              {super: "rw", sys: none},
	}
}

// TestScenarios holds that each world shows what is said of it, and goes without a trace. What this
// kernel shows is logged as a table.
func TestScenarios(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")
	want := claims()
	for _, s := range Scenarios() {
		t.Run(s.Name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := Make(t.Context(), s.Name, dir)
			available(t, err)
			t.Cleanup(func() { gone(t, w, dir) })
			c, has := want[s.Name]
			if has != (w.Hurt != nil && !w.Hangs) {
				t.Fatalf("a claim: %t, a disk to look at: %+v", has, w.Hurt)
			}
			if has {
				judge(t, w, c)
			}
			if more := beside()[s.Name]; more != nil {
				more(t, w)
			}
			tell(t, w)
		})
	}
}

// judge holds what the kernel shows against what is claimed.
func judge(t *testing.T, w *World, c claim) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, w.CopyTo(copied)) // before anything is looked at: that writes
	d := w.Hurt
	seen, err := d.Look()
	must(t, err)
	t.Logf("mount %s, fs %s, ST_RDONLY %t", seen.Options, seen.Super, seen.ReadOnly)
	t.Logf("stat %d, statfs %d, list %d, write %d; free %d, available %d, inodes %d; %v", seen.Stat,
		seen.Statfs, seen.List, seen.Write, seen.Free, seen.Available, seen.Inodes, seen.Sys)
	if seen.Stat != c.stat || seen.Statfs != 0 || seen.List != c.list || seen.Write != c.write {
		t.Errorf("stat %d, statfs %d, list %d, write %d, want %d, 0, %d, %d", seen.Stat, seen.Statfs,
			seen.List, seen.Write, c.stat, c.list, c.write)
	}
	if seen.ReadOnly != c.readOnly || !strings.HasPrefix(seen.Super+",", c.super+",") ||
		!strings.HasPrefix(seen.Options, cmp.Or(c.options, "rw")+",") {
		t.Errorf("read only %t, options %s and %s, want %+v", seen.ReadOnly, seen.Options, seen.Super, c)
	}
	for name, text := range c.sys {
		got, has := seen.Sys[name]
		if !has || !strings.HasPrefix(got, text) || strings.HasPrefix(got+" ", text+"0 ") {
			t.Errorf("%s is %q, want %q", name, got, text)
		}
	}
	counts := map[string]int64{"available": seen.Available, "inodes": seen.Inodes}
	for name, n := range counts {
		if d.Type != "btrfs" && (n == 0) != (name == c.full) { // a btrfs counts no inodes
			t.Errorf("%s: %d, want none only where %q is full", name, n, c.full)
		}
	}
	if c.copy != "" {
		if got := ext4State(t, copied); got != c.copy {
			t.Errorf("the copy is %q, want %q", got, c.copy)
		}
	}
}

// ext4State is what the superblock of an image says of itself: struct ext4_super_block, s_state at
// 0x3a, s_feature_incompat at 0x60, s_error_count at 0x194.
func ext4State(t *testing.T, image string) string {
	t.Helper()
	f, err := os.Open(image)
	must(t, err)
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		t.Fatal(err)
	}
	state := "clean"
	if binary.LittleEndian.Uint32(sb[0x194:]) != 0 && sb[0x3a]&2 != 0 {
		state = "errors"
	}
	if sb[0x60]&4 != 0 {
		state += ", to be recovered"
	}
	return state
}

// beside is what else is to be so.
func beside() map[string]func(*testing.T, *World) {
	statfs := func(path string) error { return unix.Statfs(path, new(unix.Statfs_t)) }
	return map[string]func(*testing.T, *World){
		"dead-fuse": func(t *testing.T, w *World) {
			if err := statfs(w.Mount); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("Statfs() = %v, want %v", err, unix.ENOTCONN)
			}
		},
		"frozen-writer": func(t *testing.T, w *World) { must(t, statfs(w.Mount)) }, // only writing hangs
		"many-mounts": func(t *testing.T, w *World) {
			for _, at := range w.Others {
				must(t, statfs(at))
			}
			if n := len(leftBelow(t, w.Dir)) - 52; len(w.Others) != 49 || n != 50 {
				t.Errorf("%d mounts, of which %d are well, want 50 and 49", n, len(w.Others))
			}
		},
		"enospc-under": func(t *testing.T, w *World) {
			var st unix.Statfs_t
			must(t, unix.Statfs(w.Others[0], &st))
			if st.Bavail != 0 {
				t.Errorf("%d blocks of the store are free, want none", st.Bavail)
			}
		},
		"healthy": func(t *testing.T, w *World) {
			if len(w.Disks) != 3 || w.Mount != "" {
				t.Errorf("%d disks, hurt is %q, want 3 and none", len(w.Disks), w.Mount)
			}
			for _, d := range w.Disks {
				seen, err := d.Look()
				must(t, err)
				if seen.Stat+seen.Statfs+seen.List+seen.Write != 0 || seen.ReadOnly ||
					!strings.HasPrefix(seen.Super+",", "rw,") {
					t.Errorf("%s: Look() = %+v, want all well", d.Type, seen)
				}
			}
			all, err := w.Kernel()
			must(t, err)
			for _, m := range all {
				if m.Level < 5 {
					t.Errorf("the kernel wrote %q", m.Text)
				}
			}
		},
	}
}

// TestPage holds that the page of the lab has all worlds and words.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../../doc/lab-faults.md")
	must(t, err)
	page := string(text)
	for _, s := range Scenarios() {
		if row := fmt.Sprintf("| `%s` | %s |\n", s.Name, s.What); !strings.Contains(page, row) {
			t.Errorf("doc/lab-faults.md lacks %s", row)
		}
	}
	words := []string{string(Read), string(Write), string(Fsync), string(Discard), string(Any),
		string(Look), actHang, actLose, actFlip, "delay=DURATION", "new", "after=N", "times=N"}
	for name := range errnos() {
		words = append(words, name)
	}
	for _, w := range words {
		if !strings.Contains(page, "`"+w+"`") {
			t.Errorf("doc/lab-faults.md lacks `%s`", w)
		}
	}
}

// tell holds what the kernel wrote and who is stuck against what the world says, and logs it.
func tell(t *testing.T, w *World) {
	t.Helper()
	all, err := w.Kernel()
	must(t, err)
	for _, m := range all {
		t.Logf("<%d> %s", m.Level, m.Text)
	}
	if said, err := w.allSaid(); !said || err != nil {
		t.Errorf("the kernel did not write all of %q (%v)", w.Says, err)
	}
	for _, u := range w.Stuck {
		state, err := stateOf("/proc/" + strconv.Itoa(u.PID))
		where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", u.PID))
		t.Logf("%s (%d) is in state %c, at %s", u.Command, u.PID, state, where)
		if err != nil || state != u.State {
			t.Errorf("%s is in state %c (%v), want %c", u.Command, state, err, u.State)
		}
	}
	if w.Fault != nil {
		c, err := w.Fault.Count()
		t.Logf("%+v", c)
		if err != nil || c.Hit == 0 {
			t.Errorf("Count() = %+v, %v, want hits", c, err)
		}
	}
	if (w.Inode != 0) != (w.File != "" && w.Hurt != nil) {
		t.Errorf("file %q, inode %d, want both or none", w.File, w.Inode)
	}
}

// gone takes a world away and holds that nothing is left of it.
func gone(t *testing.T, w *World, dir string) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for _, left := range leftBelow(t, dir) {
		t.Errorf("left behind: %s", left)
	}
	for _, u := range w.Stuck {
		if err := unix.Kill(u.PID, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s (%d) is still there (%v)", u.Command, u.PID, err)
		}
	}
}

// leftBelow lists what is mounted below a directory, loop devices on files there, and its names.
func leftBelow(t *testing.T, dir string) []string {
	t.Helper()
	var left []string
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range bytes.Lines(table) {
		if bytes.Contains(line, []byte(" "+dir+"/")) {
			left = append(left, string(line))
		}
	}
	left = append(left, loopsBelow(t, dir)...)
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range names {
		left = append(left, n.Name())
	}
	return left
}

// TestTrap holds what triggers a mount point of autofs and what does not.
func TestTrap(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	w, err := Make(t.Context(), "autofs-trap", dir)
	available(t, err)
	t.Cleanup(func() { gone(t, w, dir) })
	open := func(flags int) func() error {
		return func() error {
			fd, err := unix.Open(w.Mount, flags|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		}
	}
	for _, c := range []struct {
		name     string
		do       func() error
		triggers bool
	}{
		{"stat", func() error { return unix.Stat(w.Mount, new(unix.Stat_t)) }, false},
		{"access", func() error { return unix.Access(w.Mount, unix.R_OK) }, false},
		{"open, path only", open(unix.O_PATH), false},
		{"open, path only, directory", open(unix.O_PATH | unix.O_DIRECTORY), true},
		{"open", open(0), true},
		{"lstat", func() error { return unix.Lstat(w.Mount, new(unix.Stat_t)) }, false},
		{"statx, no automount", func() error {
			var st unix.Statx_t
			return unix.Statx(unix.AT_FDCWD, w.Mount, unix.AT_NO_AUTOMOUNT, unix.STATX_ALL, &st)
		}, false},
		{"statfs", func() error { return unix.Statfs(w.Mount, new(unix.Statfs_t)) }, true},
		{"list", func() error { _, err := os.ReadDir(w.Mount); return err }, true},
		{"open below", func() error { _, err := os.ReadFile(w.Mount + "/x"); return err }, true},
	} {
		before, err := w.Trap.Hits()
		must(t, err)
		got := c.do()
		after, err := w.Trap.Hits()
		must(t, err)
		if triggered := after > before; triggered != c.triggers || triggered != (got != nil) {
			t.Errorf("%s = %v, triggered %t, want %t", c.name, got, triggered, c.triggers)
		}
	}
}

func TestUnknownScenario(t *testing.T) {
	w, err := Make(t.Context(), "no-such", t.TempDir())
	if err == nil || !strings.Contains(err.Error(), `"no-such"`) {
		t.Errorf("Make(no-such) = %v, %v, want an error that names it", w, err)
	}
}

func TestScenarioNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Scenarios() {
		if seen[s.Name] || !strings.HasSuffix(s.What, ".") {
			t.Errorf("%s is there twice, or is not described: %q", s.Name, s.What)
		}
		seen[s.Name] = true
	}
	for name := range claims() {
		if !seen[name] {
			t.Errorf("a claim of %s, which is no scenario", name)
		}
	}
}
