// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

const (
	// maxForgotten bounds the leaked clusters that are looked at for a forgotten snapshot table.
	maxForgotten = 1 << 14
	// maxTables bounds those that may be one, for each of which the image is checked.
	maxTables = 8
	// maxSnapshotsTried bounds the entries of one that are read.
	maxSnapshotsTried = 1024
)

// snapshots looks for faults of where the header says that the snapshots are.
func (m *fieldMender) snapshots(ctx context.Context, h *qcow2.Header) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.Snapshots == 0 {
		return nil
	}
	_, err := qcow2.ReadSnapshots(m.image(), m.size, h)
	if err == nil {
		return nil
	}
	if lerr := m.look(ctx); lerr != nil {
		return lerr
	}
	f := m.snapshotField()
	f.Code, f.Summary = finding.QC16.Code, err.Error()
	if open := (*qcow2.OpenError)(nil); errors.As(err, &open) {
		f.Summary = open.Msg
	}
	f.Certainty, f.Next = finding.Likely, rebuildNext
	x := m.x.Header
	off, count := m.u64(64), uint64(h.Snapshots)
	near := off &^ uint64(h.ClusterSize()-1)
	field := m.x.Field(qcow2.FieldSnapshotsOff)
	switch {
	case x.ClusterBits != h.ClusterBits:
	case x.Snapshots > 0 && field != nil && len(field.Alternatives) == 0:
		f.set(x.Snapshots, x.SnapshotsOff)
		f.proof("snapshot table", int64(x.SnapshotsOff), "%d entries with names and L1 tables stand there", x.Snapshots)
		if x.SnapshotsOff == near {
			f.proof("header", 64, "the old value leads into its first cluster")
		}
		if uint64(x.Snapshots) == count {
			f.proof("header", 60, "the number of entries is that in the header")
		}
		if m.x.Checked && m.x.Counts.Corruptions+m.x.Counts.CheckErrors == 0 {
			f.proof("refcounts", -1, "with these snapshots all refcounts agree with the references")
		}
	case x.Snapshots == 0 && off == 0 && m.x.Checked &&
		m.x.Counts.Corruptions+m.x.Counts.CheckErrors+m.x.Counts.Leaks == 0:
		f.set(0, 0)
		f.proof("header", 64, "there is no snapshot table")
		f.proof("refcounts", -1, "without snapshots all refcounts agree with the references")
	}
	if len(f.Evidence) >= minProofs {
		f.Certainty = finding.Sure
	}
	m.addSnapshots(f)
	return nil
}

// snapshotFix is the fix of the number of snapshots and of where their table is, which stand side by
// side.
type snapshotFix struct{ fieldFix }

func (m *fieldMender) snapshotField() *snapshotFix {
	return &snapshotFix{*m.field(qcow2.FieldSnapshots, 60, 12)}
}

func (f *snapshotFix) set(count uint32, off uint64) {
	f.New = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, count), off)
}

func (m *fieldMender) addSnapshots(f *snapshotFix) {
	f.Proved = len(f.New) > 0 && len(f.Evidence) >= minProofs
	if f.Proved {
		f.Next = ""
	}
	if f.Evidence == nil {
		f.Evidence = []finding.Evidence{}
	}
	m.list = append(m.list, f.fieldFix)
}

// forgottenSnapshots looks for a snapshot table that the header does not name any more: it and its L1
// tables are leaked, and what they map is counted more often than it is referred to. res is what a
// check of the image found. The error is that of ctx.
func forgottenSnapshots(ctx context.Context, r io.ReaderAt, size int64, res *qcow2.Result) (
	[]fieldFix, error) {
	h := res.Header
	m := &fieldMender{r: r, size: size, head: make([]byte, headerEnd), list: []fieldFix{}}
	if res.Counts.Leaks == 0 || h.Snapshots != 0 || h.HasDataFile() {
		return m.list, ctx.Err()
	}
	if n, err := r.ReadAt(m.head, 0); n < len(m.head) {
		return nil, &qcow2.OpenError{Kind: qcow2.ErrRead, Msg: "the header", Cause: err}
	}
	tried, tables := 0, 0
	for _, s := range res.Suspects {
		if s.References != 0 {
			continue
		}
		for c := int64(s.First); c < int64(s.First)+s.N && tried < maxForgotten && tables < maxTables; c++ {
			if tried++; tried%64 == 0 && ctx.Err() != nil {
				return nil, ctx.Err()
			}
			n := m.forgottenAt(h, c<<h.ClusterBits, res)
			if n == 0 {
				continue
			}
			tables++
			if found, err := m.restore(ctx, res, c<<h.ClusterBits, n); err != nil || found {
				return m.list, err
			}
		}
	}
	return m.list, nil
}

// leaked reports whether the cluster at off is counted and not referred to.
func leaked(res *qcow2.Result, off int64) bool {
	c := off >> res.Header.ClusterBits
	i, _ := slices.BinarySearchFunc(res.Suspects, c, func(s qcow2.Suspect, c int64) int {
		return cmp.Compare(int64(s.First)+s.N-1, c)
	})
	return i < len(res.Suspects) && int64(res.Suspects[i].First) <= c && res.Suspects[i].References == 0
}

// forgottenAt counts the entries of a snapshot table at off whose L1 tables are leaked.
func (m *fieldMender) forgottenAt(h *qcow2.Header, off int64, res *qcow2.Result) uint32 {
	var first [8]byte
	if n, _ := m.r.ReadAt(first[:], off); n < len(first) || // a cluster that cannot be read is none
		!leaked(res, int64(binary.BigEndian.Uint64(first[:])&qcow2.OffsetMask)) {
		return 0
	}
	g := *h
	g.SnapshotsOff = uint64(off)
	n := uint32(0)
	for n < maxSnapshotsTried {
		g.Snapshots = n + 1
		t, err := qcow2.ReadSnapshots(m.image(), m.size, &g)
		if err != nil || int64(len(t.Snapshots)) != int64(n)+1 {
			break // what stands there is no further entry
		}
		s := &t.Snapshots[n]
		if s.ID == "" || s.L1Entries == 0 || s.L1Off <= 0 || g.CheckL1(s) != nil || !leaked(res, int64(s.L1Off)) {
			break
		}
		n++
	}
	return n
}

// restore tries a header that names the snapshot table at off, and reports whether that explains
// what was wrong.
func (m *fieldMender) restore(ctx context.Context, before *qcow2.Result, off int64, n uint32) (bool, error) {
	f := m.snapshotField()
	f.set(n, uint64(off))
	head := append([]byte{}, m.head...)
	copy(head[f.Offset:], f.New)
	after, err := qcow2.Check(ctx, headed{m.r, head}, m.size, qcow2.CheckOptions{DataFileBytes: -1})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return false, nil // with it the image cannot even be opened
	}
	was, is := &before.Counts, &after.Counts
	if is.Corruptions > was.Corruptions || is.CheckErrors > was.CheckErrors || is.Leaks >= was.Leaks {
		return false, nil
	}
	f.Code = finding.QC16.Code
	f.Certainty = finding.Likely
	f.Summary = fmt.Sprintf("the header names no snapshots, but a table of %d is there and counted: it was lost, or a crash cut their deletion off", n)
	f.proof("leaked cluster", off, "%d entries with names stand there, and their L1 tables are counted and not named either", n)
	if is.Leaks*10 <= was.Leaks && is.Corruptions <= was.Corruptions {
		f.proof("refcounts", -1, "with these snapshots %d leaked clusters are left of %d, and %d other faults of %d",
			is.Leaks, was.Leaks, is.Corruptions, was.Corruptions)
	}
	m.list = append(m.list, f.fieldFix) // never proved; see mendForgotten
	return true, nil
}
