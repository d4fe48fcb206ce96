// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/plan"
)

// TestTree: a plan for a directory makes what a kernel makes in an image, and undoing takes it back.
func TestTree(t *testing.T) {
	root := t.TempDir()
	system(t, root)
	if err := os.Chmod(root+loopUnit, 0o664); err != nil { // more than a plan gives
		t.Fatal(err)
	}
	before := names(t, root)
	changes := []Change{MaskUnit("nightly.service"), MaskUnit("packaged.service"), MaskUnit("linked.service"),
		MaskUnit("masked.service"), {Kind: Unlink, Path: loopLink, Link: loopUnit}}
	files, already, err := Tree(root, changes)
	if err != nil || len(files) != 5 || !slices.Equal(already, changes[3:4]) {
		t.Fatalf("Tree = %+v, %v, %v", files, already, err)
	}
	o := apply.Options{StateDir: t.TempDir()}
	p := &plan.Texts{Tool: "test", Why: "x", Files: files}
	if err := apply.DraftTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	if names(t, root) != before {
		t.Error("planning changed something")
	}
	if _, err := apply.ApplyTexts(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{loopUnit: "/dev/null", packUnit: "/dev/null",
		UnitDir + "/linked.service": "/dev/null"} {
		if to, err := os.Readlink(root + path); err != nil || to != want {
			t.Errorf("%s leads to %q, %v, want %q", path, to, err, want)
		}
	}
	if raw, err := os.ReadFile(root + loopUnit + Aside); err != nil || !strings.Contains(string(raw), "reboot") {
		t.Errorf("what was kept is %q, %v", raw, err)
	}
	if _, err := os.Lstat(root + loopLink); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", loopLink, err)
	}
	if _, _, err := Tree(root, changes); !errors.Is(err, ErrNothing) {
		t.Errorf("Tree of the same once more = %v, want %v", err, ErrNothing)
	}
	if _, err := apply.UndoTexts(t.Context(), p.ID, o); err != nil {
		t.Fatal(err)
	}
	if now := names(t, root); now != before {
		t.Errorf("after the undo there is\n%s\nbefore there was\n%s", now, before)
	}
}

func TestTreeRefused(t *testing.T) {
	for name, prepare := range map[string]func(root string) error{
		"no systemd": func(root string) error { return os.RemoveAll(root + UnitDir) },
		"kept before": func(root string) error {
			return os.WriteFile(root+loopUnit+Aside, nil, 0o644)
		},
		"large": func(root string) error { return os.Truncate(root+loopUnit, plan.MaxTextBytes+1) },
	} {
		root := t.TempDir()
		system(t, root)
		if err := prepare(root); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Tree(root, []Change{MaskUnit("nightly.service")}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: Tree = %v, want %v", name, err, ErrRefused)
		}
	}
}

// TestRestsOn finds images that rest on one, by whatever name they know it.
func TestRestsOn(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"_base", "one", "two"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base := at("_base/base")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", at("alone"), "1M")
	if err := errors.Join(os.Symlink(base, at("name")), os.WriteFile(at("text"), []byte("QFI\xfbx"), 0o600),
		os.WriteFile(at("short"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../_base/base", "-F", "qcow2", at("one/disk"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", at("name"), "-F", "qcow2", at("two/disk"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2", at("two/upper"))
	for _, c := range []struct {
		image  string
		dirs   []string
		want   []string
		unread int
	}{
		{base, nil, []string{at("one/disk"), at("two/disk")}, 1},
		{at("two/disk"), nil, []string{at("two/upper")}, 0},
		{at("one/disk"), nil, nil, 0},
		{at("alone"), []string{at("nowhere")}, nil, 2},
	} {
		r, err := RestsOn(t.Context(), c.image, c.dirs)
		if err != nil || !slices.Equal(r.Overlays, c.want) || len(r.Unread) != c.unread {
			t.Errorf("RestsOn(%s) = %+v, %v, want %q and %d unread", c.image, r, err, c.want, c.unread)
		}
	}
}
