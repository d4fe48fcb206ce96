// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Places of the header ("Header" in qcow2.txt).
const (
	snapshotsField    = 60
	incompatibleField = 72
	autoclearField    = 88
)

// mendRest mends the snapshot table, bitmaps, and bits of the header that do not wait for the end.
func (m *mender) mendRest(ctx context.Context) (bool, error) {
	for _, mend := range []func(context.Context) (bool, error){m.mendSnapshots, m.mendBitmaps, m.mendRawFlag} {
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

// mendBitmaps marks all bitmaps as invalid where one of them cannot be trusted. What changed since
// the last backup is not known then, which the next backup must be told.
func (m *mender) mendBitmaps(context.Context) (bool, error) {
	if !m.opts.wants(finding.QC17) || m.h.Bitmaps == nil || !m.h.Bitmaps.Trusted || !m.found(finding.QC17) {
		return false, nil
	}
	st := m.step(finding.QC17, "clear", "declare the bitmaps invalid: the next backup must be a full one",
		finding.Sure)
	m.at(st, autoclearField, 8)
	m.proof(st, "header", autoclearField, hex64(m.h.Autoclear), "bit 0 says that bitmaps can be trusted")
	m.keep(finding.QC17, "make the next backup a full one, and remove the bitmaps")
	return true, m.setAutoclear(m.h.Autoclear &^ qcow2.AutoclearBitmaps)
}

// mendRawFlag clears the promise of a raw data file where there is no data file.
func (m *mender) mendRawFlag(context.Context) (bool, error) {
	if !m.opts.wants(finding.QC01) || !m.h.RawDataFile() || m.h.HasDataFile() {
		return false, nil
	}
	st := m.step(finding.QC01, "clear", "clear the promise of a raw data file: the image has none", finding.Sure)
	m.at(st, autoclearField, 8)
	m.proof(st, "header", autoclearField, hex64(m.h.Autoclear), "bit 1 is about an external data file")
	return true, m.setAutoclear(m.h.Autoclear &^ qcow2.AutoclearRawDataFile)
}

func (m *mender) setAutoclear(v uint64) error { return m.put64(plan.Switch, autoclearField, v) }

// mendSnapshots writes the snapshot table anew where entries lack the sizes that version 3 wants.
// Every snapshot stays.
func (m *mender) mendSnapshots(ctx context.Context) (bool, error) {
	t := m.ex.Snapshots()
	if !m.opts.wants(finding.QC16) {
		return false, nil
	}
	forgotten := m.h.Snapshots == 0 && m.ex.Result().Counts.Leaks > 0 && !m.forgot
	if forgotten || t.Len() == 0 && m.h.Snapshots > 0 {
		m.forgot = true
		return m.mendSnapshotFields(ctx)
	}
	if m.h.Version < 3 {
		return false, nil
	}
	short, wiped := 0, t.Blank > 0
	for i := range t.Snapshots {
		switch x := &t.Snapshots[i]; {
		case x.L1Off == 0 && x.ID == "" && x.Name == "", m.h.CheckL1(x) != nil:
			wiped = true
		case x.ExtraBytes < 16:
			short++
		}
	}
	if short == 0 || wiped {
		if wiped || m.found(finding.QC16) {
			m.keep(finding.QC16, "which snapshots there were is not proved; copy the file as it is. "+
				"qemu-img check -r all would drop them")
		}
		return false, nil
	}
	raw, err := m.snapshotTable(t)
	if err != nil {
		return false, err
	}
	if len(raw) > qcow2.MaxSnapshotTableBytes {
		m.keep(finding.QC16, "complete entries would make the snapshot table too long")
		return false, nil
	}
	cs := m.h.ClusterSize()
	at := m.alloc((int64(len(raw)) + cs - 1) / cs)
	if err := m.ov.write(plan.New, raw, at); err != nil {
		return false, err
	}
	if err := m.put64(plan.Switch, snapshotsField+4, uint64(at)); err != nil {
		return false, err
	}
	st := m.step(finding.QC16, "rewrite",
		"write the snapshot table anew with complete entries; every snapshot stays", finding.Sure)
	st.Count = int64(short)
	m.at(st, at, int64(len(raw)))
	return true, m.freeOld(int64(m.h.SnapshotsOff), t.Bytes)
}

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

// mendSnapshotFields puts the number of snapshots and the place of their table right in the header, where
// both are proved.
func (m *mender) mendSnapshotFields(ctx context.Context) (bool, error) {
	var fixes []FieldFix
	var err error
	if m.h.Snapshots > 0 {
		fixes, err = HeaderFields(ctx, m.ov, m.ov.size)
	} else {
		fixes, err = ForgottenSnapshots(ctx, m.ov, m.ov.size, m.ex.Result())
	}
	if err != nil {
		return false, err
	}
	return m.writeFields(fixes, finding.QC16)
}

// writeFields writes the fields of the header that are proved, and tells of them.
func (m *mender) writeFields(fixes []FieldFix, rule finding.Rule) (changed bool, err error) {
	for _, f := range fixes {
		if !f.Proved {
			m.keep(rule, f.Summary+"; "+f.Next)
			continue
		}
		st := m.step(rule, "rewrite", f.Summary, f.Certainty)
		m.at(st, f.Offset, int64(len(f.New)))
		st.Proofs = append(st.Proofs, f.Evidence...)
		if err := m.ov.write(plan.Switch, f.New, f.Offset); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// snapshotTable gives the entries of t, each with the extra data that version 3 wants.
func (m *mender) snapshotTable(t *qcow2.SnapshotTable) ([]byte, error) {
	var raw []byte
	for i := range t.Snapshots {
		s := &t.Snapshots[i]
		entry := make([]byte, s.EntryBytes)
		if err := m.readCluster(entry, int64(s.EntryOff)); err != nil {
			return nil, fmt.Errorf("entry %d of the snapshot table: %w", i, err)
		}
		const fixed = 40
		extra := entry[fixed : fixed+s.ExtraBytes]
		rest := entry[fixed+s.ExtraBytes:]
		if s.ExtraBytes < 16 {
			full := make([]byte, 16)
			binary.BigEndian.PutUint64(full, uint64(s.VMStateBytes))
			binary.BigEndian.PutUint64(full[8:], uint64(s.DiskBytes))
			copy(full, extra[:min(len(extra), 8)/8*8])
			extra = full
		}
		head := slices.Clone(entry[:fixed])
		binary.BigEndian.PutUint32(head[36:], uint32(len(extra)))
		for len(raw)%8 != 0 {
			raw = append(raw, 0)
		}
		raw = append(raw, slices.Concat(head, extra, rest)...)
	}
	return raw, nil
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
		st := m.step(b.rule, "clear", b.text, finding.Sure)
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
	fixes, ferr := HeaderFields(ctx, m.ov, m.ov.size)
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
