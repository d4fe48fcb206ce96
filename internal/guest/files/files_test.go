// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"bytes"
	"errors"
	"fmt"
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
