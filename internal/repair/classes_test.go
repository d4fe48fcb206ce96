// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

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

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// patientOf is an image that a fault of the lab is possible in.
func patientOf(fault string) lab.Spec {
	s := lab.Spec{VirtualBytes: 3 << 20, ClusterBits: 12, Fill: .6, Seed: 11, Data: true, RefcountBits: 16}
	switch {
	case strings.HasPrefix(fault, "bitmap"):
		s.Bitmaps = 2
	case strings.HasPrefix(fault, "snapshot"), strings.HasPrefix(fault, "header-snapshots"):
		s.Snapshots, s.Rewrite = 2, .2
	case strings.HasPrefix(fault, "compressed"):
		s.Compressed = .4
	case strings.HasPrefix(fault, "subcluster"):
		s.ClusterBits, s.ExtendedL2, s.Partial, s.VirtualBytes, s.Compressed = 14, true, .3, 12<<20, .2
	case strings.HasPrefix(fault, "data-file"):
		s.DataFile = "image.data"
	case fault == "reftable-entry-shared":
		s.ClusterBits, s.RefcountBits = 9, 64
	case fault == "two-writers":
		s.Fill, s.Front = .4, true
	case strings.HasPrefix(fault, "zero"), strings.HasPrefix(fault, "prealloc"):
		s.ZeroAlloc = .3
	case strings.HasPrefix(fault, "refcount-low"):
		s.Snapshots = 1
	}
	return s
}

// describe is the list of operations of a plan.
func describe(p *plan.Plan) string {
	var b strings.Builder
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "%s %s x%d (%s): %s\n", s.Code, s.Action, s.Count, s.Certainty, s.Summary)
		for _, r := range s.Guest {
			fmt.Fprintf(&b, "    guest %#x +%#x\n", r.Offset, r.Length)
		}
		for _, e := range s.Proofs {
			fmt.Fprintf(&b, "    %s at %#x %s: %s\n", e.Source, max(e.Offset, 0), e.Value, e.Text)
		}
	}
	if f := p.Fence; f != nil {
		fmt.Fprintf(&b, "fence %#x %x -> %x, sync\n", f.Offset, f.Old, f.New)
	}
	for i, w := range p.Writes {
		old, now := fmt.Sprintf("%x", w.Old), fmt.Sprintf("%x", w.New)
		if len(w.New) > 32 {
			old = fmt.Sprintf("crc %08x", plan.Checksum(w.Old))
			now = fmt.Sprintf("crc %08x", plan.Checksum(w.New))
		}
		fmt.Fprintf(&b, "write %s %#x +%d: %s -> %s\n", w.Phase, w.Offset, len(w.New), old, now)
		if i+1 == len(p.Writes) || p.Writes[i+1].Phase != w.Phase {
			fmt.Fprintf(&b, "sync\n")
		}
	}
	for _, h := range p.Hurt {
		fmt.Fprintf(&b, "hurt %s %s %v: %s\n", h.Code, h.Kind, h.Guest, h.Summary)
	}
	fmt.Fprintf(&b, "before: %d check errors, %d corruptions, %d leaks, %s\n", p.Before.CheckErrors,
		p.Before.Corruptions, p.Before.Leaks, p.Before.Verdict)
	fmt.Fprintf(&b, "after:  %d check errors, %d corruptions, %d leaks, %s\n", p.After.CheckErrors,
		p.After.Corruptions, p.After.Leaks, p.After.Verdict)
	for _, f := range p.Remains {
		fmt.Fprintf(&b, "remains %s %s: %s\n    next: %s\n", f.Code, f.Severity, f.Summary, f.Next)
	}
	return b.String()
}

// TestClasses holds the operations of one repair of each class against a golden file.
func TestClasses(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, f := range lab.Faults() {
		t.Run(f.Name, func(t *testing.T) {
			path, sound := build(t, patientOf(f.Name))
			_, err := f.Apply(path, 3)
			if errors.Is(err, lab.ErrNotApplicable) {
				golden(t, f.Name, "not possible in this image\n")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			b := load(t, path)
			p, err := repair.Plan(context.Background(), b, int64(len(b)),
				repair.Options{Check: qcow2.CheckOptions{DataFileBytes: dataBytes(path)}})
			if err != nil {
				golden(t, f.Name, err.Error()+"\n")
				return
			}
			golden(t, f.Name, describe(p))
			after := b.applied(t, p)
			status, text := qemuCheck(t, after)
			if p.After.Verdict == finding.Clean && status != 0 {
				t.Errorf("clean, but qemu-img check exits with %d:\n%s", status, text)
			}
			if f.Name == "refcount-low" && !bytes.Equal(after[plan.SectorBytes:], sound[plan.SectorBytes:]) {
				t.Error("the image is not what it was")
			}
		})
	}
}

// dataBytes is the length of the data file of an image, 0 where there is none.
func dataBytes(path string) int64 {
	st, err := os.Stat(filepath.Join(filepath.Dir(path), "image.data"))
	if err != nil {
		return 0
	}
	return st.Size()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "plans", name+".txt")
	if os.Getenv("SHISA_UPDATE") == "1" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the plan is\n%s\nwant\n%s", got, want)
	}
}

// TestWiden: refcounts of one bit cannot count a cluster that a snapshot shares.
func TestWiden(t *testing.T) {
	testenv.Need(t, "qemu-img")
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, RefcountBits: 1, Data: true, Seed: 3})
	was := view(t, b)
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	// Two L2 entries get the cluster of a third.
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	for i := int64(1); i < 3; i++ {
		binary.BigEndian.PutUint64(b[table+8*i:], word(b, table))
	}
	p := makePlan(t, b, repair.Options{})
	after := b.applied(t, p)
	if status, text := qemuCheck(t, after); status != 3 {
		t.Errorf("qemu-img check exits with %d, want 3 (two leaks):\n%s", status, text)
	}
	h, err = qcow2.ReadHeader(after, int64(len(after)))
	if err != nil {
		t.Fatal(err)
	}
	if h.RefcountBits() != 2 {
		t.Errorf("refcounts have %d bits, want 2", h.RefcountBits())
	}
	if len(p.Hurt) != 1 || p.Hurt[0].Kind != "mixed" || len(p.Hurt[0].Guest) != 3 {
		t.Errorf("hurt: %+v, want three ranges that share a cluster", p.Hurt)
	}
	for i, now := range view(t, after) {
		if i > 2 && !bytes.Equal(now, was[i]) {
			t.Fatalf("cluster %d of the disk reads differently", i)
		}
	}
}

// TestSplit gives both guest ranges a cluster of their own, and remembers that one of them is wrong.
func TestSplit(t *testing.T) {
	testenv.Need(t, "qemu-img")
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3})
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	binary.BigEndian.PutUint64(b[table+8:], word(b, table))
	p := makePlan(t, b, repair.Options{Split: true})
	after := b.applied(t, p)
	if status, text := qemuCheck(t, after); status != 3 {
		t.Errorf("qemu-img check exits with %d, want 3 (one leak):\n%s", status, text)
	}
	now := view(t, after)
	if word(after, table) == word(after, table+8) || !bytes.Equal(now[0], now[1]) {
		t.Errorf("entries %#x and %#x", word(after, table), word(after, table+8))
	}
	if len(p.Hurt) != 1 || p.Hurt[0].Kind != "mixed" {
		t.Errorf("hurt: %+v, want that two ranges are mixed", p.Hurt)
	}
}

// TestOnly mends what was named and nothing else.
func TestOnly(t *testing.T) {
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3, Dirty: true, TailLeaks: 4})
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	binary.BigEndian.PutUint64(b[table:], word(b, table)&^qcow2.FlagCopied)
	for _, tt := range []struct {
		opts repair.Options
		want string
	}{
		{repair.Options{Only: []string{"QC05"}}, "[QC05 set-copied]"},
		{repair.Options{Only: []string{"QC21"}}, "[]"}, // not before the flag is right
		{repair.Options{}, "[QC05 set-copied QC21 clear]"},
		{repair.Options{Leaks: true}, "[QC03 reclaim]"},
		{repair.Options{Reclaim: true}, "[QC05 set-copied QC03 reclaim QC21 clear]"},
		{repair.Options{Only: []string{"QC24"}}, "[]"},
	} {
		if got := fmt.Sprint(actions(makePlan(t, b, tt.opts))); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.opts, got, tt.want)
		}
	}
}

// TestLeaksKeepFlags: a refcount that becomes 1 where only leaks are mended takes its flag along.
func TestLeaksKeepFlags(t *testing.T) {
	testenv.Need(t, "qemu-img")
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3})
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	block := int64(word(b, int64(h.ReftableOff)))
	for i := range int64(3) {
		c := int64(word(b, table+8*i)&qcow2.OffsetMask) >> h.ClusterBits
		qcow2.PutRefcount(b[block:], c, h.RefcountOrder, 2)
		binary.BigEndian.PutUint64(b[table+8*i:], word(b, table+8*i)&^qcow2.FlagCopied)
	}
	qcow2.PutRefcount(b[block:], table>>h.ClusterBits, h.RefcountOrder, 2)
	binary.BigEndian.PutUint64(b[h.L1Off:], word(b, int64(h.L1Off))&^qcow2.FlagCopied)
	after := b.applied(t, makePlan(t, b, repair.Options{Leaks: true}))
	if status, text := qemuCheck(t, after); status != 0 {
		t.Errorf("qemu-img check exits with %d:\n%s", status, text)
	}
}

// TestTailIsNotFreed: what lies behind everything in use is freed only where nothing of it reads as
// a table.
func TestTailIsNotFreed(t *testing.T) {
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3, TailLeaks: 4})
	if got := fmt.Sprint(actions(makePlan(t, b, repair.Options{Leaks: true}))); got != "[QC03 reclaim]" {
		t.Errorf("a tail of leaks: %s, want that it is reclaimed", got)
	}
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	end := (int64(len(b)) - 1) &^ (h.ClusterSize() - 1)
	for i := range int64(100) {
		binary.BigEndian.PutUint64(b[end+8*i:], uint64(end-4096*(i%3+1))|qcow2.FlagCopied)
	}
	for _, step := range makePlan(t, b, repair.Options{Leaks: true}).Steps {
		for _, r := range step.Host {
			if r.Offset <= end && end < r.End() || step.Count != 3 {
				t.Errorf("a tail with a table: %s %v, want that only what reads as zeros is freed", step.Summary, r)
			}
		}
	}
}

// TestStepsInOrder: steps stand in the order of the phases in which they begin, whenever they were
// planned.
func TestStepsInOrder(t *testing.T) {
	_, b := build(t, lab.Spec{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3, RefcountBits: 16})
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	table := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
	binary.BigEndian.PutUint64(b[table+8:], word(b, table+8)|2)                   // a reserved bit
	binary.BigEndian.PutUint64(b[table+16:], word(b, table+16)&^qcow2.FlagCopied) // a flag
	block := int64(word(b, int64(h.ReftableOff)))
	qcow2.PutRefcount(b[block:], int64(word(b, table)&qcow2.OffsetMask)>>h.ClusterBits, h.RefcountOrder, 0)
	binary.BigEndian.PutUint32(b[4:], 9) // the version
	want := "[QC04 raise QC09 clear QC05 set-copied QC01 rewrite]"
	if got := fmt.Sprint(actions(makePlan(t, b, repair.Options{}))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestSplitTable gives two parts of the disk that share a whole L2 table a table and clusters of their own.
func TestSplitTable(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, spec := range map[string]lab.Spec{
		"plain":      {VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3, Fill: .3},
		"version 2":  {VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 4, Fill: .3, Version: 2},
		"compressed": {VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 5, Fill: .3, Compressed: .4},
		"snapshot":   {VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 6, Fill: .3, Snapshots: 1, Rewrite: .3},
		"subclusters": {VirtualBytes: 32 << 20, ClusterBits: 14, Data: true, Seed: 7, Fill: .1, ExtendedL2: true,
			Partial: .3},
	} {
		t.Run(name, func(t *testing.T) {
			_, b := build(t, spec)
			h, err := qcow2.ReadHeader(b, int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint64(b[h.L1Off+8:], word(b, int64(h.L1Off)))
			was := view(t, b)
			p := makePlan(t, b, repair.Options{Split: true})
			after := b.applied(t, p)
			if status, text := qemuCheck(t, after); status != 0 && status != 3 {
				t.Errorf("%v; qemu-img check exits with %d:\n%s", actions(p), status, text)
			}
			if one, two := word(after, int64(h.L1Off)), word(after, int64(h.L1Off)+8); one == two || one == 0 || two == 0 {
				t.Errorf("L1 entries %#x and %#x", one, two)
			}
			if now := view(t, after); !slices.EqualFunc(was, now, bytes.Equal) {
				t.Error("the guest reads something else")
			}
			if len(p.Hurt) != 1 || p.Hurt[0].Kind != "mixed" {
				t.Errorf("hurt: %+v, want that two ranges are mixed", p.Hurt)
			}
			for _, f := range p.Remains {
				if f.Code == "QC06" || f.Code == "QC07" {
					t.Errorf("remains: %s", f.Summary)
				}
			}
		})
	}
}
