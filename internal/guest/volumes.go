// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// headBytes is what is read at the start of a partition: up to the end of btrfs's superblock.
const headBytes = 64<<10 + btrfsSuperBytes

const (
	// maxVolumes bounds the volumes of one disk, however many partitions its table names.
	maxVolumes = 256
	// maxSegments bounds the runs of a volume that is not in one piece: those of LVM have a few, and
	// stripes have one for each.
	maxSegments = 4096
	// mbrSector is the sector of a disk with an MBR, in bytes.
	mbrSector = 512
	// diskName is what blind spots speak of.
	diskName = "the guest's disk"
)

// partition is a range of the disk.
type partition struct {
	number        int
	start, length int64
}

// usualStarts are where the first partition begins on most disks: at 1 MiB, and at sector 63 on
// old ones. They are tried where the partition table is missing.
func usualStarts() []int64 { return []int64{1 << 20, 63 * mbrSector} }

// Volumes finds the partition table of a guest's disk of size bytes, and the file systems at the
// starts of its partitions, of the logical volumes and arrays in them, and of the disk itself.
// Parts of the disk may be missing: where they read as zeros, copies of what they held are looked
// for at the places that a format has for them, and where they cannot be read, that is in the
// blind spots too. The error is that of ctx alone. It may block as long as reading the disk does.
func Volumes(ctx context.Context, disk io.ReaderAt, size int64) ([]Volume, []finding.Blind, error) {
	s := &source{ctx: ctx, disk: disk, size: min(max(size, 0), maxBytes)}
	vols := s.volumes()
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("look for the guest's file systems: %w", err)
	}
	return vols, s.blind, nil
}

// volumes does the work of Volumes.
func (s *source) volumes() []Volume {
	if s.size < 2*mbrSector {
		return nil
	}
	layout, err := volume.Find(s.ctx, []volume.Disk{{Name: diskName, Data: s.disk, Size: s.size}})
	if err != nil {
		return nil // that of the context, which those who call look at
	}
	for _, b := range layout.Blind {
		s.add(b)
	}
	vols, divided := s.tables(layout)
	whole := s.recognise(partition{0, 0, s.size})
	switch {
	case whole.Kind != Other && whole.Kind != Unknown:
		vols = append(vols, whole)
	case whole.Kind == Unknown && !divided:
		vols = append(vols, whole)
		for _, start := range usualStarts() {
			v := s.recognise(partition{-1, start, s.size - start})
			if v.Kind != Other && v.Kind != Unknown {
				v.Room = v.Length // how much it has is not known
				vols = append(vols, v)
			}
		}
	}
	for _, found := range layout.Volumes {
		if len(vols) >= maxVolumes {
			s.note(found.Start, found.Size, "partitions",
				fmt.Sprintf("only the first %d volumes are looked at", maxVolumes))
			break
		}
		if v, ok := s.known(layout, found); ok {
			vols = append(vols, s.recogniseIn(v))
		}
	}
	return vols
}

// tables gives the GPT of the disk, if it has a sound one. divided: it has partitions of which a
// table says where they lie.
func (s *source) tables(layout *volume.Layout) (vols []Volume, divided bool) {
	for i := range layout.Tables {
		t := &layout.Tables[i]
		if t.In >= 0 {
			continue // of an array or a logical volume
		}
		if h := t.GPT; h != nil && evidentGPT(h) {
			vols = append(vols, Volume{Kind: GPT, UUID: h.GUID, Length: (last(h) + 1) * t.Sector,
				Room: s.size, BlockSize: t.Sector, FromCopy: t.FromBackup, gpt: h})
			divided = true
		}
		divided = divided || t.Sound && slices.ContainsFunc(layout.Volumes, partitioned)
	}
	return vols, divided
}

// partitioned tells whether v is a partition of the disk.
func partitioned(v *volume.Volume) bool { return v.Class == volume.Partition && len(v.In) == 0 }

// known gives the place of a partition, a logical volume or an array. It is not ok where no place
// is sure: a block proves one place on this disk only.
func (s *source) known(layout *volume.Layout, found *volume.Volume) (Volume, bool) {
	v := Volume{Kind: Unknown, Partition: found.Part, Start: found.Start,
		Length: found.Size, Room: found.Size}
	if partitioned(found) {
		sound := slices.ContainsFunc(layout.Tables, func(t volume.Table) bool {
			return t.In < 0 && t.Sound
		})
		return v, sound && found.Kind != volume.Extended && found.Kind != volume.RAIDMember
	}
	if found.Class == volume.Whole || found.Kind == volume.NotRead {
		return v, false
	}
	v.Logical, v.Partition = found.Name, layout.Volumes[found.In[0]].Part
	for p := range found.Pieces(0, found.Size) {
		if len(v.segments) >= maxSegments {
			return v, false // dealt out in stripes
		}
		if p.Disk == 0 && p.Copy == 0 {
			v.segments = append(v.segments, segment{inVolume: p.Offset, onDisk: p.At, length: p.Length})
		}
	}
	if len(v.segments) == 0 {
		return v, false
	}
	v.Start = v.segments[0].onDisk
	return v, true
}

// recognise tells what begins at the start of p.
func (s *source) recognise(p partition) Volume {
	v := Volume{Kind: Unknown, Partition: p.number, Start: p.start, Length: p.length, Room: p.length}
	return s.recogniseIn(v)
}

// recogniseIn tells what begins at the start of v, which is set up as unknown.
func (s *source) recogniseIn(v Volume) Volume {
	head := s.head(&v)
	switch {
	case v.take(head):
	case !zero(head):
		v.Kind = Other
		return v
	default:
		s.recogniseCopy(&v)
	}
	if v.ext != nil {
		s.readGroups(&v)
	}
	if v.btrfs != nil {
		s.readChunks(&v)
	}
	return v
}

// head reads the first bytes of v. What cannot be read of it is zeros.
func (s *source) head(v *Volume) []byte {
	b := make([]byte, headBytes)
	for at := int64(0); at < headBytes; at += minBtrfsNode {
		if off, ok := v.onDisk(at, minBtrfsNode); ok {
			copy(b[at:], s.read(off, minBtrfsNode, "head of a volume"))
		}
	}
	return b
}

// take looks for superblocks in the head of a volume and takes over what they say. The newest of
// several file systems cannot be told; btrfs wipes the others' superblocks, ext4 and XFS lie apart.
func (v *Volume) take(head []byte) bool {
	if b := parseBtrfs(head[btrfsSupers()[0]:]); b != nil && b.place == btrfsSupers()[0] {
		v.takeBtrfs(b)
		return true
	}
	if x := parseXFS(head); x != nil {
		v.takeXFS(x)
		return true
	}
	if e := parseExt(head[extSuperBytes:]); e != nil && e.group == 0 {
		v.takeExt(e)
		return true
	}
	return false
}

func (v *Volume) takeExt(e *extGeometry) {
	v.Kind, v.UUID, v.BlockSize, v.Length, v.ext = e.kind, e.uuid, e.blockSize, e.blocks*e.blockSize, e
}

func (v *Volume) takeXFS(x *xfsGeometry) {
	v.Kind, v.UUID, v.BlockSize, v.Length, v.xfs = XFS, x.uuid, x.blockSize, x.blocks*x.blockSize, x
}

func (v *Volume) takeBtrfs(b *btrfsGeometry) {
	v.Kind, v.UUID, v.BlockSize, v.Length, v.btrfs = Btrfs, b.uuid, b.unit, b.length, b
}

// recogniseCopy looks for copies of superblocks at the places where they are, if their own place
// and the number in them agree, so that the start of the volume is sure.
func (s *source) recogniseCopy(v *Volume) {
	at := func(off int64, n int) []byte {
		disk, ok := v.onDisk(off, int64(n))
		if !ok {
			return nil
		}
		return s.read(disk, n, "copy of a superblock")
	}
	for _, place := range btrfsSupers()[1:] {
		if b := parseBtrfs(at(place, btrfsSuperBytes)); b != nil && b.place == place {
			v.takeBtrfs(b)
			v.FromCopy = true
			return
		}
	}
	for _, block := range []int64{4096, 1024, 2048} {
		for _, group := range []int64{1, 3, 5, 7, 9, 25, 27, 49} {
			first := int64(0)
			if block == 1024 {
				first = 1
			}
			off := (first + group*8*block) * block
			e := parseExt(at(off, extSuperBytes))
			if e != nil && e.group == group && e.superAt(group) == off {
				v.takeExt(e)
				v.FromCopy = true
				return
			}
		}
	}
	// mkfs.xfs makes four groups of a disk of less than 4 TiB that is one disk.
	for _, block := range []int64{4096, 1024, 2048, 512} {
		size := (v.Length/block + 3) / 4 * block
		for group := int64(1); group < 4; group++ {
			b := at(group*size, 16<<10)
			x := parseXFS(b)
			if x == nil || x.groupBlocks*x.blockSize != size {
				continue
			}
			if n, ok := x.groupOfSectors(b); ok && n == uint64(group) {
				v.takeXFS(x)
				v.FromCopy = true
				return
			}
		}
	}
}
