// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// patched is a file with some bytes changed.
type patched struct {
	io.ReaderAt
	at    int64
	bytes []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for i, c := range p.bytes {
		if k := p.at + int64(i) - off; k >= 0 && k < int64(n) {
			b[k] = c
		}
	}
	return n, err
}

func asSet(all []string, _ Damage) map[string]bool {
	set := map[string]bool{}
	for _, s := range all {
		set[s] = true
	}
	return set
}

// among counts the entries that are as they were.
func among(got []string, want map[string]bool) (n int64) {
	for _, s := range got {
		if want[s] {
			n++
		}
	}
	return n
}

// TestDamage: each sort of damage costs no more than it must, and is told.
func TestDamage(t *testing.T) {
	const n = 600
	for _, compact := range []bool{false, true} {
		m := seeded(compact, true, n)
		width := int64(len(m.offset(nil, 0)))
		good := m.bytes()
		want := asSet(given(t, open(t, good), Options{}))
		first := m.word(atEntryArray)
		second := m.word(first + objectHead)
		message := m.values["MESSAGE=message 500"]
		for _, c := range []struct {
			name string
			do   func(b []byte)
			// sound is how many entries come out as they were; lost and hurt are told.
			sound, lost, hurt int64
			unlinked          int64
			spot              string
		}{
			{"nothing", func([]byte) {}, n, 0, 0, 0, ""},
			{"a slot of zero", func(b []byte) { b[second+arrayHead], b[second+arrayHead+1] = 0, 0 },
				n, 0, 0, 1, ""},
			{"a slot that leads back", func(b []byte) {
				copy(b[second+arrayHead+width:], m.offset(nil, m.entries[0]))
			}, n, 0, 0, 2, ""},
			{"a slot that leads ahead", func(b []byte) {
				copy(b[second+arrayHead+width:], m.offset(nil, m.entries[580]))
			}, n, 0, 0, 2, ""},
			{"a list that ends", func(b []byte) { le.PutUint64(b[second+objectHead:], 0) }, n, 0, 0, n - 12, ""},
			{"a list in a circle", func(b []byte) { le.PutUint64(b[second+objectHead:], uint64(first)) },
				n, 0, 0, n - 12, "lists do not go backwards"},
			{"no list", func(b []byte) { le.PutUint64(b[atEntryArray:], 8) }, n, 0, 0, n, "no object can begin here"},
			{"a value", func(b []byte) { b[message+dataHead+12]++ }, n - 1, 0, 1, 0, "its hash is wrong"},
			{"a value of all", func(b []byte) { b[m.values["_TRANSPORT=journal"]+dataHead+12]++ },
				n - 400, 0, 400, 0, "its hash is wrong"},
			{"an entry", func(b []byte) { b[m.entries[500]] = 0xff }, n - 1, 1, 0, 0, "not an object"},
			{"the size of an entry", func(b []byte) { b[m.entries[500]+8] += 16 }, n - 1, 0, 1, 0, ""},
			{"the number of an entry", func(b []byte) { b[m.entries[500]+16]++ }, n - 1, 0, 1, 0, ""},
			{"the boot of an entry", func(b []byte) { b[m.entries[500]+40]++ }, n - 1, 0, 1, 0, ""},
			{"the hash of an entry", func(b []byte) { b[m.entries[500]+56]++ }, n - 1, 0, 1, 0, "not those that it was written with"},
			{"more entries in the header", func(b []byte) { le.PutUint64(b[atEntries:], n+3) }, n, 3, 0, 0, ""},
			{"fewer entries in the header", func(b []byte) { le.PutUint64(b[atEntries:], 3) }, n, 0, 0, 0, "3 entries, and 600 are listed"},
			{"a page of zeros", func(b []byte) { clear(b[m.entries[500] : m.entries[500]+4096]) }, -1, -1, -1, -1, "nothing was written here"},
			{"size of the header", func(b []byte) { b[atHeaderSize] = 7 }, n, 0, 0, 0, "a header of"},
			{"state", func(b []byte) { b[atState] = 9 }, n, 0, 0, 0, "unknown state 9"},
		} {
			b := bytes.Clone(good)
			c.do(b)
			for _, backward := range []bool{false, true} {
				got, d := given(t, open(t, b), Options{Backward: backward})
				if backward {
					slices.Reverse(got)
				}
				sound := among(got, want)
				complete := c.name == "nothing" || c.unlinked > 0 && c.spot == ""
				if c.sound >= 0 && (sound != c.sound || d.Lost != c.lost || d.Hurt != c.hurt || d.Unlinked != c.unlinked) ||
					!strings.Contains(fmt.Sprint(d.Spots), c.spot) || d.Complete() != complete {
					t.Errorf("compact %v, %s, backward %v: %d as they were, %+v, want %d, lost %d, hurt %d, unlinked %d, %q",
						compact, c.name, backward, sound, d, c.sound, c.lost, c.hurt, c.unlinked, c.spot)
				}
				if sound+d.Lost+d.Hurt < n {
					t.Errorf("compact %v, %s: %d as they were, %d lost, %d hurt: fewer than %d", compact, c.name,
						sound, d.Lost, d.Hurt, n)
				}
			}
		}
	}
}

// TestCut: of a file that was cut anywhere, what is whole is given, and the rest is told.
func TestCut(t *testing.T) {
	for _, compact := range []bool{false, true} {
		good := seeded(compact, true, 300).bytes()
		want := asSet(given(t, open(t, good), Options{}))
		for size := headerMin; size < len(good); size += 603 {
			for _, backward := range []bool{false, true} {
				got, d := given(t, open(t, good[:size]), Options{Backward: backward})
				sound := among(got, want)
				if d.Complete() || sound+d.Hurt+d.Lost < int64(len(want)) || sound+d.Hurt != int64(len(got)) {
					t.Fatalf("cut at %d: %d of %d as they were, %+v", size, sound, len(got), d)
				}
			}
		}
	}
}

// TestBombs: values that unpack to far more than the file has bytes cost bounded work.
func TestBombs(t *testing.T) {
	w, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	text := "A=" + strings.Repeat("0", maxValue-2)
	packed := w.EncodeAll([]byte(text), nil)
	m := newMaker(true, true)
	for i := range uint64(40) {
		boot := fmt.Sprint("B=", i)
		value := m.packed(boot, packedZstd, packed) // its hash is another's, so none is kept as known
		m.entryOf(i+1, uint64(at(int64(i)).UnixMicro()), i, ID{1}, 0, []int64{value})
	}
	b := m.bytes()
	r := &counted{r: bytes.NewReader(b)}
	f, err := Open(r, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, d := given(t, f, Options{Fields: []string{"C"}})
	if d.Complete() || !strings.Contains(fmt.Sprint(d.Spots), "unpacks to too much") || len(got) == 40 && d.Hurt < 40 {
		t.Errorf("%d entries, %v", len(got), &d)
	}
}

// failing cannot read some bytes.
type failing struct {
	io.ReaderAt
	low, high int64
}

var errDisk = errors.New("input/output error")

func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if off < f.high && off+int64(len(b)) > f.low {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(b, off)
}

// TestUnreadable: what lies where the disk has an error is told, the rest is given.
func TestUnreadable(t *testing.T) {
	b := seeded(true, true, 3000).bytes()
	f, err := Open(failing{bytes.NewReader(b), 5 * blockBytes, 5*blockBytes + 512}, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, backward := range []bool{false, true} {
		got, d := given(t, f, Options{Backward: backward})
		if len(got) < 1500 || int64(len(got))+d.Lost < 3000 || d.Lost == 0 || !strings.Contains(fmt.Sprint(d.Spots), "error") {
			t.Errorf("%d entries, %+v", len(got), d)
		}
	}
}

// truth is a sound file, for the flips.
type truth struct {
	b       []byte
	entries map[int64]string // by offset
	order   []string
	// open are bytes that nothing protects: the times of entries, and the names of the file.
	open  func(at int64) bool
	walks map[string][]string // what each must give
	// places are bytes that something is in.
	places []int64
}

func newTruth(t testing.TB, b []byte) *truth {
	t.Helper()
	r := &truth{b: b, entries: map[int64]string{}, walks: map[string][]string{}}
	f := open(t, b)
	r.order, _ = given(t, f, Options{})
	var heads []int64
	if _, err := f.Entries(t.Context(), Options{}, func(e *Entry) error {
		r.entries[e.Offset] = text(e)
		heads = append(heads, e.Offset)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.open = func(at int64) bool {
		if at >= atMachineID && at < atHeaderSize { // machine, boot, and row of numbers
			return true
		}
		i, found := slices.BinarySearch(heads, at)
		if !found {
			i--
		}
		return i >= 0 && at >= heads[i]+24 && at < heads[i]+40
	}
	for at := range int64(272) {
		r.places = append(r.places, at)
	}
	w := &walk{}
	w.f = f
	for at := f.begin; ; {
		o, err := w.head(at)
		if err != nil {
			break
		}
		switch o.kind {
		case kindDataTable, kindFieldTable: // most of it is empty
			for at := o.off; at < o.off+o.size; at += 8 {
				if at < o.off+objectHead || le.Uint64(b[at:]) != 0 {
					r.places = append(r.places, at, at+1, at+2)
				}
			}
		default:
			for at := o.off; at < o.off+o.size; at++ {
				r.places = append(r.places, at)
			}
		}
		at = o.end()
	}
	return r
}

// TestFlips: with any bit flipped, each entry that is given is as it was, or marked; and if one is
// missing, that is told.
func TestFlips(t *testing.T) {
	forms := map[string][]byte{}
	for _, name := range []string{"247-lz4-jenkins", "247-lz4-keyed", "257-lz4-compact", "257-xz-compact", "257-xz-regular"} {
		forms[name] = kept(t, name)
	}
	for _, c := range [][2]bool{{false, false}, {true, true}} {
		forms[fmt.Sprint("made ", c)] = seeded(c[0], c[1], 600).bytes()
	}
	hows := []string{"all", "all", "kernel", "between", "after", "two names"}
	each := 40
	if testenv.Long() {
		each = 10_000
	}
	for name, b := range forms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTruth(t, b)
			rnd := rand.New(rand.NewPCG(7, uint64(len(name))))
			for range each {
				at := r.places[rnd.IntN(len(r.places))]
				if rnd.IntN(4) == 0 {
					at = r.places[rnd.IntN(272)]
				}
				bit := rnd.IntN(8)
				f, err := Open(patched{bytes.NewReader(b), at, []byte{b[at] ^ 1<<bit}}, int64(len(b)))
				if err != nil {
					if !errors.Is(err, ErrNotJournal) && !errors.Is(err, ErrUnsupported) {
						t.Errorf("bit %d of 0x%x: %v", bit, at, err)
					}
					continue
				}
				how := hows[rnd.IntN(len(hows))]
				r.judge(t, f, how, fmt.Sprintf("bit %d of 0x%x", bit, at), r.open(at))
			}
		})
	}
}

// judge holds one way of walking through a file with a flipped bit against the truth. Where the bit
// is one that nothing protects, only that it ends and loses no entry silently is required.
func (r *truth) judge(t *testing.T, f *File, how, flip string, unprotected bool) {
	t.Helper()
	w := walks[how]
	if strings.HasPrefix(t.Name(), "TestFlips/2") { // times of the stream
		w.o.Since, w.o.Until = time.Time{}, time.Time{}
		if how == "after" || how == "between" {
			w.o.After = 40
			w.want = func(e *Entry) bool { return e.Seqnum > 40 }
		}
		if how == "two names" {
			w.want = func(e *Entry) bool { return has(e, "PRIORITY", "3") && has(e, "_TRANSPORT", "kernel") }
		}
	}
	want, ok := r.walks[how]
	if !ok {
		want = wanted(t, open(t, r.b), w.want)
		r.walks[how] = want
	}
	for _, backward := range []bool{false, true} {
		o := w.o
		o.Backward = backward
		got, seen := []string{}, map[int64]bool{}
		d, err := f.Entries(t.Context(), o, func(e *Entry) error {
			if seen[e.Offset] {
				t.Errorf("%s, %s, backward %v: 0x%x is given twice", flip, how, backward, e.Offset)
			}
			seen[e.Offset] = true
			if e.Damaged {
				return nil
			}
			got = append(got, text(e))
			if s := text(e); !unprotected && r.entries[e.Offset] != s {
				t.Errorf("%s, %s, backward %v: given as sound\n%s, want\n%s", flip, how, backward, s, r.entries[e.Offset])
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s, %s: %v", flip, how, err)
		}
		if backward {
			slices.Reverse(got)
		}
		if len(got) < len(want) && d.Complete() && !unprotected {
			t.Errorf("%s, %s, backward %v: %d entries of %d, and nothing is said", flip, how, backward, len(got), len(want))
		}
		if !d.Complete() || unprotected {
			continue
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s, %s, backward %v: all is said to be given, and it is not what it was", flip, how, backward)
		}
	}
}

// TestKilled: of a file whose writer is killed, every entry that journalctl gives is given, at each
// moment at which a copy is taken, and it is said that the file was not closed.
func TestKilled(t *testing.T) {
	testenv.Need(t, journaltest.Remote, "journalctl")
	for _, copied := range killed(t) {
		theirs, ours, d := digests(t, copied)
		if !d.Unclean || d.Lost > 0 || d.Hurt > 0 {
			t.Errorf("%s: %+v, want an unclean file and nothing lost", copied, d)
		}
		if ours.N < theirs.N {
			t.Errorf("%s: %d entries, journalctl gives %d", copied, ours.N, theirs.N)
		}
	}
}
