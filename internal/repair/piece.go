// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// guestProofs says what the guest's own blocks, read through a table that nothing names, tell of the
// place where it belongs. limit bounds about how many bytes of them are read.
func (m *mender) guestProofs(ctx context.Context, cluster int64, l1 *slots, limit int64) ([]proof, error) {
	if m.h.HasDataFile() || m.h.Crypt != qcow2.CryptNone {
		return nil, nil // what the table maps cannot be read
	}
	vols, err := m.guestVolumes(ctx)
	if err != nil {
		return nil, err
	}
	return m.proofsWith(ctx, vols, cluster, l1, limit)
}

// proofsWith is guestProofs for the volumes that the disk has, or would have.
func (m *mender) proofsWith(ctx context.Context, vols []guest.Volume, cluster int64, l1 *slots, limit int64) ([]proof, error) {
	const least = 16 << 20
	span := m.h.L2Span()
	d, err := m.through(cluster)
	if err != nil {
		return nil, err
	}
	p := guest.Piece{Data: d, SpanBytes: span, DiskBytes: m.h.SizeBytes, UnitBytes: m.h.ClusterSize(),
		LimitBytes: min(guest.MaxPieceBytes, max(least, limit)),
		Possible: func(base int64) bool {
			i := base / span
			return !l1.used[i] || l1.isBogus(i)
		}}
	err = d.Map(ctx, 0, span, func(e image.Extent) error {
		if e.Kind == image.Data || e.Kind == image.Compressed {
			p.Mapped = append(p.Mapped, finding.Range{Offset: int64(e.Guest), Length: e.Length})
		}
		return nil
	})
	// An entry that cannot be right ends the map there; what comes before it tells enough.
	if entry := (*qcow2.EntryError)(nil); err != nil && !errors.As(err, &entry) {
		return nil, err
	}
	ev, err := guest.Proofs(ctx, vols, p)
	if errors.Is(err, guest.ErrPiece) {
		return nil, nil // a span or a disk that no file system fits into
	}
	if err != nil {
		return nil, err
	}
	var list []proof
	for _, g := range ev.Proofs {
		w := 1
		if g.Independent && !g.Learned {
			w = 2
		}
		list = append(list, proof{guestProof, g.Base / span, g.Text, w})
	}
	return list, nil
}

// guestProof is the kind of what the guest's own blocks prove.
const guestProof = "guest"

// guestVolumes finds the guest's file systems on the disk as it is by now.
func (m *mender) guestVolumes(ctx context.Context) ([]guest.Volume, error) {
	if m.volumes != nil {
		return *m.volumes, nil
	}
	d, err := qcow2.NewDisk(m.ov, m.ov.size, m.h, qcow2.DiskOptions{})
	if err != nil {
		return nil, err
	}
	vols, err := m.volumesOn(ctx, d)
	if err != nil {
		return nil, err
	}
	m.volumes = &vols
	return vols, nil
}

// volumesOn finds the guest's file systems on a disk.
func (m *mender) volumesOn(ctx context.Context, d *qcow2.Disk) ([]guest.Volume, error) {
	view := &guestView{ctx: ctx, d: d}
	if m.opts.Disk != nil {
		if m.below == nil {
			m.below = newRecorder(m.opts.Disk)
		}
		view.below = m.below
	}
	// What cannot be read there proves nothing, and takes nothing away.
	vols, _, err := guest.Volumes(ctx, view, m.h.SizeBytes)
	return vols, err
}

// through gives what one table maps, as a disk of its own: the only entry of an L1 table behind the end of
// the file names it.
func (m *mender) through(cluster int64) (*qcow2.Disk, error) {
	cs := m.h.ClusterSize()
	end := (m.ov.size + cs - 1) &^ (cs - 1)
	return m.diskWith(end, cluster, &qcow2.Snapshot{L1Off: image.HostOff(end), L1Entries: 1, DiskBytes: m.h.L2Span()})
}

// diskWith gives the disk, or what a snapshot maps, as it would be with a table in the L1 entry at off.
func (m *mender) diskWith(off, cluster int64, snapshot *qcow2.Snapshot) (*qcow2.Disk, error) {
	const room = 1 << 10
	ov := newOverlay(m.ov, m.ov.size, room)
	if err := ov.write(plan.Point, binary.BigEndian.AppendUint64(nil, uint64(cluster)<<m.h.ClusterBits), off); err != nil {
		return nil, err
	}
	return qcow2.NewDisk(ov, max(ov.size, m.ov.size), m.h, qcow2.DiskOptions{Snapshot: snapshot})
}

// guestView reads the disk of an image; what the image does not have comes from the chain below.
type guestView struct {
	ctx   context.Context
	d     *qcow2.Disk
	below io.ReaderAt
}

// ReadAt is io.ReaderAt.
func (g *guestView) ReadAt(p []byte, off int64) (int, error) {
	n, err := g.d.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) || g.below == nil {
		return n, err
	}
	merr := g.d.Map(g.ctx, image.GuestOff(off), int64(n), func(e image.Extent) error {
		if e.Kind != image.Unallocated {
			return nil
		}
		q := p[int64(e.Guest)-off:][:e.Length]
		m, err := g.below.ReadAt(q, int64(e.Guest))
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the backing file at %#x: %w", int64(e.Guest), err)
		}
		clear(q[m:])
		return nil
	})
	if merr != nil {
		return 0, merr
	}
	return n, err
}
