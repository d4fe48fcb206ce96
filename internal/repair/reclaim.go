// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
)

// reclaim counts leaked clusters as free that are proved to be worthless:
//
//	zero   it reads as zeros
//	tail   it lies behind everything in use, nothing is lost elsewhere, and nothing of that tail
//	       reads as a table
//	equal  a cluster in use holds the same (CompareData)
//
// The clusters stay as they are: nothing is punched out of the file.
func (m *mender) reclaim(ctx context.Context) (changed bool, err error) {
	if !m.opts.reclaims() || !m.ex.Complete() {
		return false, nil
	}
	lost := finding.Worst(m.ex.Result().Findings) == finding.Lost || m.lostHere()
	top := m.topReferenced(ctx)
	tables, err := m.tailTables(ctx, top)
	if err != nil {
		return false, err
	}
	var equal map[int64]bool
	if m.opts.CompareData {
		if equal, err = m.equalLeaks(ctx); err != nil {
			return false, err
		}
	}
	buf := make([]byte, m.h.ClusterSize())
	for _, s := range m.ex.Result().Suspects {
		if s.Refcount <= s.References {
			continue
		}
		if s.References > 0 {
			continue // lowerExcess
		}
		for c := int64(s.First); c < int64(s.First)+s.N; c++ {
			if c&0xff == 0 && ctx.Err() != nil {
				return changed, ctx.Err()
			}
			if m.bad[c/m.h.RefblockEntries()] {
				continue
			}
			zero, err := m.readsZero(ctx, c, buf)
			if err != nil {
				return changed, err
			}
			what := ""
			switch {
			case zero:
				what = "count leaked clusters as free that read as zeros"
			case c > top && !lost && !tables:
				what = "count leaked clusters as free that lie behind everything in use: left by a crash"
			case equal[c]:
				what = "count leaked clusters as free that hold what a cluster in use holds"
			default:
				m.keep(finding.QC03, "nothing explains what these clusters hold, so they are not freed")
				continue
			}
			done, err := m.setRefcounts(plan.Lower, c, 1, 0)
			if err != nil {
				return changed, err
			}
			if done {
				changed = true
				m.at(m.step(finding.QC03, "reclaim", what, finding.Sure), c<<m.h.ClusterBits, m.h.ClusterSize())
			}
		}
	}
	return changed, nil
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
