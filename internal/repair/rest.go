// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Places of the header ("Header" in qcow2.txt).
const (
	l1SizeField       = 36
	l1OffsetField     = 40
	snapshotsField    = 60
	incompatibleField = 72
	autoclearField    = 88
)

// mendRest mends the snapshot table, bitmaps, and bits of the header that do not wait for the end.
func (m *mender) mendRest(ctx context.Context) (bool, error) {
	for _, mend := range []func(context.Context) (bool, error){m.mendL1Size, m.mendSnapshots, m.mendBitmaps, m.mendRawFlag} {
		if changed, err := mend(ctx); changed || err != nil {
			return changed, err
		}
	}
	return false, nil
}

// found reports whether the check has a finding of a rule that is worth mending.
func (m *mender) found(r finding.Rule) bool {
	return slices.ContainsFunc(m.ex.Result().Findings, func(f finding.Finding) bool {
		return f.Code == r.Code && f.Severity != finding.Note
	})
}

// mendBitmaps marks all bitmaps as invalid where one of them is broken: qemu refuses to open the image,
// or to check it, because of it. What changed since the last backup is not known then, which the next
// backup must be told. A bitmap that was only not saved stays: qemu leaves it out by itself, and the
// others are good.
func (m *mender) mendBitmaps(context.Context) (bool, error) {
	if !m.opts.wants(finding.QC17) || m.h.Bitmaps == nil || !m.h.Bitmaps.Trusted ||
		!m.bitmapsBroken() && !m.bitmapsOverlap() {
		return false, nil
	}
	st := m.step(plan.Switch, finding.QC17, "clear", "mark all bitmaps as invalid, for one is broken: the next backup must be a full one",
		finding.Sure)
	m.at(st, autoclearField, 8)
	m.proof(st, "header", autoclearField, hex64(m.h.Autoclear), "bit 0 says that bitmaps can be trusted")
	return true, m.setAutoclear(m.h.Autoclear &^ qcow2.AutoclearBitmaps)
}

// bitmapsBroken reports whether the check has more against a bitmap than that it was not saved.
func (m *mender) bitmapsBroken() bool {
	return slices.ContainsFunc(m.ex.Result().Findings, func(f finding.Finding) bool {
		return f.Code == finding.QC17.Code && f.Kind != "not_saved"
	})
}

// bitmapsOverlap reports whether what is called a bitmap is guest data or other metadata too. Nothing
// tells a bitmap from that, but a bitmap can be done without.
func (m *mender) bitmapsOverlap() bool {
	bitmap := func(who string) bool {
		return strings.HasPrefix(who, "bitmap ") || strings.HasPrefix(who, "table of bitmap ")
	}
	for _, o := range m.ex.Overlaps() {
		for c := o.First; c < o.First+o.N; c++ {
			if slices.ContainsFunc(m.ex.OwnersOf(c), bitmap) {
				return true
			}
		}
	}
	return false
}

// mendRawFlag clears the promise of a raw data file where there is no data file.
func (m *mender) mendRawFlag(context.Context) (bool, error) {
	if !m.opts.wants(finding.QC01) || !m.h.RawDataFile() || m.h.HasDataFile() {
		return false, nil
	}
	st := m.step(plan.Switch, finding.QC01, "clear", "clear the promise of a raw data file: the image has none", finding.Sure)
	m.at(st, autoclearField, 8)
	m.proof(st, "header", autoclearField, hex64(m.h.Autoclear), "bit 1 is about an external data file")
	return true, m.setAutoclear(m.h.Autoclear &^ qcow2.AutoclearRawDataFile)
}

func (m *mender) setAutoclear(v uint64) error { return m.put64(plan.Switch, autoclearField, v) }

// freeOld counts the clusters of metadata as free that was written anew elsewhere, unless something
// else uses them.
func (m *mender) freeOld(off, length int64) error {
	for c := off >> m.h.ClusterBits; c <= (off+length-1)>>m.h.ClusterBits; c++ {
		if n, ok := m.ex.Refcount(c); !ok || n != 1 || m.ex.References(c) != 1 {
			continue
		}
		if _, err := m.setRefcounts(plan.Lower, c, 1, 0); err != nil {
			return err
		}
	}
	return nil
}

// writeFields writes the fields of the header that are proved, and tells of them.
func (m *mender) writeFields(fixes []fieldFix, rule finding.Rule) (changed bool, err error) {
	for _, f := range fixes {
		if !f.Proved {
			m.keep(rule, f.Summary+"; "+f.Next)
			continue
		}
		st := m.step(plan.Switch, rule, "rewrite", f.what(), f.Certainty)
		m.at(st, f.Offset, int64(len(f.New)))
		st.Proofs = append(st.Proofs, f.Evidence...)
		if err := m.ov.write(plan.Switch, f.New, f.Offset); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// clearBits clears the marks "dirty" and "corrupt" where the check has nothing against it any more,
// and gives the findings without them.
func (m *mender) clearBits(list []finding.Finding) []finding.Finding {
	res := m.ex.Result()
	harm := slices.ContainsFunc(list, func(f finding.Finding) bool {
		return f.Code != finding.QC21.Code && f.Code != finding.QC22.Code &&
			f.Severity.Rank() < finding.Waste.Rank() && f.Code != finding.QC17.Code
	})
	bits := m.h.Incompatible
	if m.opts.Leaks || res.Counts.Corruptions+res.Counts.CheckErrors > 0 || !m.ex.Complete() {
		return list
	}
	for _, b := range []struct {
		bit   uint64
		rule  finding.Rule
		text  string
		clear bool
	}{
		// Left dirty, qemu would count anew when it opens the image, and free what lost its mapping.
		{qcow2.IncompatDirty, finding.QC21, "clear the mark \"dirty\": the refcounts are right", true},
		{qcow2.IncompatCorrupt, finding.QC22,
			"clear the mark \"corrupt\": a check finds nothing wrong any more", !harm},
	} {
		if bits&b.bit == 0 || !m.opts.wants(b.rule) {
			continue
		}
		if !b.clear {
			m.keep(b.rule, "qemu refuses to write to the image until what remains is mended")
			continue
		}
		bits &^= b.bit
		st := m.step(plan.Switch, b.rule, "clear", b.text, finding.Sure)
		m.at(st, incompatibleField, 8)
		list = slices.DeleteFunc(list, func(f finding.Finding) bool { return f.Code == b.rule.Code })
	}
	if bits != m.h.Incompatible {
		// The page with the header was read before.
		if err := m.put64(plan.Switch, incompatibleField, bits); err != nil {
			m.keep(finding.QC22, err.Error())
			return slices.Clone(res.Findings)
		}
	}
	return list
}

// fence adds the write that puts the plan into force, and what keeps others from writing meanwhile.
func (m *mender) fence(p *plan.Plan) error {
	var now, old [plan.SectorBytes]byte
	if _, err := m.ov.ReadAt(now[:min(plan.SectorBytes, m.ov.size)], 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	n := min(plan.SectorBytes, m.ov.baseSize)
	if err := m.ov.readBase(old[:], 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	if len(p.Writes) == 0 && now == old {
		return nil
	}
	p.Writes = append(p.Writes, plan.Write{Phase: plan.Switch, Offset: 0, Old: old[:n], New: now[:n]})
	if m.h.Version < 3 {
		return nil // no bit that would stop others
	}
	bits := binary.BigEndian.Uint64(old[incompatibleField:])
	fenced := make([]byte, 8)
	binary.BigEndian.PutUint64(fenced, bits|qcow2.IncompatCorrupt)
	p.Fence = &plan.Fence{Offset: incompatibleField, Old: slices.Clone(old[incompatibleField : incompatibleField+8]),
		New: fenced}
	return nil
}

// mendHeader brings the header into a state in which the image can be opened, where what its fields
// should be is proved.
func (m *mender) mendHeader(ctx context.Context) error {
	h, err := qcow2.ReadHeader(m.ov, m.ov.size)
	if err == nil {
		m.h = h
		return ctx.Err()
	}
	open := (*qcow2.OpenError)(nil)
	if !errors.As(err, &open) || open.Kind == qcow2.ErrRead || !m.opts.wants(finding.QC01) {
		return err
	}
	fixes, ferr := headerFields(ctx, m.ov, m.ov.size)
	if ferr != nil {
		return ferr
	}
	if _, ferr := m.writeFields(fixes, finding.QC01); ferr != nil {
		return ferr
	}
	if h, ferr = qcow2.ReadHeader(m.ov, m.ov.size); ferr == nil {
		m.h, m.headless = h, true
		return nil
	}
	err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	return finding.WithHint(err, "shisa repair --rebuild-header NEWFILE writes a copy of the image with a new header; "+
		"the image itself stays as it is")
}
