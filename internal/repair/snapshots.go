// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Places of an entry of the snapshot table ("Snapshots" in qcow2.txt).
const (
	entryFixed   = 40
	entryExtra   = 36 // the length of what stands between the fixed part and the id
	minExtra     = 16 // what version 3 wants there
	minExtraRoom = 8  // one number of it
)

// mendSnapshots writes the snapshot table anew where entries lack the sizes that version 3 wants, or say
// wrongly how long their extra data is. Every snapshot stays.
func (m *mender) mendSnapshots(ctx context.Context) (bool, error) {
	if !m.opts.wants(finding.QC16) {
		return false, nil
	}
	t := m.ex.Snapshots()
	if m.h.Snapshots == 0 {
		return m.mendForgotten(ctx)
	}
	if m.h.Version >= 3 && m.found(finding.QC16) {
		list, ok, err := m.snapshotEntries(ctx)
		if err != nil {
			return false, err
		}
		if ok {
			if changed, err := m.rewriteSnapshots(list); changed || err != nil {
				return changed, err
			}
		}
	}
	if t.Len() == 0 {
		return m.mendSnapshotFields(ctx)
	}
	if m.found(finding.QC16) {
		m.keep(finding.QC16, "which snapshots there were is not proved; copy the file as it is. "+
			"qemu-img check -r all would drop them")
	}
	return false, nil
}

// snapshotEntry is an entry of the snapshot table as it should be.
type snapshotEntry struct {
	raw      []byte // up to the end of the name
	extra    int    // bytes of extra data
	declared uint32 // what the entry says that they are
	name     string
}

// snapshotEntries reads the snapshot table. Where the length of the extra data is wrong, another one shows
// by the id and the name behind it, which are text. Not ok where an entry reads as none with any.
func (m *mender) snapshotEntries(ctx context.Context) (list []snapshotEntry, ok bool, err error) {
	off := int64(m.h.SnapshotsOff)
	start := off
	for range min(m.h.Snapshots, qcow2.MaxSnapshots) {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		e, ok, err := m.snapshotEntry(off)
		if !ok || err != nil {
			return nil, false, err
		}
		list = append(list, e)
		off += int64(len(e.raw)+7) &^ 7
		if off-start > qcow2.MaxSnapshotTableBytes {
			return nil, false, nil
		}
	}
	return list, int64(len(list)) == int64(m.h.Snapshots), nil
}

// snapshotEntry reads the entry of the snapshot table at off.
func (m *mender) snapshotEntry(off int64) (snapshotEntry, bool, error) {
	head := make([]byte, entryFixed)
	if off < 0 || off+entryFixed > m.ov.size {
		return snapshotEntry{}, false, nil
	}
	if err := m.readCluster(head, off); err != nil {
		return snapshotEntry{}, false, err
	}
	be := binary.BigEndian
	s := qcow2.Snapshot{EntryOff: image.HostOff(off), L1Off: image.HostOff(be.Uint64(head)), L1Entries: int64(be.Uint32(head[8:]))}
	id, name, declared := int(be.Uint16(head[12:])), int(be.Uint16(head[14:])), be.Uint32(head[entryExtra:])
	if s.L1Off <= 0 || s.L1Entries == 0 || m.h.CheckL1(&s) != nil || id == 0 {
		return snapshotEntry{}, false, nil
	}
	for _, extra := range []uint32{declared, minExtra + 8, minExtra} {
		if extra > qcow2.MaxSnapshotExtraBytes || off+entryFixed+int64(extra)+int64(id+name) > m.ov.size {
			continue
		}
		raw := make([]byte, entryFixed+int(extra)+id+name)
		if err := m.readCluster(raw, off); err != nil {
			return snapshotEntry{}, false, err
		}
		text := raw[entryFixed+int(extra):]
		if isText(string(text)) {
			be.PutUint32(raw[entryExtra:], extra)
			return snapshotEntry{raw, int(extra), declared, string(text[id:])}, true, nil
		}
	}
	return snapshotEntry{}, false, nil
}

// isText reports whether a name has no control characters.
func isText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// rewriteSnapshots writes the snapshot table anew, if an entry is to be mended.
func (m *mender) rewriteSnapshots(list []snapshotEntry) (bool, error) {
	var raw []byte
	short, wrong, length := 0, 0, int64(0)
	for _, e := range list {
		length = (length+7)&^7 + int64(len(e.raw))
		if e.extra < minExtra {
			short++
		} else if uint32(e.extra) != e.declared {
			wrong++
		}
		for len(raw)%8 != 0 {
			raw = append(raw, 0)
		}
		raw = append(raw, e.complete(m.h.SizeBytes)...)
	}
	if short+wrong == 0 || !m.mayGrow(finding.QC16) {
		return false, nil
	}
	if len(raw) > qcow2.MaxSnapshotTableBytes {
		m.keep(finding.QC16, "complete entries would make the snapshot table too long")
		return false, nil
	}
	cs := m.h.ClusterSize()
	at, err := m.alloc((int64(len(raw)) + cs - 1) / cs)
	if err != nil {
		return false, err
	}
	if err := m.ov.write(plan.New, raw, at); err != nil {
		return false, err
	}
	if err := m.put64(plan.Switch, snapshotsField+4, uint64(at)); err != nil {
		return false, err
	}
	st := m.step(plan.New, finding.QC16, "rewrite",
		"write the snapshot table anew with complete entries; every snapshot stays", finding.Sure)
	st.Count = int64(short + wrong)
	m.at(st, at, int64(len(raw)))
	for _, e := range list {
		if uint32(e.extra) != e.declared && m.roomFor(st) {
			m.proof(st, "snapshot table", int64(m.h.SnapshotsOff), fmt.Sprint(e.declared), fmt.Sprintf(
				"the id and the name %q read as text behind %d bytes of extra data", e.name, e.extra))
		}
	}
	return true, m.freeOld(int64(m.h.SnapshotsOff), length)
}

// complete gives an entry with the extra data that version 3 wants. diskBytes is what a disk without
// it has.
func (e *snapshotEntry) complete(diskBytes int64) []byte {
	if e.extra >= minExtra {
		return e.raw
	}
	head := slices.Clone(e.raw[:entryFixed])
	binary.BigEndian.PutUint32(head[entryExtra:], minExtra)
	extra := make([]byte, minExtra)
	binary.BigEndian.PutUint64(extra, uint64(binary.BigEndian.Uint32(head[32:])))
	binary.BigEndian.PutUint64(extra[minExtraRoom:], uint64(diskBytes))
	if e.extra >= minExtraRoom {
		copy(extra, e.raw[entryFixed:entryFixed+minExtraRoom])
	}
	return slices.Concat(head, extra, e.raw[entryFixed+e.extra:])
}

// namedSnapshots reports whether every entry of the snapshot table reads as one.
func (m *mender) namedSnapshots() bool {
	t := m.ex.Snapshots()
	return t.Len() > 0 && t.Blank == 0 && !slices.ContainsFunc(t.Snapshots, func(s qcow2.Snapshot) bool {
		return s.ID == "" || s.L1Off <= 0 || m.h.CheckL1(&s) != nil || !isText(s.ID) || !isText(s.Name)
	})
}

// mendSnapshotFields puts the number of snapshots and the place of their table right in the header, where
// both are proved.
func (m *mender) mendSnapshotFields(ctx context.Context) (bool, error) {
	fixes, err := headerFields(ctx, m.ov, m.ov.size)
	if err != nil {
		return false, err
	}
	return m.writeFields(fixes, finding.QC16)
}

// mendForgotten names a snapshot table in the header again that is there and counted, if that is wanted.
// It cannot be proved that the snapshots were not deleted: qemu writes the header before it gives back
// what they held (qcow2_snapshot_delete in block/qcow2-snapshot.c, QEMU 8.2), and a crash between them
// leaves the same.
func (m *mender) mendForgotten(ctx context.Context) (bool, error) {
	f, err := m.forgotten(ctx)
	if f == nil || err != nil {
		return false, err
	}
	if m.opts.Snapshots {
		g := *f
		g.Proved = true
		return m.writeFields([]fieldFix{g}, finding.QC16)
	}
	for _, r := range []finding.Rule{finding.QC03, finding.QC13, finding.QC14} {
		m.keep(r, f.Summary+"; to have them back, use --forgotten-snapshots")
	}
	return false, nil
}

// forgotten looks for a snapshot table that the header does not name, once; nil if there is none. While
// there is one, no refcount is lowered: the disk may share clusters with these snapshots.
func (m *mender) forgotten(ctx context.Context) (*fieldFix, error) {
	if m.h.Snapshots > 0 {
		return nil, nil
	}
	if !m.forgotLooked {
		fixes, err := forgottenSnapshots(ctx, m.ov, m.ov.size, m.ex.Result())
		if err != nil {
			return nil, err
		}
		m.forgotLooked = true
		if len(fixes) > 0 {
			m.forgot = &fixes[0]
		}
	}
	return m.forgot, nil
}
