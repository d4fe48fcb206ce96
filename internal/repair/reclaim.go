// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// reclaim counts leaked clusters as free that are proved to be worthless:
//
//	zero   it reads as zeros
//	old    it is part of an old refcount structure; see oldStructure
//	bitmap it belongs to a bitmap that is invalid; see qcow2.Exam.BitmapLeaks
//	tail   it is left by a crash; see crashTail
//	equal  a cluster in use holds the same (CompareData)
//
// None is freed that another leaked cluster may refer to, and where something is wrong elsewhere only
// those that read as zeros. The clusters stay as they are: nothing is punched out of the file.
func (m *mender) reclaim(ctx context.Context) (changed bool, err error) {
	if !m.opts.reclaims() || !m.ex.Complete() {
		return false, nil
	}
	if !slices.ContainsFunc(m.ex.Result().Suspects, func(s qcow2.Suspect) bool { return s.References == 0 }) {
		return false, nil
	}
	if f, err := m.forgotten(ctx); f != nil || err != nil {
		return false, err
	}
	w, err := m.newWorth(ctx)
	if err != nil {
		return false, err
	}
	err = m.eachLeak(ctx, func(c int64) error {
		if m.bad[c/m.h.RefblockEntries()] != blockSound {
			return nil
		}
		what, sure, err := w.less(ctx, c)
		if what == "" || err != nil {
			return err
		}
		done, err := m.setRefcounts(plan.Lower, c, 1, 0)
		if done {
			changed = true
			m.at(m.step(plan.Lower, finding.QC03, "reclaim", what, sure), c<<m.h.ClusterBits, m.h.ClusterSize())
		}
		return err
	})
	return changed, err
}

// worth tells what leaked clusters are worth.
type worth struct {
	m *mender
	// names are the clusters that others may refer to, old those of an old refcount structure, and equal
	// those that a cluster in use is the same as.
	names      *leakNames
	old, equal map[int64]bool
	// tail: what lies behind top is left by a crash. sound: nothing is wrong elsewhere.
	top         int64
	tail, sound bool
	buf         []byte
}

func (m *mender) newWorth(ctx context.Context) (*worth, error) {
	w := &worth{m: m, top: m.topReferenced(ctx), buf: make([]byte, m.h.ClusterSize())}
	res := m.ex.Result()
	w.sound = finding.Worst(res.Findings) != finding.Lost && !m.lostHere() &&
		res.Counts.Corruptions+res.Counts.CheckErrors == 0
	var err error
	if w.old, err = m.oldStructure(ctx, 0); err != nil {
		return nil, err
	}
	if w.names, err = m.namedByLeaks(ctx, 0); err != nil {
		return nil, err
	}
	if w.tail, err = m.crashTail(ctx, w.top); err != nil {
		return nil, err
	}
	if m.opts.CompareData && w.sound {
		w.equal, err = m.equalLeaks(ctx)
	}
	return w, err
}

// less says why leaked cluster c is worthless, "" if it may not be.
func (w *worth) less(ctx context.Context, c int64) (what string, sure finding.Certainty, err error) {
	if w.names.has(c) {
		w.m.keep(finding.QC03, "another leaked cluster may refer to some of these, so they are not freed")
		return "", "", nil
	}
	zero, err := w.m.readsZero(ctx, c, w.buf)
	switch {
	case err != nil:
		return "", "", err
	case zero:
		return "count leaked clusters as free that read as zeros", finding.Sure, nil
	case w.sound && w.m.ofBitmap(c):
		return "count leaked clusters as free that belong to bitmaps which are invalid", finding.Sure, nil
	case w.sound && w.old[c]:
		return "count old refcount blocks and tables as free, in whose place there are new ones", finding.Sure, nil
	case w.sound && w.tail && c > w.top:
		return "count leaked clusters as free that lie behind everything in use: left by a crash", finding.Likely, nil
	case w.equal[c]:
		return "count leaked clusters as free that hold what a cluster in use holds", finding.Sure, nil
	}
	w.m.keep(finding.QC03, "nothing explains what these clusters hold, so they are not freed")
	return "", "", nil
}

// topReferenced is the last cluster that something refers to.
func (m *mender) topReferenced(ctx context.Context) int64 {
	top := int64(-1)
	if err := m.ex.EachReferenced(ctx, func(first, n int64, _ uint64) error {
		top = first + n - 1
		return nil
	}); err != nil {
		return m.ex.Limit() // stopped: then nothing is a tail
	}
	return top
}

// readsZero reports whether a cluster reads as zeros.
func (m *mender) readsZero(ctx context.Context, c int64, buf []byte) (bool, error) {
	off := c << m.h.ClusterBits
	if off >= m.ov.size {
		return true, nil
	}
	hole := true
	err := m.ov.Data(ctx, off, min(m.h.ClusterSize(), m.ov.size-off), func(int64, int64) error {
		hole = false
		return nil
	})
	if hole || err != nil {
		return err == nil, err
	}
	if err := m.readCluster(buf, off); err != nil {
		return false, err
	}
	return len(bytes.TrimLeft(buf, "\x00")) == 0, nil
}

// crashTail reports whether the leaked clusters are what a crash leaves that comes before they are
// mapped: all that hold something lie behind everything in use, are fewer than those, and hold no
// table; and no table has lost the entries that could have mapped them.
func (m *mender) crashTail(ctx context.Context, top int64) (bool, error) {
	used, tail := int64(0), int64(0)
	if err := m.ex.EachReferenced(ctx, func(_, n int64, _ uint64) error {
		used += n
		return nil
	}); err != nil {
		return false, err
	}
	buf := make([]byte, m.h.ClusterSize())
	for _, s := range m.ex.Result().Suspects {
		if s.References > 0 {
			continue
		}
		for c := int64(s.First); c < int64(s.First)+s.N; c++ {
			if m.ofBitmap(c) || m.old[c] {
				continue
			}
			if c > top {
				tail++
				continue
			}
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if zero, err := m.readsZero(ctx, c, buf); !zero || err != nil {
				return false, err
			}
		}
	}
	if m.h.Bitmaps != nil && !m.h.Bitmaps.Trusted && tail > 0 {
		return false, nil // it may be what cannot be read of a bitmap
	}
	if tail >= used || slices.ContainsFunc(m.tables, func(tb qcow2.Table) bool { return tb.Active > 0 && tb.Used == 0 }) ||
		!m.entriesEndAt(top) {
		return false, nil
	}
	tables, err := m.tailTables(ctx, top)
	return !tables, err
}

// entriesEndAt reports whether the entries of the table that maps the last cluster in use end where
// the guest stopped writing. Where they end with a sector of the table, the sectors behind may have
// been wiped, and with them the map of what lies behind on the host.
func (m *mender) entriesEndAt(top int64) bool {
	hits := m.entriesAt(top, 1)
	if len(hits) == 0 {
		return false // a table, or not known
	}
	for _, e := range hits {
		next := int64(e.Off) + m.h.L2EntryBytes()
		if next%plan.SectorBytes != 0 || next&(m.h.ClusterSize()-1) == 0 {
			continue
		}
		if w, err := m.get64(next); err != nil || w == 0 {
			return false
		}
	}
	return true
}

// ofBitmap reports whether a leaked cluster belongs to a bitmap that is invalid.
func (m *mender) ofBitmap(c int64) bool {
	_, ok := slices.BinarySearch(m.ex.BitmapLeaks(), c)
	return ok
}

// leakNames are the clusters that the content of leaked ones may refer to, as an L1 or L2 table would.
type leakNames struct {
	clusters map[int64]bool
	// all: there was more than could be looked at, so it may be any.
	all bool
}

func (n *leakNames) has(c int64) bool { return n.all || n.clusters[c] }

// maxLeakNames bounds the clusters of leakNames that are kept, about 40 bytes each.
const maxLeakNames = 1 << 22

// namedByLeaks looks for what may be a table that was lost. It looks at every word of the leaked
// clusters: an L1 table of a small disk has but one. limit bounds what is read, 0: all.
func (m *mender) namedByLeaks(ctx context.Context, limit int64) (*leakNames, error) {
	if m.leakNames != nil {
		return m.leakNames, nil
	}
	n := &leakNames{clusters: map[int64]bool{}}
	buf := make([]byte, m.h.ClusterSize())
	var read int64
	for _, s := range m.ex.Result().Suspects {
		if s.References > 0 {
			continue
		}
		for c := int64(s.First); c < int64(s.First)+s.N; c++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if m.ofBitmap(c) || m.old[c] {
				continue
			}
			zero, err := m.readsZero(ctx, c, buf)
			if err != nil {
				return nil, err
			}
			if zero {
				continue
			}
			if read += int64(len(buf)); limit > 0 && read > limit || len(n.clusters) > maxLeakNames {
				n.all = true
				break
			}
			m.namesIn(n, c, buf)
		}
	}
	m.leakNames = n
	return n, nil
}

// namesIn adds what the words of leaked cluster c may refer to.
func (m *mender) namesIn(n *leakNames, c int64, p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		w := binary.BigEndian.Uint64(p[i:])
		off, length := int64(w&qcow2.OffsetMask), int64(1)
		switch {
		case w&qcow2.FlagCompressed != 0:
			o, k := m.h.CompressedRange(w)
			off, length = int64(o), k
		case w&^(qcow2.FlagCopied|qcow2.FlagZero|qcow2.OffsetMask) != 0 || off&(m.h.ClusterSize()-1) != 0:
			continue
		}
		if off <= 0 || off+length > m.ov.size {
			continue
		}
		for k := off >> m.h.ClusterBits; k <= (off+length-1)>>m.h.ClusterBits; k++ {
			if r, ok := m.ex.Refcount(k); ok && k != c && r > m.ex.References(k) {
				n.clusters[k] = true
			}
		}
	}
}

// tailTables reports whether a leaked cluster behind top reads as a table.
func (m *mender) tailTables(ctx context.Context, top int64) (bool, error) {
	for _, s := range m.ex.Result().Suspects {
		if s.References > 0 {
			continue
		}
		for c := max(int64(s.First), top+1); c < int64(s.First)+s.N; c++ {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if m.ofBitmap(c) || m.old[c] {
				continue
			}
			table, err := m.ex.LooksLikeTable(c)
			if table || err != nil {
				return table, err
			}
		}
	}
	return false, nil
}

// equalLeaks gives the leaked clusters whose bytes a cluster in use has as well.
func (m *mender) equalLeaks(ctx context.Context) (map[int64]bool, error) {
	const maxLeaks = 1 << 20
	cs := m.h.ClusterSize()
	buf, other := make([]byte, cs), make([]byte, cs)
	leaks := map[uint32][]int64{} // by checksum
	n := 0
	for _, s := range m.ex.Result().Suspects {
		if s.Refcount <= s.References || s.References > 0 {
			continue
		}
		for c := int64(s.First); c < int64(s.First)+s.N && n < maxLeaks; c++ {
			if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
				return nil, err
			}
			sum := plan.Checksum(buf)
			leaks[sum] = append(leaks[sum], c)
			n++
		}
	}
	found := map[int64]bool{}
	if n == 0 {
		return found, nil
	}
	err := m.ex.EachReferenced(ctx, func(first, n int64, _ uint64) error {
		for c := first; c < first+n; c++ {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if len(m.ex.OwnersOf(c)) > 0 {
				continue
			}
			if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
				return err
			}
			for _, l := range leaks[plan.Checksum(buf)] {
				if found[l] {
					continue
				}
				if err := m.readCluster(other, l<<m.h.ClusterBits); err != nil {
					return err
				}
				found[l] = bytes.Equal(buf, other)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare leaked clusters with those in use: %w", err)
	}
	return found, nil
}
