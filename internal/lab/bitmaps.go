// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"fmt"
)

const (
	// bitmapGranularity is how many bytes of the disk a bit stands for, as a power of two.
	bitmapGranularity = 16
	// maxBitmapEntry bounds an entry of the bitmap directory as it is written here.
	maxBitmapEntry = 24 + 16
)

// bitmapArea is where the bitmaps lie.
type bitmapArea struct{ dir, dirBytes int64 }

// bitmapTable is how many clusters of bits a bitmap has.
func (b *builder) bitmapTable() int64 {
	return ceil(ceil(ceil(b.VirtualBytes, 1<<bitmapGranularity), 8), b.clusterSize())
}

// bitmapClusters bounds the clusters of one bitmap: its table and its bits.
func (b *builder) bitmapClusters() int64 {
	return b.bitmapTable() + ceil(b.bitmapTable()*8, b.clusterSize())
}

// placeBitmaps writes the bitmaps: of each table some clusters are all zeros, some all ones and
// some stored.
func (b *builder) placeBitmaps() {
	if b.Bitmaps == 0 {
		return
	}
	be := binary.BigEndian
	var dir []byte
	for n := range b.Bitmaps {
		table := make([]byte, b.bitmapTable()*8)
		for i := range b.bitmapTable() {
			switch (int(i) + n + 2) % 3 {
			case 1:
				table[i*8+7] = 1
			case 2:
				c := b.alloc(1)
				be.PutUint64(table[i*8:], uint64(c)<<b.ClusterBits)
				b.out.put(c<<b.ClusterBits, []byte{1})
			}
		}
		at := b.extend(ceil(int64(len(table)), b.clusterSize()))
		b.out.put(at<<b.ClusterBits, table)
		name := fmt.Sprintf("bitmap%d", n)
		e := make([]byte, 24)
		be.PutUint64(e, uint64(at)<<b.ClusterBits)
		be.PutUint32(e[8:], uint32(b.bitmapTable()))
		flags := uint32(2) // auto: records every write
		if b.BitmapInUse && n == 0 {
			flags |= 1
		}
		be.PutUint32(e[12:], flags)
		e[16], e[17] = 1, bitmapGranularity
		be.PutUint16(e[18:], uint16(len(name)))
		e = append(e, name...)
		dir = append(dir, append(e, make([]byte, -len(e)&7)...)...)
	}
	b.bitmap.dirBytes = int64(len(dir))
	b.bitmap.dir = b.extend(ceil(b.bitmap.dirBytes, b.clusterSize()))
	b.out.put(b.bitmap.dir<<b.ClusterBits, dir)
}
