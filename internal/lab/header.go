// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Types of header extensions (qcow2.txt, "Header extensions").
const (
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extDataFile      = 0x44415441
)

// featureNames is what the image itself calls its feature bits: type, bit, name.
var featureNames = [...]struct {
	typ, bit uint8
	name     string
}{
	{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"},
	{0, 3, "compression type"}, {0, 4, "extended L2 entries"},
	{1, 0, "lazy refcounts"}, {2, 0, "bitmaps"}, {2, 1, "raw external data"},
}

func (b *builder) writeHeader() {
	h := make([]byte, 112)
	be := binary.BigEndian
	be.PutUint32(h, qcow2.Magic)
	be.PutUint32(h[4:], uint32(b.Version))
	be.PutUint32(h[20:], uint32(b.ClusterBits))
	be.PutUint64(h[24:], uint64(b.VirtualBytes))
	be.PutUint32(h[36:], uint32(b.l1Len))
	be.PutUint64(h[40:], uint64(b.l1)<<b.ClusterBits)
	be.PutUint64(h[48:], uint64(b.reftable)<<b.ClusterBits)
	be.PutUint32(h[56:], uint32(b.reftableClusters))
	be.PutUint32(h[60:], uint32(len(b.snaps)))
	if len(b.snaps) > 0 {
		be.PutUint64(h[64:], uint64(b.snapTable)<<b.ClusterBits)
	}
	if b.Version == 2 {
		h = h[:72]
	} else {
		b.features(h)
		be.PutUint32(h[96:], uint32(bits.TrailingZeros(uint(b.RefcountBits))))
		be.PutUint32(h[100:], 112)
	}
	h = b.extensions(h)
	if b.Backing != "" {
		be.PutUint64(h[8:], uint64(len(h)))
		be.PutUint32(h[16:], uint32(len(b.Backing)))
		h = append(h, b.Backing...)
	}
	if int64(len(h)) > b.clusterSize() && b.out.err == nil {
		b.out.err = fmt.Errorf("%w: header of %d bytes", ErrSpec, len(h))
		return
	}
	b.out.put(0, h)
}

func (b *builder) features(h []byte) {
	flag := func(on bool, bit uint64) uint64 {
		if on {
			return bit
		}
		return 0
	}
	zstd := b.Zstd && b.Version == 3
	binary.BigEndian.PutUint64(h[72:], flag(b.Dirty, qcow2.IncompatDirty)|
		flag(b.Corrupt, qcow2.IncompatCorrupt)|flag(b.DataFile != "", qcow2.IncompatDataFile)|
		flag(zstd, qcow2.IncompatCompression)|flag(b.ExtendedL2, qcow2.IncompatExtendedL2))
	binary.BigEndian.PutUint64(h[80:], flag(b.LazyRefcounts, qcow2.CompatLazyRefcounts))
	binary.BigEndian.PutUint64(h[88:], flag(b.Bitmaps > 0, qcow2.AutoclearBitmaps)|
		flag(b.RawDataFile, qcow2.AutoclearRawDataFile))
	if zstd {
		h[104] = byte(qcow2.Zstd)
	}
}

// extensions appends the header extensions, each padded to 8 bytes, and their end.
func (b *builder) extensions(h []byte) []byte {
	add := func(typ uint32, data []byte) {
		h = binary.BigEndian.AppendUint32(h, typ)
		h = binary.BigEndian.AppendUint32(h, uint32(len(data)))
		h = append(h, data...)
		h = append(h, make([]byte, -len(data)&7)...)
	}
	if b.BackingFormat != "" {
		add(extBackingFormat, []byte(b.BackingFormat))
	}
	if b.DataFile != "" {
		add(extDataFile, []byte(b.DataFile))
	}
	if b.FeatureNames {
		var table []byte
		for _, f := range featureNames {
			row := make([]byte, 48)
			row[0], row[1] = f.typ, f.bit
			copy(row[2:], f.name)
			table = append(table, row...)
		}
		add(extFeatureNames, table)
	}
	if b.Bitmaps > 0 {
		ext := binary.BigEndian.AppendUint32(nil, uint32(b.Bitmaps))
		ext = binary.BigEndian.AppendUint32(ext, 0)
		ext = binary.BigEndian.AppendUint64(ext, uint64(b.bitmap.dirBytes))
		ext = binary.BigEndian.AppendUint64(ext, uint64(b.bitmap.dir)<<b.ClusterBits)
		add(extBitmaps, ext)
	}
	add(0, nil)
	return h
}
