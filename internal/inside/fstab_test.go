// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// TestMountedThere asks of which directories the guest shows something else.
func TestMountedThere(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"etc", "home/ann", "srv/with space", "tmp", "net"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const fstab = `# /home was on LABEL=old
LABEL=root / ext4 defaults 0 1
UUID="0000-1111" /home/ ext4 defaults 0 2
/dev/vda /srv/with\040space xfs
tmpfs /tmp tmpfs
none none swap sw
UUID=1 relative ext4
garbage
nas:/export /net nfs
LABEL=x /not/there ext4
`
	if err := os.WriteFile(filepath.Join(dir, "etc/fstab"), []byte(fstab), 0o644); err != nil {
		t.Fatal(err)
	}
	disk := filestest.Make(t, t.TempDir(), 16<<20, "mkfs.ext4", "-q", "-F", "-d", dir, "DISK")
	g, err := Open(t.Context(), Name{Disk: disk}, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.FS(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		flat bool
		want []string
	}{
		{"/", true, nil},
		{"/", false, []string{"/home", "/srv/with space", "/net"}},
		{"/home", true, []string{"/home"}},
		{"/home", false, []string{"/home"}},
		{"/home/ann", true, []string{"/home"}},
		{"/home/ann/gone", true, []string{"/home"}},
		{"/homer", true, nil},
		{"/srv", true, nil},
		{"/srv", false, []string{"/srv/with space"}},
		{"/tmp", false, nil},
		{"/not/there", true, nil},
	} {
		var got []string
		for _, n := range g.MountedThere(t.Context(), fs, tc.path, tc.flat) {
			point, _, _ := strings.Cut(n, ": the guest mounts another file system there")
			got = append(got, point)
		}
		if fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("MountedThere(%s, flat %v) = %q, want %q", tc.path, tc.flat, got, tc.want)
		}
	}
}

// TestManyMounts: of many lines the first places are told, and how many there are more.
func TestManyMounts(t *testing.T) {
	dir := t.TempDir()
	var fstab strings.Builder
	for i := range 2 * maxFstabMounts {
		fmt.Fprintf(&fstab, "LABEL=x /home ext4\nLABEL=%d /gone%d ext4\n", i, i)
	}
	for _, d := range []string{"etc", "home"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/fstab"), []byte(fstab.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	disk := filestest.Make(t, t.TempDir(), 16<<20, "mkfs.ext4", "-q", "-F", "-d", dir, "DISK")
	g, err := Open(t.Context(), Name{Disk: disk}, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.FS(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	got := g.MountedThere(t.Context(), fs, "/", false)
	want := fmt.Sprintf("names %d places more", maxFstabMounts-2*maxFstabNotes+1)
	if len(got) != maxFstabNotes+1 || !strings.Contains(got[maxFstabNotes], want) {
		t.Errorf("%d notes, the last %q; want %q", len(got), got[len(got)-1], want)
	}
}

// TestFstabPart names the part that a source of fstab is, where that is sure.
func TestFstabPart(t *testing.T) {
	g := &Guest{Layout: &volume.Layout{Disks: make([]volume.Disk, 1), Volumes: []*volume.Volume{
		{Name: "1", Label: "boot"}, {Name: "2", UUID: "ab-CD", PartUUID: "77"}, {Name: "vg-a/lv", Disk: -1},
		{Name: "4", Label: "two"}, {Name: "5", Label: "two"}}}}
	for source, want := range map[string]int{"LABEL=boot": 0, `UUID="AB-cd"`: 1, "PARTUUID=77": 1,
		"/dev/disk/by-uuid/ab-CD": 1, "/dev/disk/by-label/boot": 0, "/dev/mapper/vg--a-lv": 2, "/dev/vg-a/lv": 2,
		"LABEL=two": -1, "LABEL=": -1, "": -1, "/dev/sdb1": -1, "/dev/vda2": 1,
		"/dev/nvme0n1p4": 3, "/dev/vda": -1, "/dev/vda9": -1, "nas:/x": -1, "/dev/": -1, "//x/y": -1} {
		if got := g.fstabPart(source); got != want {
			t.Errorf("fstabPart(%q) = %d, want %d", source, got, want)
		}
	}
}

// FuzzFstab takes any text for a guest's /etc/fstab.
func FuzzFstab(f *testing.F) {
	f.Add("UUID=1 /home ext4\n\\040 \\777 x y\n")
	g := &Guest{Layout: &volume.Layout{Disks: make([]volume.Disk, 1), Volumes: []*volume.Volume{{Name: "1"}}}}
	f.Fuzz(func(t *testing.T, text string) {
		all := parseFstab(text)
		if len(all) > maxFstabMounts {
			t.Errorf("%d entries", len(all))
		}
		for _, e := range all {
			if !strings.HasPrefix(e.point, "/") || e.point == "/" {
				t.Errorf("mount point %q", e.point)
			}
			g.fstabPart(e.source)
		}
	})
}
