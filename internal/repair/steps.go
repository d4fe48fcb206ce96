// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"encoding/binary"
	"fmt"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

const (
	// maxStepRanges is how many ranges a step lists, unless all are wanted.
	maxStepRanges = 20
	// maxGrowing is how many ranges of a step may grow at once: those that share clusters take turns.
	maxGrowing = 4
	// maxProofs is how many observations a step lists, unless all are wanted.
	maxProofs = 8
	// maxHurt bounds the ranges of hurt data that a plan remembers one by one.
	maxHurt = 1 << 16
)

// step adds what is done to the last step of the same rule, action and sentence, or begins one. ph is the
// phase of its first write; what is a sentence without numbers that differ from place to place.
func (m *mender) step(ph plan.Phase, r finding.Rule, action, what string, sure finding.Certainty) *plan.Step {
	for i := range m.steps {
		if s := &m.steps[i]; s.Code == r.Code && s.Action == action && s.Summary == what &&
			s.Certainty == sure {
			s.Count++
			return s
		}
	}
	m.steps = append(m.steps, plan.Step{Code: r.Code, Name: r.Name, Action: action, Summary: what,
		Certainty: sure, Count: 1, Host: []finding.Range{}, Guest: []finding.Range{},
		Proofs: []finding.Evidence{}})
	m.phases = append(m.phases, ph)
	return &m.steps[len(m.steps)-1]
}

// inOrder gives the steps in the order in which they are done: that of the phases in which they begin,
// and within one, whose writes are all done together, as they were planned.
func (m *mender) inOrder() []plan.Step {
	list := make([]plan.Step, 0, len(m.steps))
	for _, ph := range plan.Phases() {
		for i, s := range m.steps {
			if m.phases[i] == ph {
				list = append(list, s)
			}
		}
	}
	return list
}

// at adds a range of the file to a step.
func (m *mender) at(s *plan.Step, off, length int64) {
	s.Host, s.HostCut = m.addRange(s.Host, s.HostCut, finding.Range{Offset: off, Length: length})
}

// guest adds a range of the virtual disk to a step.
func (m *mender) guest(s *plan.Step, r finding.Range) {
	s.Guest, s.GuestCut = m.addRange(s.Guest, s.GuestCut, r)
}

func (m *mender) addRange(list []finding.Range, cut int64, r finding.Range) ([]finding.Range, int64) {
	if r.Length <= 0 {
		return list, cut
	}
	for i := len(list) - 1; i >= max(0, len(list)-maxGrowing); i-- {
		if list[i].End() == r.Offset {
			list[i].Length += r.Length
			return list, cut
		}
	}
	if m.opts.Check.MaxRanges >= 0 && len(list) >= maxStepRanges {
		return list, cut + 1
	}
	return append(list, r), cut
}

// roomFor reports whether a step lists one more observation.
func (m *mender) roomFor(s *plan.Step) bool {
	return m.opts.Check.MaxRanges < 0 || len(s.Proofs) < maxProofs
}

// proof adds an observation to a step, if there is room for it.
func (m *mender) proof(s *plan.Step, source string, off int64, value, text string) {
	if !m.roomFor(s) {
		return
	}
	s.Proofs = append(s.Proofs, finding.Evidence{Source: source, Offset: off, Value: value, Text: text})
}

// hurtData remembers guest data that is known to be wrong.
func (m *mender) hurtData(h plan.Hurt) {
	for i := range m.hurt {
		o := &m.hurt[i]
		if o.Code == h.Code && o.Kind == h.Kind && o.Snapshot == h.Snapshot && o.Kind == "lost" &&
			len(o.Guest) > 0 && len(h.Guest) == 1 && o.Guest[len(o.Guest)-1].End() == h.Guest[0].Offset {
			o.Guest[len(o.Guest)-1].Length += h.Guest[0].Length
			return
		}
	}
	if len(m.hurt) < maxHurt {
		m.hurt = append(m.hurt, h)
		return
	}
	last := &m.hurt[maxHurt-1]
	last.Guest = append(last.Guest, h.Guest...)
}

// keep says why findings of a rule are left alone.
func (m *mender) keep(r finding.Rule, why string) { m.kept[r.Code] = why }

// put64 writes a word of a table.
func (m *mender) put64(ph plan.Phase, off int64, v uint64) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return m.ov.write(ph, b[:], off)
}

// get64 reads a word of a table as it is now.
func (m *mender) get64(off int64) (uint64, error) {
	var b [8]byte
	if _, err := m.ov.ReadAt(b[:], off); err != nil {
		return 0, fmt.Errorf("read a table entry at %#x: %w", off, err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

// clusterRange is the part of the disk that the entry of one cluster maps.
func (m *mender) clusterRange(g image.GuestOff) finding.Range {
	n := m.h.SizeBytes - int64(g)
	return finding.Range{Offset: int64(g), Length: max(0, min(m.h.ClusterSize(), n))}
}

// l1Range is the part of the disk that an L1 entry maps.
func (m *mender) l1Range(index int64) finding.Range {
	off := index * m.h.L2Span()
	return finding.Range{Offset: off, Length: max(0, min(m.h.L2Span(), m.h.SizeBytes-off))}
}

func hex64(v uint64) string { return fmt.Sprintf("0x%016x", v) }

// placed reports whether an entry names a cluster of its own.
func placed(h *qcow2.Header, word uint64) bool {
	t := h.TypeOf(word)
	return t == qcow2.EntryNormal || t == qcow2.EntryZeroAlloc
}
