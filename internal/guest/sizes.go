// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// SizeClaim is what the guest says about the size of its disk.
type SizeClaim struct {
	// Bytes is the size. Exact: the disk had this size when it was written down; a disk that was
	// grown later is larger. Otherwise the disk is at least as large.
	Bytes int64
	Exact bool
	// Confirmed: what should lie at the end of such a disk lies there.
	Confirmed bool
	// Kind is what says so.
	Kind Kind
	Text string
}

// maxBackupSearch bounds how far from the end a backup GPT header is looked for where the primary
// is lost: the last table of 64 KiB clusters maps as much.
const maxBackupSearch = 512 << 20

// DiskSizes tells what the partition table and the file systems say about the size of the disk, of
// which limitBytes can be read: exact sizes first, then the largest. Parts of the disk may be
// missing; what could not be read is in the blind spots. The error is that of ctx alone.
func DiskSizes(ctx context.Context, disk io.ReaderAt, limitBytes int64) (
	[]SizeClaim, []finding.Blind, error,
) {
	s := &source{ctx: ctx, disk: disk, size: min(max(limitBytes, 0), maxBytes)}
	var claims []SizeClaim
	whole := func(vols []Volume) bool {
		return slices.ContainsFunc(vols, func(v Volume) bool { return v.Kind == GPT })
	}
	vols := s.volumes()
	if !whole(vols) {
		if end := s.searchBackup(); end > 0 {
			s.size = end // where a backup is looked for
			vols = s.volumes()
		}
	}
	for i := range vols {
		claims = append(claims, s.sizeOf(&vols[i])...)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("look for the size of the guest's disk: %w", err)
	}
	slices.SortStableFunc(claims, func(a, b SizeClaim) int {
		rank := func(c SizeClaim) int {
			if c.Exact {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Bytes, a.Bytes))
	})
	return claims, s.blind, nil
}

// sizeOf gives what a volume says about the disk: a GPT its last sector, a partition or a file
// system of the whole disk its end.
func (s *source) sizeOf(v *Volume) []SizeClaim {
	end := v.Start + v.Room
	switch {
	case v.Logical != "":
		return nil
	case v.Kind == GPT:
		c := SizeClaim{Bytes: v.Length, Exact: true, Kind: GPT, Confirmed: s.otherGPT(v)}
		how := "and no backup can be read there"
		switch {
		case c.Confirmed:
			how = "and both headers are there"
		case v.gpt.Other == 1:
			how = "where it lies; the primary is lost"
		}
		c.Text = fmt.Sprintf("the GPT puts its backup at the end of a disk of %d bytes, %s", c.Bytes, how)
		return []SizeClaim{c}
	case v.Partition == 0 && (v.Kind == Unknown || v.Kind == Other):
		return nil
	case v.Partition <= 0:
		end = v.Start + v.Length
		return []SizeClaim{{Bytes: end, Kind: v.Kind,
			Text: fmt.Sprintf("the %s file system from %#x on ends at %d bytes", v.Kind, v.Start, end)}}
	}
	return []SizeClaim{{Bytes: end, Kind: v.Kind,
		Text: fmt.Sprintf("partition %d (%s) ends at %d bytes", v.Partition, v.Kind, end)}}
}

// otherGPT tells whether the other header of the GPT v is where it should be.
func (s *source) otherGPT(v *Volume) bool {
	at := v.gpt.Other
	h := volume.ParseGPT(s.read(at*v.BlockSize, int(v.BlockSize), "GPT header"))
	return h != nil && h.Mine == at && h.GUID == v.UUID
}

// searchBackup looks backwards from the end for a header that says that it is in the last sector of
// a disk that ends right after it, and gives that end, 0 if there is none.
func (s *source) searchBackup() int64 {
	stop := max(0, s.size-maxBackupSearch)
	for end := s.size - s.size%512; end > stop && s.ctx.Err() == nil; end -= chunkBytes {
		begin := max(stop-stop%512, end-chunkBytes)
		b := s.read(begin, int(end-begin), "backup GPT header")
		for at := len(b) - 512; at >= 0; at -= 512 {
			h := volume.ParseGPT(b[at:][:512])
			if h == nil || !evidentGPT(h) || h.Mine <= h.Other {
				continue
			}
			for _, sector := range []int64{512, 4096} {
				if h.Mine*sector == begin+int64(at) {
					return (h.Mine + 1) * sector
				}
			}
		}
	}
	if stop > 0 {
		s.note(0, stop, "backup GPT header",
			fmt.Sprintf("looked for in the last %d bytes only", int64(maxBackupSearch)))
	}
	return 0
}
