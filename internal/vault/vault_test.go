// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	testID   = "000102030405060708090a0b0c0d0e0f"
	testPath = "/img/a.img"
	undoPath = testPath + Suffix
)

// newVault returns a vault on a disk in memory, with an image of 1000 bytes.
func newVault(t testing.TB) (*Vault, *cut.Disk) {
	t.Helper()
	d := cut.New(t.Context())
	d.Put(testPath, make([]byte, 1000))
	v, err := New(Options{Disk: d, StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	return v, d
}

// newDraft makes up a draft with a record of every kind.
func newDraft() *Draft {
	p := &plan.Plan{
		Schema: plan.Schema, ID: testID, Created: time.Unix(5, 0).UTC(), Tool: "shisa test",
		Object: plan.Object{Path: testPath, Format: "raw", Dev: 1, Ino: 1, SizeBytes: 1000,
			ModTime: time.Unix(7, 8).UTC()},
		SizeAfterBytes: 2000,
		Fence:          &plan.Fence{Offset: 10, Old: make([]byte, 2), New: []byte("FE")},
		Writes: []plan.Write{
			{Phase: plan.New, Offset: 1200, New: []byte("new")},
			{Phase: plan.Count, Offset: 600, Old: make([]byte, 5), New: []byte("raise")},
			{Phase: plan.Point, Offset: 998, Old: make([]byte, 2), New: []byte("point")},
			{Phase: plan.Lower, Offset: 700, Old: make([]byte, 5), New: []byte("lower")},
			{Phase: plan.Switch, Offset: 8, Old: make([]byte, 6), New: []byte("switch")},
		},
	}
	r := NewReceipt(p, strings.Repeat("ab", 32), time.Unix(100, 0))
	r.HeadBefore, r.HeadAfter = strings.Repeat("01", 32), strings.Repeat("02", 32)
	sector := make([]byte, 512)
	copy(sector[8:], "switch")
	return &Draft{Plan: p, Receipt: r, SectorOld: make([]byte, 512), SectorNew: sector,
		Watches: []Watch{{0, 512, 1, 2}, {600, 1400, 3, 4}}}
}

// newUndo makes an undo file and takes it to the states.
func newUndo(t testing.TB, states ...State) (*Vault, *cut.Disk, []byte) {
	t.Helper()
	v, d := newVault(t)
	u, err := v.Create(t.Context(), newDraft(), testPath, "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for i, s := range states {
		if err := u.Advance(s, time.Unix(200+int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := d.Get(undoPath)
	return v, d, b
}

// texts lists all records of an undo file.
func texts(t testing.TB, u *Undo) []string {
	t.Helper()
	var all []string
	for k := range KindWatch {
		err := u.Records(t.Context(), k, func(r Record) error {
			all = append(all, fmt.Sprintf("%v %d %d %q", r.Kind, r.Offset, len(r.Old), bytes.Trim(r.New, "\x00")))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := u.Watches(t.Context(), func(w Watch) error {
		all = append(all, fmt.Sprintf("watch %v", w))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestUndoFile(t *testing.T) {
	v, _, _ := newUndo(t, Applying, Committed)
	u, err := v.OpenUndo(t.Context(), undoPath)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	want := []string{
		`fence 10 2 "FE"`, `new 1200 0 "new"`, `count 600 5 "raise"`, `point 998 2 "point"`,
		`lower 700 5 "lower"`, `switch 0 512 "switch"`, "watch {0 512 1 2}", "watch {600 1400 3 4}",
	}
	if diff := cmp.Diff(want, texts(t, u)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	r := u.Receipt()
	if u.State() != Committed || r.State != Committed || !r.Finished.Equal(time.Unix(201, 0)) ||
		r.UndoPath != undoPath || u.ID() != testID || u.SizeBefore() != 1000 || u.SizeAfter() != 2000 {
		t.Errorf("the undo file says %s, %+v", u.State(), r)
	}
	if err := u.Advance(Undoing, time.Unix(1, 0)); err == nil {
		t.Error("a file open for reading takes a state")
	}
}

// Version 1 stays readable: the file in testdata was made by the first program that wrote any.
func TestUndoFileVersion1(t *testing.T) {
	_, d, b := newUndo(t, Applying)
	const path = "testdata/v1.shisa-undo"
	if os.Getenv("SHISA_UPDATE") == "1" {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, kept) {
		t.Errorf("the undo file is not the one in %s: is the format another one now?", path)
	}
	d.Put("/img/old"+Suffix, kept)
	v, err := New(Options{Disk: d, StateDir: "/state"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := v.OpenUndo(t.Context(), "/img/old"+Suffix)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if n := len(texts(t, u)); n != 8 || u.State() != Applying {
		t.Errorf("version 1 has %d records and is %s, want 8 and %s", n, u.State(), Applying)
	}
}

func TestLongWritesAreCut(t *testing.T) {
	v, d := newVault(t)
	draft := newDraft()
	long := bytes.Repeat([]byte("0123456789abcdef"), 3<<16+1)
	draft.Plan.Writes[0].New = long
	draft.Plan.SizeAfterBytes = 1200 + int64(len(long))
	draft.Receipt = NewReceipt(draft.Plan, draft.Receipt.PlanDigest, time.Unix(100, 0))
	draft.Receipt.HeadBefore, draft.Receipt.HeadAfter = strings.Repeat("01", 32), strings.Repeat("02", 32)
	u, err := v.Create(t.Context(), draft, testPath, "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	var got []byte
	err = u.Records(t.Context(), KindNew, func(r Record) error {
		if len(r.New) > maxPieceBytes || r.Offset != 1200+int64(len(got)) {
			t.Errorf("a record of %d bytes at %d, after %d", len(r.New), r.Offset, len(got))
		}
		got = append(got, r.New...)
		return nil
	})
	if err != nil || !bytes.Equal(got, long) {
		t.Errorf("the records hold %d bytes, %v, want %d", len(got), err, len(long))
	}
	b, _ := d.Get(undoPath)
	if n, err := draft.Bytes(); err != nil || n < int64(len(b)) || n > int64(len(b))+5*4096 {
		t.Errorf("Bytes() = %d, %v, the file has %d", n, err, len(b))
	}
}

// judged opens bytes as an undo file.
func judged(t testing.TB, b []byte) error {
	t.Helper()
	v, d := newVault(t)
	d.Put(undoPath, b)
	u, err := v.OpenUndo(t.Context(), undoPath)
	if err == nil {
		u.Close()
	}
	return err
}

func TestEveryCut(t *testing.T) {
	for _, tc := range []struct {
		state []State
		want  error
	}{{nil, ErrPartial}, {[]State{Applying}, ErrDamaged}} {
		_, _, b := newUndo(t, tc.state...)
		states := len(b) - roomStates*sectorBytes
		for n := range len(b) {
			err := judged(t, b[:n])
			switch {
			case n >= states+sectorBytes*(1+len(tc.state)):
				if err != nil {
					t.Fatalf("after %v, cut at %d = %v, want it whole", tc.state, n, err)
				}
			case n < states+sectorBytes && !errors.Is(err, ErrPartial):
				t.Fatalf("after %v, cut at %d = %v, want %v", tc.state, n, err, ErrPartial)
			}
		}
	}
}

func TestEveryByte(t *testing.T) {
	_, _, prepared := newUndo(t)
	_, _, applying := newUndo(t, Applying)
	states := len(prepared) - roomStates*sectorBytes
	used := states - int(roundUp(int64(states))-int64(states))
	for n := range used {
		for b, want := range map[*[]byte]error{&prepared: ErrPartial, &applying: ErrDamaged} {
			bad := slices.Clone(*b)
			bad[n] ^= 0x40
			err := judged(t, bad)
			if n < 12 && (errors.Is(err, ErrNotUndo) || errors.Is(err, ErrNewer)) {
				continue // the magic and the version
			}
			if err == nil && bytes.Equal(bad[:n], (*b)[:n]) && inPadding(*b, n) {
				continue
			}
			if !errors.Is(err, want) {
				t.Fatalf("byte %d flipped = %v, want %v", n, err, want)
			}
		}
	}
}

// inPadding tells whether a byte lies between the trailer and the states.
func inPadding(b []byte, n int) bool {
	end := int(binary.LittleEndian.Uint64(b[184:]))
	return n >= end && n < int(roundUp(int64(end)))
}

func TestNewer(t *testing.T) {
	_, _, b := newUndo(t, Applying)
	b[8] = 2
	if err := judged(t, b); !errors.Is(err, ErrNewer) {
		t.Errorf("version 2 = %v, want %v", err, ErrNewer)
	}
	if err := judged(t, []byte("some text that somebody else wrote, longer than any magic is")); !errors.Is(err, ErrNotUndo) {
		t.Errorf("text = %v, want %v", err, ErrNotUndo)
	}
}

// Numbers that fit their checksums and nothing else.
func TestHostileNumbers(t *testing.T) {
	_, _, whole := newUndo(t)
	for _, tc := range []struct {
		name string
		at   int
		v    uint64
	}{
		{"a receipt without end", 176, 1 << 62}, {"a receipt of less than nothing", 176, 1 << 63},
		{"an end far away", 184, 1 << 62}, {"an end before the beginning", 184, 3},
		{"a negative end", 184, 1 << 63}, {"a negative length", 48, 1 << 63},
		{"an image that becomes shorter", 56, 1}, {"a huge image", 56, 1 << 62},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := slices.Clone(whole)
			binary.LittleEndian.PutUint64(b[tc.at:], tc.v)
			binary.LittleEndian.PutUint32(b[508:], plan.Checksum(b[:508]))
			if err := judged(t, b); !errors.Is(err, ErrPartial) {
				t.Errorf("%v, want %v", err, ErrPartial)
			}
		})
	}
}

func TestStates(t *testing.T) {
	v, d, _ := newUndo(t)
	u, err := v.OpenUndoToAdvance(t.Context(), undoPath, false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := v.OpenUndoToAdvance(t.Context(), undoPath, false); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("a second opening = %v, want %v", err, diskio.ErrInUse)
	}
	for _, s := range []State{Committed, Undoing, Undone, Prepared, Partial} {
		if err := u.Advance(s, time.Unix(1, 0)); err == nil {
			t.Errorf("%s follows prepared", s)
		}
	}
	if err := u.Advance(RolledBack, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if p, err := v.Peek(t.Context(), undoPath); err != nil || p.State != RolledBack || p.Receipt.Finished == nil {
		t.Errorf("Peek = %+v, %v", p, err)
	}
	if n := len(d.Ops()); n == 0 {
		t.Error("nothing was written")
	}
}

func FuzzUndoFile(f *testing.F) {
	for _, states := range [][]State{nil, {Applying}, {Applying, Committed, Undoing, Undone}} {
		_, _, b := newUndo(f, states...)
		for _, seal := range []bool{false, true} {
			f.Add(b, seal)
			f.Add(b[:len(b)/2], seal)
			f.Add(b[:700], seal)
			bad := slices.Clone(b)
			bad[len(bad)/3] ^= 1
			f.Add(bad, seal)
		}
	}
	f.Add([]byte{}, false)
	f.Add([]byte(headerMagic), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = resealed(b) // else hardly anything gets past the checksums
		}
		v, d := newVault(t)
		d.Put(undoPath, b)
		check := func(err error) {
			if err != nil && !errors.Is(err, ErrNotUndo) && !errors.Is(err, ErrNewer) &&
				!errors.Is(err, ErrPartial) && !errors.Is(err, ErrDamaged) {
				t.Errorf("an error without a name: %v", err)
			}
		}
		_, err := v.Peek(context.Background(), undoPath)
		check(err)
		u, err := v.OpenUndo(context.Background(), undoPath)
		check(err)
		if err == nil {
			texts(t, u)
			u.Receipt()
			u.Close()
		}
		if _, err := v.Find(context.Background(), testPath); err != nil {
			t.Errorf("Find = %v", err)
		}
		if got, _ := d.Get(undoPath); !bytes.Equal(got, b) {
			t.Error("looking changed the file")
		}
	})
}

func TestReceipts(t *testing.T) {
	v, d := newVault(t)
	if all, err := v.Receipts(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("Receipts without any = %v, %v", all, err)
	}
	draft := newDraft()
	d.Put("/state/undo/"+testID+".json.new", []byte("left by a crash"))
	for _, s := range []State{Prepared, Committed} {
		draft.Receipt.State = s
		if err := v.Put(draft.Receipt); err != nil {
			t.Fatal(err)
		}
	}
	got, err := v.Receipt(testID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(draft.Receipt, got); diff != "" {
		t.Errorf("Receipt (-want +got):\n%s", diff)
	}
	d.Put("/state/undo/"+strings.Repeat("1", 32)+".json", []byte(`{"schema":"shisa.receipt/2"}`))
	d.Put("/state/undo/"+strings.Repeat("2", 32)+".json", []byte(`{"schema":`))
	d.Put("/state/undo/"+strings.Repeat("3", 32)+".json", []byte(`{"schema":"shisa.receipt/1","id":"../x"}`))
	all, err := v.Receipts(t.Context())
	if len(all) != 1 || !errors.Is(err, ErrNewer) || !errors.Is(err, ErrDamaged) {
		t.Errorf("Receipts = %d, %v, want 1 and what cannot be read", len(all), err)
	}
	for id, want := range map[string]error{
		strings.Repeat("1", 32): ErrNewer, strings.Repeat("2", 32): ErrDamaged,
		strings.Repeat("3", 32): ErrDamaged, strings.Repeat("4", 32): ErrNotFound,
		"../../img/a": ErrNotFound, "": ErrNotFound,
	} {
		if _, err := v.Receipt(id); !errors.Is(err, want) {
			t.Errorf("Receipt(%q) = %v, want %v", id, err, want)
		}
	}
	if err := v.Drop(testID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Receipt(testID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Receipt after Drop = %v", err)
	}
	draft.Receipt.ID = "../x"
	if err := v.Put(draft.Receipt); err == nil {
		t.Error("Put takes a name that leads out")
	}
}

// On the machine itself the directories and files are for their owner only.
func TestModes(t *testing.T) {
	dir := t.TempDir()
	v, err := New(Options{StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	draft := newDraft()
	image := filepath.Join(dir, "a.img")
	if err := os.WriteFile(image, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := v.Create(t.Context(), draft, image, "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := v.Put(draft.Receipt); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		"state": 0o700, "state/undo": 0o700, "state/undo/" + testID + ".json": 0o600, "a.img" + Suffix: 0o600,
	} {
		if st, err := os.Stat(filepath.Join(dir, path)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v, want %v", path, st.Mode().Perm(), err, want)
		}
	}
}

func TestFind(t *testing.T) {
	v, d, b := newUndo(t, Applying, Committed)
	d.Put("/img/other"+Suffix, []byte("not one of ours, and beside another image"))
	d.Put(undoPath+".2", []byte("not one of ours, and beside this image"))
	d.Put(undoPath+".3", nil)
	newer := slices.Clone(b)
	newer[8] = 9
	d.Put(undoPath+".4", newer)
	all, err := v.Find(t.Context(), testPath)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range all {
		got = append(got, fmt.Sprintf("%s %s %s %v", filepath.Base(c.UndoPath), c.State, c.Match, errors.Is(c.Err, ErrNewer)))
	}
	want := []string{"a.img.shisa-undo.3 partial name false", "a.img.shisa-undo.4  name true",
		"a.img.shisa-undo committed file false"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Find (-want +got):\n%s", diff)
	}
}

func TestIsUndoName(t *testing.T) {
	for name, want := range map[string]string{
		"a.qcow2.shisa-undo": "a.qcow2", "a.shisa-undo.2": "a", "a.shisa-undo.10000": "a",
		"a.shisa-undo.1": "", "a.shisa-undo.02": "", "a.shisa-undo.x": "", "a.shisa-undox": "",
		".shisa-undo": "", "a.shisa-undo.": "", "a": "", "a.shisa-undo.shisa-undo": "a.shisa-undo",
	} {
		if got, ok := IsUndoName(name); got != want || ok != (want != "") {
			t.Errorf("IsUndoName(%q) = %q, %v, want %q", name, got, ok, want)
		}
	}
}

func TestStateDir(t *testing.T) {
	for _, tc := range []struct {
		root      bool
		xdg, home string
		want      string
	}{
		{true, "/x", "/h", "/var/lib/shisa"}, {false, "/x", "/h", "/x/shisa"},
		{false, "x", "/h", "/h/.local/state/shisa"}, {false, "", "", ""},
	} {
		got, err := StateDir(tc.root, func(name string) string {
			return map[string]string{"XDG_STATE_HOME": tc.xdg, "HOME": tc.home}[name]
		})
		if got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("StateDir(%+v) = %q, %v", tc, got, err)
		}
	}
	if _, err := New(Options{StateDir: "state"}); err == nil {
		t.Error("New takes a directory that is not absolute")
	}
}
