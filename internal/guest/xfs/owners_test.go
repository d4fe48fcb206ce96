// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fiemap asks the kernel where a file lies. The layout is that of linux/fiemap.h.
func fiemap(t *testing.T, name string) []files.Extent {
	t.Helper()
	type one struct {
		Logical, Physical, Length uint64
		_                         [2]uint64
		Flags                     uint32
		_                         [3]uint32
	}
	var list []files.Extent
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for start := uint64(0); ; {
		var m struct {
			Start, Length                  uint64
			Flags, Mapped, Count, Reserved uint32
			Extents                        [64]one
		}
		m.Start, m.Length, m.Count = start, ^uint64(0)-start, uint32(len(m.Extents))
		const fsIocFiemap = 0xc020660b
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fsIocFiemap,
			uintptr(unsafe.Pointer(&m))); e != 0 {
			t.Fatalf("fiemap %s: %v", name, e)
		}
		for _, e := range m.Extents[:m.Mapped] {
			list = append(list, files.Extent{Offset: int64(e.Logical), Volume: int64(e.Physical),
				Length: int64(e.Length), Unwritten: e.Flags&0x800 != 0, Shared: e.Flags&0x2000 != 0})
			start = e.Logical + e.Length
			if e.Flags&1 != 0 {
				return list
			}
		}
		if m.Mapped == 0 {
			return list
		}
	}
}

// TestOwners asks for all of a volume and holds the answer against where each file lies, which is
// held against the kernel.
func TestOwners(t *testing.T) {
	for _, v := range variants()[:2] {
		t.Run(v.name, func(t *testing.T) {
			args := append([]string{"mkfs.xfs", "-q"}, v.mkfs...)
			disk := filestest.Make(t, t.TempDir(), 1<<30, append(args, "DISK")...)
			dir, unmount := filestest.Mount(t, disk, "xfs")
			filestest.Populate(t, dir, v.fill)
			unmount()
			dir, _ = filestest.Mount(t, disk, "xfs", "ro")
			f := open(t, disk)
			compareExtents(t, f, filepath.Join(dir, "shapes"))
			compareOwners(t, f, 1<<30)
			if slices.Contains(v.mkfs, "rmapbt=1") {
				compareMap(t, f, dir)
			}
			if s := f.View(); s.State != files.Clean || len(s.Problems) > 0 {
				t.Errorf("the view is %+v, want clean without problems", s)
			}
		})
	}
}

func compareExtents(t *testing.T, f *FS, dir string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		name := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		file, err := f.Open(t.Context(), files.Ino(st.Ino))
		if err != nil {
			t.Fatal(err)
		}
		var got []files.Extent
		if err := file.Extents(t.Context(), func(e files.Extent) error {
			if n := len(got); n > 0 && got[n-1].Offset+got[n-1].Length == e.Offset &&
				got[n-1].Volume+got[n-1].Length == e.Volume && got[n-1].Shared == e.Shared &&
				got[n-1].Unwritten == e.Unwritten {
				got[n-1].Length += e.Length
				return nil
			}
			got = append(got, e)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if want := fiemap(t, name); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: extents are\n%v, want\n%v", e.Name(), got, want)
		}
	}
}

func compareOwners(t *testing.T, f *FS, size int64) {
	t.Helper()
	type key struct {
		ino  files.Ino
		file int64
	}
	data := map[key]files.Range{}
	uses := map[files.Use]int64{}
	last := int64(0)
	if err := f.Owners(t.Context(), []files.Range{{Length: size + 5000}}, func(o files.Owner) error {
		if o.Range.Offset > last || o.Range.Offset+o.Range.Length < last {
			t.Errorf("after 0x%x comes %+v", last, o)
		}
		last = o.Range.Offset + o.Range.Length
		uses[o.Use] += o.Range.Length
		if o.Use == files.UseUnknown {
			t.Errorf("unknown: %+v", o)
		}
		if o.Use == files.UseData {
			data[key{o.Ino, o.File}] = o.Range
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if last != size+5000 {
		t.Errorf("the owners end at %d, want %d", last, size+5000)
	}
	t.Log(uses)
	if uses[files.UseOutside] < 5000 || uses[files.UseData] == 0 || uses[files.UseReserved] == 0 ||
		uses[files.UseJournal] == 0 || uses[files.UseInode] == 0 || uses[files.UseMetadata] == 0 {
		t.Errorf("uses are %v, want some of each", uses)
	}
	// One range of each must give the same, in one call for all.
	var ranges []files.Range
	for _, r := range data {
		ranges = append(ranges, files.Range{Offset: r.Offset + 1, Length: 1})
	}
	owners := map[files.Ino]bool{}
	for k := range data {
		owners[k.ino] = true
	}
	if inodes, err := f.mapped(t.Context(), tidy(ranges)); err != nil || f.ro&roRmapbt != 0 &&
		len(inodes) != len(owners) {
		t.Errorf("the reverse map names %d inodes, want %d: %v", len(inodes), len(owners), err)
	}
	if c, err := f.claims(t.Context(), tidy(ranges), maxClaims); err != nil || !c.covered() {
		t.Errorf("not all is claimed: %v", err)
	}
	found := map[key]bool{}
	if err := f.Owners(t.Context(), ranges, func(o files.Owner) error {
		if o.Use == files.UseData {
			found[key{o.Ino, o.File - 1}] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for k := range data {
		if !found[k] {
			t.Errorf("inode %d at %d is not among the owners of single bytes", k.ino, k.file)
			break
		}
	}
	if len(found) != len(data) {
		t.Errorf("%d owners of single bytes, want %d", len(found), len(data))
	}
}

// compareMap holds Owners against the kernel's reverse map.
func compareMap(t *testing.T, f *FS, dir string) {
	t.Helper()
	testenv.Need(t, "xfs_io")
	out, err := exec.Command("xfs_io", "-r", "-c", "fsmap -v", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("xfs_io: %v\n%s", err, out)
	}
	var all []files.Owner
	if err := f.Owners(t.Context(), []files.Range{{Length: f.size}}, func(o files.Owner) error {
		all = append(all, o)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`\[(\d+)\.\.(\d+)\]:\s+(\d+|[a-zA-Z][a-zA-Z -]*?)\s{2,}`)
	compared := 0
	for text := range strings.Lines(string(out)) {
		m := line.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		first, err1 := strconv.ParseInt(m[1], 10, 64)
		last, err2 := strconv.ParseInt(m[2], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("%q: %v %v", text, err1, err2)
		}
		covered := int64(0)
		for _, o := range all {
			if saysSame(o, m[3]) {
				covered += max(0, min(o.Range.Offset+o.Range.Length, (last+1)*512)-
					max(o.Range.Offset, first*512))
			}
		}
		if covered < (last+1-first)*512 {
			t.Errorf("the kernel says %q, of which %d bytes are known to Owners", strings.TrimSpace(text),
				covered)
		}
		compared++
	}
	if compared < 100 {
		t.Errorf("%d lines of the kernel's map, want more:\n%s", compared, out)
	}
}

// saysSame tells whether an owner is what xfs_io calls it.
func saysSame(o files.Owner, name string) bool {
	switch name {
	case "free space":
		return o.Use == files.UseFree
	case "inodes":
		return strings.HasPrefix(o.What, "inode chunk")
	case "journalling log":
		return o.Use == files.UseJournal
	case "inode btree", "refcount btree":
		return strings.Contains(o.What, "btree of group")
	case "static fs metadata":
		return o.Use == files.UseMetadata || strings.HasPrefix(o.What, "unused")
	case "per-AG metadata": // the btrees of free space, and what is kept for them
		return o.Use == files.UseMetadata || strings.HasPrefix(o.What, "kept for the btrees")
	}
	return fmt.Sprint(o.Ino) == name
}

// TestPasses has Owners keep little at a time, which must not change what it says.
func TestPasses(t *testing.T) {
	for _, name := range []string{"v4.gz", "crashed5.gz"} {
		f := openBytes(t, image(t, "testdata/"+name))
		all := []files.Range{{Length: f.size}}
		list := func(most int) (list []files.Owner) {
			if err := f.owners(t.Context(), all, most, func(o files.Owner) error {
				if n := len(list); n > 0 {
					last := &list[n-1]
					end := last.Range.Offset + last.Range.Length
					if o.Range.Offset == end && o.Use == last.Use && o.Ino == last.Ino &&
						o.What == last.What && (o.File < 0 || o.File == last.File+last.Range.Length) {
						last.Range.Length += o.Range.Length // it was cut in two
						return nil
					}
				}
				list = append(list, o)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return list
		}
		want := list(maxClaims)
		for _, most := range []int{8, 50, 301} {
			if got := list(most); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: with %d at a time there are %d parts, want %d", name, most, len(got), len(want))
			}
		}
		if v := f.View(); len(v.Problems) > 0 {
			t.Errorf("%s: %+v", name, v.Problems)
		}
	}
}
