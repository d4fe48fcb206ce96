// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/image"
)

// extent is an image.Extent with what is needed to read it.
type extent struct {
	image.Extent
	entry uint64 // the L2 entry of a compressed cluster
}

// clip cuts e to [from, to), which overlaps it.
func (e extent) clip(from, to int64) extent {
	if cut := from - int64(e.Guest); cut > 0 {
		e.Guest += image.GuestOff(cut)
		e.Length -= cut
		if e.HasHost {
			e.Host += image.HostOff(cut)
		}
	}
	e.Length = min(e.Length, to-int64(e.Guest))
	return e
}

// entryScan decodes entries of one L2 table in ascending order ("Standard Cluster Descriptor",
// "Extended L2 Entries").
type entryScan struct {
	d     *Disk
	table int64  // where the table is
	index int64  // of the entry at the front of buf
	guest int64  // where its cluster is on the virtual disk
	sub   uint   // its first subcluster that is to be decoded
	buf   []byte // the entries that are left, as they stand
}

// more reports whether entries are left.
func (s *entryScan) more() bool { return len(s.buf) >= 8 }

// next decodes the next clusters that are stored in one way and continue each other. Compressed
// clusters come one by one. The error is an *EntryError.
func (s *entryScan) next() (extent, error) {
	if s.d.h.ExtendedL2() {
		return s.nextExtended()
	}
	h := s.d.h
	entry := binary.BigEndian.Uint64(s.buf)
	x := extent{Extent: image.Extent{Guest: image.GuestOff(s.guest)}}
	n := int64(1)
	switch h.TypeOf(entry) {
	case EntryUnallocated:
		n = countRun(s.buf, 8, entry, ^uint64(0), 0)
	case EntryZeroPlain:
		x.Kind = image.Zero
		n = countRun(s.buf, 8, entry, ^uint64(0), 0)
	case EntryCompressed:
		x.Kind, x.entry = image.Compressed, entry
		x.Host, _ = h.CompressedRange(entry)
	case EntryZeroAlloc:
		x.Kind = image.Zero
		n = s.place(&x, entry)
	case EntryNormal:
		x.Kind = image.Data
		n = s.place(&x, entry)
	}
	if err := s.fault(entry, &x); err != nil {
		return x, err
	}
	x.Length = n << h.ClusterBits
	s.advance(n)
	return x, nil
}

// place fills in where x is, and counts the clusters that continue it.
func (s *entryScan) place(x *extent, entry uint64) int64 {
	h := s.d.h
	x.Host, x.HasHost, x.InDataFile = image.HostOff(entry&OffsetMask), true, h.HasDataFile()
	n := countRun(s.buf, h.L2EntryBytes(), entry, ^uint64(FlagCopied), uint64(h.ClusterSize()))
	// The sum must not run into the reserved bits above an offset.
	return min(n, (MaxOffset+1-int64(x.Host)+h.ClusterSize()-1)>>h.ClusterBits)
}

// countRun counts the entries at the front of buf that continue the first, each of them step more
// than the one before, in the bits of mask. width is that of an entry.
func countRun(buf []byte, width int64, entry, mask, step uint64) int64 {
	want := entry & mask
	i := width
	for ; i+8 <= int64(len(buf)); i += width {
		want += step
		if binary.BigEndian.Uint64(buf[i:])&mask != want {
			break
		}
	}
	return i / width
}

func (s *entryScan) advance(n int64) {
	s.buf = s.buf[n*s.d.h.L2EntryBytes():]
	s.index += n
	s.guest += n << s.d.h.ClusterBits
	s.sub = 0
}

// nextExtended is next for entries with a bitmap of subclusters.
func (s *entryScan) nextExtended() (extent, error) {
	h := s.d.h
	entry, bitmap := binary.BigEndian.Uint64(s.buf), binary.BigEndian.Uint64(s.buf[8:])
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	x := extent{Extent: image.Extent{Guest: image.GuestOff(s.guest)}}
	n, subs, sub := int64(1), uint(subclustersPerL2E), s.sub
	switch h.TypeOf(entry) {
	case EntryCompressed:
		x.Kind, x.entry = image.Compressed, entry
		x.Host, _ = h.CompressedRange(entry)
		sub = 0 // it is unpacked as a whole
	case EntryUnallocated:
		if alloc != 0 {
			return x, s.bad(entry,
				fmt.Sprintf("no cluster, but the bitmap %#016x says that subclusters are stored",
					bitmap), "")
		}
		if x.Kind, subs = subclusterRun(alloc, zero, sub); subs == subclustersPerL2E {
			n = s.sameBitmap(bitmap, countRun(s.buf, 16, entry, ^uint64(0), 0))
		}
	default:
		if alloc&zero != 0 {
			return x, s.bad(entry,
				fmt.Sprintf("the bitmap %#016x says of subclusters that they are stored and zero",
					bitmap), "")
		}
		n = s.place(&x, entry)
		if x.Kind, subs = subclusterRun(alloc, zero, sub); subs == subclustersPerL2E {
			n = s.sameBitmap(bitmap, n)
		}
	}
	if err := s.fault(entry, &x); err != nil {
		return x, err
	}
	if x.Kind == image.Compressed || subs == subclustersPerL2E {
		x.Length = n << h.ClusterBits
		s.advance(n)
		return x, nil
	}
	x.Length = int64(subs) * h.SubclusterSize()
	skip := int64(sub) * h.SubclusterSize()
	x.Guest += image.GuestOff(skip)
	if x.HasHost {
		x.Host += image.HostOff(skip)
	}
	if s.sub += subs; s.sub == subclustersPerL2E {
		s.advance(1)
	}
	return x, nil
}

// subclusterRun says how the subcluster sub is stored, and how many there are from it on that are
// stored in the same way.
func subclusterRun(alloc, zero uint32, sub uint) (image.Kind, uint) {
	kind, same := image.Unallocated, ^(alloc | zero)
	switch {
	case zero>>sub&1 != 0:
		kind, same = image.Zero, zero
	case alloc>>sub&1 != 0:
		kind, same = image.Data, alloc
	}
	return kind, uint(bits.TrailingZeros32(^(same >> sub)))
}

// sameBitmap counts how many of the next n entries have that bitmap.
func (s *entryScan) sameBitmap(bitmap uint64, n int64) int64 {
	for i := range n {
		if binary.BigEndian.Uint64(s.buf[16*i+8:]) != bitmap {
			return i
		}
	}
	return n
}

// fault says what is wrong with the entry at the front, which was decoded to x.
func (s *entryScan) fault(entry uint64, x *extent) error {
	h, host := s.d.h, uint64(x.Host)
	switch {
	case x.Kind == image.Compressed:
		if h.HasDataFile() {
			return s.bad(entry, "a compressed cluster, but the data is in an external data file",
				"Compressed cluster entry found in image with external data file "+s.at())
		}
	case h.Version < 3 && x.Kind == image.Zero:
		return s.bad(entry, "a zero cluster, which version 2 does not have",
			"Zero cluster entry found in pre-v3 image "+s.at())
	case !x.HasHost:
	case host&uint64(h.ClusterSize()-1) != 0:
		return s.bad(entry, fmt.Sprintf("the cluster at %#x is not cluster aligned", host),
			fmt.Sprintf("Cluster allocation offset %s unaligned %s", cHex(host), s.at()))
	case x.InDataFile && int64(host) != s.guest:
		return s.bad(entry,
			fmt.Sprintf("the cluster is at %#x of the data file, not at its own place", host),
			fmt.Sprintf("External data file host cluster offset %s does not match guest cluster "+
				"offset: %s, L2 index: %s)", cHex(host), cHex(uint64(s.guest)), cHex(s.slot())))
	}
	return nil
}

// slot is the index of the front entry as qemu counts in its messages: within the part of at most
// 64 KiB of the table that it reads at once.
func (s *entryScan) slot() uint64 {
	return uint64(s.index % (min(s.d.h.ClusterSize(), 64<<10) / s.d.h.L2EntryBytes()))
}

// at is the place of the front entry in qemu's messages.
func (s *entryScan) at() string {
	return fmt.Sprintf("(L2 offset: %s, L2 index: %s)", cHex(uint64(s.table)), cHex(s.slot()))
}

// bad is the error for the entry at the front. qemu is what qemu says of it, "" for the general
// message that it has.
func (s *entryScan) bad(entry uint64, msg, qemu string) error {
	if qemu == "" {
		qemu = "Invalid cluster entry found  " + s.at()
	}
	return &EntryError{
		Guest: image.GuestOff(s.guest), Length: s.d.h.ClusterSize(), Level: 2,
		Off: image.HostOff(s.table + s.index*s.d.h.L2EntryBytes()), Entry: entry,
		Msg: msg, Qemu: qemu,
	}
}
