// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// filled is a file system with files, as a partition.
type filled struct {
	mkfs  []string
	files map[string]string // "->" begins the target of a link
}

// partitioned makes a disk with one partition for each file system, of 32 MiB.
func partitioned(t *testing.T, parts ...filled) string {
	t.Helper()
	testenv.Need(t, "sfdisk")
	const mib = 1 << 20
	script := "label: gpt\n"
	disk := filepath.Join(t.TempDir(), "disk.raw")
	out, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(int64(2+34*len(parts)) * mib); err != nil {
		t.Fatal(err)
	}
	for i, p := range parts {
		dir := t.TempDir()
		for name, text := range p.files {
			at := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if to, link := strings.CutPrefix(text, "->"); link {
				err = os.Symlink(to, at)
			} else if strings.HasSuffix(name, "/") {
				err = os.MkdirAll(at, 0o755)
			} else {
				err = os.WriteFile(at, []byte(text), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		args := slices.Concat(p.mkfs, []string{"-d", dir, "DISK"})
		b, err := os.ReadFile(filestest.Make(t, t.TempDir(), 32*mib, args...))
		if err != nil {
			t.Fatal(err)
		}
		start := int64(1+34*i) * mib
		if _, err := out.WriteAt(b, start); err != nil {
			t.Fatal(err)
		}
		script += "start=" + sectors(start) + ", size=" + sectors(32*mib) + "\n"
	}
	c := exec.Command("sfdisk", "-q", disk)
	c.Stdin = strings.NewReader(script)
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return disk
}

func sectors(bytes int64) string {
	b, err := json.Marshal(bytes / 512)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// system opens the system on a disk.
func system(t *testing.T, disk string) tree.Tree {
	t.Helper()
	g, err := Open(t.Context(), Name{Disk: disk}, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := System(t.Context(), g, "", "guest1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ext4(options ...string) []string { return append([]string{"mkfs.ext4", "-q", "-F"}, options...) }

// TestTree reads a system whose /boot and /var lie on volumes of their own.
func TestTree(t *testing.T) {
	const varUUID = "11111111-2222-3333-4444-555555555555"
	s := system(t, partitioned(t,
		filled{ext4("-L", "boot"), map[string]string{"vmlinuz": "kernel"}},
		filled{ext4(), map[string]string{
			"etc/fstab": "/dev/vda2 / ext4 defaults 0 1\nLABEL=boot /boot ext4 defaults 0 2\n" +
				"UUID=" + varUUID + " /var ext4 defaults 0 2\nUUID=gone /srv xfs nofail 0 0\nnas:/e /mnt nfs x 0 0\n" +
				"/boot /bind none bind 0 0\n",
			"etc/hostname": "guest1\n", "etc/logs": "->/var/log", "etc/up": "->../var/log/../hidden",
			"var/hidden": "below the mount", "boot/": "", "srv/": "", "mnt/file": "local",
		}},
		filled{ext4("-U", varUUID), map[string]string{"log/messages": "said\n", "log/back": "->/etc/hostname"}},
	))
	for _, tc := range []struct {
		name, want string
		err        error
	}{
		{"/etc/hostname", "guest1\n", nil},
		{"/boot/vmlinuz", "kernel", nil},
		{"/var/log/messages", "said\n", nil},
		{"/etc/logs/messages", "said\n", nil},
		{"/etc/logs/back", "guest1\n", nil},
		{"/etc/up", "", fs.ErrNotExist}, // it lies hidden under the mount
		{"/var/hidden", "", fs.ErrNotExist},
		{"/srv/file", "", tree.ErrNotCollected},
		{"/bind/vmlinuz", "", fs.ErrNotExist}, // no such directory
		{"/mnt/file", "local", nil},           // nothing of a server is on a disk
		{"/etc/none", "", fs.ErrNotExist},
		{"/etc/hostname/x", "", fs.ErrNotExist},
		{"/etc", "", diskio.ErrSpecial},
		{"/proc/meminfo", "", tree.ErrNotCollected},
		{"/sys/fs", "", tree.ErrNotCollected},
		{"etc/fstab", "", fs.ErrInvalid},
	} {
		b, err := s.Read(t.Context(), tc.name, 1000)
		if string(b) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("Read(%s) = %q, %v; want %q, %v", tc.name, b, err, tc.want, tc.err)
		}
	}
	if b, err := s.Read(t.Context(), "/etc/hostname", 3); string(b) != "gue" || !errors.Is(err, tree.ErrTooLarge) {
		t.Errorf("a long file: %q, %v", b, err)
	}
	f, err := s.Open(t.Context(), "/var/log/messages")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3)
	if n, err := f.ReadAt(b, 1); n != 3 || err != nil || string(b) != "aid" || f.Size() != 5 || f.Mtime().IsZero() {
		t.Errorf("ReadAt = %q, %v; %d bytes, %v", b, err, f.Size(), f.Mtime())
	}
	all, err := s.List(t.Context(), "/var/log")
	if err != nil || len(all) != 2 || all[0].Name != "back" || all[0].Type != fs.ModeSymlink || all[1].Size != 5 {
		t.Errorf("List = %+v, %v", all, err)
	}
	if to, err := s.Link(t.Context(), "/etc/logs"); to != "/var/log" || err != nil {
		t.Errorf("Link = %q, %v", to, err)
	}
}

// TestSystem: what the disk tells comes out as evidence.
func TestSystem(t *testing.T) {
	s := system(t, partitioned(t,
		filled{ext4("-e", "remount-ro", "-L", "root"), map[string]string{
			"etc/fstab":    "LABEL=root / ext4 errors=remount-ro 0 1\n/dev/sda2 /data ext4 defaults 0 2\nUUID=none /x xfs x\n",
			"etc/hostname": "guest1\n", "etc/os-release": "PRETTY_NAME=\"Test 1\"\n"}},
		filled{ext4("-m", "10"), map[string]string{"file": "x"}},
	))
	e, err := evidence.Gather(t.Context(), s, evidence.Options{Now: time.Now().Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if e.Label != "guest1" || e.Host.OS != "Test 1" || len(e.FSs) != 2 || len(e.Mounts) != 3 {
		t.Fatalf("%q, %+v, %d file systems, %d mounts; gaps %v", e.Label, e.Host, len(e.FSs), len(e.Mounts), e.Gaps)
	}
	if e.Now.IsZero() || time.Since(e.Now) > time.Hour || time.Until(e.Now) > 0 {
		t.Errorf("its last sign of life: %v", e.Now)
	}
	root, data := &e.FSs[0], &e.FSs[1]
	if root.Super == nil || root.Super.State != "clean" || root.Super.OnError != "remount-ro" || root.Log == nil ||
		root.Log.Dirty || root.Label != "root" || len(root.Mounts) != 1 || e.Mounts[root.Mounts[0]].Point != "/" {
		t.Errorf("root: %+v %+v", root, root.Super)
	}
	if e.FSOf("vda1") != 0 || e.FSOf("/dev/sda2") != 1 || e.FSOf("sdb1") != -1 {
		t.Error("its kernel's names are not known")
	}
	m := e.Mounts[data.Mounts[0]]
	if m.Point != "/data" || m.Probe == nil || m.Probe.Blocks == 0 || m.Probe.Avail >= m.Probe.Free {
		t.Errorf("/data: %+v, %+v", m, m.Probe)
	}
	for _, g := range e.Gaps {
		if g.Object == "" && slices.Contains([]evidence.Part{evidence.PartMounts, evidence.PartFSs, evidence.PartProbes,
			evidence.PartTasks}, g.Part) {
			t.Errorf("of a disk nothing is missing: %+v", g)
		}
	}
}

// TestHurtNames: the log of a guest names inodes, and the disk their files.
func TestHurtNames(t *testing.T) {
	disk := partitioned(t,
		filled{ext4(), map[string]string{"etc/fstab": "/dev/vda1 / ext4 x 0 1\n/dev/vda2 /srv ext4 x 0 2\n"}},
		filled{ext4(), map[string]string{"db/a": "x", "db/b": "y"}})
	namer := system(t, disk).(tree.Namer)
	all, err := namer.Names(t.Context(), "2", []uint64{2, 99999})
	if err != nil || len(all) != 1 || all[2] != "/srv" {
		t.Errorf("Names = %v, %v", all, err)
	}
	found := map[string]bool{}
	all, err = namer.Names(t.Context(), "2", []uint64{11, 12, 13, 14, 15, 16, 17, 18})
	for _, name := range all {
		found[name] = true
	}
	if err != nil || !found["/srv/db/a"] || !found["/srv/db/b"] || !found["/srv/db"] {
		t.Errorf("Names = %v, %v", all, err)
	}
	if all, err := namer.Names(t.Context(), "7", []uint64{2}); all != nil || err != nil {
		t.Errorf("of no volume: %v, %v", all, err)
	}
}

// TestNoSystem: without a system nothing is known of its files, and all of its file systems.
func TestNoSystem(t *testing.T) {
	s := system(t, partitioned(t, filled{ext4(), map[string]string{"file": "x"}}))
	if _, err := s.Read(t.Context(), "/etc/fstab", 10); !errors.Is(err, tree.ErrNotCollected) {
		t.Errorf("fstab: %v", err)
	}
	e, err := evidence.Gather(t.Context(), s, evidence.Options{})
	if err != nil || len(e.FSs) != 1 || e.FSs[0].Super == nil {
		t.Errorf("%+v, %v", e.FSs, err)
	}
}
