// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
)

// resealed gives a copy of an undo file whose checksums fit what stands in it, as far as it can be
// walked through.
func resealed(b []byte) []byte {
	b = slices.Clone(b)
	le := binary.LittleEndian
	if len(b) < sectorBytes {
		return b
	}
	meta, end := le.Uint64(b[176:]), le.Uint64(b[184:])
	if end > uint64(len(b)) || end < sectorBytes+trailerBytes || meta > end-sectorBytes-trailerBytes {
		le.PutUint32(b[508:], plan.Checksum(b[:508]))
		return b
	}
	le.PutUint32(b[192:], plan.Checksum(b[sectorBytes:sectorBytes+meta]))
	le.PutUint32(b[508:], plan.Checksum(b[:508]))
	last := end - trailerBytes
	for at := sectorBytes + meta; at+recordHead <= last; {
		n := recordHead + uint64(le.Uint32(b[at+24:])) + uint64(le.Uint32(b[at+28:]))
		if at+n > last {
			break
		}
		le.PutUint32(b[at+12:], 0)
		le.PutUint32(b[at+12:], plan.Checksum(b[at:at+n]))
		at += n
	}
	sum := sha256.Sum256(b[:last])
	copy(b[last+16:], sum[:])
	le.PutUint32(b[last+60:], plan.Checksum(b[last:last+60]))
	return b
}

// recordAt gives the place of a record.
func recordAt(t *testing.T, b []byte, k Kind) int {
	t.Helper()
	le := binary.LittleEndian
	end := int(le.Uint64(b[184:])) - trailerBytes
	for at := sectorBytes + int(le.Uint64(b[176:])); at < end; {
		if Kind(b[at+8]) == k {
			return at
		}
		at += recordHead + int(le.Uint32(b[at+24:])) + int(le.Uint32(b[at+28:]))
	}
	t.Fatalf("no record of %v", k)
	return 0
}

// Files whose checksums are right and whose content is not.
func TestHostileRecords(t *testing.T) {
	le := binary.LittleEndian
	_, _, whole := newUndo(t)
	if err := judged(t, resealed(whole)); err != nil || !bytes.Equal(whole, resealed(whole)) {
		t.Fatalf("a file that was not changed = %v", err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(b []byte)
		want  string
	}{
		{"a write of the first sector", func(b []byte) {
			le.PutUint64(b[recordAt(t, b, KindCount)+16:], 100)
		}, "has no business there"},
		{"a fence outside the first sector", func(b []byte) {
			le.PutUint64(b[recordAt(t, b, KindFence)+16:], 511)
		}, "has no business there"},
		{"new space that is old", func(b []byte) {
			le.PutUint64(b[recordAt(t, b, KindNew)+16:], 700)
		}, "not as many old bytes"},
		{"past the end", func(b []byte) {
			le.PutUint64(b[recordAt(t, b, KindNew)+16:], 1998)
		}, "past the end"},
		{"far away", func(b []byte) { le.PutUint64(b[recordAt(t, b, KindNew)+16:], 1<<63-1) }, "past the end"},
		{"before the beginning", func(b []byte) { le.PutUint64(b[recordAt(t, b, KindNew)+16:], 1<<63) }, "is of new, at"},
		{"out of order", func(b []byte) { b[recordAt(t, b, KindLower)+8] = byte(KindCount) }, "too late"},
		{"another number", func(b []byte) { b[recordAt(t, b, KindPoint)+4]++ }, "says that it is record"},
		{"no kind", func(b []byte) { b[recordAt(t, b, KindPoint)+8] = 77 }, "kind 77"},
		{"a long record", func(b []byte) { le.PutUint32(b[recordAt(t, b, KindWatch)+28:], 1<<20) }, "are left"},
		{"a watch of anything", func(b []byte) {
			le.PutUint64(b[recordAt(t, b, KindWatch)+32:], 1<<62)
		}, "a length that cannot be"},
		{"a count that is not right", func(b []byte) {
			b[le.Uint64(b[184:])-trailerBytes+8]++
		}, "records, want"},
		{"a state of another change", func(b []byte) {
			s := b[len(b)-roomStates*sectorBytes:]
			s[20] ^= 1
			le.PutUint32(s[508:], plan.Checksum(s[:508]))
		}, "its state 0"},
		{"a state that cannot follow", func(b []byte) {
			s := b[len(b)-roomStates*sectorBytes:]
			copy(s[sectorBytes:], s[:sectorBytes])
			s[sectorBytes+8] = 1
			le.PutUint32(s[sectorBytes+508:], plan.Checksum(s[sectorBytes:sectorBytes+508]))
		}, "its state 1 is prepared, after \"prepared\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := slices.Clone(whole)
			tc.spoil(b)
			err := judged(t, resealed(b))
			if !errors.Is(err, ErrPartial) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want it to say %q", err, tc.want)
			}
		})
	}
}

// Which of two first sectors would be the one?
func TestSecondSwitch(t *testing.T) {
	le := binary.LittleEndian
	_, _, whole := newUndo(t)
	at, to := recordAt(t, whole, KindSwitch), recordAt(t, whole, KindWatch)
	end := int(le.Uint64(whole[184:]))
	b := slices.Insert(slices.Clone(whole[:end]), to, whole[at:to]...)
	for n, i := le.Uint32(b[to+4:])+1, to; i < len(b)-trailerBytes; n++ {
		le.PutUint32(b[i+4:], n)
		i += recordHead + int(le.Uint32(b[i+24:])) + int(le.Uint32(b[i+28:]))
	}
	le.PutUint64(b[184:], uint64(len(b)))
	b[len(b)-trailerBytes+8]++
	b = append(b, make([]byte, roundUp(int64(len(b)))-int64(len(b)))...)
	b = append(b, whole[len(whole)-roomStates*sectorBytes:]...)
	if err := judged(t, resealed(b)); !errors.Is(err, ErrPartial) || !strings.Contains(err.Error(), "second one of switch") {
		t.Errorf("two switches = %v", err)
	}
}

// A file of holes is not read for years.
func TestHugeFile(t *testing.T) {
	v, err := New(Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.img"+Suffix)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)); err != nil {
		t.Fatal(err)
	}
	if p, err := v.Peek(t.Context(), path); !errors.Is(err, ErrDamaged) || p.Bytes != 1<<40 {
		t.Errorf("Peek = %+v, %v, want %v", p, err, ErrDamaged)
	}
	if _, err := v.OpenUndo(t.Context(), path); !errors.Is(err, ErrDamaged) {
		t.Errorf("OpenUndo = %v, want %v", err, ErrDamaged)
	}
}

// opens is a disk that notes which files are opened.
type opens struct {
	*cut.Disk
	paths []string
}

func (d *opens) Open(path string) (diskio.Readable, error) {
	d.paths = append(d.paths, path)
	return d.Disk.Open(path)
}

// The undo files of other images are not touched: they may lie on storage that does not answer.
func TestFindLeavesOthersAlone(t *testing.T) {
	_, d, _ := newUndo(t, Applying, Committed)
	o := &opens{Disk: d}
	v, err := New(Options{Disk: o, StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	other := newDraft().Receipt
	other.ID = strings.Repeat("a", 32)
	other.Object.Ino, other.Object.Path = 99, "/dead/b.img"
	other.setUndo("/dead/b.img" + Suffix)
	d.Put(other.Undo(), nil)
	if err := v.Put(other); err != nil {
		t.Fatal(err)
	}
	all, err := v.Find(t.Context(), testPath)
	if err != nil || len(all) != 1 {
		t.Errorf("Find = %+v, %v", all, err)
	}
	for _, p := range o.paths {
		if strings.HasPrefix(p, "/dead") {
			t.Errorf("Find opens %s", p)
		}
	}
}

// Two programs that write one receipt do not mix their bytes.
func TestReceiptInTheMaking(t *testing.T) {
	v, d := newVault(t)
	r := newDraft().Receipt
	if err := v.Put(r); err != nil {
		t.Fatal(err)
	}
	w, err := d.CreateNew(v.receiptPath(r.ID)+".new", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Put(r); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("Put while another program does = %v, want %v", err, diskio.ErrInUse)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.Put(r); err != nil {
		t.Errorf("Put after the other one died = %v", err)
	}
}

// An image like the one that is in the middle of a change is not in the middle itself.
func TestMemoryOfCopy(t *testing.T) {
	v, d, _ := newUndo(t, Applying)
	r := newDraft().Receipt
	r.State = Prepared
	i, err := v.Look(testPath)
	if err != nil {
		t.Fatal(err)
	}
	r.SetImage(testPath, i.Identity)
	r.setUndo(undoPath)
	r.HeadBefore = i.Head
	if err := v.Put(r); err != nil {
		t.Fatal(err)
	}
	d.Put("/img/backup.img", make([]byte, 1000))
	m, err := v.Memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{testPath: 1, "/img/backup.img": 0} {
		if got, err := m.Of(t.Context(), path); err != nil || len(got) != want {
			t.Errorf("Of(%s) = %+v, %v, want %d", path, got, err, want)
		}
	}
}

// Where the first sectors cannot be read, the image is known by what it is and not by its content.
func TestLookAtFaultyImage(t *testing.T) {
	v, d, _ := newUndo(t, Applying, Committed)
	d.Spoil(testPath, 10, 1)
	i, err := v.Look(testPath)
	if err != nil || i.Head != "" {
		t.Fatalf("Look = %+v, %v", i, err)
	}
	if all, err := v.Find(t.Context(), testPath); err != nil || len(all) != 1 {
		t.Errorf("Find = %+v, %v", all, err)
	}
	r := newDraft().Receipt
	r.HeadBefore, r.HeadAfter, r.Object.Ino = "", "", 5
	if m := r.matches(i); m != NoMatch {
		t.Errorf("an image whose content is not known matches by %s", m)
	}
}

// Of a state that could not be written nothing is left on the disk.
func TestConfirm(t *testing.T) {
	v, d, _ := newUndo(t, Applying)
	u, err := v.OpenUndoToAdvance(t.Context(), undoPath, false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := d.Fault("EIO after write 2"); err != nil {
		t.Fatal(err)
	}
	if err := u.Advance(Committed, time.Unix(1, 0)); err == nil {
		t.Fatal("the state was written")
	}
	if p, err := v.Peek(t.Context(), undoPath); err != nil || p.State != Committed {
		t.Fatalf("the write that failed left %+v, %v", p, err)
	}
	if err := u.Confirm(); err != nil {
		t.Fatal(err)
	}
	if p, err := v.Peek(t.Context(), undoPath); err != nil || p.State != Applying {
		t.Errorf("after Confirm: %+v, %v, want %s", p, err, Applying)
	}
	if err := u.Advance(RolledBack, time.Unix(1, 0)); err != nil {
		t.Error(err)
	}
}

// rotten is a disk on which files that are made hold another byte than was written, once the cache
// that hides it is dropped.
type rotten struct{ *cut.Disk }

type rottenFile struct{ diskio.Writable }

func (d rotten) CreateNew(path string, perm os.FileMode) (diskio.Writable, error) {
	f, err := d.Disk.CreateNew(path, perm)
	return rottenFile{f}, err
}

func (f rottenFile) DropCache() error {
	_, err := f.WriteAt([]byte{0xaa}, 900)
	return err
}

// What is kept to take a change back is what the disk has, not what was written to it.
func TestUndoFileIsReadBack(t *testing.T) {
	_, d := newVault(t)
	v, err := New(Options{Disk: rotten{d}, StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Create(t.Context(), newDraft(), testPath, ""); !errors.Is(err, ErrPartial) {
		t.Errorf("Create on a disk that changes what is written = %v, want %v", err, ErrPartial)
	}
	if _, ok := d.Get(undoPath); ok {
		t.Error("the undo file is left")
	}
}

// A short document can stand for much memory; what would is refused where it is read, and not
// written.
func TestReceiptOfManyObjects(t *testing.T) {
	raw := `{"schema": "shisa.receipt/1", "id": "` + testID + `", "steps": [` +
		strings.Repeat("{},", maxReceiptObjects) + `{}]}`
	if err := decodeReceipt([]byte(raw), new(Receipt)); !errors.Is(err, ErrDamaged) {
		t.Errorf("decodeReceipt = %v, want %v", err, ErrDamaged)
	}
	v, d := newVault(t)
	draft := newDraft()
	draft.Receipt.Tool = strings.Repeat("{", maxReceiptObjects+1) // counted as if they were objects
	if u, err := v.Create(t.Context(), draft, testPath, ""); err == nil {
		u.Close()
		t.Error("Create makes an undo file that cannot be read")
	}
	if err := v.Put(draft.Receipt); !errors.Is(err, ErrReceipt) {
		t.Errorf("Put = %v, want %v", err, ErrReceipt)
	}
	if got := d.Paths(); !slices.Equal(got, []string{testPath}) {
		t.Errorf("there is %q", got)
	}
}

// What an image has left behind is known by the file, whatever the name of either is.
func TestMemoryOfRenamedImage(t *testing.T) {
	for _, states := range [][]State{{}, {Applying}, {Applying, Committed, Undoing}} {
		v, d, _ := newUndo(t, states...)
		d.Move(testPath, "/img/b.img")
		d.Put("/img/c.img", []byte("another"))
		m, err := v.Memory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Of(t.Context(), "/img/b.img")
		if err != nil || len(got) != 1 || got[0].Match != MatchFile || got[0].UndoPath != undoPath {
			t.Errorf("after %v: Of(b.img) = %+v, %v, want the change", states, got, err)
		}
		if got, err := m.Of(t.Context(), "/img/c.img"); err != nil || len(got) != 0 {
			t.Errorf("after %v: Of(c.img) = %+v, %v, want nothing", states, got, err)
		}
	}
}

// An undo file that was never finished is remembered for the image beside it.
func TestMemoryOfPartial(t *testing.T) {
	v, d := newVault(t)
	d.Put(undoPath, []byte("SHI"))
	m, err := v.Memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Of(t.Context(), testPath)
	if err != nil || len(got) != 1 || got[0].State != Partial {
		t.Errorf("Of = %+v, %v, want one that is partial", got, err)
	}
}

// CutOff gives receipts that were written once and not put in their place, and no others.
func TestCutOff(t *testing.T) {
	v, d, _ := newUndo(t)
	fresh := v.freshPath(testID)
	u, err := v.OpenUndo(t.Context(), undoPath)
	if err != nil {
		t.Fatal(err)
	}
	r := u.Receipt()
	u.Close()
	if err := v.Put(r); err != nil {
		t.Fatal(err)
	}
	cut := func(what string, want int) {
		t.Helper()
		got, err := v.CutOff(t.Context())
		if err != nil || len(got) != want {
			t.Errorf("%s: CutOff = %+v, %v, want %d", what, got, err, want)
		}
	}
	cut("a receipt in its place", 0)
	whole, _ := d.Get(v.receiptPath(testID))
	d.Put(fresh, whole)
	cut("one that would have replaced it", 0)
	if err := v.Drop(testID); err != nil {
		t.Fatal(err)
	}
	cut("one that is the first", 1)
	w, err := d.OpenForRepair(fresh)
	if err != nil {
		t.Fatal(err)
	}
	cut("one that is being written", 0)
	w.Close()
	d.Put(fresh, whole[:len(whole)/2])
	cut("half of one", 0)
	d.Put(fresh, whole)
	d.Move(undoPath, "/else/u")
	cut("one whose undo file is gone", 0)
}

// A receipt keeps so much of long lists that reading it costs little, and says how much it left out.
func TestReceiptIsBrief(t *testing.T) {
	p := newDraft().Plan
	many := make([]finding.Range, 3*maxKept)
	p.Steps = []plan.Step{{Host: many, HostCut: 5, Guest: many[:maxKept], Proofs: make([]finding.Evidence, 2*maxKept)}}
	p.Remains = []finding.Finding{{Guest: many, Evidence: make([]finding.Evidence, 2*maxKept), EvidenceCut: 1}}
	r := NewReceipt(p, "", time.Unix(1, 0))
	s, f := r.Steps[0], r.Remains[0]
	if len(s.Host) != maxKept || s.HostCut != 2*maxKept+5 || len(s.Guest) != maxKept || s.GuestCut != 0 ||
		len(s.Proofs) != maxKept {
		t.Errorf("a step keeps %d ranges of the file and leaves out %d, %d and %d of the disk, %d proofs",
			len(s.Host), s.HostCut, len(s.Guest), s.GuestCut, len(s.Proofs))
	}
	if len(f.Guest) != maxKept || f.GuestCut != 2*maxKept || len(f.Evidence) != maxKept ||
		f.EvidenceCut != maxKept+1 {
		t.Errorf("a finding keeps %d ranges and leaves out %d, %d and %d observations", len(f.Guest),
			f.GuestCut, len(f.Evidence), f.EvidenceCut)
	}
	if len(p.Steps[0].Host) != 3*maxKept || len(p.Remains[0].Guest) != 3*maxKept {
		t.Error("the plan was cut too")
	}
}
