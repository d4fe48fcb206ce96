// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if jail.IsChild(os.Args) {
		os.Exit(jail.Serve())
	}
	if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}

func TestParseName(t *testing.T) {
	there := []string{"vm.qcow2", "odd:name.raw", "a@b", "dir", "x:y:/z", "empty@"}
	exists := func(name string) bool { return slices.Contains(there, name) }
	for _, tc := range []struct {
		arg  string
		want Name
	}{
		{"vm.qcow2", Name{Disk: "vm.qcow2"}},
		{"vm.qcow2:2", Name{Disk: "vm.qcow2", Part: "2"}},
		{"vm.qcow2:/etc", Name{Disk: "vm.qcow2", Path: "/etc"}},
		{"vm.qcow2:/a:b", Name{Disk: "vm.qcow2", Path: "/a:b"}},
		{"vm.qcow2:2:/etc/x:y", Name{Disk: "vm.qcow2", Part: "2", Path: "/etc/x:y"}},
		{"vm.qcow2:vg/root:/", Name{Disk: "vm.qcow2", Part: "vg/root", Path: "/"}},
		{"vm.qcow2:LABEL=a b", Name{Disk: "vm.qcow2", Part: "LABEL=a b"}},
		{"vm.qcow2@monday", Name{Disk: "vm.qcow2", Snapshot: "monday"}},
		{"vm.qcow2@a@b:1:/x", Name{}},
		{"vm.qcow2@", Name{}},
		{"vm.qcow2@:1:/etc", Name{}},
		{"empty@", Name{Disk: "empty@"}},
		{"empty@@monday", Name{Disk: "empty@", Snapshot: "monday"}},
		{"vm.qcow2@monday:1:/x", Name{Disk: "vm.qcow2", Snapshot: "monday", Part: "1", Path: "/x"}},
		{"odd:name.raw", Name{Disk: "odd:name.raw"}},
		{"odd:name.raw:3", Name{Disk: "odd:name.raw", Part: "3"}},
		{"a@b", Name{Disk: "a@b"}},
		{"a@b@c", Name{Disk: "a@b", Snapshot: "c"}},
		{"x:y:/z", Name{Disk: "x:y:/z"}},
		{"x:y:/z:/q", Name{Disk: "x:y:/z", Path: "/q"}},
		{"vm.qcow2@monday:/x@y:z", Name{Disk: "vm.qcow2", Snapshot: "monday", Path: "/x@y:z"}},
		{"vm.qcow2:", Name{}},
		{"missing", Name{}},
		{"missing:1", Name{}},
	} {
		got, err := ParseName(tc.arg, exists)
		if (err != nil) != (tc.want == Name{}) || err == nil && got != tc.want {
			t.Errorf("ParseName(%q) = %+v, %v; want %+v", tc.arg, got, err, tc.want)
		}
	}
}

// world is a disk with a file system that the kernel filled, in a partition of a qcow2 image.
type world struct {
	image, raw string
	start      int64
	want       filestest.Tree
}

// newWorld makes one. More fills the mounted file system further.
func newWorld(t *testing.T, more func(dir string)) *world {
	t.Helper()
	testenv.Need(t, "sfdisk", "qemu-img", "dd")
	const mib = 1 << 20
	dir := t.TempDir()
	plain := filestest.Make(t, dir, 256*mib, "mkfs.ext4", "-q", "-F", "-L", "root", "DISK")
	mounted, unmount := filestest.Mount(t, plain, "ext4")
	filestest.Populate(t, mounted, filestest.Fill{ACLs: true, BigDirectory: 300})
	if more != nil {
		more(mounted)
	}
	unmount()
	mounted, unmount = filestest.Mount(t, plain, "ext4", "ro")
	w := &world{start: 10 * mib, raw: filepath.Join(dir, "disk.raw"), want: filestest.ReadMounted(t, mounted),
		image: filepath.Join(dir, "disk.qcow2")}
	unmount()
	run(t, "truncate", "-s", fmt.Sprint(280*mib), w.raw)
	c := exec.Command("sfdisk", "-q", w.raw)
	c.Stdin = strings.NewReader("label: gpt\nstart=2048, size=8192\nstart=20480, size=524288, name=system\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v %s", err, out)
	}
	run(t, "dd", "if="+plain, "of="+w.raw, "bs=1M", "seek=10", "conv=notrunc,sparse", "status=none")
	run(t, "qemu-img", "convert", "-O", "qcow2", w.raw, w.image)
	return w
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// open opens the guest and its only file system.
func (w *world) open(t *testing.T) (*Guest, files.FS) {
	t.Helper()
	diskio.RequireUnchanged(t, w.image)
	g, err := Open(t.Context(), Name{Disk: w.image}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	part, err := g.Part(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	fs, err := g.FS(t.Context(), part)
	if err != nil {
		t.Fatal(err)
	}
	return g, fs
}

func found(t *testing.T, fs files.FS, path string, follow bool) *files.Found {
	t.Helper()
	f, err := Lookup(t.Context(), fs, path, follow)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGuest(t *testing.T) {
	w := newWorld(t, func(dir string) {
		for to, name := range map[string]string{"/deep/level0": "links/absolute", "loop": "links/loop",
			"../..": "links/up", "many": "links/relative", "nowhere": "links/dangling"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	})
	g, fs := w.open(t)
	t.Run("parts", func(t *testing.T) { testParts(t, g) })
	t.Run("lookup", func(t *testing.T) { testLookup(t, fs, w.want) })
	t.Run("lists", func(t *testing.T) { testLists(t, fs, w.want) })
	t.Run("copy", func(t *testing.T) { testCopy(t, fs, w.want) })
	t.Run("tar", func(t *testing.T) { testTar(t, fs, w.want) })
	t.Run("who", func(t *testing.T) { testWho(t, g, w) })
	t.Run("who between", func(t *testing.T) { testWhoBetween(t, g, w) })
}

func testParts(t *testing.T, g *Guest) {
	for _, name := range []string{"", "2", "LABEL=root", "PARTLABEL=system",
		"UUID=" + g.Layout.Volumes[1].UUID, "uuid=" + strings.ToUpper(g.Layout.Volumes[1].UUID)} {
		if part, err := g.Part(t.Context(), name); err != nil || part != 1 {
			t.Errorf("Part(%q) = %d, %v; want 1", name, part, err)
		}
	}
	for _, name := range []string{"9", "LABEL=", "LABEL=other"} {
		if part, err := g.Part(t.Context(), name); !errors.Is(err, ErrPart) {
			t.Errorf("Part(%q) = %d, %v; want ErrPart", name, part, err)
		}
	}
	if _, err := g.FS(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "not examined") {
		t.Errorf("FS of an empty partition: %v", err)
	}
}

func testLookup(t *testing.T, fs files.FS, want filestest.Tree) {
	for _, tc := range []struct {
		path   string
		follow bool
		is     string // the path of what it is, "" if nothing is there
	}{
		{"/", true, "/"}, {"", true, "/"}, {"/../..", true, "/"}, {"deep/level0/../level0/", true, "/deep/level0"},
		{"/links/absolute", true, "/deep/level0"}, {"/links/absolute", false, "/links/absolute"},
		{"/links/absolute/", false, "/deep/level0"}, {"/links/absolute/level1", false, "/deep/level0/level1"},
		{"/links/up/up", true, ""}, {"/links/up/links/many", true, "/links/many"},
		{"/links/relative", true, "/links/many"}, {"/links/dangling", true, ""},
		{"/links/dangling", false, "/links/dangling"}, {"/links/loop", true, ""}, {"/links/many/x", true, ""},
		{"/names/new\nline", true, "/names/new\nline"}, {"/nothing", true, ""},
	} {
		f, err := Lookup(t.Context(), fs, tc.path, tc.follow)
		switch {
		case tc.is == "" && err == nil:
			t.Errorf("Lookup(%q) = inode %d, want an error", tc.path, f.Entry.Ino)
		case tc.is != "" && (err != nil || *f.File.Stat() == (files.Stat{}) ||
			f.Entry.Ino != want[tc.is].Stat.Ino):
			t.Errorf("Lookup(%q) = %+v, %v; want inode %d", tc.path, f, err, want[tc.is].Stat.Ino)
		}
	}
}

// testLists compares what the three orders give with what the kernel has.
func testLists(t *testing.T, fs files.FS, want filestest.Tree) {
	root := found(t, fs, "/", true)
	var all, tree []string
	if err := Recursive(t.Context(), fs, root, func(f *files.Found) error {
		all = append(all, f.Path)
		return f.Err
	}); err != nil {
		t.Fatal(err)
	}
	open := 0
	if err := Sorted(t.Context(), fs, root, SortedOptions{}, func(l Level) error {
		tree = append(tree, l.Path)
		if l.Depth == 1 && l.Last {
			open++
		}
		return l.Err
	}); err != nil {
		t.Fatal(err)
	}
	if open != 1 {
		t.Errorf("%d names are the last of the first directory, want 1", open)
	}
	slices.Sort(all)
	slices.Sort(tree)
	var names []string
	for p := range want {
		names = append(names, p)
	}
	slices.Sort(names)
	if !slices.Equal(tree, names) || !slices.Equal(all, names[1:]) {
		t.Errorf("%d and %d names, want %d", len(all), len(tree), len(names))
	}
	f := found(t, fs, "/big", true)
	var last string
	n := 0
	if err := Directory(t.Context(), fs, f, func(f *files.Found) error {
		if n++; f.Path <= last {
			t.Errorf("%q comes after %q", f.Path, last)
		}
		last = f.Path
		return nil
	}); err != nil || n != 300 {
		t.Errorf("%d names, %v; want 300", n, err)
	}
}

// plainly leaves out what a copy cannot have, or has of itself.
func plainly(tree filestest.Tree) filestest.Tree {
	out := make(filestest.Tree)
	for p, n := range tree {
		s := n.Stat
		n.Stat = files.Stat{Mode: s.Mode, UID: s.UID, GID: s.GID, Mtime: s.Mtime, Major: s.Major, Minor: s.Minor}
		if !s.IsDir() {
			n.Stat.Links, n.Stat.Size = s.Links, s.Size
		}
		out[p] = n
	}
	return out
}

func testCopy(t *testing.T, fsys files.FS, want filestest.Tree) {
	testenv.NeedRoot(t)
	disk := filestest.Make(t, t.TempDir(), 512<<20, "mkfs.ext4", "-q", "-F", "-O", "ea_inode", "DISK")
	dir, _ := filestest.Mount(t, disk, "ext4")
	tree, err := diskio.NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	root := found(t, fsys, "/", true)
	copyAll := func(o CopyOptions) (*Copied, error) {
		o.Owner = true
		return Copy(t.Context(), root, fsys, tree, "copy", o)
	}
	done, err := copyAll(CopyOptions{})
	if err != nil || done.Lost+done.Unset > 0 {
		t.Fatalf("Copy = %+v, %v", done, err)
	}
	got := make(filestest.Tree)
	for p, n := range filestest.ReadMounted(t, dir) {
		if rest, ok := strings.CutPrefix(p, "/copy"); ok {
			got["/"+strings.TrimPrefix(rest, "/")] = n
		}
	}
	for _, line := range filestest.Differences(plainly(got), plainly(want), filestest.Loose{}) {
		t.Error(line)
	}
	if s := got["/shapes/sparse"].Stat; s.Sectors*512 > 1<<20 {
		t.Errorf("a sparse file takes %d bytes", s.Sectors*512)
	}
	if _, err := copyAll(CopyOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second copy: %v, want ErrExist", err)
	}
	for _, name := range []string{"/copy/sizes/4096", "/copy/links/to10"} {
		if err := os.Remove(dir + name); err != nil {
			t.Fatal(err)
		}
	}
	done, err = copyAll(CopyOptions{Resume: true})
	if err != nil || done.Files != 1 || done.Links != 1 || done.Lost != 0 {
		t.Errorf("Copy, resumed = %+v, %v; want one file and one link", done, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, root, fsys, tree, "other", CopyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy, cancelled = %v", err)
	}
}

func testTar(t *testing.T, fs files.FS, want filestest.Tree) {
	testenv.NeedRoot(t)
	testenv.Need(t, "tar")
	dir := t.TempDir()
	var all bytes.Buffer
	done, err := Tar(t.Context(), found(t, fs, "/attributes", true), fs, &all, nil)
	if err != nil || done.Lost > 0 {
		t.Fatalf("Tar = %+v, %v", done, err)
	}
	if _, err := Tar(t.Context(), found(t, fs, "/links", true), fs, &all, nil); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("tar", "-x", "-i", "-p", "--xattrs", "--xattrs-include=*", "-C", dir)
	c.Stdin = &all
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v %s", err, out)
	}
	got := plainly(filestest.ReadMounted(t, dir))
	some := make(filestest.Tree)
	for p, n := range plainly(want) {
		if strings.HasPrefix(p, "/attributes") || strings.HasPrefix(p, "/links") && !strings.HasSuffix(p, "socket") {
			// An archive has no attributes without a value.
			for name, value := range n.Xattrs {
				if value == "" {
					delete(n.Xattrs, name)
				}
			}
			some[p] = n
		}
	}
	delete(got, "/")
	for _, line := range filestest.Differences(got, some, filestest.Loose{}) {
		t.Error(line)
	}
}

// testWho asks whose the blocks are that debugfs says a file has.
func testWho(t *testing.T, g *Guest, w *world) {
	testenv.Need(t, "debugfs")
	part := fmt.Sprintf("%s?offset=%d", w.raw, w.start)
	for _, path := range []string{"/sizes/300000", "/shapes/fragmented", "/deep/level0", "/big"} {
		var ranges []finding.Range
		blocks, err := exec.Command("debugfs", "-R", "blocks "+path, part).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range strings.Fields(string(blocks)) {
			var n int64
			if _, err := fmt.Sscan(b, &n); err == nil && n > 0 {
				ranges = append(ranges, finding.Range{Offset: w.start + n*1024*w.blockKiB(t, g), Length: 100})
			}
		}
		if len(ranges) == 0 {
			t.Fatalf("debugfs knows no block of %s", path)
		}
		owners, err := g.Who(t.Context(), 0, Join(ranges))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range owners {
			if !slices.Contains(o.Paths, path) || o.Part != "2" || o.Inode != uint64(w.want[path].Stat.Ino) {
				t.Errorf("%s: %+v", path, o)
			}
		}
	}
	owners, err := g.Who(t.Context(), 0, []finding.Range{{Offset: 0, Length: 512}, {Offset: w.start + 1024, Length: 1}})
	if err != nil || len(owners) != 2 || owners[0].Part != "" || owners[1].Use != string(files.UseMetadata) {
		t.Errorf("Who of the table and the superblock = %+v, %v", owners, err)
	}
}

// testWhoBetween asks for a range of which only a part lies in a partition: all of it is told.
func testWhoBetween(t *testing.T, g *Guest, w *world) {
	size := g.Layout.Disks[0].Size
	owners, err := g.Who(t.Context(), 0, []finding.Range{{Offset: w.start - 4096, Length: 8192},
		{Offset: size - 512, Length: 512}, {Offset: 0, Length: 512}})
	if err != nil {
		t.Fatal(err)
	}
	told := int64(0)
	for _, o := range owners {
		told += o.Bytes
		if o.Use == string(files.UseUnknown) && o.Part == "2" {
			t.Errorf("%+v", o)
		}
	}
	if told != 8192+1024 {
		t.Errorf("%d bytes are told of, want %d: %+v", told, 8192+1024, owners)
	}
}

// blockKiB is the block size in KiB.
func (w *world) blockKiB(t *testing.T, g *Guest) int64 {
	t.Helper()
	fs, err := g.FS(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return fs.Info().BlockBytes / 1024
}

func TestJoin(t *testing.T) {
	got := Join([]finding.Range{{Offset: 10, Length: 5}, {Offset: 0, Length: 2}, {Offset: 15, Length: 1},
		{Offset: 11, Length: 2}})
	want := []finding.Range{{Offset: 0, Length: 2}, {Offset: 10, Length: 6}}
	if !slices.Equal(got, want) {
		t.Errorf("Join = %v, want %v", got, want)
	}
	if !meet(want, []finding.Range{{Offset: 2, Length: 8}, {Offset: 15, Length: 3}}) ||
		meet(want, []finding.Range{{Offset: 2, Length: 8}, {Offset: 16, Length: 3}}) {
		t.Error("meet does not tell what touches from what overlaps")
	}
}
