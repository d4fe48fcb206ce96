// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"slices"
	"unicode/utf8"
)

const (
	// maxSnapshotID and maxSnapshotName bound what is taken for an entry of a snapshot table; qemu
	// numbers its snapshots.
	maxSnapshotID   = 64
	maxSnapshotName = 256
	// maxSnapshotGuess bounds the entries read of what may be a snapshot table.
	maxSnapshotGuess = 4096
)

// snapshotGuess is a snapshot table as it may be.
type snapshotGuess struct {
	off       int64
	snapshots []Snapshot
	owned     bool // its first cluster is counted once
}

// snapshotAt reports whether a snapshot has its L1 table at off. Tables that are counted by the
// refcounts go before those of which only the words are left.
func (g *guess) snapshotAt(off int64) bool {
	if len(g.snaps) == 0 {
		return false
	}
	for i := range g.snaps[0].snapshots {
		x := &g.snaps[0].snapshots[i]
		end := int64(x.L1Off) + max(x.L1Entries*8, 1)
		end = (end + 1<<g.bits - 1) &^ (1<<g.bits - 1)
		if int64(x.L1Off) <= off && off < end {
			return true
		}
	}
	return false
}

// findSnapshots finds the snapshot tables for the cluster size and refcounts of g, the best first.
func (s *scout) findSnapshots(ctx context.Context, g *guess) error {
	g.snaps = nil
	at := s.snapAt
	if old := int64(s.old64(64)) &^ (1<<g.bits - 1); old > 0 && old < s.size && s.old32(60) != 0 {
		at = append([]int64{old}, slices.DeleteFunc(slices.Clone(at), func(x int64) bool { return x == old })...)
	}
	for _, off := range at {
		if err := ctx.Err(); err != nil {
			return err
		}
		if off&(1<<g.bits-1) != 0 {
			continue
		}
		x := s.snapshotsAt(g, off)
		if len(x.snapshots) == 0 {
			continue
		}
		g.snaps = append(g.snaps, x)
		if k := len(g.snaps) - 1; k > 0 && x.better(&g.snaps[0]) {
			g.snaps[0], g.snaps[k] = g.snaps[k], g.snaps[0]
		}
	}
	return nil
}

func (x *snapshotGuess) better(o *snapshotGuess) bool {
	if x.owned != o.owned {
		return x.owned
	}
	return len(x.snapshots) > len(o.snapshots)
}

// snapshotsAt reads what may be a snapshot table up to the first entry that cannot be one.
func (s *scout) snapshotsAt(g *guess, off int64) snapshotGuess {
	x := snapshotGuess{off: off}
	h := &Header{ClusterBits: g.bits}
	w := &window{r: s.r, size: s.size, step: sectorBytes}
	x.owned = g.refs != nil && s.refcount(g.refs, off>>g.bits) == 1
	ids := map[string]bool{}
	for pos := off; len(x.snapshots) < maxSnapshotGuess && pos < s.size; {
		e, err := h.readSnapshot(w, pos, int64(len(x.snapshots)))
		if err != nil || !s.plausible(g, &e) || ids[e.ID] {
			break // what follows the table need not be readable as one
		}
		ids[e.ID] = true
		x.snapshots = append(x.snapshots, e)
		pos += (e.EntryBytes + 7) &^ 7
	}
	return x
}

// plausible reports whether e can be a snapshot of this image: its L1 table must be one.
func (s *scout) plausible(g *guess, e *Snapshot) bool {
	off, cs := int64(e.L1Off), int64(1)<<g.bits
	if off <= 0 || off&(cs-1) != 0 || off >= s.size || e.L1Entries < 1 || e.L1Entries > MaxL1Bytes/8 ||
		e.ExtraBytes%8 != 0 || e.ID == "" || len(e.ID) > maxSnapshotID || len(e.Name) > maxSnapshotName ||
		!readable(e.ID) || !readable(e.Name) {
		return false
	}
	if g.refs != nil && s.refcount(g.refs, off>>g.bits) == 0 {
		return false
	}
	for i := range min(e.L1Entries, cs/8, maxPointers) {
		if w := s.word(off + 8*i); w != 0 && !s.l1Entry(g, w) {
			return false
		}
	}
	return true
}

// readable reports whether s is text without control characters.
func readable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return false
		}
	}
	return true
}

// bitmapGuess is a bitmap directory as it may be.
type bitmapGuess struct {
	off, bytes int64
	bitmaps    []Bitmap
	owned      bool
}

// bitmapsAt reads what may be a bitmap directory up to the first entry that cannot be one.
func (s *scout) bitmapsAt(g *guess, off int64) bitmapGuess {
	x := bitmapGuess{off: off}
	x.owned = g.refs != nil && s.refcount(g.refs, off>>g.bits) == 1
	h := &Header{ClusterBits: g.bits, Bitmaps: &BitmapsExt{Count: MaxBitmaps}}
	d := bitmapDir{h: h, w: window{r: s.r, size: s.size, step: sectorBytes},
		end: off + min(MaxBitmapDirBytes, s.size-off)}
	names := map[string]bool{}
	for pos := off; pos < d.end; {
		next, err := d.entry(pos)
		if err != nil {
			break // what follows the directory need not be readable as one
		}
		b := &d.bitmaps[len(d.bitmaps)-1]
		at := int64(b.TableOff)
		if !readable(b.Name) || b.Name == "" || names[b.Name] || at >= s.size ||
			g.refs != nil && s.refcount(g.refs, at>>g.bits) == 0 {
			d.bitmaps = d.bitmaps[:len(d.bitmaps)-1]
			break
		}
		names[b.Name] = true
		pos = next
		x.bytes = pos - off
	}
	x.bitmaps = d.bitmaps
	return x
}
