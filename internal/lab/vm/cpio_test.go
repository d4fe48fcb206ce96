// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestArchive has cpio unpack what was written.
func TestArchive(t *testing.T) {
	testenv.Need(t, "cpio")
	var b bytes.Buffer
	a := newArchive(&b)
	contents := map[string]string{"/usr/bin/a": "one", "/usr/bin/b": "",
		"/lab/plan.json": strings.Repeat("x", 4097)}
	for _, name := range sorted(contents) {
		a.file(name, 0o755, int64(len(contents[name])), strings.NewReader(contents[name]))
	}
	a.link("/bin", "usr/bin")
	a.dir("/usr/bin") // once more is no harm
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := exec.Command("cpio", "--extract", "--quiet", "--no-absolute-filenames")
	c.Dir, c.Stdin = dir, &b
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range contents {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s has %d bytes (%v), want %d", name, len(got), err, len(want))
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin")); err != nil || to != "usr/bin" {
		t.Errorf("bin leads to %q (%v), want usr/bin", to, err)
	}
	st, err := os.Stat(filepath.Join(dir, "bin/a"))
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("a is %v (%v), want 0755", st.Mode(), err)
	}
}

// TestArchiveErrors holds that what cannot be added is said at the end, whatever follows.
func TestArchiveErrors(t *testing.T) {
	for name, add := range map[string]func(*archive){
		"twice": func(a *archive) { a.link("a", "x"); a.link("a", "y") },
		"short": func(a *archive) { a.file("a", 0o644, 5, strings.NewReader("four")) },
		"large": func(a *archive) { a.file("a", 0o644, 1<<32, strings.NewReader("")) },
	} {
		a := newArchive(io.Discard)
		add(a)
		a.dir("/later")
		if err := a.close(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestPrograms holds that a program comes with what it needs to run: with nothing else of this machine
// it runs all the same.
func TestPrograms(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "stat", "sh")
	p := programs{map[string]string{}}
	for _, name := range []string{"stat", "sh"} {
		if err := p.add(name); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if to, err := os.Readlink("/" + name); err == nil {
			if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, from := range p.files {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("chroot", root, "sh", "-c", "stat -c %F /bin/stat").CombinedOutput()
	if err != nil || string(out) != "regular file\n" {
		t.Errorf("stat says %q (%v) of itself, want a regular file; it came with %q", out, err,
			sorted(p.files))
	}
	if err := p.add("no-such-program-of-shisa"); err == nil {
		t.Error("a program that is nowhere: no error")
	}
}
