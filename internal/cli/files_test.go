// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestHurtFiles takes away the cluster in which a file lies, and has check and repair name the file.
func TestHurtFiles(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "qemu-img")
	dir := t.TempDir()
	tree, raw := filepath.Join(dir, "tree"), filepath.Join(dir, "disk.raw")
	img := filepath.Join(dir, "disk.qcow2")
	content := bytes.Repeat([]byte("lost "), 60_000)
	for name, b := range map[string][]byte{"var/lib/db": content, "etc/fstab": []byte("x")} {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-d", tree, raw, "64M"},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, img}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	loseCluster(t, img, placeOf(t, img, "/var/lib/db")+100_000)

	for _, tc := range []struct {
		name string
		args []string
		says bool
	}{
		{"check", []string{"check", img}, true},
		{"check always", []string{"check", "--files", img}, true},
		{"check never", []string{"check", "--files=never", img}, false},
		{"scan", []string{"scan", dir}, true},
		{"scan never", []string{"scan", "--files=never", dir}, false},
		{"check json", []string{"check", "--json", img}, true},
		{"repair", []string{"repair", "--state", dir, "--zero-lost", img}, true},
		{"repair never", []string{"repair", "--state", dir, "--files=never", img}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := call(tc.args...)
			if status != 3 || strings.Contains(stdout, "/var/lib/db") != tc.says {
				t.Errorf("status %d\n%s%s\nwant the file's name: %v", status, stdout, stderr, tc.says)
			}
			if strings.Contains(stdout, "/etc/fstab") {
				t.Errorf("a file that is whole is named:\n%s", stdout)
			}
		})
	}
	if status, _, stderr := call("check", "--files=perhaps", img); status != 64 {
		t.Errorf("--files=perhaps: status %d, %s", status, stderr)
	}
}

// TestHurtInManyImages has check look into tens of images, and into what their internal snapshots
// show; and has it stop where there is no more time, which is said.
func TestHurtInManyImages(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "qemu-img", "qemu-io")
	dir := t.TempDir()
	tree, raw, pool := filepath.Join(dir, "tree"), filepath.Join(dir, "disk.raw"), filepath.Join(dir, "pool")
	img := filepath.Join(dir, "disk.qcow2")
	for _, name := range []string{tree, pool} {
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "db"), bytes.Repeat([]byte("lost "), 60_000), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-d", tree, raw, "16M"},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, img}, {"qemu-img", "snapshot", "-c", "monday", img},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	at := placeOf(t, img, "/db") + 100_000
	// The present gets a table of its own, and the snapshot keeps the one that is spoiled.
	spoiled := tableOf(t, img, at)
	if out, err := exec.Command("qemu-io", "-c", "write -q 15M 64k", img).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v %s", err, out)
	}
	if now := tableOf(t, img, at); now == spoiled {
		t.Fatalf("the present has no table of its own: %#x", now)
	}
	spoil(t, img, spoiled, at)
	content, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	const many = 40
	for i := range many {
		if err := os.WriteFile(filepath.Join(pool, fmt.Sprintf("vm%d.qcow2", i)), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	report := func(n namesFiles, limited context.Context) (named int, late int64) {
		r, err := check.Run(t.Context(), []string{pool}, check.Options{})
		if err != nil || len(r.Images) != many {
			t.Fatalf("Run = %d images, %v", len(r.Images), err)
		}
		late = n.nameWithin(t.Context(), limited, r.Images, disk.Policy{})
		for _, img := range r.Images {
			if len(img.Hurt) != 1 {
				continue
			}
			if h := img.Hurt[0]; slices.Equal(h.Paths, []string{"/db"}) && h.Snapshot == "monday" {
				named++
			}
		}
		return named, late
	}
	if named, late := report("always", t.Context()); named != many || late != 0 {
		t.Errorf("the file is named of %d images, late are %d; want %d, 0", named, late, many)
	}
	over, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if named, late := report("auto", over); named != 0 || late != many {
		t.Errorf("without time the file is named of %d images, late are %d; want 0, %d", named, late, many)
	}
}

// placeOf gives where a file of the guest begins on its disk.
func placeOf(t *testing.T, img, path string) int64 {
	t.Helper()
	ctx := t.Context()
	g, err := inside.Open(ctx, inside.Name{Disk: img}, inside.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.FS(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := inside.Lookup(ctx, fs, path, true)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(-1)
	if err := f.File.Extents(ctx, func(e files.Extent) error {
		if e.Offset == 0 {
			at = e.Volume
		}
		return nil
	}); err != nil || at < 0 {
		t.Fatalf("%s lies at %d, %v", path, at, err)
	}
	return at
}

// loseCluster makes the entry that maps a guest offset point far past the end of the file.
func loseCluster(t *testing.T, img string, guest int64) {
	t.Helper()
	spoil(t, img, tableOf(t, img, guest), guest)
}

// tableOf gives where the L2 table lies that maps a guest offset.
func tableOf(t *testing.T, img string, guest int64) int64 {
	t.Helper()
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	h, err := qcow2.ReadHeader(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	span := h.ClusterSize() * h.ClusterSize() / 8
	var word [8]byte
	if _, err := f.ReadAt(word[:], int64(h.L1Off)+guest/span*8); err != nil {
		t.Fatal(err)
	}
	return int64(binary.BigEndian.Uint64(word[:]) & 0x00fffffffffffe00)
}

// spoil makes the entry of a guest offset in an L2 table, of clusters of 64 KiB, point far past the
// end of the file.
func spoil(t *testing.T, img string, table, guest int64) {
	t.Helper()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	word := binary.BigEndian.AppendUint64(nil, 1<<63|1<<40)
	if _, err := f.WriteAt(word, table+guest>>16%8192*8); err != nil {
		t.Fatal(err)
	}
}
