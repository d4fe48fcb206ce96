// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/guest"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Where the table of the beginning of the disk is lost with others, nothing on the disk tells which
// volumes it has, so no block of a volume proves anything. So each lost table is tried there: with the
// right one the disk begins with a volume or partitions that fill it, and blocks in other lost tables
// lie where these volumes have them.

const (
	// maxTried bounds the tables that are tried at the beginning of the disk.
	maxTried = 256
	// headSlack is what may be left free at the end of a disk: mkfs.xfs drops a last group of less than
	// 16 MiB, partitioning tools align to 1 MiB.
	headSlack = 16 << 20
)

// proveHead adds proofs to the one of several lost tables that the disk begins with.
func (m *mender) proveHead(ctx context.Context, list []candidate, l1 *slots) error {
	if len(list) < 2 || len(list) > maxTried || l1.used[0] && !l1.isBogus(0) ||
		m.h.HasDataFile() || m.h.Crypt != qcow2.CryptNone {
		return nil
	}
	head, vols := -1, []guest.Volume(nil)
	for i, c := range list {
		if slices.ContainsFunc(c.proofs, func(p proof) bool { return p.weight > 0 && p.slot != 0 }) {
			continue // XFS begins each of its groups as it begins itself
		}
		d, err := m.diskWith(int64(m.h.L1Off), c.cluster, nil)
		if err != nil {
			return err
		}
		found, err := m.volumesOn(ctx, d)
		switch {
		case err != nil:
			return err
		case !m.fill(found):
		case head >= 0:
			return nil // two may be it
		default:
			head, vols = i, found
		}
	}
	if head < 0 {
		return nil
	}
	others := 0
	for i, c := range list {
		if i == head {
			continue
		}
		proofs, err := m.proofsWith(ctx, vols, c.cluster, l1, guestBytes/int64(len(list)))
		if err != nil {
			return err
		}
		if len(proofs) == 1 && proofs[0].slot != 0 {
			others++
		}
	}
	if others == 0 {
		return nil
	}
	list[head].proofs = append(list[head].proofs,
		proof{guestProof, 0, "with it the disk begins with volumes that fill it, and with no other table without an entry", 1},
		proof{guestProof, 0, fmt.Sprintf("%d other tables without an entry have blocks that lie where these volumes have them", others), 1})
	return nil
}

// fill reports whether volumes fill the disk: one that takes all of it, or partitions of which the last
// ends with it.
func (m *mender) fill(vols []guest.Volume) bool {
	named, end := false, int64(0)
	for _, v := range vols {
		if v.Logical != "" {
			continue // within another
		}
		switch v.Kind {
		case guest.Other, guest.Unknown, guest.GPT, guest.MBR:
			if v.Partition > 0 {
				end = max(end, v.Start+v.Room)
			}
		default:
			named = true
			end = max(end, v.Start+v.Length)
			if v.Partition > 0 {
				end = max(end, v.Start+v.Room)
			}
		}
	}
	return named && end <= m.h.SizeBytes && end > m.h.SizeBytes-headSlack
}
