// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Where the refcount table was lost, its blocks are found by what they hold: qemu makes a block so that it
// counts itself (alloc_refcount_block in block/qcow2-refcount.c, QEMU 8.2), and all else that it says is
// what its successor says, but for what was made since and what nothing refers to. A leaked cluster like
// that is an old refcount block; one that names such blocks and nothing else is an old refcount table.

// minOldCounts is how many clusters an old block must count.
const minOldCounts = 16

// oldStructure gives the leaked clusters that are refcount blocks and tables of before, reading no more
// than limit bytes of leaked clusters, 0: any number.
func (m *mender) oldStructure(ctx context.Context, limit int64) (map[int64]bool, error) {
	if m.old != nil {
		return m.old, nil
	}
	old := map[int64]bool{}
	var rest []int64 // what may be a table
	buf := make([]byte, m.h.ClusterSize())
	var read int64
	err := m.eachLeak(ctx, func(c int64) error {
		zero, err := m.readsZero(ctx, c, buf)
		if zero || err != nil {
			return err
		}
		if read += int64(len(buf)); limit > 0 && read > limit {
			return nil
		}
		switch is, err := m.isOldBlock(c, buf); {
		case err != nil:
			return err
		case is:
			old[c] = true
		case len(rest) < maxOldTables:
			rest = append(rest, c)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	blocks := maps.Clone(old)
	named := make([]byte, len(buf))
	for _, c := range rest {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
			return nil, err
		}
		is, err := m.namesOnly(blocks, buf, named)
		if err != nil {
			return nil, err
		}
		if is {
			old[c] = true
		}
	}
	m.old = old
	return old, nil
}

// maxOldTables bounds the leaked clusters that are looked at for an old refcount table.
const maxOldTables = 1 << 14

// eachLeak calls fn for the clusters that are counted and that nothing refers to.
func (m *mender) eachLeak(ctx context.Context, fn func(c int64) error) error {
	for _, s := range m.ex.Result().Suspects {
		for c := int64(s.First); c < int64(s.First)+s.N && s.References == 0; c++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// isOldBlock reports whether p, the content of leaked cluster c, is an old refcount block.
func (m *mender) isOldBlock(c int64, p []byte) (bool, error) {
	per, order := m.h.RefblockEntries(), m.h.RefcountOrder
	no := c / per
	first := no * per
	table := m.ex.RefcountTable()
	if no >= int64(len(table)) || m.bad[no] != blockSound || qcow2.RefcountAt(p, c-first, order) != 1 {
		return false, nil
	}
	at := int64(qcow2.RefblockOffset(table[no]))
	if at <= 0 || at&(m.h.ClusterSize()-1) != 0 || at+m.h.ClusterSize() > m.ov.size {
		return false, nil
	}
	now, err := m.block(at)
	if err != nil {
		return false, err
	}
	counts := 0
	for i := range per {
		was := qcow2.RefcountAt(p, i, order)
		switch {
		case was == qcow2.RefcountAt(now, i, order):
			if was > 0 {
				counts++
			}
		case m.ex.References(first+i) > 0 && (first+i)<<m.h.ClusterBits < m.ov.baseSize && (was > 0 || !m.refcounts(first+i)):
			return false, nil
		}
	}
	return counts >= minOldCounts, nil
}

// refcounts reports whether a cluster is of the refcount structure.
func (m *mender) refcounts(c int64) bool {
	return slices.ContainsFunc(m.ex.OwnersOf(c), func(who string) bool { return who == refcountTable || who == refcountBlock })
}

// namesOnly reports whether the words of p name old refcount blocks, and nothing else. Those known are in
// blocks; others may be counted as free already. buf has room for one.
func (m *mender) namesOnly(blocks map[int64]bool, p, buf []byte) (some bool, err error) {
	for i := 0; i < len(p); i += 8 {
		w := binary.BigEndian.Uint64(p[i:])
		c := int64(w >> m.h.ClusterBits)
		if w == 0 {
			continue
		}
		if w&uint64(m.h.ClusterSize()-1) != 0 || w >= uint64(m.ov.size) || m.ex.References(c) > 0 {
			return false, nil
		}
		is, known := blocks[c]
		if !known {
			if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
				return false, err
			}
			if is, err = m.isOldBlock(c, buf); err != nil {
				return false, err
			}
			blocks[c] = is
		}
		if !is {
			return false, nil
		}
		some = true
	}
	return some, nil
}

// tellOld says of leaks which of them were refcount blocks and tables, "" if none.
func (m *mender) tellOld() string {
	if len(m.old) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of them are old refcount blocks and tables, in whose place there are new ones: --reclaim frees them", len(m.old))
}
