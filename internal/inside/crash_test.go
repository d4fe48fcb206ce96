// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// killReaders kills the children of this process that read disks.
func killReaders(t *testing.T) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(text)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			n, number := strconv.Atoi(pid)
			if err == nil && number == nil && strings.HasPrefix(string(line), "shisa-jail") {
				killed++
				if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if killed != 1 {
		t.Fatalf("%d readers were killed, want 1", killed)
	}
}

// TestCrashIsFound goes on with a guest after its reader was killed.
func TestCrashIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := Open(t.Context(), Name{Disk: path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if fs := g.Crash(); len(fs) != 0 {
		t.Errorf("%+v before anything happened", fs)
	}
	killReaders(t)
	_, err = g.Who(t.Context(), 0, []finding.Range{{Length: 512}})
	named := Crashed(path, err)
	if len(named) != 1 || named[0].Code != "GR01" || named[0].Object != path {
		t.Errorf("Who = %v: %+v", err, named)
	}
	if fs := g.Crash(); len(fs) != 1 || !strings.Contains(fs[0].Summary, "signal: killed") {
		t.Errorf("Crash = %+v", fs)
	}
	if fs := Crashed(path, os.ErrNotExist); len(fs) != 0 {
		t.Errorf("%+v for another error", fs)
	}
}

// TestReaderIsStartedAgain kills the reader of a file system that is looked at for long: what was asked
// of it is answered by the next one, as often as that is done.
func TestReaderIsStartedAgain(t *testing.T) {
	testenv.Need(t, "mkfs.ext4")
	dir := t.TempDir()
	tree, path := filepath.Join(dir, "tree"), filepath.Join(dir, "disk.raw")
	if err := os.Mkdir(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint("file", i)), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-d", tree, path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	g, err := Open(t.Context(), Name{Disk: path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.Lasting(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	fs.Tell(func(text string) { told = append(told, text) })
	at := found(t, fs, "/file7", true)
	for _, ask := range []struct {
		what string
		ask  func() error
	}{
		{"Open", func() error { _, err := fs.Open(t.Context(), at.Entry.Ino); return err }},
		{"ReadAt", func() error {
			b := make([]byte, 7)
			if n, err := at.File.ReadAt(b, 0); err != nil || string(b[:n]) != "content" {
				return fmt.Errorf("%q, %w", b[:n], err)
			}
			return nil
		}},
		{"Extents", func() error { return at.File.Extents(t.Context(), func(files.Extent) error { return nil }) }},
		{"Xattrs", func() error { return at.File.Xattrs(t.Context(), func(string, []byte) error { return nil }) }},
		{"Inodes", func() error { return fs.Inodes(t.Context(), func(*files.Stat) error { return nil }) }},
		{"Owners", func() error {
			return fs.Owners(t.Context(), []files.Range{{Length: 4096}}, func(files.Owner) error { return nil })
		}},
	} {
		killReaders(t)
		if err := ask.ask(); err != nil {
			t.Errorf("%s after the reader was killed: %v", ask.what, err)
		}
	}
	// In the middle of a list: no name is missing, and none comes twice.
	seen := map[string]int{}
	if err := fs.Names(t.Context(), fs.Info().Root, func(e files.Entry, f files.File, err error) error {
		if seen[e.Name]++; len(seen) == 100 {
			killReaders(t)
		}
		return err
	}); err != nil || len(seen) != 303 {
		t.Errorf("Names gives %d names, %v; want 303", len(seen), err)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%q comes %d times", name, n)
		}
	}
	for len(told) < maxRestarts {
		killReaders(t)
		if _, err := fs.Open(t.Context(), at.Entry.Ino); err != nil {
			t.Fatalf("Open after %d restarts: %v", len(told), err)
		}
	}
	killReaders(t)
	for range 2 {
		if _, err := fs.Open(t.Context(), at.Entry.Ino); crash(err) == nil {
			t.Errorf("Open after too many restarts: %v, want a crash", err)
		}
	}
	last := told[len(told)-1]
	if len(told) != maxRestarts+1 || !strings.HasSuffix(told[0], ": it was started again") ||
		!strings.HasSuffix(last, "nothing can be read until this is mounted anew") {
		t.Errorf("told is %d times %q, in the end %q", len(told), told[0], last)
	}
	if found := g.Crash(); len(found) != 1 || fs.View().State != files.Incomplete {
		t.Errorf("Crash() = %+v, view %s", found, fs.View().State)
	}
}

// TestReaderCrashesAt has the reader crash whenever one inode is asked for: that one is left alone, and
// the others are read.
func TestReaderCrashesAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	testenv.Need(t, "mkfs.ext4")
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	g, err := Open(t.Context(), Name{Disk: path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.Lasting(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	fs.Tell(func(string) { told++ })
	asked := 0
	for range 3 {
		if err := fs.ask(11, func(r *jail.FS) error {
			asked++
			killReaders(t)
			_, err := r.Open(t.Context(), 11)
			return err
		}); err == nil {
			t.Error("what the reader crashes at can be read")
		}
		if _, err := fs.Open(t.Context(), 2); err != nil {
			t.Errorf("Open of another: %v", err)
		}
	}
	if asked != 2 || told != 3 {
		t.Errorf("it was asked %d times, and told %d; want 2, 3", asked, told)
	}
}
