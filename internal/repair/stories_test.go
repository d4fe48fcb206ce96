// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"encoding/binary"
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

// written is an image of 2 GiB with 40 MiB of data, and a copy of what the guest reads there.
func written(t *testing.T) (memory, *qcow2.Header) {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "2G")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 20M", "-c", "write -P 8 600M 20M", path)
	b := load(t, path)
	_, h := l1Slots(t, b)
	return b, h
}

// inUse counts the clusters whose refcount is not 0.
func inUse(t *testing.T, b memory) (n int) {
	t.Helper()
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range h.ReftableEntries() {
		at := int64(word(b, int64(h.ReftableOff)+8*i))
		if at == 0 {
			continue
		}
		for k := range h.RefblockEntries() {
			if qcow2.RefcountAt(b[at:at+h.ClusterSize()], k, h.RefcountOrder) != 0 {
				n++
			}
		}
	}
	return n
}

// TestStories repairs what qemu-img check -r is known to make worse: it frees what it does not
// understand. Here nothing is freed, whatever is asked for, and what is lost is said.
func TestStories(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(b memory, h *qcow2.Header)
		hurt   string // kind of the data that is known to be wrong
		code   string // what remains
	}{
		"an L2 table wiped": {func(b memory, h *qcow2.Header) {
			l2 := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
			clear(b[l2 : l2+h.ClusterSize()])
		}, "", "QC13"},
		"an L2 table filled with 0x0001": {func(b memory, h *qcow2.Header) {
			l2 := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
			copy(b[l2:l2+h.ClusterSize()], bytes.Repeat([]byte{0, 1}, int(h.ClusterSize()/2)))
		}, "lost", "QC03"},
		"an L1 entry wiped": {func(b memory, h *qcow2.Header) {
			binary.BigEndian.PutUint64(b[h.L1Off:], 0)
		}, "", "QC13"},
		"two writers": {func(b memory, h *qcow2.Header) {
			one := int64(word(b, int64(h.L1Off)) & qcow2.OffsetMask)
			two := int64(word(b, int64(h.L1Off)+8) & qcow2.OffsetMask)
			for i := range int64(40) {
				binary.BigEndian.PutUint64(b[two+8*(i+700):], word(b, one+8*(i+20)))
			}
		}, "mixed", "QC07"},
	} {
		t.Run(name, func(t *testing.T) {
			b, h := written(t)
			tt.damage(b, h)
			used := inUse(t, b)
			for _, o := range []repair.Options{{}, {Leaks: true}, {Reclaim: true}} {
				p := makePlan(t, b, o)
				after := b.applied(t, p)
				if n := inUse(t, after); n < used {
					t.Errorf("%+v: %d clusters are counted as used, %d before", o, n, used)
				}
				if int64(len(after)) < int64(len(b)) {
					t.Errorf("%+v: the file became shorter", o)
				}
				if p.After.Verdict != finding.Found || !slices.ContainsFunc(p.Remains, func(f finding.Finding) bool {
					return f.Code == tt.code
				}) {
					t.Errorf("%+v: %s, %v; want that %s remains", o, p.After.Verdict, p.Remains, tt.code)
				}
				if !o.Leaks && tt.hurt != "" && (len(p.Hurt) == 0 || p.Hurt[0].Kind != tt.hurt) {
					t.Errorf("%+v: hurt %+v, want %s", o, p.Hurt, tt.hurt)
				}
			}
		})
	}
}

// TestWhatSnapshotsSee: a repair of the active disk changes no byte that a snapshot reads.
func TestWhatSnapshotsSee(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, f := range lab.Faults() {
		s := lab.Spec{VirtualBytes: 3 << 20, ClusterBits: 12, Fill: .6, Seed: 5, Data: true, Snapshots: 2, Rewrite: .3}
		path, sound := build(t, s)
		if hit, err := f.Apply(path, 4); err != nil || hit.Refused {
			continue
		}
		b := load(t, path)
		p := makePlan(t, b, repair.Options{})
		after := b.applied(t, p)
		was, now := snapshotViews(t, b), snapshotViews(t, after)
		for name, w := range was {
			n, ok := now[name]
			if ok && bytes.Equal(w, n) || slices.ContainsFunc(p.Hurt, func(h plan.Hurt) bool { return h.Snapshot == name }) {
				continue
			}
			if s := snapshotViews(t, sound)[name]; !bytes.Equal(n, s) {
				t.Errorf("%s: snapshot %s reads differently, and not as it was", f.Name, name)
			}
		}
	}
}

// snapshotViews reads every snapshot that can be read whole.
func snapshotViews(t *testing.T, b memory) map[string][]byte {
	t.Helper()
	views := map[string][]byte{}
	h, err := qcow2.ReadHeader(b, int64(len(b)))
	if err != nil {
		return views
	}
	table, err := qcow2.ReadSnapshots(b, int64(len(b)), h)
	if err != nil {
		return views
	}
	for i := range table.Snapshots {
		s := &table.Snapshots[i]
		d, err := qcow2.NewDisk(b, int64(len(b)), h, qcow2.DiskOptions{Snapshot: s})
		if err != nil {
			continue
		}
		p := make([]byte, d.Size())
		if _, err := d.ReadAt(p, 0); err == nil {
			views[s.Name] = p
		}
	}
	return views
}

// TestPlanReadsOnly: making a plan leaves the file as it is.
func TestPlanReadsOnly(t *testing.T) {
	path, b := build(t, patientOf("refcount-low"))
	if err := os.WriteFile(path, b[:len(b)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	before := load(t, path)
	makePlan(t, before, repair.Options{Reclaim: true})
	if !bytes.Equal(before, load(t, path)) || !bytes.Equal(before, b[:len(b)-100]) {
		t.Error("the image was changed")
	}
}

// TestReftablePastEnd: the refcounts cannot be found, but all that refers to clusters can; so they are
// counted anew, and no flag is changed for want of a count.
func TestReftablePastEnd(t *testing.T) {
	testenv.Need(t, "qemu-img")
	_, b := build(t, patientOf("refcount-zero"))
	was := view(t, b)
	binary.BigEndian.PutUint64(b[48:], uint64(len(b)+4<<20)&^4095)
	p := makePlan(t, b, repair.Options{})
	after := b.applied(t, p)
	if status, text := qemuCheck(t, after); status != 3 || p.After.Corruptions > 0 {
		t.Errorf("%v, %+v; qemu-img check exits with %d, want 3 (the old structure is leaked):\n%s", actions(p), p.After, status, text)
	}
	for _, a := range actions(p) {
		if a == "QC05 drop-copied" {
			t.Errorf("flags are cleared: %v", actions(p))
		}
	}
	if now := view(t, after); !slices.EqualFunc(was, now, bytes.Equal) {
		t.Error("the guest reads something else")
	}
	if !slices.ContainsFunc(p.Remains, func(f finding.Finding) bool { return strings.Contains(f.Next, "old refcount blocks and tables") }) {
		t.Errorf("nothing tells of the old structure: %+v", p.Remains)
	}
	// At once, and later.
	for _, c := range []memory{b, after} {
		p := makePlan(t, c, repair.Options{Reclaim: true})
		freed := c.applied(t, p)
		if status, text := qemuCheck(t, freed); status != 0 || p.After.Leaks != 0 {
			t.Errorf("%v; qemu-img check exits with %d, want 0:\n%s", actions(p), status, text)
		}
	}
}
