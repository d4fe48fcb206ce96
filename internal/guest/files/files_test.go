// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestOverlay holds an overlay against a plain copy that the same is written to.
func TestOverlay(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, unit := range []int64{1, 512, 4096} {
		t.Run(fmt.Sprint(unit), func(t *testing.T) {
			under := make([]byte, 64<<10+100)
			for i := range under {
				under[i] = byte(rng.Uint32())
			}
			before := bytes.Clone(under)
			want := bytes.Clone(under)
			o := NewOverlay(bytes.NewReader(under), unit, 1<<20)
			for range 200 {
				off := rng.IntN(len(want))
				p := make([]byte, rng.IntN(min(10000, len(want)-off)+1))
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if n, err := o.WriteAt(p, int64(off)); err != nil || n != len(p) {
					t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
				}
				copy(want[off:], p)
				off = rng.IntN(len(want))
				got := make([]byte, rng.IntN(len(want)-off)+1)
				if n, err := o.ReadAt(got, int64(off)); err != nil || n != len(got) {
					t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(got), off, n, err)
				}
				if !bytes.Equal(got, want[off:off+len(got)]) {
					t.Fatalf("ReadAt(%d bytes, %d) gives other bytes", len(got), off)
				}
			}
			if !bytes.Equal(under, before) {
				t.Error("what lies under the overlay was changed")
			}
		})
	}
}

func TestOverlayIsBounded(t *testing.T) {
	o := NewOverlay(bytes.NewReader(make([]byte, 1<<20)), 4096, 3*4096)
	if n, err := o.WriteAt(make([]byte, 5*4096), 0); n != 3*4096 || !errors.Is(err, ErrOverlay) {
		t.Errorf("WriteAt = %d, %v; want %d, ErrOverlay", n, err, 3*4096)
	}
	if o.Bytes() != 3*4096 {
		t.Errorf("Bytes() = %d, want %d", o.Bytes(), 3*4096)
	}
}

func TestNotes(t *testing.T) {
	var n Notes
	if s := n.View().State; s != Clean {
		t.Errorf("state of nothing is %s, want clean", s)
	}
	n.Note(Problem{What: "a copy is broken", Offset: -1})
	n.Replayed(2, 10)
	if s := n.View().State; s != Recovered {
		t.Errorf("state is %s, want recovered", s)
	}
	err := n.Fail("inode 5", 4096, 5, errors.New("checksum"))
	if again := n.Fail("directory", 0, 1, fmt.Errorf("reading: %w", err)); !errors.Is(again, err) {
		t.Errorf("Fail of what was noted gives %v, want %v", again, err)
	}
	n.Replayed(1, 1)
	v := n.View()
	if v.State != Incomplete || len(v.Problems) != 2 || v.Transactions != 3 {
		t.Errorf("view is %+v, want incomplete with 2 problems, 3 transactions", v)
	}
	for i := range MaxProblems + 5 {
		n.Note(Problem{What: fmt.Sprint(i), Offset: -1})
		n.Note(Problem{What: fmt.Sprint(i), Offset: -1})
	}
	if v := n.View(); len(v.Problems) != MaxProblems || v.More == 0 {
		t.Errorf("%d problems are kept and %d counted, want %d and some", len(v.Problems), v.More,
			MaxProblems)
	}
}

// TestSetIsBounded fills a set with inodes that lie as far apart as they can.
func TestSetIsBounded(t *testing.T) {
	var s Set
	for i := range Ino(MaxSetWords) {
		if !s.Add((i + 1) << 20) {
			t.Fatalf("inode %d is not taken", i)
		}
	}
	if s.Add(1) || s.Has(1) || !s.Full() || s.Len() != MaxSetWords {
		t.Errorf("a full set takes more: %d", s.Len())
	}
	if s.Add(1<<20) || !s.Add(1<<20+1) || !s.Has(1<<20+1) {
		t.Error("a full set does not take what lies beside what it has")
	}
	dir := &Found{Path: "/d", Entry: Entry{Ino: 3}, File: stat{Mode: TypeDir}}
	if follow, err := s.Follow(dir, 0); follow || !errors.Is(err, ErrMany) {
		t.Errorf("Follow() of a full set = %v, %v; want ErrMany", follow, err)
	}
	all := survey{count: new(Count), left: make(map[Ino]int64), reached: s}
	all.name(dir)
	all.inode(&Stat{Ino: 3, Links: 1})
	all.judge()
	if v := all.notes.View(); v.State != Incomplete || all.count.Unreached != 0 {
		t.Errorf("a survey of more inodes than can be kept is %s, with %d unreached", v.State, all.count.Unreached)
	}
}

// TestWalkIsBounded has a walk come to more names than it goes through.
func TestWalkIsBounded(t *testing.T) {
	w := &walk{ctx: t.Context(), fn: func(*Found) error { return nil }, left: 3}
	for i := range 4 {
		err := w.name(&Found{Path: "/f", Entry: Entry{Ino: Ino(i)}, File: stat{Mode: TypeRegular}}, 1)
		if errors.Is(err, ErrMany) != (i == 3) {
			t.Errorf("name %d: %v", i, err)
		}
	}
}

// stat is a file of which only Stat is known.
type stat Stat

func (s stat) Stat() *Stat                                            { return (*Stat)(&s) }
func (stat) ReadAt([]byte, int64) (int, error)                        { return 0, io.EOF }
func (stat) Extents(context.Context, func(Extent) error) error        { return nil }
func (stat) Entries(context.Context, func(Entry) error) error         { return nil }
func (stat) Xattrs(context.Context, func(string, []byte) error) error { return nil }
