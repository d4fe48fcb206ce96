// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// tables are disks with partition tables of usual and unusual kinds.
var tables = []struct {
	name   string
	size   int64
	sector int64 // 0: 512
	make   func(t *testing.T, w *world)
}{
	{"gpt", 200 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "", "sgdisk -n 1:2048:+1M -t 1:ef02 -n 2:0:+20M -c 2:rööt -n 5:0:+30M -n 128:0:0 DISK")
	}},
	{"gpt-of-sfdisk", 64 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: gpt\nsize=5M, name=one\nsize=7M, type=swap\n", "sfdisk -q DISK")
	}},
	{"gpt-of-parted", 64 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "", "parted -s DISK mklabel gpt mkpart a ext4 1MiB 9MiB mkpart b 10MiB 60MiB")
	}},
	{"gpt-4k", 64 * mib, 4096, func(t *testing.T, w *world) {
		dev := w.loop(t, "--sector-size", "4096")
		run(t, "label: gpt\nsize=5M, name=one\nsize=7M\n", "sfdisk", "-q", dev)
	}},
	{"gpt-many", 300 * mib, 0, func(t *testing.T, w *world) {
		script := "label: gpt\ntable-length: 256\n"
		for range 200 {
			script += "size=1M\n"
		}
		w.run(t, script, "sfdisk -q DISK")
	}},
	{"gpt-empty", 16 * mib, 0, func(t *testing.T, w *world) { w.run(t, "", "sgdisk -o DISK") }},
	{"gpt-hybrid", 100 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "", "sgdisk -n 1:0:+10M -n 2:0:+20M -n 3:0:+5M -h 1:2 DISK")
	}},
	{"mbr", 100 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: dos\nsize=10M, type=83, bootable\nsize=20M, type=82\n", "sfdisk -q DISK")
	}},
	{"mbr-holes", 100 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: dos\n2: start=2048, size=4096\n4: start=8192, size=4096\n", "sfdisk -q DISK")
	}},
	{"mbr-logical", 200 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: dos\n1: size=10M\n2: size=150M, type=5\n5: size=10M\n6: size=20M\n7: size=5M, type=82\n"+
			"3: size=10M\n", "sfdisk -q DISK")
	}},
	{"mbr-logical-of-parted", 200 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "", "parted -s DISK mklabel msdos mkpart primary 1MiB 5MiB mkpart extended 5MiB 190MiB "+
			"mkpart logical 100MiB 120MiB mkpart logical 10MiB 30MiB mkpart logical 130MiB 131MiB rm 5")
	}},
	{"mbr-many", 200 * mib, 0, func(t *testing.T, w *world) {
		script := "label: dos\nsize=199M, type=f\n"
		for range 56 {
			script += "size=1M\n"
		}
		w.run(t, script, "sfdisk -q DISK")
	}},
	{"mbr-empty", 16 * mib, 0, func(t *testing.T, w *world) { w.run(t, "label: dos\n", "sfdisk -q DISK") }},
	{"mbr-extended-empty", 16 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: dos\n3: size=5M, type=5\n", "sfdisk -q DISK")
	}},
	{"mbr-extended-empty-of-parted", 16 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "", "parted -s DISK mklabel msdos mkpart extended 1MiB 9MiB")
	}},
	{"mbr-4k", 64 * mib, 4096, func(t *testing.T, w *world) {
		dev := w.loop(t, "--sector-size", "4096")
		run(t, "label: dos\nsize=20M\nsize=30M, type=5\nsize=4M\n", "sfdisk", "-q", dev)
	}},
	{"mbr-type-0", 64 * mib, 0, func(t *testing.T, w *world) {
		w.run(t, "label: dos\nsize=20M\nsize=30M\n", "sfdisk -q DISK")
		w.write(t, 446+16+4, []byte{0})
	}},
}

// TestTables compares numbers, starts and sizes with the kernel's: what losetup -P finds is in
// /sys/class/block. Names, types and UUIDs are those of libblkid, as partx -g shows them.
func TestTables(t *testing.T) {
	for _, tc := range tables {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.size)
			tc.make(t, w)
			d := w.disk("d")
			d.Sector = tc.sector
			l := find(t, d)
			for _, p := range l.Problems {
				t.Errorf("Find() problem %s", p)
			}
			if strings.HasPrefix(tc.name, "gpt") {
				if diff := cmp.Diff(l.text(), find(t, w.disk("d")).text()); diff != "" {
					t.Errorf("Find() with the sector size unknown (-known +unknown)\n%s", diff)
				}
			}
			t.Run("kernel", func(t *testing.T) {
				kernel, got := w.kernelParts(t, tc.sector), parts(l)
				if len(kernel) == 0 && len(got) > 0 {
					t.Logf("this kernel does not read the table, libblkid alone is the judge")
					return
				}
				if diff := cmp.Diff(kernel, got); diff != "" {
					t.Errorf("Find() (-kernel +got)\n%s", diff)
				}
			})
			t.Run("blkid", func(t *testing.T) {
				if diff := cmp.Diff(w.partx(t, tc.sector), named(l)); diff != "" {
					t.Errorf("Find() (-partx +got)\n%s", diff)
				}
			})
		})
	}
}

// parts lists the partitions of the first table: number, start and size in sectors of 512 bytes.
func parts(l *Layout) []string {
	var lines []string
	for _, v := range l.Volumes {
		if v.Part == 0 {
			continue
		}
		size := v.Size / 512
		if v.Kind == Extended {
			size = min(size, max(2, l.Tables[0].Sector/512)) // as much of it as Linux shows
		}
		lines = append(lines, fmt.Sprintf("%d %d+%d", v.Part, v.Start/512, size))
	}
	slices.Sort(lines)
	return lines
}

// named lists the partitions of the first table with what it says of them.
func named(l *Layout) []string {
	var lines []string
	for _, v := range l.Volumes {
		if v.Part > 0 {
			lines = append(lines, fmt.Sprintf("%d %d+%d %s|%s|%s|%s", v.Part, v.Start/512, v.Size/512,
				v.PartType, v.PartUUID, v.PartName, l.Tables[0].Kind))
		}
	}
	slices.Sort(lines)
	return lines
}

// partx lists the partitions of w as libblkid sees them.
func (w *world) partx(t *testing.T, sector int64) []string {
	t.Helper()
	var lines []string
	command := fmt.Sprintf("partx -g -r -S %d -o NR,START,SECTORS,TYPE,UUID,SCHEME,NAME DISK", max(512, sector))
	for line := range strings.Lines(w.run(t, "", command)) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), " ", 7)
		if len(f) < 6 {
			continue
		}
		name := ""
		if len(f) == 7 {
			name = unescape(f[6])
		}
		kind := f[3]
		if n, err := strconv.ParseUint(kind, 0, 8); err == nil {
			kind = fmt.Sprintf("0x%02x", n)
		}
		lines = append(lines, fmt.Sprintf("%s %s+%s %s|%s|%s|%s", f[0], f[1], f[2], kind, f[4], name, f[5]))
	}
	slices.Sort(lines)
	return lines
}

// unescape takes \xNN out of what util-linux prints.
func unescape(s string) string {
	if u, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return u
	}
	return s
}

// kernelParts lists the partitions of w as the kernel sees them on a loop device, by its sysfs: no
// device nodes are needed.
func (w *world) kernelParts(t *testing.T, sector int64) []string {
	t.Helper()
	testenv.NeedRoot(t)
	loop := filepath.Base(w.loop(t, "--read-only", "--partscan", "--sector-size", fmt.Sprint(max(512, sector))))
	var lines []string
	dirs, err := filepath.Glob(filepath.Join("/sys/class/block", loop, loop+"p*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		lines = append(lines, fmt.Sprintf("%s %s+%s", sysfs(t, dir, "partition"), sysfs(t, dir, "start"),
			sysfs(t, dir, "size")))
	}
	slices.Sort(lines)
	return lines
}

func sysfs(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// loop attaches w to a loop device until the test's end, and gives the device.
func (w *world) loop(t *testing.T, options ...string) string {
	t.Helper()
	testenv.NeedRoot(t)
	args := append([]string{"losetup", "--find", "--show"}, options...)
	dev := strings.TrimSpace(run(t, "", append(args, w.Name())...))
	t.Cleanup(func() { run(t, "", "losetup", "--detach", dev) })
	return dev
}
