// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"cmp"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// breakers holds what is seen now against what was seen before. Most of what makes a used base look unused looks like
// less of something: a mount that is not there, a node whose document is lost, a machine that was copied.
func (j *judging) breakers() {
	for _, s := range j.spokes() {
		n := j.node(s.Node)
		if n == nil && s.Seq == 0 && slices.Contains(j.s.Unjoined, pool.NodeFile(s.Node)) {
			continue // it has never said anything, and a person took its membership back
		}
		if n == nil {
			j.block(NodeGone, s.Node, "", "it was known before and is not any more; a node is never forgotten")
			continue
		}
		if n.Report == nil {
			if s.Seq > 0 {
				j.block(NodeGone, s.Node, "", "its report %d was there before and is not any more", s.Seq)
			}
			continue
		}
		if n.Report.Seq < s.Seq {
			j.block(WentBack, s.Node, "", "its last report is number %d, and number %d was there before", n.Report.Seq, s.Seq)
		}
		if turned(&s, n.Report.BootID) && !n.Away() {
			j.block(TwoMachines, s.Node, "", "it spoke of run %.8s of its machine again, which had ended before: two machines may have its name",
				n.Report.BootID)
		}
		if !n.Away() {
			j.storages(s.Node, s.Storages, n.Report.Storages)
		}
		if n.Report.Overlays == 0 && s.Overlays > 0 && !n.Away() && !slices.Contains(j.o.NoOverlays, s.Node) {
			j.block(NoOverlays, s.Node, "", "it sees no image that rests on another, and saw %d before: is everything mounted there?", s.Overlays)
		}
	}
	for i := range j.nodes {
		n := &j.nodes[i]
		if n.Member != nil && n.Report != nil && n.Member.Machine != "" && n.Report.Machine != "" &&
			n.Member.Machine != n.Report.Machine {
			j.block(TwoMachines, n.Name, "", "it joined as machine %.8s and speaks as %.8s", n.Member.Machine, n.Report.Machine)
		}
	}
	before := j.mine.Overlays
	if n := j.node(j.o.Node); n != nil && n.Report != nil {
		before = max(before, n.Report.Overlays)
	}
	if j.c.Looked.Overlays == 0 && before > 0 && !slices.Contains(j.o.NoOverlays, j.o.Node) {
		j.block(NoOverlays, j.o.Node, "", "no image rests on another here, and %d did before: is everything mounted?", before)
	}
	j.storages(j.o.Node, j.mine.Storages, j.c.Storages)
}

// node is a member by its name.
func (j *judging) node(name string) *pool.Node {
	for i := range j.nodes {
		if j.nodes[i].Name == name {
			return &j.nodes[i]
		}
	}
	return nil
}

// spokes is all that any node noted of others.
func (j *judging) spokes() (all []pool.Spoke) {
	for i := range j.s.Notes {
		all = append(all, j.s.Notes[i].Nodes...)
	}
	return all
}

// turned tells whether a node spoke of a run of its machine that another one had followed.
func turned(s *pool.Spoke, boot string) bool {
	i := slices.Index(s.BootIDs, boot)
	return i >= 0 && (i < len(s.BootIDs)-1 || s.Turned)
}

// notes is what is kept for the next decision. What a breaker is about stays as it was.
func (j *judging) notes() *pool.Notes {
	if j.s.Policy == nil {
		return nil
	}
	n := &pool.Notes{Schema: pool.NotesSchema, Pool: j.s.Policy.UUID, Node: j.o.Node, Time: second(j.o.Now),
		Overlays: j.c.Looked.Overlays, Storages: j.noteStorages(j.o.Node, j.mine.Storages, j.c.Storages), Nodes: []pool.Spoke{}, Candidates: []pool.Candidate{}}
	if n.Overlays == 0 && !slices.Contains(j.o.NoOverlays, j.o.Node) {
		n.Overlays = j.mine.Overlays
	}
	old := map[string]pool.Spoke{}
	for _, s := range j.mine.Nodes {
		old[s.Node] = s
	}
	for i := range j.nodes {
		s, ok := old[j.nodes[i].Name]
		if !ok {
			s = pool.Spoke{Node: j.nodes[i].Name, Storages: []pool.BaseStorage{}, BootIDs: []string{}}
		}
		if r := j.nodes[i].Report; r != nil {
			s = j.spoke(s, r)
		}
		old[s.Node] = s
	}
	for _, s := range old {
		n.Nodes = append(n.Nodes, s)
	}
	slices.SortFunc(n.Nodes, func(a, b pool.Spoke) int { return strings.Compare(a.Node, b.Node) })
	for i := range j.c.All {
		if c, ok := j.note(&j.c.All[i], n.Nodes); ok {
			n.Candidates = append(n.Candidates, c)
		}
	}
	return n
}

// spoke is what is known of a node after its last report.
func (j *judging) spoke(s pool.Spoke, r *pool.Report) pool.Spoke {
	s.Seq = max(s.Seq, r.Seq)
	if r.Overlays > 0 || slices.Contains(j.o.NoOverlays, s.Node) {
		s.Overlays = r.Overlays
	}
	s.Storages = j.noteStorages(s.Node, s.Storages, r.Storages)
	switch {
	case turned(&s, r.BootID):
		s.Turned = true
	case !slices.Contains(s.BootIDs, r.BootID):
		s.BootIDs = append(slices.Clone(s.BootIDs), r.BootID)
		s.BootIDs = s.BootIDs[max(0, len(s.BootIDs)-maxBoots):]
		s.Turned = false
	}
	return s
}

// note is what is noted of a base for which no use was found.
func (j *judging) note(b *refs.Base, nodes []pool.Spoke) (pool.Candidate, bool) {
	if b.State != refs.Live && b.State != refs.ByShield || len(b.Uses) > 0 || !pool.IsName(b.Name) {
		return pool.Candidate{}, false
	}
	a := &Decided{Name: b.Name, Inode: b.File.Ino, SizeBytes: b.SizeBytes}
	if c := j.noted(a); c != nil {
		return *c, true
	}
	c := pool.Candidate{Name: b.Name, Inode: b.File.Ino, SizeBytes: b.SizeBytes, Since: second(j.o.Now), Seqs: []pool.NodeSeq{}}
	for _, s := range nodes {
		c.Seqs = append(c.Seqs, pool.NodeSeq{Node: s.Node, Seq: s.Seq})
	}
	return c, true
}

// tooMany stops everything where more would be set aside at once than the pool allows.
func (j *judging) tooMany() {
	all, now := 0, 0
	for i := range j.p.All {
		b := &j.p.All[i]
		if b.State != refs.Missing {
			all++
		}
		if b.Verdict == MayQuarantine || b.ID != "" && j.o.Now.Sub(b.changed) < atOnce {
			now++
		}
	}
	if j.s.Policy == nil {
		return
	}
	limit := min(maxAtOnce, int(j.s.Policy.MaxFraction*float64(all)))
	if j.s.Policy.MaxFraction > 0 {
		limit = max(limit, 1)
	}
	if now <= limit || !slices.ContainsFunc(j.p.All, func(b Decided) bool { return b.Verdict == MayQuarantine }) {
		return
	}
	j.block(TooMany, "", "", "%d of %s would be set aside within a day, and %d may be (max_fraction is %v): choose with --only",
		now, finding.Count(int64(all), "base", "bases"), limit, j.s.Policy.MaxFraction)
	for i := range j.p.All {
		if b := &j.p.All[i]; b.Verdict == MayQuarantine || b.Verdict == MayPurge {
			b.Verdict = Keep
		}
	}
	slices.SortStableFunc(j.p.Blockers, func(a, b Blocker) int { return cmp.Compare(rank(a.Rule), rank(b.Rule)) })
}

// rank puts what has to be looked at first before the rest.
func rank(r Rule) int {
	if i := slices.Index([]Rule{NoPool, Unfinished, NodeGone, TwoMachines, WentBack, OtherStorage, NoOverlays, ClockOff, TooMany}, r); i >= 0 {
		return i
	}
	return 100
}
