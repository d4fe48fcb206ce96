// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	gocmp "cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// qed is an image of 512 bytes that rests on backing, or on nothing.
func qed(backing string) []byte {
	b := make([]byte, 512)
	copy(b, "QED\x00")
	if backing != "" {
		b[qedFeatures] = qedHasBacking
		binary.LittleEndian.PutUint32(b[qedBackingOff:], qedHeaderEnd)
		binary.LittleEndian.PutUint32(b[qedBackingLen:], uint32(len(backing)))
		copy(b[qedHeaderEnd:], backing)
	}
	return b
}

// indexed is a world that is looked at by an index. Its file system has to be one whose times are trusted.
type indexed struct {
	*world
	kept map[string][]byte
	now  time.Time
}

func newIndexed(t *testing.T) *indexed {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		if dir, err = os.MkdirTemp("/dev/shm", "shisa-index-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
	w := &indexed{&world{t, dir}, map[string][]byte{}, time.Now().Add(time.Hour)}
	w.mkdir("pool/_base")
	return w
}

// scan looks by the index, and keeps it.
func (w *indexed) scan() *Census {
	w.t.Helper()
	// The kernel's clock ticks every ten milliseconds at most. By the clock of the test, which is an hour ahead, every
	// change lies far enough back.
	time.Sleep(20 * time.Millisecond)
	w.now = w.now.Add(time.Second)
	c := w.look(Options{Now: func() time.Time { return w.now }, Index: func(key string) ([]byte, error) { return w.kept[key], nil }})
	if key, index := c.Next(); index != nil {
		w.kept[key] = index
	}
	return c
}

// same holds a census by the index against one of everything.
func (w *indexed) same(what string) *Census {
	w.t.Helper()
	got, want := w.scan(), w.look(Options{})
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Census{}),
		cmpopts.IgnoreFields(Census{}, "Indexed", "Remembered", "IndexNotes")); d != "" {
		w.t.Fatalf("%s: by the index (-everything +index):\n%s", what, d)
	}
	return got
}

// rebase writes another backing name into an image as it stands, and gives the file its old time of change.
func (w *indexed) rebase(name, backing string) {
	w.t.Helper()
	p := w.path(name)
	fi, err := os.Stat(p)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = f.WriteAt(qed(backing), 0)
	if err = errors.Join(err, f.Close(), os.Chtimes(p, fi.ModTime(), fi.ModTime())); err != nil {
		w.t.Fatal(err)
	}
}

func (w *indexed) do(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestIndexed: what changed is seen, whatever was done so that it looks as before.
func TestIndexed(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*indexed)
		// remembered is how many of the five files are not read again.
		remembered int64
	}{
		{"nothing", func(*indexed) {}, 5},
		{"a rebase with the old mtime", func(w *indexed) { w.rebase("pool/i/disk", "../_base/c") }, 4},
		{"a touch", func(w *indexed) { w.do(os.Chtimes(w.path("pool/i/disk"), time.Unix(1, 0), time.Unix(1, 0))) }, 4},
		{"another inode of that name", func(w *indexed) {
			w.write("pool/new", qed("../_base/c"))
			w.do(os.Rename(w.path("pool/new"), w.path("pool/i/disk")))
		}, 4},
		{"another name", func(w *indexed) { w.do(os.Rename(w.path("pool/i/disk"), w.path("pool/i/root"))) }, 4},
		{"another directory", func(w *indexed) { w.do(os.Rename(w.path("pool/i"), w.path("pool/k"))) }, 4},
		{"directories that change places", func(w *indexed) {
			w.do(os.Rename(w.path("pool/i"), w.path("pool/x")))
			w.do(os.Rename(w.path("pool/j"), w.path("pool/i")))
			w.do(os.Rename(w.path("pool/x"), w.path("pool/j")))
		}, 3},
		{"a directory inside one", func(w *indexed) { w.write("pool/i/a/b/disk", qed(w.path("pool/_base/c"))) }, 5},
		{"a directory that became a link", func(w *indexed) {
			w.do(os.Rename(w.path("pool/i"), w.path("moved")))
			w.do(os.Symlink(w.path("moved"), w.path("pool/i")))
		}, 4},
		{"a directory that became a file", func(w *indexed) {
			w.do(os.RemoveAll(w.path("pool/i")))
			w.write("pool/i", qed("_base/c"))
		}, 4},
		{"a file that became a pipe", func(w *indexed) {
			w.do(os.Remove(w.path("pool/i/disk")))
			w.fifo("pool/i/disk")
		}, 4},
		{"one that became nonsense", func(w *indexed) { w.do(os.WriteFile(w.path("pool/i/disk"), []byte("QFI\xfb\x00\x00\x00\x03"), 0)) }, 4},
		{"one that is gone", func(w *indexed) { w.do(os.Remove(w.path("pool/i/disk"))) }, 4},
		{"a base that is gone", func(w *indexed) { w.do(os.Remove(w.path("pool/_base/b"))) }, 4},
		{"a second name", func(w *indexed) { w.do(os.Link(w.path("pool/i/disk"), w.path("pool/j/disk2"))) }, 4},
		{"a mode", func(w *indexed) { w.do(os.Chmod(w.path("pool/i"), 0o700)) }, 5},
	} {
		w := newIndexed(t)
		for _, b := range []string{"b", "c", "d"} {
			w.write("pool/_base/"+b, make([]byte, 4096))
		}
		w.write("pool/i/disk", qed("../_base/b"))
		w.write("pool/j/disk", qed(w.path("pool/_base/b")))
		if first := w.same(c.name); first.Indexed || first.Remembered != 0 {
			t.Errorf("%s: the first scan remembers %d files, Indexed %v", c.name, first.Remembered, first.Indexed)
		}
		c.change(w)
		if got := w.same(c.name); got.Remembered != c.remembered || !got.Indexed || len(got.IndexNotes) > 0 {
			t.Errorf("%s: %d files were remembered, want %d; Indexed %v, %q", c.name, got.Remembered, c.remembered, got.Indexed,
				got.IndexNotes)
		}
		w.same(c.name + ", then nothing")
	}
}

// TestIndexMany: a pool of more machines than one worker takes at once, with names that are absolute, relative or missing,
// and with chains. The uses of each base are in their order.
func TestIndexMany(t *testing.T) {
	w := newIndexed(t)
	machine := func(i int) string { return fmt.Sprintf("pool/%08x-0000-4000-8000-%012x/", i, i) }
	for i := range 5 {
		w.write(fmt.Sprint("pool/_base/b", i), make([]byte, 4096))
	}
	for i := range 300 {
		base := fmt.Sprint("b", i%6) // b5 is not there
		switch i % 3 {
		case 0:
			w.write(machine(i)+"disk", qed(w.path("pool/_base/"+base)))
		case 1:
			w.write(machine(i)+"disk", qed("../_base/"+base))
		case 2:
			w.write(machine(i)+"disk.mid", qed(w.path("pool/_base/"+base)))
			w.write(machine(i)+"disk", qed("disk.mid"))
		}
	}
	w.same("the first")
	for step, change := range []func(){
		func() {},
		func() { w.rebase(machine(7)+"disk", w.path("pool/_base/b0")) },
		func() { w.do(os.RemoveAll(w.path(machine(100)))) },
		func() { w.write(machine(400)+"disk", qed("../_base/b1")) },
		func() { w.do(os.Rename(w.path("pool/_base/b0"), w.path("pool/_base/b9"))) },
		func() {},
	} {
		change()
		c := w.same(fmt.Sprint("change ", step))
		if c.Remembered < 390 {
			t.Errorf("after change %d, %d files are remembered", step, c.Remembered)
		}
		for i := range c.All {
			b := &c.All[i]
			if !slices.IsSortedFunc(b.Uses, func(a, b Reference) int {
				return gocmp.Or(gocmp.Compare(a.Depth, b.Depth), strings.Compare(a.Holder, b.Holder))
			}) {
				t.Errorf("after change %d, the uses of %s are in no order", step, b.Name)
			}
		}
	}
}

// TestIndexGap: what could not be read is read again every time, although nothing changed.
func TestIndexGap(t *testing.T) {
	w := newIndexed(t)
	w.write("pool/_base/b", make([]byte, 4096))
	w.write("pool/i/disk", []byte("QFI\xfb\x00\x00\x00\x03"))
	w.write("pool/i/good", qed("../_base/b"))
	for range 3 {
		c := w.same("a gap")
		if c.Complete() || len(w.lines(c)) != 2 {
			t.Errorf("the census is complete: %q", w.lines(c))
		}
	}
}

// TestIndexUnreadable: a file and a directory that may not be read any more are gaps.
func TestIndexUnreadable(t *testing.T) {
	if testenv.AsUser(t) {
		return
	}
	for _, name := range []string{"pool/i/disk", "pool/i", "pool/_base"} {
		w := newIndexed(t)
		w.write("pool/_base/b", make([]byte, 4096))
		w.write("pool/i/disk", qed("../_base/b"))
		w.scan()
		w.chmod(name, 0)
		for range 3 { // what could not be read once is not taken for what is not there
			if c := w.same(name); c.Complete() {
				t.Errorf("%s may not be read, and the census is complete", name)
			}
		}
	}
}

// TestIndexRacy: a file that is changed twice in one tick of its file system's clock has the same ctime after both, so
// that one which was changed just before a scan is read again by the next. No test can make two changes fall into one
// tick for sure. But by its own clock it can say when the scan is, and whether the entry was kept.
func TestIndexRacy(t *testing.T) {
	for _, c := range []struct {
		after time.Duration // of the scan, since the file was changed
		kept  bool
	}{{-time.Hour, false}, {0, false}, {1200 * time.Millisecond, false}, {2100 * time.Millisecond, true}, {time.Hour, true}} {
		w := newIndexed(t)
		w.write("pool/_base/b", make([]byte, 4096))
		w.write("pool/i/disk", qed("../_base/b"))
		var st unix.Stat_t
		w.do(unix.Stat(w.path("pool/i/disk"), &st))
		w.now = time.Unix(st.Ctim.Unix()).Add(c.after - time.Second) // scan adds one
		w.scan()
		w.now = w.now.Add(24 * time.Hour)
		want := int64(0)
		if c.kept {
			want = 2
		}
		if got := w.scan(); got.Remembered != want || !got.Indexed {
			t.Errorf("%v after the change %d files are remembered, want %d", c.after, got.Remembered, want)
		}
		// The second one was long after it.
		if got := w.scan(); got.Remembered != 2 {
			t.Errorf("%v after the change, at the third scan %d files are remembered, want 2", c.after, got.Remembered)
		}
	}
}

// TestIndexRacyFile: a file that was changed just before the scan is read again, although its directory was not.
func TestIndexRacyFile(t *testing.T) {
	w := newIndexed(t)
	w.write("pool/_base/b", make([]byte, 4096))
	w.write("pool/_base/c", make([]byte, 4096))
	w.write("pool/i/disk", qed("../_base/b"))
	time.Sleep(100 * time.Millisecond)
	w.rebase("pool/i/disk", "../_base/c")
	var st unix.Stat_t
	w.do(unix.Stat(w.path("pool/i/disk"), &st))
	w.now = time.Unix(st.Ctim.Unix()).Add(2*time.Second - 20*time.Millisecond - time.Second) // scan adds one
	w.scan()
	opened := w.scan()
	if opened.Remembered != 2 {
		t.Errorf("%d files are remembered, want the two bases and not the image", opened.Remembered)
	}
	w.now = w.now.Add(time.Hour)
	w.scan()
	if got := w.scan(); got.Remembered != 3 {
		t.Errorf("later %d files are remembered, want 3", got.Remembered)
	}
}

// TestIndexRefused: an index that is not whole, of another pool, of another version, or from the future is no help, and
// no harm; it is told.
func TestIndexRefused(t *testing.T) {
	other := newIndexed(t)
	other.write("pool/_base/b", nil)
	other.scan()
	w := newIndexed(t)
	w.write("pool/_base/b", make([]byte, 4096))
	w.write("pool/i/disk", qed("../_base/b"))
	w.scan()
	key, good := "", []byte(nil)
	for k, b := range w.kept {
		key, good = k, b
	}
	var foreign []byte
	for _, b := range other.kept {
		foreign = b
	}
	flip := func(at int) []byte { b := bytes.Clone(good); b[at] ^= 1; return b }
	for _, c := range []struct {
		name  string
		index []byte
		note  string
	}{
		{"nothing", nil, ""},
		{"too short", good[:10], errIndexDamaged.Error()},
		{"cut off", good[:len(good)-1], errIndexDamaged.Error()},
		{"no index", []byte(strings.Repeat("index\n", 10)), errIndexDamaged.Error()},
		{"another version", flip(8), errIndexVersion.Error()},
		{"a bit of the sum", flip(12), errIndexDamaged.Error()},
		{"a bit of it", flip(len(good) / 2), errIndexDamaged.Error()},
		{"another pool's", foreign, errIndexOther.Error()},
	} {
		w.kept[key] = c.index
		got := w.same(c.name)
		if note := strings.Join(got.IndexNotes, " "); got.Indexed || got.Remembered != 0 || note != c.note {
			t.Errorf("%s: Indexed %v, %d remembered, note %q, want %q", c.name, got.Indexed, got.Remembered, note, c.note)
		}
		if again := w.same(c.name + ", again"); again.Remembered != 2 {
			t.Errorf("%s: the next scan remembers %d files, want 2", c.name, again.Remembered)
		}
	}
	w.now = w.now.Add(-time.Minute)
	if got := w.same("ahead"); got.Indexed || !slices.Equal(got.IndexNotes, []string{errIndexAhead.Error()}) {
		t.Errorf("an index from the future: Indexed %v, %q", got.Indexed, got.IndexNotes)
	}
}

// TestIndexRandom: after any changes a census by the index is the one of everything.
func TestIndexRandom(t *testing.T) {
	for round := range testenv.Rounds(4, 40, 300) {
		r := rand.New(rand.NewPCG(uint64(round), 7))
		w := newIndexed(t)
		for i := range 4 {
			w.write(fmt.Sprint("pool/_base/b", i), make([]byte, 4096))
		}
		for range 12 {
			w.random(r)
		}
		var done []string
		for range 10 {
			for range r.IntN(4) {
				done = append(done, w.random(r))
			}
			if r.IntN(8) == 0 {
				for k, b := range w.kept {
					w.kept[k] = bytes.Clone(b)
					w.kept[k][r.IntN(len(b))] ^= byte(1 + r.IntN(255))
				}
				done = append(done, "spoil")
			}
			w.same(fmt.Sprintf("round %d after %q", round, done))
		}
	}
}

// random changes something below the pool, and says what.
func (w *indexed) random(r *rand.Rand) string {
	w.t.Helper()
	dir := func() string { return fmt.Sprintf("pool/d%d%s", r.IntN(4), strings.Repeat("/e", r.IntN(3))) }
	file := func() string { return fmt.Sprint(dir(), "/f", r.IntN(3)) }
	backing := func() string { return w.path(fmt.Sprint("pool/_base/b", r.IntN(5))) }
	name, to, act := file(), file(), ""
	var err error
	switch r.IntN(10) {
	case 0, 1, 2:
		act = "write"
		if err = os.MkdirAll(w.path(filepath.Dir(name)), 0o755); err == nil {
			err = os.WriteFile(w.path(name), qed(backing()), 0o644)
		}
	case 3:
		act = "rebase"
		if fi, err := os.Lstat(w.path(name)); err == nil && fi.Mode().IsRegular() {
			w.rebase(name, backing())
		}
	case 4:
		act, err = "move "+to, os.Rename(w.path(name), w.path(to))
	case 5:
		name, to = dir(), dir()
		act, err = "move "+to, os.Rename(w.path(name), w.path(to))
	case 6:
		name = dir()
		act, err = "remove", os.RemoveAll(w.path(name))
	case 7:
		name = dir()
		act = "link"
		if err = os.Rename(w.path(name), w.path("pool/moved")); err == nil {
			err = os.Symlink(w.path("pool/moved"), w.path(name))
		}
	case 8:
		name = fmt.Sprint("pool/_base/b", r.IntN(5))
		if act, err = "remove", os.Remove(w.path(name)); err != nil {
			act, err = "write", os.WriteFile(w.path(name), make([]byte, 512), 0o644)
		}
	case 9:
		act, err = "spoil", os.WriteFile(w.path(name), []byte("QFI\xfb\x00\x00\x00\x03"), 0o644)
	}
	if err != nil {
		act += " (not)" // there is nothing of that name, or something else
	}
	return act + " " + name
}
