// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// ownerMap is what all of a volume is for.
type ownerMap struct {
	s    *second
	list []files.Owner
	left map[int64]int64 // parts that are free by us and not yet by dumpe2fs: from, to
}

// owners asks for all of the volume.
func (s *second) owners() *ownerMap {
	s.Helper()
	end := s.fs.meta.size
	m := &ownerMap{s: s, list: allOwners(s.T, s.fs, []files.Range{{Length: end}}, end),
		left: map[int64]int64{}}
	var last int64
	for _, o := range m.list {
		switch {
		case o.Use != files.UseFree:
		case last > 0 && m.left[last] == o.Range.Offset:
			m.left[last] += o.Range.Length
		default:
			last = o.Range.Offset
			m.left[last] = last + o.Range.Length
		}
	}
	return m
}

// at gives who has a place.
func (m *ownerMap) at(off int64) files.Owner {
	i := sort.Search(len(m.list), func(i int) bool {
		return m.list[i].Range.Offset+m.list[i].Range.Length > off
	})
	if i == len(m.list) {
		return files.Owner{}
	}
	return m.list[i]
}

// free is told a part that dumpe2fs calls free. It ends at the end of a group, where ours go on.
func (m *ownerMap) free(from, to int64) {
	m.s.Helper()
	end, found := m.left[from]
	if to = min(to, m.s.fs.super.blocks*m.s.fs.super.blockBytes); !found || end < to {
		m.s.Errorf("0x%x to 0x%x is free by dumpe2fs, and by us from 0x%x to 0x%x", from, to, from, end)
		return
	}
	delete(m.left, from)
	if to < end {
		m.left[to] = end
	}
}

// noneFree requires that dumpe2fs called free what we call free.
func (m *ownerMap) noneFree() {
	m.s.Helper()
	for from, to := range m.left {
		m.s.Errorf("0x%x to 0x%x is free by us, and not by dumpe2fs", from, to)
	}
}

// blocks compares who has each block with "icheck", but for free ones and those that dumpe2fs
// placed already.
func (s *second) blocks() {
	s.Helper()
	size := s.fs.super.blockBytes
	owners := map[int64][]files.Owner{}
	for _, o := range s.owners().list {
		if o.Use == files.UseFree || o.Use == files.UseOutside || o.Use == files.UseMetadata && o.Ino == 0 {
			continue
		}
		for at := o.Range.Offset; at < o.Range.Offset+o.Range.Length; at += size {
			owners[at/size] = append(owners[at/size], o)
		}
	}
	commands, line := []string(nil), "icheck"
	for block := range owners {
		line += fmt.Sprintf(" %d", block)
		if len(line) > 7000 {
			commands, line = append(commands, line), "icheck"
		}
	}
	compared := 0
	for _, answer := range s.ask(append(commands, line)) {
		_, answer, _ = strings.Cut(answer, "\n")
		for text := range strings.Lines(answer) {
			first, who, _ := strings.Cut(strings.TrimSpace(text), "\t")
			block, ino := s.number(first, 10), files.Ino(0)
			if who != "<block not found>" {
				ino = files.Ino(s.number(who, 10))
			}
			compared++
			if !slices.ContainsFunc(owners[block], func(o files.Owner) bool {
				// Of a cluster, debugfs knows the blocks that are in a map alone.
				return o.Ino == ino || ino == 0 && o.What == "rest of a cluster"
			}) {
				s.Errorf("block %d is of %+v, debugfs says inode %d", block, owners[block], ino)
			}
		}
	}
	if compared != len(owners) || compared < 2000 {
		s.Errorf("debugfs told of %d blocks, want %d", compared, len(owners))
	}
}
