// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestBrokenSuperblock takes the superblock away: a copy must do, and be said.
func TestBrokenSuperblock(t *testing.T) {
	for _, name := range []string{"v4.gz", "v5.gz", "crashed4.gz", "crashed5.gz"} {
		img := image(t, "testdata/"+name)
		want, _, err := filestest.ReadView(t.Context(), openBytes(t, img))
		if err != nil {
			t.Fatal(err)
		}
		for what, spoil := range map[string]func(){
			"zeros":        func() { clear(img[:basicBlock]) },
			"another size": func() { img[6] ^= 0x20 },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				before := bytes.Clone(img[:basicBlock])
				defer copy(img, before)
				spoil()
				f := openBytes(t, img)
				got, view, err := filestest.ReadView(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
					t.Error(line)
				}
				if len(view.Problems) != 1 || view.State == files.Incomplete ||
					!strings.Contains(view.Problems[0].What, "copy of group 1 is used") {
					t.Errorf("the view is %+v, want the copy as the only problem", view)
				}
			})
		}
	}
}

func openBytes(t *testing.T, img []byte) *FS {
	t.Helper()
	f, err := Open(t.Context(), bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestRefused opens what cannot be read, or not as a whole.
func TestRefused(t *testing.T) {
	whole := image(t, "testdata/v5.gz")
	for name, tc := range map[string]struct {
		spoil func([]byte) []byte
		want  string
	}{
		"nothing":  {func(b []byte) []byte { return nil }, "superblock"},
		"zeros":    {func(b []byte) []byte { return make([]byte, 1<<20) }, "no superblock"},
		"features": {func(b []byte) []byte { b[218] |= 0x41; setChecksum(b[:512], 224); return b }, "metadir"},
	} {
		_, err := Open(t.Context(), bytes.NewReader(tc.spoil(bytes.Clone(whole))), int64(len(whole)))
		if name == "features" {
			if u := new(UnknownFeatures); !errors.As(err, &u) || len(u.Names) != 2 {
				t.Errorf("%s: %v, want two unknown features", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	// So many groups that going through them would never end.
	vast := bytes.Clone(whole)
	binary.BigEndian.PutUint64(vast[8:], 1<<43)
	for i, cut := range [][]byte{vast, whole[:len(whole)/2], whole[:len(whole)-4096]} {
		agblocks := int64(be32(cut, 84))
		if i == 0 {
			binary.BigEndian.PutUint32(cut[88:], uint32((1<<43+agblocks-1)/agblocks))
			setChecksum(cut[:basicBlock], 224)
		}
		f, err := Open(t.Context(), bytes.NewReader(cut), int64(len(cut)))
		if err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		_, view, err := files.Survey(t.Context(), f, nil)
		if err != nil || view.State != files.Incomplete {
			t.Errorf("%d: of a part of a volume the view is %s, want incomplete: %v", i, view.State, err)
		}
		if err := f.Owners(t.Context(), []files.Range{{Length: 1 << 62}}, func(files.Owner) error {
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// TestExternalLog says that what is in a log elsewhere was not replayed.
func TestExternalLog(t *testing.T) {
	img := image(t, "testdata/v5.gz")
	clear(img[48:56])
	setChecksum(img[:basicBlock], 224)
	f := openBytes(t, img)
	if v := f.View(); v.State != files.Incomplete || !strings.Contains(v.Problems[0].What, "another device") {
		t.Errorf("the view is %+v, want incomplete for want of the log", v)
	}
}

// TestInfo compares what is told of a file system with what the kernel tells.
func TestInfo(t *testing.T) {
	for _, v := range variants()[:2] {
		args := append([]string{"mkfs.xfs", "-q", "-L", "a label", "-m",
			"uuid=01234567-89ab-cdef-0123-456789abcdef"}, v.mkfs...)
		disk := filestest.Make(t, t.TempDir(), 1<<30, append(args, "DISK")...)
		dir, unmount := filestest.Mount(t, disk, "xfs")
		filestest.Populate(t, dir, v.fill)
		unmount()
		dir, unmount = filestest.Mount(t, disk, "xfs", "ro")
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		f := open(t, disk)
		i := f.Info()
		used := i.Inodes - i.FreeInodes
		if i.FreeBytes != int64(st.Bfree)*st.Bsize || used != int64(st.Files-st.Ffree) ||
			i.Label != "a label" || i.UUID != "01234567-89ab-cdef-0123-456789abcdef" {
			t.Errorf("%s: info is %+v, want %+v", v.name, i, st)
		}
		unmount()
		// The groups say the same as the superblock.
		if err := f.count(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := (f.freeBlocks - reservedBlocks*f.groups) * f.block; got != i.FreeBytes ||
			f.info.Inodes != i.Inodes || f.info.FreeInodes != i.FreeInodes {
			t.Errorf("%s: the groups have %d bytes free and %d inodes, want %d and %d", v.name, got,
				f.info.Inodes, i.FreeBytes, i.Inodes)
		}
	}
}

// TestLogEnds compares where the log begins and ends with what xfs_logprint says.
func TestLogEnds(t *testing.T) {
	testenv.Need(t, "xfs_logprint")
	ends := regexp.MustCompile(`log tail: (\d+) head: (\d+) state: <(\w+)>`)
	for _, name := range []string{"v4.gz", "v5.gz", "crashed4.gz", "crashed5.gz"} {
		img := image(t, "testdata/"+name)
		disk := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(disk, img, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("xfs_logprint", "-t", disk).CombinedOutput()
		m := ends.FindStringSubmatch(string(out))
		if m == nil {
			t.Fatalf("xfs_logprint: %v\n%s", err, out)
		}
		f := openBytes(t, img)
		f.volume = bytes.NewReader(img)
		f.cache.drop()
		j := &journal{f: f, blocks: f.logBlocks << f.blockLog / basicBlock}
		j.off, _ = f.extentPlace(f.logStart, f.logBlocks)
		empty, err := j.findHead()
		if err != nil || empty {
			t.Fatal(empty, err)
		}
		clean, err := j.findTail(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("log tail: %d head: %d state: <DIRTY>", j.tail, j.head)
		if clean { // then nobody needs the tail
			got = fmt.Sprintf("log tail: %s head: %d state: <CLEAN>", m[1], j.head)
		}
		if got != m[0] {
			t.Errorf("%s: %s, want %s", name, got, m[0])
		}
	}
}

// hurt is a volume with a part that cannot be read.
type hurt struct {
	io.ReaderAt
	at, end int64
}

func (v hurt) ReadAt(p []byte, off int64) (int, error) {
	if off < v.end && off+int64(len(p)) > v.at {
		return 0, errors.New("input/output error")
	}
	return v.ReaderAt.ReadAt(p, off)
}

// TestUnreadable makes one block unreadable at a time: what is missing then must be said, and nothing
// else may be.
func TestUnreadable(t *testing.T) {
	for _, name := range []string{"v4.gz", "v5.gz", "crashed5.gz"} {
		img := image(t, "testdata/"+name)
		whole := openBytes(t, img)
		want, _, err := filestest.ReadView(t.Context(), whole)
		if err != nil {
			t.Fatal(err)
		}
		var places []files.Owner
		if err := whole.Owners(t.Context(), []files.Range{{Length: whole.size}}, func(o files.Owner) error {
			if o.Use != files.UseFree && o.Use != files.UseReserved && o.Range.Offset > 0 {
				places = append(places, o)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		said := 0
		for _, o := range places {
			v := hurt{bytes.NewReader(img), o.Range.Offset, o.Range.Offset + 1}
			f, err := Open(t.Context(), v, whole.size)
			if err != nil {
				t.Errorf("%s, without %+v: %v", name, o, err)
				continue
			}
			got, view, err := filestest.ReadView(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			if view.State == files.Incomplete {
				said++
			} else if d := filestest.Differences(got, want, filestest.Loose{}); len(d) > 0 {
				t.Errorf("%s, without %+v: %s", name, o, d[0])
			}
		}
		if said < len(places)/3 {
			t.Errorf("%s: %d of %d blocks are missed, want most", name, said, len(places))
		}
	}
}

// TestAtOnce uses one file system from several goroutines.
func TestAtOnce(t *testing.T) {
	f := openBytes(t, image(t, "testdata/crashed5.gz"))
	want, _, err := filestest.ReadView(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			got, _, err := filestest.ReadView(t.Context(), f)
			if d := filestest.Differences(got, want, filestest.Loose{}); err != nil || len(d) > 0 {
				t.Errorf("%v, %q", err, d)
			}
			wholeMap(t, f)
		})
	}
	all.Wait()
}
