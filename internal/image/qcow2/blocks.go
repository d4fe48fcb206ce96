// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// A refcount block counts as damaged as a whole if so many of its refcounts are wrong, and they are
// all zero, or half of them higher than their references by more than the disk and its snapshots can
// have left behind. A short file may have fewer clusters; then half of them must be wrong.
const minDamaged = 16

// maxForgotten is how many snapshots the header may have lost, so that refcounts that are higher by no
// more may make sense where none is too low.
const maxForgotten = 32

// explainBlocks reports refcount blocks that cannot be used or hold something else. What follows
// from them, thousands of wrong refcounts each, is one finding.
func (c *checker) explainBlocks(ev *evidence) {
	per := c.h.RefblockEntries()
	damaged := map[int64]string{}
	for _, b := range c.badBlocks {
		damaged[b.index] = b.why
	}
	for i := 0; i < len(c.suspects); {
		block := int64(c.suspects[i].First) / per
		j := i
		for j < len(c.suspects) && int64(c.suspects[j].First)/per == block {
			j++
		}
		if _, known := damaged[block]; !known {
			if why := c.blockDamage(ev, block, c.suspects[i:j]); why != "" {
				damaged[block] = why
			}
		}
		i = j
	}
	list := make([]int64, 0, len(damaged))
	for b := range damaged {
		list = append(list, b)
	}
	slices.Sort(list)
	c.damaged = list
	for _, b := range list {
		low, high := c.wrongIn(b)
		f := c.newFinding(finding.QC15, finding.Sure, "block", fmt.Sprintf(
			"refcount block %d cannot be trusted: %s; %s too low, %d too high",
			b, damaged[b], plural(low, "cluster in use is counted", "clusters in use are counted"), high))
		f.Count = low + high
		if last := min((b+1)*per, int64(c.clusters)) - 1; last >= b*per { // else it covers nothing of the file
			f.Host = []finding.Range{c.hostRange(span{b * per, last})}
		}
		if b < int64(len(c.reftable)) {
			f.Evidence = append(f.Evidence, finding.Evidence{Source: "refcount table",
				Offset: int64(c.h.ReftableOff) + 8*b, Value: hex64(c.reftable[b]),
				Text: fmt.Sprintf("entry %d", b)})
		}
		c.tell(f)
	}
}

// blockDamage says what is wrong with a block as a whole, "" if its faults are single ones.
func (c *checker) blockDamage(ev *evidence, block int64, suspects []Suspect) string {
	var wrong, low, zero, strange, far int64
	for _, s := range suspects {
		wrong += s.N
		if s.Refcount == 0 {
			zero += s.N
		}
		switch {
		case s.Refcount < s.References:
			low += s.N
		case s.Refcount > s.References+uint64(c.snapshots.Len())+maxForgotten:
			far += s.N
			fallthrough
		case s.Refcount > s.References+uint64(c.snapshots.Len())+1:
			strange += s.N
		}
	}
	if low*64 < wrong { // snapshots that the header lost make refcounts higher, and none lower
		strange = far
	}
	named := block < int64(len(c.reftable)) && c.reftable[block]&reftableOffMask != 0
	switch {
	case !named && zero == wrong:
		return "the refcount table does not name it"
	case zero == wrong && c.blockIsZero(ev, block):
		return "it holds only zeros"
	case wrong < minDamaged && wrong*2 < min(c.h.RefblockEntries(), int64(c.clusters)-block*c.h.RefblockEntries()):
		return ""
	case strange*2 >= wrong:
		return "its refcounts make no sense, as if something else was written there"
	}
	return ""
}

// blockIsZero reports whether a block holds only zeros, where that does not stand among its faults
// already: its first cluster is in use.
func (c *checker) blockIsZero(ev *evidence, block int64) bool {
	if _, suspect := c.suspectOf(block * c.h.RefblockEntries()); suspect {
		return false
	}
	ev.blocks.Lock()
	defer ev.blocks.Unlock()
	return c.loadBlock(&ev.blocks, block) && skipZeros(ev.blocks.buf, 0) >= len(ev.blocks.buf)
}

// wrongIn counts the clusters of a block with too low and too high refcounts.
func (c *checker) wrongIn(block int64) (low, high int64) {
	per := c.h.RefblockEntries()
	i, _ := slices.BinarySearchFunc(c.suspects, block*per, func(s Suspect, x int64) int { return cmp.Compare(int64(s.First), x) })
	for ; i < len(c.suspects) && int64(c.suspects[i].First) < (block+1)*per; i++ {
		if s := c.suspects[i]; s.Refcount < s.References {
			low += s.N
		} else {
			high += s.N
		}
	}
	return low, high
}

// inBadBlock reports whether the refcount of a cluster is explained by its damaged block.
func (c *checker) inBadBlock(cluster int64) bool {
	_, ok := slices.BinarySearch(c.damaged, cluster/c.h.RefblockEntries())
	return ok
}
