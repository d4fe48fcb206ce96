// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// An L2 table that no L1 entry names holds the map of a part of the disk. It is put back where two
// independent observations say the same; where one does, only if the user names the place.
//
//	snapshot   a snapshot has the table at that L1 entry, and its refcount counts one user more
//	guest      blocks of the guest's file systems that say where they lie
//	only       it is the only L1 entry without a table, and this the only table without an entry
//	order      tables are made in the order of the disk mostly: the neighbours on both sides say so
//	named      the L1 entry names a cluster that this table maps: it was overwritten

// proof is one observation that says where a table belongs.
type proof struct {
	kind string
	slot int64
	text string
	// weight is 2 for what counts as two observations, and 0 for what only makes the place possible.
	weight int
}

// candidate is a table that looks for its entry.
type candidate struct {
	cluster int64
	text    string // what is known of the table
	proofs  []proof
}

// mendOrphans puts L2 tables back into the active L1 table.
func (m *mender) mendOrphans(ctx context.Context) (changed bool, err error) {
	if !m.opts.wants(finding.QC13) {
		return false, nil
	}
	list, err := m.candidates(ctx)
	if err != nil || len(list) == 0 {
		return false, err
	}
	// What snapshots had that are forgotten is not to be taken for the disk's.
	forgot, err := m.forgotten(ctx)
	if err != nil {
		return false, err
	}
	taken := map[int64]int64{} // by slot: how many tables are proved to belong there
	for _, c := range list {
		if slot, ok := m.slotOf(c); ok {
			taken[slot]++
		}
	}
	for _, c := range list {
		slot, ok := m.slotOf(c)
		if _, asked := m.opts.Place[c.cluster<<m.h.ClusterBits]; forgot != nil && !asked {
			continue // the advice is about them
		}
		switch {
		case m.placed[c.cluster]:
			continue
		case ok && taken[slot] > 1:
			m.keptTables[c.cluster<<m.h.ClusterBits] = fmt.Sprintf(
				"%d tables claim L1 entry %d; choose one with --place", taken[slot], slot)
			continue
		case !ok:
			m.keptTables[c.cluster<<m.h.ClusterBits] = m.advice(c)
			continue
		}
		if err := m.place(c, slot); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// slotOf is the L1 entry that a table is put into: the one that the user names, or the one that two
// observations agree on while none speaks against it.
func (m *mender) slotOf(c candidate) (int64, bool) {
	if slot, ok := m.opts.Place[c.cluster<<m.h.ClusterBits]; ok {
		return slot, true
	}
	weight := map[int64]int{}
	for _, p := range c.proofs {
		if p.weight > 0 {
			weight[p.slot] += p.weight
		}
	}
	if len(weight) != 1 {
		return 0, false
	}
	for slot, w := range weight {
		return slot, w >= 2
	}
	return 0, false
}

// advice says what would put a table back that is not proved to belong anywhere.
func (m *mender) advice(c candidate) string {
	off := c.cluster << m.h.ClusterBits
	var say []string
	told := map[int64]bool{}
	weight := 0
	for _, p := range c.proofs {
		weight = max(weight, p.weight)
	}
	for _, p := range c.proofs {
		if !told[p.slot] && (p.weight > 0 || weight == 0) {
			told[p.slot] = true
			say = append(say, fmt.Sprintf("--place %#x=%d (%s)", off, p.slot, p.text))
		}
	}
	switch {
	case len(say) == 0:
		return fmt.Sprintf("nothing proves where the table at %#x belongs; if you know it, use --place %#x=L1INDEX", off, off)
	case weight == 0:
		return fmt.Sprintf("nothing proves where the table at %#x belongs; possible are: %s", off, strings.Join(say, "; "))
	case len(say) > 1:
		return fmt.Sprintf("observations contradict each other about where the table at %#x belongs; choose one of: %s",
			off, strings.Join(say, "; "))
	}
	return fmt.Sprintf("one observation only says where the table at %#x belongs; to put it there, use %s", off, say[0])
}

// place names a table in an L1 entry.
func (m *mender) place(c candidate, slot int64) error {
	if slot < 0 || slot >= m.h.L1Entries {
		return fmt.Errorf("L1 entry %d, the table has %d entries", slot, m.h.L1Entries)
	}
	m.placed[c.cluster] = true
	delete(m.l1Lost, slot)
	m.volumes = nil // there is more to see of the disk now
	off := int64(m.h.L1Off) + 8*slot
	old, err := m.get64(off)
	if err != nil {
		return err
	}
	word := uint64(c.cluster) << m.h.ClusterBits
	if m.ex.References(c.cluster) == 0 {
		word |= qcow2.FlagCopied
	}
	sure := finding.Sure
	_, asked := m.opts.Place[c.cluster<<m.h.ClusterBits]
	if asked {
		sure = finding.Possible
	}
	st := m.step(plan.Point, finding.QC13, "relink", fmt.Sprintf("put the L2 table at %#x back into L1 entry %d",
		c.cluster<<m.h.ClusterBits, slot), sure)
	m.at(st, off, 8)
	m.guest(st, m.l1Range(slot))
	m.proof(st, "L1 entry", off, hex64(old), "becomes "+hex64(word))
	m.proof(st, "leaked cluster", c.cluster<<m.h.ClusterBits, "", c.text)
	for _, p := range c.proofs {
		m.askedGuest = m.askedGuest || p.kind == guestProof
		if p.weight > 0 || asked && p.slot == slot {
			m.proof(st, p.kind, -1, fmt.Sprint(p.slot), p.text)
		}
	}
	if asked {
		m.proof(st, "user", -1, fmt.Sprint(slot), "the place was given on the command line")
	}
	return m.put64(plan.Point, off, word)
}

const (
	// maxAsked bounds the tables for which the guest's blocks are asked.
	maxAsked = 1 << 14
	// guestBytes bounds about what is read of the guest's data for all of them.
	guestBytes = 64 << 30
)

// candidates gathers tables without an entry, with what says where they belong.
func (m *mender) candidates(ctx context.Context) ([]candidate, error) {
	l1 := m.newSlots()
	orphans := m.ex.Orphans()
	var list []candidate
	for i, o := range orphans {
		c := candidate{cluster: o.Cluster, text: fmt.Sprintf(
			"%d of its %d entries lead to clusters that nothing else maps", o.Inside, o.Entries)}
		c.proofs = l1.proofs(o, i, len(orphans))
		list = append(list, c)
	}
	list = append(list, m.snapshotTables(l1)...)
	for i := range list[:min(len(list), maxAsked)] {
		more, err := m.guestProofs(ctx, list[i].cluster, l1, guestBytes/int64(len(list)))
		if err != nil {
			return nil, err
		}
		list[i].proofs = append(list[i].proofs, more...)
	}
	return list, m.proveHead(ctx, list, l1)
}

// snapshotTables finds tables that only snapshots name, with an empty entry in the active L1 table
// where they have them, and a refcount that counts one user more: the disk had them too.
func (m *mender) snapshotTables(l1 *slots) (list []candidate) {
	seen := map[int64]bool{}
	for _, l := range m.l1s {
		c := int64(l.Table()) >> m.h.ClusterBits
		n, ok := m.ex.Refcount(c)
		if l.Active || l.Table() == 0 || !ok || n != m.ex.References(c)+1 || l1.used[l.Index] ||
			m.l1Range(l.Index).Length == 0 || seen[c] {
			continue
		}
		seen[c] = true
		list = append(list, candidate{cluster: c,
			text: fmt.Sprintf("its refcount is %d, but only snapshots name it", n),
			proofs: []proof{{"snapshot", l.Index, fmt.Sprintf(
				"snapshot %q has this table at L1 entry %d, and its refcount counts one user more",
				l.Snapshot, l.Index), 2}}})
	}
	return list
}

// slots are the entries of the active L1 table.
type slots struct {
	m     *mender
	used  map[int64]bool
	bogus []int64 // ascending
	// free are the entries that a table may be put into, ascending: empty and bogus ones.
	free []int64
	// sound are the other entries by index; ascending if their tables lie in this order as well.
	sound     []qcow2.L1Entry
	ascending bool
	// looks is how many entries between has looked at.
	looks int
}

func (m *mender) newSlots() *slots {
	s := &slots{m: m, used: map[int64]bool{}, bogus: m.ex.BogusSlots()}
	var order []qcow2.L1Entry
	for _, l := range m.l1s {
		switch {
		case !l.Active || l.Table() == 0:
		case int64(l.Table()) >= m.ov.size:
			s.bogus = append(s.bogus, l.Index)
			fallthrough
		default:
			s.used[l.Index] = true
			order = append(order, l)
		}
	}
	for i, l := range order { // ordered by table: of two that share one, one is wrong
		if i > 0 && l.Table() == order[i-1].Table() {
			s.bogus = append(s.bogus, order[i-1].Index, l.Index)
		}
	}
	slices.Sort(s.bogus)
	s.bogus = slices.Compact(s.bogus)
	s.free = slices.Clone(s.bogus)
	for i := int64(0); i < m.h.L1Entries && m.l1Range(i).Length > 0; i++ {
		if !s.used[i] {
			s.free = append(s.free, i)
		}
	}
	slices.Sort(s.free)
	s.free = slices.Compact(s.free)
	s.sound = slices.DeleteFunc(order, func(l qcow2.L1Entry) bool { return s.isBogus(l.Index) })
	slices.SortFunc(s.sound, func(a, b qcow2.L1Entry) int { return cmp.Compare(a.Index, b.Index) })
	s.ascending = len(s.sound) > 1 && slices.IsSortedFunc(s.sound, func(a, b qcow2.L1Entry) int {
		return cmp.Compare(a.Table(), b.Table())
	})
	return s
}

// isBogus reports whether what entry i names is no table of its own.
func (s *slots) isBogus(i int64) bool {
	_, ok := slices.BinarySearch(s.bogus, i)
	return ok
}

// proofs says what the L1 table and the places of tables tell of an orphan, the i-th of n by its place.
func (s *slots) proofs(o qcow2.Orphan, i, n int) (list []proof) {
	if len(o.Named) == 1 {
		list = append(list, proof{"named", o.Named[0], fmt.Sprintf(
			"L1 entry %d names a cluster that this table maps", o.Named[0]), 1})
	}
	free := s.free
	if len(free) == 1 && n == 1 {
		list = append(list, proof{"only", free[0], fmt.Sprintf(
			"L1 entry %d is the only one without a table, and this the only table without an entry", free[0]), 1})
	}
	fits := s.between(o.Cluster)
	if len(fits) == 1 {
		list = append(list, proof{"order", fits[0], fmt.Sprintf(
			"among the tables of its neighbours it lies where that of L1 entry %d would", fits[0]), 1})
	}
	if len(list) > 0 {
		return list
	}
	if len(free) == n {
		return append(list, proof{"rank", free[i], fmt.Sprintf(
			"%d tables have no entry and %d entries no table: this one by their order", n, n), 0})
	}
	if len(fits) == 0 {
		fits = free
	}
	if len(fits) > maxChoices {
		return list // no help
	}
	for _, f := range fits {
		list = append(list, proof{"free", f, fmt.Sprintf("L1 entry %d has no table", f), 0})
	}
	return list
}

// maxChoices is how many places are named where nothing tells one from another.
const maxChoices = 8

// maxLooks bounds the work of comparing every orphan with every free entry.
const maxLooks = 1 << 28

// between gives the free entries whose neighbours on both sides have their tables around cluster, no
// more of them than can be named; none where there is too much to compare.
func (s *slots) between(cluster int64) (fits []int64) {
	bits, sound, ascending := s.m.h.ClusterBits, s.sound, s.ascending
	for _, f := range s.free {
		if s.looks++; s.looks > maxLooks {
			return nil
		}
		if len(fits) > maxChoices {
			break
		}
		i, _ := slices.BinarySearchFunc(sound, f, func(l qcow2.L1Entry, f int64) int { return cmp.Compare(l.Index, f) })
		// At an end of the disk there is one neighbour; then all others must be in order.
		before := i > 0 && int64(sound[i-1].Table())>>bits < cluster || i == 0 && ascending
		behind := i < len(sound) && cluster < int64(sound[i].Table())>>bits || i == len(sound) && ascending
		if before && behind {
			fits = append(fits, f)
		}
	}
	return fits
}
