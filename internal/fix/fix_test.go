// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// world is a guest to change.
type world struct {
	kind  string // of its file system
	dirty bool
	// on is what holds it: raw, qcow2, backing, snapshot, compressed, partition, lvm.
	on     string
	engine Engine
}

func (w world) String() string {
	name := w.kind + " " + w.on
	if w.dirty {
		name += " dirty"
	}
	if w.engine == Host {
		name += " host"
	}
	return name
}

// make makes the guest.
func (w world) make(t *testing.T) *guest {
	t.Helper()
	dir := t.TempDir()
	raw := fileSystem(t, w.kind, w.dirty)
	g := &guest{image: filepath.Join(dir, "vm.img"), format: "qcow2", state: filepath.Join(dir, "state")}
	switch w.on {
	case "raw":
		g.format = "raw"
		tool(t, "cp", "--sparse=always", raw, g.image)
	case "partition":
		g.format = "raw"
		partitioned(t, raw, g.image)
	case "lvm":
		lvm(t, raw, filepath.Join(dir, "raw"))
		tool(t, "qemu-img", "convert", "-O", "qcow2", "-f", "raw", filepath.Join(dir, "raw"), g.image)
	case "qcow2":
		tool(t, "qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, g.image)
	case "compressed":
		tool(t, "qemu-img", "convert", "-c", "-O", "qcow2", "-f", "raw", raw, g.image)
	case "backing":
		base := filepath.Join(dir, "base.qcow2")
		tool(t, "qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, base)
		tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", g.image)
	case "snapshot":
		tool(t, "qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, g.image)
		tool(t, "qemu-img", "snapshot", "-c", "before", g.image)
	default:
		t.Fatalf("no world on %q", w.on)
	}
	return g
}

// partitioned puts a file system into the second partition of a disk.
func partitioned(t *testing.T, raw, to string) {
	t.Helper()
	fi, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	const start = 4 << 20
	f, err := os.Create(to)
	if err == nil {
		err = errors.Join(f.Truncate(start+fi.Size()+(2<<20)), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	testenv.Need(t, "sfdisk")
	tool(t, "sh", "-c", fmt.Sprintf("printf 'label: gpt\\nstart=2048, size=2048\\nstart=%d, size=%d\\n' | sfdisk -q %s",
		start/512, fi.Size()/512, to))
	tool(t, "dd", "if="+raw, "of="+to, "bs=1M", "seek=4", "conv=notrunc,sparse", "status=none")
}

// lvm puts a file system into a logical volume that lies in two pieces, in the wrong order.
func lvm(t *testing.T, raw, to string) {
	t.Helper()
	testenv.Need(t, "pvcreate", "vgcreate", "lvcreate", "losetup")
	fi, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "truncate", "-s", fmt.Sprint(fi.Size()+(16<<20)), to)
	dev := strings.TrimSpace(tool(t, "losetup", "-f", "--show", to))
	defer tool(t, "losetup", "-d", dev)
	dir := t.TempDir()
	conf := fmt.Sprintf(`devices { filter=["a|^%s$|","r|.*|"] use_devicesfile=0 hints="none" obtain_device_list_from_udev=0 }
global { locking_dir="%s" use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`, dev, dir)
	if err := os.WriteFile(filepath.Join(dir, "lvm.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LVM_SYSTEM_DIR", dir)
	t.Setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
	half := fi.Size() >> 20 / 2
	for _, args := range [][]string{
		{"pvcreate", "-qq", dev}, {"vgcreate", "-qq", "-s", "1m", "vg", dev},
		{"lvcreate", "-qq", "-an", "-Zn", "-Wn", "-n", "root", "-l", fmt.Sprint(half), "vg", fmt.Sprintf("%s:%d-%d", dev, half+4, 2*half+3)},
		{"lvextend", "-qq", "-l", fmt.Sprint(2 * half), "vg/root", fmt.Sprintf("%s:0-%d", dev, half-1)},
	} {
		tool(t, args[0], append([]string{"--driverloaded", "n"}, args[1:]...)...)
	}
	g := &guest{image: to, format: "raw"}
	_, l := g.open(t)
	from, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, v := range l.Volumes {
		if v.Name != "vg/root" || v.Size != fi.Size() {
			continue
		}
		pieces := 0
		for p := range v.Pieces(0, v.Size) {
			if _, err := out.WriteAt(from[p.Offset:][:p.Length], p.At); err != nil {
				t.Fatal(err)
			}
			pieces++
		}
		if pieces < 2 {
			t.Fatalf("the logical volume is in %d pieces, want 2", pieces)
		}
		return
	}
	t.Fatalf("there is no vg/root of %d bytes", fi.Size())
}

// worlds are the guests that are tried: all kinds and all formats, not all of both.
func worlds() []world {
	few := []world{
		{"ext4", false, "raw", UML}, {"ext4", true, "qcow2", UML}, {"xfs", true, "backing", UML},
		{"btrfs", false, "snapshot", UML}, {"ext4", true, "lvm", UML}, {"ext4", true, "backing", Host},
		{"xfs", false, "partition", Host}, {"ext3", true, "compressed", UML},
	}
	if !testenv.Long() {
		return few
	}
	var all []world
	for _, kind := range []string{"ext4", "xfs", "btrfs", "ext3"} {
		for _, on := range []string{"raw", "partition", "qcow2", "compressed", "backing", "snapshot", "lvm"} {
			for _, dirty := range []bool{false, true} {
				all = append(all, world{kind, dirty, on, UML})
				if kind != "btrfs" {
					all = append(all, world{kind, dirty, on, Host})
				}
			}
		}
	}
	return all
}

// TestImage masks a unit of the administrator and one of a package, and takes a link away, in guests of all
// sorts: then everything else is as it was, its tools find no fault, and undoing gives the same bytes back.
func TestImage(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program, "qemu-img", "e2fsck", "xfs_repair", "btrfs")
	self := static(t)
	changes := []Change{MaskUnit("nightly.service"), MaskUnit("packaged.service"), MaskUnit("packaged.timer"),
		MaskUnit("linked.service"), MaskUnit("masked.service"),
		{Kind: Unlink, Path: loopLink, Link: loopUnit}}
	for _, w := range worlds() {
		t.Run(w.String(), func(t *testing.T) {
			g := w.make(t)
			was, before := sum(t, g.image), g.tree(t, w.kind)
			m, err := g.plan(t, changes, Options{Engine: w.engine, Self: self})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d writes, %d bytes, grows by %d, relies on %d and %d ranges, by %s", len(m.Plan.Writes),
				m.Plan.BytesWritten(), m.Plan.GrowsBy(), len(m.Plan.Relies), len(m.Plan.Below), m.Kernel)
			if len(m.Done) != 5 || len(m.Already) != 1 || !slices.Equal(m.Kept, []string{loopUnit + Aside}) {
				t.Errorf("done %v, already %v, kept %v", m.Done, m.Already, m.Kept)
			}
			r := g.apply(t, m.Plan)
			if g.format == "qcow2" {
				tool(t, "qemu-img", "check", "-q", g.image)
			}
			asWanted(t, before, g.tree(t, w.kind))
			if w.on == "snapshot" {
				old := filepath.Join(t.TempDir(), "old")
				tool(t, "qemu-img", "convert", "-O", "raw", "-l", "before", g.image, old)
				if old := (&guest{image: old, format: "raw"}); len(differences(before, old.tree(t, w.kind))) > 0 {
					t.Errorf("the snapshot was changed: %v", differences(before, old.tree(t, w.kind)))
				}
			}
			if _, err := g.plan(t, changes, Options{Engine: w.engine, Self: self}); !errors.Is(err, ErrNothing) {
				t.Errorf("the same once more: %v, want %v", err, ErrNothing)
			}
			if _, err := apply.Undo(t.Context(), g.image, r.ID, apply.Options{StateDir: g.state}); err != nil {
				t.Fatal(err)
			}
			if now := sum(t, g.image); now != was {
				t.Errorf("after the undo the image has the digest %s, before it was %s", now, was)
			}
		})
	}
}

// differences compares two trees, but for the times of access.
func differences(got, want filestest.Tree) []string {
	return filestest.Differences(got, want, filestest.Loose{Atime: true})
}

// asWanted requires that of a tree only what was asked for is different.
func asWanted(t *testing.T, before, after filestest.Tree) {
	t.Helper()
	before, after = maps.Clone(before), maps.Clone(after)
	links := map[string]string{loopUnit: "/dev/null", packUnit: "/dev/null", UnitDir + "/packaged.timer": "/dev/null",
		UnitDir + "/linked.service": "/dev/null", UnitDir + "/masked.service": "/dev/null"}
	for path, to := range links {
		if n, ok := after[path]; !ok || n.Content != to {
			t.Errorf("%s leads to %q, want %q", path, n.Content, to)
		}
	}
	if a, b := after[loopUnit+Aside], before[loopUnit]; a.Content != b.Content || a.Stat.Ino != b.Stat.Ino {
		t.Errorf("%s%s is not the file that was there", loopUnit, Aside)
	}
	if _, there := after[loopLink]; there {
		t.Errorf("%s is still there", loopLink)
	}
	touched := []string{loopUnit, packUnit, UnitDir + "/packaged.timer", UnitDir + "/linked.service", loopUnit + Aside,
		loopLink, UnitDir, filepath.Dir(loopLink)}
	for _, p := range touched {
		delete(before, p)
		delete(after, p)
	}
	for _, line := range differences(after, before) {
		t.Error(line)
	}
	if len(before) < 60 {
		t.Errorf("%d names were compared, want more than 60", len(before))
	}
}

// TestQuotas: what an XFS knows of quotas stays, so that the guest need not count anew.
func TestQuotas(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program)
	name := filestest.Make(t, t.TempDir(), 320<<20, "mkfs.xfs", "-q", "DISK")
	dir, unmount := filestest.Mount(t, name, "xfs")
	system(t, dir)
	unmount()
	// Users' quotas are kept, groups' only counted. The kernel of this machine may have none.
	tool(t, "xfs_db", "-x", "-c", "sb 0", "-c", "write -d qflags 0x147", name)
	flags := func() string {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 2)
		if _, err := f.ReadAt(b, 176); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", b)
	}
	was := flags()
	if was != "0147" {
		t.Fatalf("the flags of quotas are %s", was)
	}
	g := &guest{image: name, format: "raw", state: t.TempDir()}
	mask := []Change{MaskUnit("packaged.service")}
	if _, err := g.plan(t, mask, Options{Engine: Host}); !errors.Is(err, ErrRefused) {
		t.Errorf("by the host's kernel: %v, want %v", err, ErrRefused)
	}
	m, err := g.plan(t, mask, Options{Self: static(t)})
	if err != nil {
		t.Fatal(err)
	}
	g.apply(t, m.Plan)
	if now := flags(); now != was {
		t.Errorf("the flags of quotas are %s, before they were %s", now, was)
	}
	if _, there := g.tree(t, "xfs")[packUnit]; !there {
		t.Errorf("%s is not there", packUnit)
	}
}
