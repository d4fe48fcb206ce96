// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// shown mounts a file system for the time of a test. logged gives what was told so far.
func shown(tb testing.TB, fsys files.FS) (dir string, logged func() []string) {
	tb.Helper()
	testenv.NeedRoot(tb)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		testenv.Lacks(tb, "/dev/fuse")
	}
	dir = tb.TempDir()
	var mu sync.Mutex
	var lines []string
	m, err := Files(fsys, dir, Options{StateDir: tb.TempDir(), Source: "test, of\nfiles", Log: func(l Line) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, l.Text)
	}})
	if errors.Is(err, unix.EPERM) {
		testenv.Lacks(tb, "the right to mount")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			tb.Error(err)
		}
	})
	return dir, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(lines)
	}
}

// odd is a file system with all that may be odd in one that is whole.
func odd() *memory {
	m := newMemory(128)
	ino := files.Ino(200)
	next := func() files.Ino { ino++; return ino }
	m.file(128, "one", 1, "inode 1") // which is the root for FUSE
	m.file(128, "far", 1<<62+5, "a large number")
	for _, name := range []string{" ", "new\nline", "\xff\xfe", "日本語", "-rf", "back\\slash", "...", "*",
		strings.Repeat("n", 255), strings.Repeat("\xc3", 254)} {
		m.file(128, name, next(), name)
	}
	d := m.dir(128, "dir", 300)
	d.stat.Mode = files.TypeDir | 0o1777
	m.file(300, "two names", 301, "linked").stat.Links = 2
	m.name(128, "other name", 301)
	for i, s := range []int64{0, -1, -1 << 31, -1 << 33, 1 << 31, 1 << 32, 1 << 34} {
		f := m.file(300, fmt.Sprintf("time%d", i), next(), "")
		t := files.Time{Seconds: s, Nanoseconds: 123456789}
		f.stat.Atime, f.stat.Mtime, f.stat.Ctime, f.stat.Birth = t, t, t, t
	}
	for i, mode := range []uint32{files.TypeBlock | 0o660, files.TypeChar | 0o600, files.TypeFIFO | 0o644,
		files.TypeSocket | 0o755} {
		f := m.add(next(), mode)
		if i < 2 {
			f.stat.Major, f.stat.Minor = uint32(300+i), uint32(70_000+i)
		}
		m.name(300, fmt.Sprintf("node%d", i), f.stat.Ino)
	}
	for i, to := range []string{"../../../etc/passwd", "\xff\n", strings.Repeat("t", 4095)} {
		f := m.add(next(), files.TypeLink|0o777)
		f.content, f.stat.Size = []byte(to), int64(len(to))
		m.name(300, fmt.Sprintf("link%d", i), f.stat.Ino)
	}
	f := m.file(300, "owned", next(), "x")
	f.stat.Mode, f.stat.UID, f.stat.GID, f.stat.Sectors = files.TypeRegular|0o4750, 70_000, 4_000_000_000, 99
	f.xattrs = []xattr{{"user.empty", nil}, {"user.large", make([]byte, files.MaxXattrBytes)},
		{"trusted.x", []byte("1")},
		{"security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"user.\xff" + strings.Repeat("k", 249), []byte("long name")},
		{"system.posix_acl_access", []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255,
			0x20, 0, 0, 0, 255, 255, 255, 255}}}
	sparse := m.file(300, "sparse", next(), "")
	sparse.stat.Size = 5<<20 + 17
	sparse.holes = []files.Extent{{Offset: 1 << 20, Length: 4096}, {Offset: 1<<20 + 4096, Length: 8192},
		{Offset: 2 << 20, Length: 1 << 20, Unwritten: true}, {Offset: 5 << 20, Length: 4096}}
	big := m.file(300, "big", next(), "")
	big.content = make([]byte, 9<<20+5)
	for i := range big.content {
		big.content[i] = byte(i * i >> 7)
	}
	big.stat.Size = int64(len(big.content))
	return m
}

// TestEverythingOdd: what a mount shows is what the reader gives, to the byte.
func TestEverythingOdd(t *testing.T) {
	for _, tc := range []struct {
		name string
		fsys files.FS
	}{{"by inode", odd()}, {"by directory", withNames{odd()}}} {
		t.Run(tc.name, func(t *testing.T) {
			dir, logged := shown(t, tc.fsys)
			want, _, err := filestest.ReadView(t.Context(), tc.fsys)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // from the reader, and from what the kernel remembers
				for _, line := range filestest.Differences(filestest.ReadMounted(t, dir), want, filestest.Loose{}) {
					t.Error(line)
				}
			}
			if len(want) < 30 || len(logged()) > 0 {
				t.Errorf("%d names, and %q was told, want some and nothing", len(want), logged())
			}
		})
	}
}

// TestReadOnly: nothing can be changed, run, or used as a device.
func TestReadOnly(t *testing.T) {
	dir, _ := shown(t, odd())
	one := dir + "/one"
	_, werr := os.OpenFile(one, os.O_WRONLY, 0)
	_, cerr := os.Create(dir + "/new")
	for i, err := range []error{werr, cerr, os.Mkdir(dir+"/d", 0o755), os.Remove(one), os.Rename(one, one+"2"),
		os.Link(one, one+"2"), os.Symlink("x", one+"2"), os.Chmod(one, 0o600), os.Chown(one, 1, 1),
		os.Truncate(one, 1), unix.Setxattr(one, "user.x", nil, 0), unix.Removexattr(one, "user.x"),
		unix.Mknod(dir+"/n", unix.S_IFIFO, 0), unix.Access(one, unix.W_OK)} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("change %d = %v, want EROFS", i, err)
		}
	}
	for _, node := range []string{"node0", "node1"} {
		if _, err := os.Open(dir + "/dir/" + node); !errors.Is(err, unix.EACCES) {
			t.Errorf("open a device = %v, want EACCES", err)
		}
	}
	e, err := top(dir)
	if err != nil || e == nil || e.kind != "fuse.shisa" {
		t.Fatalf("mounted is %+v, %v", e, err)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " "+dir+" ") {
			for _, want := range []string{"ro,nosuid,nodev,noexec", `test,\040of?files ro,`} {
				if !strings.Contains(line, want) {
					t.Errorf("mountinfo says %q, want %q", line, want)
				}
			}
		}
	}
}

// TestFlags: lsattr shows what the guest's file has.
func TestFlags(t *testing.T) {
	const immutable, appendOnly, compress = 0x10, 0x20, 4 // linux/fs.h
	m := newMemory(2)
	m.file(2, "f", 11, "").stat.Flags = immutable | compress
	m.dir(2, "d", 12).stat.Flags = appendOnly
	dir, _ := shown(t, m)
	for name, want := range map[string]uint32{"f": immutable | compress, "d": appendOnly} {
		f, err := os.Open(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || got != want {
			t.Errorf("flags of %s = %#x, %v, want %#x", name, got, err, want)
		}
		_, err = unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS)
		if !errors.Is(err, unix.ENOTTY) {
			t.Errorf("another ioctl = %v, want %v", err, unix.ENOTTY)
		}
		f.Close()
	}
}

func TestStatfs(t *testing.T) {
	dir, _ := shown(t, odd())
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Bsize != 4096 || st.Blocks != 1<<18 || st.Bavail != 1<<16 || st.Files != 1000 || st.Ffree != 900 ||
		st.Namelen != 255 {
		t.Errorf("statfs = %+v", st)
	}
}

// TestHoles: programs that copy files see where data is.
func TestHoles(t *testing.T) {
	dir, _ := shown(t, odd())
	f, err := os.Open(dir + "/dir/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(5<<20 + 17)
	for _, tc := range []struct {
		whence    int
		off, want int64
		err       error
	}{
		{unix.SEEK_DATA, 0, 1 << 20, nil},
		{unix.SEEK_DATA, 1<<20 + 5000, 1<<20 + 5000, nil},
		{unix.SEEK_DATA, 1<<20 + 12288, 5 << 20, nil},
		{unix.SEEK_DATA, 5<<20 + 16, 5<<20 + 16, nil},
		{unix.SEEK_DATA, size, 0, unix.ENXIO},
		{unix.SEEK_HOLE, 0, 0, nil},
		{unix.SEEK_HOLE, 1 << 20, 1<<20 + 12288, nil},
		{unix.SEEK_HOLE, 5 << 20, size, nil},
		{unix.SEEK_HOLE, size, 0, unix.ENXIO},
	} {
		got, err := unix.Seek(int(f.Fd()), tc.off, tc.whence)
		if !errors.Is(err, tc.err) || err == nil && got != tc.want {
			t.Errorf("seek(%d, %d) = %d, %v, want %d, %v", tc.off, tc.whence, got, err, tc.want, tc.err)
		}
	}
}

// TestManySpans: data and holes of a file with more parts than are kept.
func TestManySpans(t *testing.T) {
	m := newMemory(2)
	f := m.file(2, "f", 12, "")
	count := int64(2*maxSpans + 100)
	for i := range count {
		f.holes = append(f.holes, files.Extent{Offset: i * 8192, Length: 4096})
	}
	f.stat.Size = count * 8192
	n := &node{file: f}
	for _, i := range []int64{0, 5, maxSpans - 2, maxSpans - 1, maxSpans, maxSpans + 1, 2*maxSpans + 3,
		count - 1, 3} {
		for off, want := range map[int64]span{i * 8192: {i * 8192, i*8192 + 4096},
			i*8192 - 1: {i * 8192, i*8192 + 4096}} {
			if off < 0 {
				continue
			}
			begin, end, err := n.data(off)
			// The end only counts for who stands in the data.
			if err != nil || begin != want.begin || off >= begin && end != want.end {
				t.Fatalf("data(%d) = %d, %d, %v, want %+v", off, begin, end, err, want)
			}
		}
	}
}

// broken is a file system of which parts cannot be read.
func broken() *memory {
	m := newMemory(2)
	m.file(2, "whole", 11, "whole")
	m.file(2, "dangling", 12, "").noInode = true
	m.name(2, "nowhere", 13)
	m.add(14, 0o170000|0o644)
	m.name(2, "no type", 14)
	m.file(2, "negative", 15, "").stat.Size = -5
	f := m.file(2, "content", 16, strings.Repeat("c", 1<<20))
	f.bad = 700_000
	m.file(2, "short", 17, "short").stat.Size = 9000
	d := m.dir(2, "half", 18)
	m.file(18, "seen", 19, "seen")
	d.noEnd = true
	m.dir(2, "names", 20)
	for i, name := range []string{"", "a/b", "zero\x00", strings.Repeat("n", 1025), "good"} {
		m.file(20, name, files.Ino(30+i), name)
	}
	x := m.file(2, "attributes", 21, "")
	x.xattrs, x.noXattrs = []xattr{{"user.a", []byte("1")}}, true
	m.file(2, "odd attribute", 22, "").xattrs = []xattr{{"user.\x00", nil}}
	l := m.add(23, files.TypeLink|0o777)
	l.stat.Size = 1 << 40
	m.name(2, "link", 23)
	m.dir(2, "self", 24)
	m.name(24, "self", 24)
	m.name(24, "root", 2)
	return m
}

// TestBroken: what cannot be read is an error and told, and the rest is there.
func TestBroken(t *testing.T) {
	dir, logged := shown(t, broken())
	stat := func(name string) error { _, err := os.Lstat(dir + "/" + name); return err }
	list := func(name string) ([]string, error) {
		d, err := os.Open(dir + "/" + name)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.Readdirnames(-1)
	}
	if names, err := list(""); err != nil || len(names) != 13 {
		t.Errorf("root = %q, %v, want all 13 names", names, err)
	}
	_, link := os.Readlink(dir + "/link")
	_, absent := unix.Lgetxattr(dir+"/attributes", "user.b", make([]byte, 10))
	_, listed := unix.Llistxattr(dir+"/attributes", make([]byte, 1000))
	_, oddly := unix.Llistxattr(dir+"/odd attribute", make([]byte, 1000))
	for i, err := range []error{stat("dangling"), stat("nowhere"), stat("no type"), stat("negative"),
		stat("half/unseen"), stat("names/none"), link, absent, listed, oddly, stat("self/root")} {
		if !errors.Is(err, unix.EIO) {
			t.Errorf("call %d = %v, want EIO", i, err)
		}
	}
	if err := stat("self/self"); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EIO) {
		t.Errorf("a directory in itself = %v, want ELOOP", err)
	}
	for name, want := range map[string][]string{"half": {"seen"}, "names": {"good"}} {
		if names, err := list(name); !errors.Is(err, unix.EIO) || !slices.Equal(names, want) {
			t.Errorf("list %s = %q, %v, want %q, EIO", name, names, err, want)
		}
		if err := stat(name + "/" + want[0]); err != nil {
			t.Error(err)
		}
	}
	p := make([]byte, 10)
	if n, err := unix.Lgetxattr(dir+"/attributes", "user.a", p); err != nil || string(p[:n]) != "1" {
		t.Errorf("an attribute that could be read = %q, %v, want 1", p[:n], err)
	}
	for name, want := range map[string]int64{"content": 700_000 / 4096 * 4096, "short": 0} {
		f, err := os.Open(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, f)
		if !errors.Is(err, unix.EIO) || n != want {
			t.Errorf("read %s = %d, %v, want %d, EIO", name, n, err, want)
		}
		f.Close()
	}
	if err := stat("absent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a name that is not there = %v, want ENOENT", err)
	}
	all := strings.Join(logged(), "\n")
	for _, want := range []string{`"dangling" in directory 2, inode 12`, `"nowhere"`, "inode 13", "of no type",
		"its size is -5", "directory 18", "directory 20", "attributes of inode 21", "attributes of inode 22",
		"target of link 23", "of inode 16", "of inode 17"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing is told of %q in\n%s", want, all)
		}
	}
	before := len(logged())
	if _, err := list("half"); !errors.Is(err, unix.EIO) {
		t.Errorf("list again = %v, want EIO", err)
	}
	if after := len(logged()); after != before {
		t.Errorf("the same is told again: %q", logged()[before:])
	}
}

func TestNotesAreBounded(t *testing.T) {
	count := 0
	n := notes{log: func(string) { count++ }}
	for i := range 3 * maxNotes {
		n.add(fmt.Sprint(i), errBroken)
	}
	if count != maxNotes+1 || len(n.seen) > maxNotes+1 {
		t.Errorf("%d lines of %d, %d kept, want %d", count, 3*maxNotes, len(n.seen), maxNotes+1)
	}
}

// TestLargeDirectory: a directory of 100,000 names is read once, however it is looked at.
func TestLargeDirectory(t *testing.T) {
	const count = 100_000
	m := newMemory(2)
	d := m.dir(2, "large", 3)
	for i := range files.Ino(count) {
		m.file(3, fmt.Sprintf("name of file %d", i), 1000+i, "")
	}
	for _, tc := range []struct {
		name string
		fsys files.FS
	}{{"by inode", m}, {"by directory", withNames{m}}} {
		t.Run(tc.name, func(t *testing.T) {
			d.reads.Store(0)
			m.opens.Store(0)
			dir, _ := shown(t, tc.fsys)
			f, err := os.Open(dir + "/large")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			names, err := f.Readdirnames(-1)
			if err != nil || len(names) != count {
				t.Fatalf("%d names, %v, want %d", len(names), err, count)
			}
			slices.Sort(names)
			if len(slices.Compact(names)) != count {
				t.Error("a name is given twice")
			}
			for i := range count {
				var st unix.Stat_t
				name := fmt.Sprintf("%s/large/name of file %d", dir, i)
				if err := unix.Lstat(name, &st); err != nil || st.Ino != uint64(1000+i) {
					t.Fatalf("%s is inode %d, %v", name, st.Ino, err)
				}
			}
			if n := d.reads.Load(); n != 1 {
				t.Errorf("the directory was read %d times, want once", n)
			}
			most := int64(count + 100)
			if tc.name == "by directory" {
				most = 100
			}
			if n := m.opens.Load(); n > most {
				t.Errorf("%d inodes were opened, want %d at most", n, most)
			}
		})
	}
}

// TestWindows: a directory larger than what is kept is given whole, in windows.
func TestWindows(t *testing.T) {
	m := newMemory(2)
	d := m.dir(2, "large", 3)
	for i := range files.Ino(1000) {
		m.file(3, fmt.Sprint(i), 1000+i, "")
	}
	s := newServed(m, nil)
	s.lists.limit = 64
	var names []string
	number := int64(0)
	for {
		l := s.lists.at(3, number, s.names(3))
		i := int(number - l.first)
		if i == len(l.entries) {
			break
		}
		names = append(names, l.name(i))
		number++
	}
	if len(names) != 1002 || names[2] != "0" || names[1001] != "999" {
		t.Fatalf("%d names: %.100q", len(names), names)
	}
	if n := d.reads.Load(); n > 1002/64+2 {
		t.Errorf("the directory was read %d times", n)
	}
	for _, name := range []string{"0", "500", "999"} {
		if _, found, err := s.lists.find(3, name, s.names(3)); err != nil || !found {
			t.Errorf("find(%s) = %v, %v", name, found, err)
		}
	}
	if _, found, err := s.lists.find(3, "1000", s.names(3)); err != nil || found {
		t.Errorf("find(1000) = %v, %v, want it not found", found, err)
	}
	d.noEnd = true
	if _, _, err := s.lists.find(3, "1000", s.names(3)); !errors.Is(err, errBroken) {
		t.Errorf("find in a directory whose end cannot be read = %v, want an error", err)
	}
}

// TestAtOnce: many programs look at the same time.
func TestAtOnce(t *testing.T) {
	dir, _ := shown(t, odd())
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				n := 0
				err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
					n++
					if err == nil && e.Type().IsRegular() {
						_, err = os.ReadFile(path)
					}
					return err
				})
				if err != nil || n < 30 {
					t.Errorf("walk = %d names, %v", n, err)
				}
			}
		})
	}
	all.Wait()
}

// outside is a directory that other users may enter.
func outside(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("/var/tmp", "shisa-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	return base
}

// TestOthers: other users see nothing, unless they were let in: then what the guest's modes allow.
func TestOthers(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "setpriv", "cat")
	m := newMemory(2)
	m.file(2, "open", 12, "open")
	m.file(2, "closed", 13, "closed").stat.Mode = files.TypeRegular | 0o600
	acl := m.file(2, "acl", 14, "acl")
	acl.stat.Mode = files.TypeRegular | 0o640
	acl.xattrs = []xattr{{"system.posix_acl_access", []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255,
		2, 0, 4, 0, 0xfe, 0xff, 0, 0, 4, 0, 0, 0, 255, 255, 255, 255, 0x10, 0, 4, 0, 255, 255, 255, 255,
		0x20, 0, 0, 0, 255, 255, 255, 255}}}
	base := outside(t)
	for _, let := range []bool{false, true} {
		dir := filepath.Join(base, fmt.Sprint(let))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		mounted, err := Files(m, dir, Options{StateDir: t.TempDir(), AllowOther: let})
		if err != nil {
			testenv.Lacks(t, "FUSE: "+err.Error())
		}
		for name, want := range map[string]bool{"open": let, "closed": false, "acl": let} {
			out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat",
				dir+"/"+name).Output()
			if (err == nil) != want || want && string(out) != name {
				t.Errorf("others let in %v: %s = %q, %v", let, name, out, err)
			}
		}
		if err := mounted.Unmount(); err != nil {
			t.Error(err)
		}
	}
}

func TestTimes(t *testing.T) {
	dir, _ := shown(t, odd())
	var st syscall.Stat_t
	err := syscall.Stat(dir+"/dir/time3", &st)
	if err != nil || st.Mtim.Sec != -1<<33 || st.Mtim.Nsec != 123456789 {
		t.Errorf("mtime = %+v, %v, want %d", st.Mtim, err, -1<<33)
	}
}
