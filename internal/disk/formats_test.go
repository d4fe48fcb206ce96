// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// kinds are images as qemu-img makes them, beside qcow2 and raw.
var kinds = []struct{ name, format, options string }{
	{"vmdk", "vmdk", "zeroed_grain=on"},
	{"flat", "vmdk", "subformat=monolithicFlat"},
	{"split", "vmdk", "subformat=twoGbMaxExtentSparse"},
	{"split-flat", "vmdk", "subformat=twoGbMaxExtentFlat"},
	{"vhdx", "vhdx", "block_size=1M"},
	{"vpc", "vpc", "force_size=on"},
	{"fixed", "vpc", "subformat=fixed,force_size=on"},
	{"vdi", "vdi", "static=off"},
	{"fixed-vdi", "vdi", "static=on"},
}

// files gives all files in dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// filled makes an image of a kind with something in it.
func filled(t *testing.T, dir, name, format, options string) string {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(dir, name)
	run(t, dir, "qemu-img", "create", "-q", "-f", format, "-o", options, name, "5M")
	imagetest.Scribble(t, newRand(uint64(len(options))), path, format, 5<<20, 64<<10, 9)
	for _, f := range files(t, dir) {
		settle(t, f)
	}
	return path
}

// asQemu holds reading, map and comparison of the disk at path against qemu-img; whole: qemu knows what
// is allocated.
func asQemu(t *testing.T, path string, whole bool) {
	t.Helper()
	diskio.RequireUnchanged(t, files(t, filepath.Dir(path))...)
	c := mustOpen(t, path, Options{})
	want := bytesOf(t, path)
	imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return view{c}, want })
	other := filepath.Join(t.TempDir(), "other")
	run(t, ".", "qemu-img", "convert", "-O", "qcow2", path, other)
	settle(t, other)
	if whole {
		sameMap(t, path, 0, c.Size())
		compareBoth(t, path, other)
		compareBoth(t, other, path)
		run(t, ".", "qemu-io", "-f", "qcow2", "-c", "write -q -P 99 3M 512", other)
		settle(t, other)
		compareBoth(t, path, other)
		return
	}
	// For qemu all of a vhdx image is data, which only a strict comparison tells apart.
	r, err := Compare(t.Context(), c, mustOpen(t, other, Options{}), CompareOptions{})
	if err != nil || r.Outcome != Identical {
		t.Errorf("Compare = %+v, %v", r, err)
	}
}

func TestOtherFormats(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dir := testenv.DiskDir(t)
			path := filled(t, dir, "disk."+k.format, k.format, k.options)
			if k.name == "fixed" {
				// Nothing at its front tells what it is.
				over := filepath.Join(dir, "over.qcow2")
				run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.vpc", "-F", "vpc", over)
				settle(t, over)
				path = over
			}
			asQemu(t, path, k.format != "vhdx")
		})
	}
	t.Run("stream", func(t *testing.T) {
		dir := testenv.DiskDir(t)
		from := filled(t, t.TempDir(), "disk.vmdk", "vmdk", "zeroed_grain=on")
		path := filepath.Join(dir, "stream.vmdk")
		run(t, ".", "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", from, path)
		settle(t, path)
		asQemu(t, path, true)
	})
}

// A chain of any mix: qcow2 upon each of the others, and vmdk upon vmdk.
func TestMixedChains(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dir := testenv.DiskDir(t)
			filled(t, dir, "base", k.format, k.options)
			backing, format := "base", k.format
			for i, name := range []string{"over.vmdk", "over.qcow2"} {
				to := []string{"vmdk", "qcow2"}[i]
				if to == "vmdk" && format != "vmdk" {
					continue
				}
				run(t, dir, "qemu-img", "create", "-q", "-f", to, "-b", backing, "-F", format, name)
				run(t, dir, "qemu-io", "-f", to, "-c", fmt.Sprintf("write -q -P %d %dM 100k", 90+i, 1+i), name)
				backing, format = name, to
			}
			for _, f := range files(t, dir) {
				settle(t, f)
			}
			path := filepath.Join(dir, backing)
			asQemu(t, path, k.format != "vhdx")
			layers, err := Walk(t.Context(), path, Options{})
			want := 2
			if k.format == "vmdk" {
				want = 3
			}
			if err != nil || len(layers) != want || layers[want-1].Format != k.format || layers[want-1].ClusterBytes < 0 {
				t.Errorf("Walk = %+v, %v", layers, err)
			}
			if _, err := Open(t.Context(), path, Options{Snapshot: "1"}); !errors.Is(err, ErrNoSnapshot) {
				t.Errorf("Open(snapshot 1) = %v, want %v", err, ErrNoSnapshot)
			}
		})
	}
}

// The parent of a vmdk image must be what it was.
func TestVMDKParent(t *testing.T) {
	dir := testenv.DiskDir(t)
	base := filled(t, dir, "base.vmdk", "vmdk", "zeroed_grain=on")
	over := filepath.Join(dir, "over.vmdk")
	run(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "over.vmdk")
	mustOpen(t, over, Options{})
	replace := func(path, from, to string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte(from)) {
			t.Fatalf("%s has no %q: %v", path, from, err)
		}
		if err := os.WriteFile(path, bytes.Replace(b, []byte(from), []byte(to), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(text string, want error, state LinkState) {
		t.Helper()
		_, err := Open(t.Context(), over, Options{})
		if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("Open = %v, want %v (%q)", err, want, text)
		}
		infos, err := Inspect(t.Context(), over, Options{})
		if err != nil || len(infos) != 1 || infos[0].Backing == nil || infos[0].Backing.State != state {
			t.Errorf("Inspect = %+v, %v, want the state %s", infos, err, state)
		}
		mustOpen(t, over, Options{Single: true})
	}
	run(t, dir, "qemu-io", "-f", "vmdk", "-c", "write -q -P 1 0 512", "base.vmdk")
	// qemu gives the image a new CID when it is written to.
	check("was changed since", ErrUnreadable, LinkUnreadable)
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	check("base.vmdk is not there", ErrMissing, LinkMissing)
	replace(over, `parentFileNameHint="base.vmdk"`, `parentFileNameHint="nbd:x.vmdk"`)
	if b, err := os.ReadFile(over); err != nil || !bytes.Contains(b, []byte("nbd:x.vmdk")) {
		t.Fatal(err)
	}
	check(`protocol "nbd"`, ErrProtocol, LinkProtocol)
	replace(over, `parentFileNameHint="nbd:x.vmdk"`, `xxxxxxFileNameHint="nbd:x.vmdk"`)
	check("does not name it", ErrMissing, LinkMissing)
}

// The files that a descriptor names are opened under the same policy as backing files.
func TestExtentPolicy(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(in("flat"), strings.Repeat("x", 4096))
	write(in("a:b"), strings.Repeat("y", 4096))
	write(filepath.Join(outside, "flat"), strings.Repeat("z", 4096))
	if err := os.Symlink(filepath.Join(outside, "flat"), in("out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(in("sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(in("sub/flat"), strings.Repeat("w", 4096))
	for _, c := range []struct {
		name string
		want error
		text string
	}{
		{"flat", nil, "x"}, {"a:b", nil, "y"}, {"sub/flat", nil, "w"}, {in("flat"), nil, "x"},
		{"gone", ErrMissing, "extent of"}, {"out", ErrNotFollowed, "outside"}, {outside + "/flat", ErrNotFollowed, "outside"},
		{"../../../../../../etc/passwd", ErrNotFollowed, "outside"}, {"sub", ErrUnreadable, "directory"},
		{"nbd:localhost:10809", ErrProtocol, `protocol "nbd"`}, {"json:{}", ErrProtocol, `protocol "json"`},
		{"d.vmdk", ErrLoop, "leads back"}, {"/dev/null", ErrUnreadable, "not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := in("d.vmdk")
			write(path, "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 4 FLAT \""+c.name+
				"\" 1\nRW 3 ZERO\n")
			diskio.RequireUnchanged(t, path)
			chain, err := Open(t.Context(), path, Options{})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("Open = %v, want %v (%q)", err, c.want, c.text)
			}
			d, err := Describe(t.Context(), []string{path}, Options{})
			if err != nil || len(d.Disks[0].Chain) != 1 || len(d.Disks[0].Chain[0].VMDK.Extents) != 2 {
				t.Fatalf("Describe = %+v, %v", d, err)
			}
			if good := len(d.Status) == 1 && d.Status[0] == finding.StatusClean; good != (c.want == nil) {
				t.Errorf("Describe = status %v", d.Status)
			}
			if chain == nil {
				return
			}
			defer chain.Close()
			p := make([]byte, 1)
			if _, err := chain.ReadAt(p, 0); err != nil || string(p) != c.text {
				t.Errorf("ReadAt = %q, %v, want %q", p, err, c.text)
			}
			var got []string
			err = chain.Map(t.Context(), 0, chain.Size(), func(e *Entry) error {
				got = append(got, fmt.Sprintf("%d+%d %v %#x %s", e.Start, e.Length, e.Data, e.Offset, filepath.Base(e.File)))
				return nil
			})
			want := []string{"0+2048 true 0x200 " + filepath.Base(c.name), "2048+1536 false 0x0 ."}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("Map (-want +got), %v:\n%s", err, diff)
			}
		})
	}
	t.Run("follow", func(t *testing.T) {
		write(in("d.vmdk"), "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 4 FLAT \"out\" 1\n")
		c := mustOpen(t, in("d.vmdk"), follow)
		// A file that another program changes is noted, whichever it is.
		write(filepath.Join(outside, "flat"), "short")
		if got := c.Changed(); len(got) != 1 || got[0] != in("out") {
			t.Errorf("Changed = %q, want %q", got, in("out"))
		}
	})
}

// A directory stands for the one disk in it.
func TestDirectory(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	_, err := Open(t.Context(), dir, Options{})
	if !errors.Is(err, diskio.ErrDirectory) || !strings.Contains(err.Error(), "without a vmdk descriptor") {
		t.Errorf("Open(empty directory) = %v", err)
	}
	filled(t, dir, "disk.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse")
	run(t, dir, "qemu-img", "create", "-q", "-f", "raw", "other.vmdk", "1M") // no image
	c := mustOpen(t, dir, Options{})
	if c.Layers[0].Path != filepath.Join(dir, "disk.vmdk") || c.Size() != 5<<20 {
		t.Errorf("Open = %+v", c.Layers[0])
	}
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil {
		t.Error(err)
	}
	imagetest.Equal(t, "ReadAt", got, bytesOf(t, filepath.Join(dir, "disk.vmdk")))
	if _, err := Open(t.Context(), dir, Options{Format: "qcow2"}); !errors.Is(err, diskio.ErrDirectory) {
		t.Errorf("Open(directory, qcow2) = %v, want %v", err, diskio.ErrDirectory)
	}
	run(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", "disk-000001.VMDK")
	_, err = Open(t.Context(), dir, Options{})
	if !errors.Is(err, diskio.ErrDirectory) || !strings.Contains(err.Error(), "disk-000001.VMDK, disk.vmdk") ||
		finding.HintOf(err) == "" {
		t.Errorf("Open(two descriptors) = %v, want both named", err)
	}
	d, err := Describe(t.Context(), []string{dir}, Options{})
	if err != nil || d.Disks[0].Error == "" {
		t.Errorf("Describe(two descriptors) = %+v, %v", d, err)
	}
}

// What is not as it should be is said, of an image that can be read and of one that cannot.
func TestOtherNotes(t *testing.T) {
	dir := testenv.DiskDir(t)
	path := filled(t, dir, "disk.vhdx", "vhdx", "block_size=1M")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := bytesOf(t, path)
	// A log in use with one entry, which zeros the last block of the file.
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	for _, at := range []int{64 << 10, 128 << 10} {
		h := b[at : at+4096]
		copy(h[48:], "0123456789abcdef")
		clear(h[4:8])
		le.PutUint32(h[4:], crc32.Checksum(h, table))
	}
	log := b[le.Uint64(b[64<<10+72:]):][:4096]
	clear(log)
	copy(log, "loge")
	le.PutUint32(log[8:], 4096)
	le.PutUint64(log[16:], 7)
	le.PutUint32(log[24:], 1)
	copy(log[32:], "0123456789abcdef")
	le.PutUint64(log[48:], uint64(len(b)))
	le.PutUint64(log[56:], uint64(len(b)))
	copy(log[64:], "zero")
	le.PutUint64(log[72:], 1<<20)
	le.PutUint64(log[80:], uint64(len(b)-1<<20))
	le.PutUint64(log[88:], 7)
	le.PutUint32(log[4:], crc32.Checksum(log, table))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	diskio.RequireUnchanged(t, path)
	infos, err := Inspect(t.Context(), path, Options{})
	if err != nil || len(infos[0].Notes) != 1 || !strings.Contains(infos[0].Notes[0], "1 entries, 256 sectors") ||
		*infos[0].VHDX != (VHDXInfo{SectorBytes: 512, LogInUse: true, LogEntries: 1, LogSectors: 256}) {
		t.Errorf("Inspect = %+v, %v", infos, err)
	}
	c := mustOpen(t, path, Options{})
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || len(c.Notes()) != 1 || !strings.HasPrefix(c.Notes()[0], path+": it was not") {
		t.Errorf("ReadAt = %v, notes %q", err, c.Notes())
	}
	if bytes.Equal(got, want) {
		t.Error("the disk is as without the log")
	}

	clear(b[192<<10 : 192<<10+4])
	clear(b[256<<10 : 256<<10+4])
	path = filepath.Join(dir, "broken.vhdx")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	diskio.RequireUnchanged(t, path)
	d, err := Describe(t.Context(), []string{path}, Options{})
	if err != nil || len(d.Disks[0].Chain) != 1 || d.Status[0] != finding.StatusCannotTell {
		t.Fatalf("Describe = %+v, %v", d, err)
	}
	if n := d.Disks[0].Chain[0]; len(n.Blind) != 1 || n.Blind[0].What != "header" || n.VHDX != nil ||
		len(n.Blind[0].Host) != 1 || n.Blind[0].Host[0].Offset != 192<<10 {
		t.Errorf("Describe = %+v", n)
	}
}

// A fixed vpc disk is raw by its front; that it is none is said.
func TestFixedNote(t *testing.T) {
	path := filled(t, testenv.DiskDir(t), "disk.vhd", "vpc", "subformat=fixed,force_size=on")
	diskio.RequireUnchanged(t, path)
	want := []string{"raw 5243392 1 false", "vpc 5242880 0 true", "raw 5243392 0 false"}
	for i, format := range []string{"", "vpc", "raw"} {
		infos, err := Inspect(t.Context(), path, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		n := infos[0]
		if got := fmt.Sprintln(n.Format, n.VirtualBytes, len(n.Notes), n.VPC != nil); got != want[i]+"\n" {
			t.Errorf("Inspect(%q) = %s, notes %q, want %s", format, got, n.Notes, want[i])
		}
	}
	asVPC := Options{Format: "vpc"}
	got := make([]byte, 5<<20)
	if _, err := mustOpen(t, path, asVPC).ReadAt(got, 0); err != nil {
		t.Error(err)
	}
	imagetest.Equal(t, "ReadAt", got, bytesOf(t, path, "-f", "vpc"))
}

// A disk in several files is in use if one of them is.
func TestExtentUse(t *testing.T) {
	dir := testenv.DiskDir(t)
	path := filled(t, dir, "disk.vmdk", "vmdk", "subformat=monolithicFlat")
	f, err := os.Open(filepath.Join(dir, "disk-flat.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off, want := range map[int64]Use{-1: UseNone, 100: UseRead, 101: UseWrite} {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: off, Len: 1}
		if off >= 0 {
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
		}
		infos, err := Inspect(t.Context(), path, Options{})
		if err != nil || infos[0].Use != want {
			t.Errorf("Inspect with a lock at %d = %+v, %v, want %s", off, infos, err, want)
		}
		if off >= 0 {
			lock.Type = unix.F_UNLCK
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
		}
	}
}
