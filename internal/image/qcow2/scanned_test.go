// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
)

// withoutTables reads an image, but none of its L2 tables.
type withoutTables struct {
	io.ReaderAt
	tables       []qcow2.Table
	clusterBytes int64
}

var errTableRead = errors.New("an L2 table is read")

func (w withoutTables) ReadAt(p []byte, off int64) (int, error) {
	for _, t := range w.tables {
		if int64(t.Off) < off+int64(len(p)) && off < int64(t.Off)+w.clusterBytes {
			return 0, errTableRead
		}
	}
	return w.ReaderAt.ReadAt(p, off)
}

// TestExaminedAgain holds a second examination, after some of the file changed, against a first one of the
// changed file.
func TestExaminedAgain(t *testing.T) {
	type change func(img []byte, refblock, table int64)
	be := binary.BigEndian
	raise := func(img []byte, refblock, _ int64) { img[refblock+1]++ }
	flag := func(img []byte, _, table int64) { img[table] ^= 1 << 7 }
	past := func(img []byte, _, table int64) { be.PutUint64(img[table+8:], 1<<63|1<<40) }
	for _, tt := range []struct {
		name    string
		spec    lab.Spec
		change  change
		told    bool // that the table changed
		without bool // can do without the tables
	}{
		{"nothing", lab.Spec{}, nil, false, true},
		{"nothing, scattered", lab.Spec{Layout: lab.Random}, nil, false, true},
		{"nothing, snapshots", lab.Spec{Snapshots: 3}, nil, false, true},
		{"nothing, wrong", lab.Spec{WrongPercent: 1}, nil, false, false},
		{"a refcount", lab.Spec{}, raise, false, false},
		{"a refcount, scattered and wrong", lab.Spec{Layout: lab.Random, WrongPercent: 1}, raise, false, false},
		{"a refcount, snapshots", lab.Spec{Snapshots: 3, WrongPercent: 1}, raise, false, false},
		{"a flag", lab.Spec{}, flag, true, false},
		{"an entry", lab.Spec{Snapshots: 3}, past, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.VirtualBytes, tt.spec.ClusterBits = 32<<20, 12
			img := load(t, tt.spec)
			size := int64(len(img))
			opts := qcow2.CheckOptions{Name: "x", MaxRanges: -1, DataFileBytes: -1}
			first, err := qcow2.Examine(t.Context(), bytes.NewReader(img), size, opts)
			if err != nil {
				t.Fatal(err)
			}
			before := summary(first)
			table := int64(first.Tables()[1].Off)
			now := slices.Clone(img)
			if tt.change != nil {
				tt.change(now, int64(qcow2.RefblockOffset(first.RefcountTable()[0])), table)
			}
			want, err := qcow2.Examine(t.Context(), bytes.NewReader(now), size, opts)
			if err != nil {
				t.Fatal(err)
			}
			if same := cmp.Equal(before, summary(want)); same != (tt.change == nil) {
				t.Fatalf("the change is found: %v", !same)
			}
			var r io.ReaderAt = bytes.NewReader(now)
			if tt.without {
				r = withoutTables{r, first.Tables(), 1 << tt.spec.ClusterBits}
			}
			got, err := first.Again(t.Context(), r, size, opts, func(off, length int64) bool {
				return tt.told && off <= table && table < off+length
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(summary(want), summary(got)); diff != "" {
				t.Errorf("Again finds something else (-Examine +Again):\n%s", diff)
			}
			if diff := cmp.Diff(before, summary(first)); diff != "" {
				t.Errorf("Again changed what the first examination knows:\n%s", diff)
			}
			third, err := got.Again(t.Context(), bytes.NewReader(now), size, opts, func(_, _ int64) bool { return false })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(summary(want), summary(third)); diff != "" {
				t.Errorf("Again finds something else the second time (-Examine +Again):\n%s", diff)
			}
		})
	}
}

// examined is what an examination knows, as far as it can be compared.
type examined struct {
	Result   *qcow2.Result
	Complete bool
	Entries  []qcow2.Entry
	Tables   []qcow2.Table
	Links    []qcow2.Link
	Refs     string // of each cluster
}

func summary(e *qcow2.Exam) examined {
	x := examined{e.Result(), e.Complete(), e.Entries(), e.Tables(), e.Links(), ""}
	refs := make([]byte, e.Limit())
	for c := range refs {
		refs[c] = byte(e.References(int64(c)))
	}
	x.Refs = string(refs)
	return x
}
