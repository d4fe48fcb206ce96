// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestBaseChangedAfterOverlay makes an overlay by qemu-img on a file system that keeps when its files were made,
// and does to the base what changes its bytes, its time, or neither.
func TestBaseChangedAfterOverlay(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io", "mkfs.ext4", "mount")
	testenv.NeedRoot(t)
	dir := loopMount(t)
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("qemu-img", "create", "-q", "-f", "qcow2", "base", "4M")
	old := time.Now().Add(-time.Hour)
	run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "over")
	if err := os.MkdirAll(filepath.Join(dir, "etc/libvirt/qemu"), 0o755); err != nil {
		t.Fatal(err)
	}
	xml := "<domain><name>web</name><devices><disk type='file' device='disk'><source file='/over'/>" +
		"<target dev='vda'/></disk></devices></domain>"
	if err := os.WriteFile(filepath.Join(dir, "etc/libvirt/qemu/web.xml"), []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "base")
	// The rule allows for minutes between the two; a test does not wait for them, but puts the base's time there.
	later := time.Now().Add(sameMoment + time.Hour)
	for _, c := range []struct {
		name string
		do   func()
		want Outcome
	}{
		{"nothing", func() {}, Pass},
		{"an older base", func() { chtimes(t, base, old) }, Pass},
		{"another owner, mode and name", func() {
			if err := os.Chown(base, 107, 107); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(base, 0o600); err != nil {
				t.Fatal(err)
			}
			run("ln", "base", "shield")
		}, Pass},
		{"written to", func() {
			run("qemu-io", "-c", "write 0 64k", "base")
			chtimes(t, base, later)
		}, Fail},
	} {
		c.do()
		x := gather(t, dir)
		over := imageAt(x, "/over")
		if over == nil || over.Made.IsZero() || time.Since(over.Made).Abs() > time.Hour {
			t.Fatalf("%s: the overlay was made at %+v, want a moment ago", c.name, over)
		}
		r := ruleIM02()
		got := r.judge(x)
		if len(got) != 1 || got[0].Outcome != c.want {
			t.Errorf("%s: IM02 = %+v, want one %s", c.name, got, c.want)
		}
	}
	// The same files, copied: when they were made is not known, and nothing is made of it.
	copied := t.TempDir()
	run("cp", "-a", dir+"/.", copied)
	if over := imageAt(gather(t, copied), "/over"); over == nil || !over.Made.IsZero() {
		t.Errorf("of a copy the overlay is told to be made: %+v", over)
	}
}

// loopMount gives a directory where a new ext4 on a loop device is mounted.
func loopMount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	img, at := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	for _, c := range [][]string{{"truncate", "-s", "64M", img}, {"mkfs.ext4", "-q", img}, {"mkdir", at},
		{"mount", "-o", "loop", img, at}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(c, " "), err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("umount %s: %v", at, err)
		}
	})
	return at
}

func chtimes(t *testing.T, name string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

// gather reads what is below a directory.
func gather(t *testing.T, dir string) *evidence.Evidence {
	t.Helper()
	d, err := tree.OpenDirectory(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := evidence.Gather(context.Background(), d, evidence.Options{Now: time.Now(), Label: "h"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
