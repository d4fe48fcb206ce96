// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// merged is what a merge gave: number and file of each entry.
func merged(t *testing.T, o Options, files ...[]byte) (got []string, damage []Damage) {
	t.Helper()
	var all []*File
	for _, b := range files {
		all = append(all, open(t, b))
	}
	damage, err := Merge(t.Context(), all, o, func(file int, e *Entry) error {
		got = append(got, fmt.Sprintf("%d of %d", e.Seqnum, file))
		if e.Damaged {
			got[len(got)-1] += " damaged"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, damage
}

// TestMerge: files of one row of numbers, as of a system and its users, become one stream.
func TestMerge(t *testing.T) {
	makers := [3]*maker{newMaker(true, true), newMaker(false, true), newMaker(true, false)}
	var want []string
	for i := range uint64(900) {
		k := int(i * i % 3)
		if i > 600 {
			k = 2 // the others ended
		}
		when := i
		if i > 300 {
			when -= 200 // the clock was set back: numbers go before times
		}
		makers[k].entry(i+1, uint64(at(int64(when)).UnixMicro()), i, ID{1}, fmt.Sprint("MESSAGE=", i))
		want = append(want, fmt.Sprintf("%d of %d", i+1, k))
	}
	var files [][]byte
	for _, m := range makers {
		if len(m.entries) == 0 {
			m.entry(5000, uint64(at(5000).UnixMicro()), 5000, ID{1}, "MESSAGE=last")
			want = append(want, fmt.Sprintf("5000 of %d", len(files)))
		}
		files = append(files, m.bytes())
	}
	got, _ := merged(t, Options{}, files...)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	slices.Reverse(want)
	got, _ = merged(t, Options{Backward: true}, files...)
	if d := cmp.Diff(want, got); d != "" {
		t.Error("backward:", d)
	}
}

// TestMergeCopies: what is in several files is given once, and from one where it is sound.
func TestMergeCopies(t *testing.T) {
	m := seeded(true, true, 40)
	good := bytes.Clone(m.bytes())
	bad := bytes.Clone(good)
	bad[m.values["MESSAGE=message 7"]+dataHead+10]++
	older := seeded(false, false, 40).bytes() // the same entries in another form
	older[atSeqnumID]++                       // and of another row
	var want []string
	for i := range 40 {
		file := 0
		if i == 7 {
			file = 1
		}
		want = append(want, fmt.Sprintf("%d of %d", i+1, file))
	}
	got, damage := merged(t, Options{}, bad, good, older, good)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if damage[0].Hurt != 1 || !damage[1].Complete() || !damage[2].Complete() {
		t.Errorf("damage %+v", damage)
	}
	alone, _ := merged(t, Options{}, bad)
	if len(alone) != 40 || alone[7] != "8 of 0 damaged" {
		t.Errorf("a damaged file alone gives %v", alone)
	}
}

func TestMergeEnds(t *testing.T) {
	b := seeded(true, true, 500).bytes()
	files := []*File{open(t, b), open(t, seeded(false, true, 900).bytes())}
	n := 0
	damage, err := Merge(t.Context(), files, Options{}, func(int, *Entry) error {
		if n++; n == 3 {
			return ErrStop
		}
		return nil
	})
	if n != 3 || err != nil || len(damage) != 2 {
		t.Errorf("stopped after %d with %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Merge(ctx, files, Options{}, func(int, *Entry) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Merge after the end of its context = %v", err)
	}
	if _, err := Merge(t.Context(), files, Options{Match: []string{"x"}}, nil); err == nil {
		t.Error("Merge took a match without a name")
	}
	if _, err := Merge(t.Context(), nil, Options{}, nil); err != nil {
		t.Errorf("Merge of nothing = %v", err)
	}
}

// TestMergeAsJournalctl: two files of different rows are given in the order of journalctl.
func TestMergeAsJournalctl(t *testing.T) {
	var paths []string
	var files []*File
	for k, form := range journaltest.Forms()[:2] {
		path := made(t, form, journaltest.Stream{N: 2000, SetBack: time.Second, Only: func(i int) bool { return i*i%5%2 == k }})
		paths, files = append(paths, path), append(files, opened(t, path))
	}
	var theirs, ours journaltest.Digest
	exported(t, func(r *journaltest.Record) { theirs.Add(r) }, paths...)
	var rec journaltest.Record
	if _, err := Merge(t.Context(), files, Options{}, func(_ int, e *Entry) error {
		record(e, &rec)
		ours.Add(&rec)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if ours != theirs || ours.N != 2000 {
		t.Errorf("Merge = %v, want journalctl's %v", &ours, &theirs)
	}
}
