// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/image"
)

// A seSparse extent ("space-efficient", of ESXi 6.5 and later). All numbers are 64 bits, positions in
// sectors:
//
//	 0 0xcafebabe       8 version 2.1     16 capacity         24 grain, 8     32 table, 64    40 flags, 0
//	80 volatile header: position, length  96 journal header  112 journal
//	128 directory: position, length      144 tables          160 bitmap      176 back map    192 grains
//
//	volatile header:  0 0xcafecafe   8 next table   16 next transaction   24 the journal is to be replayed
//	directory:  0, or 0x10000000 above the number of a table
//	table:      0, or in the highest 4 bits: 1 unmapped, 2 zeros, 3 a grain, whose number has its
//	            lowest 12 bits in bits 48 to 59 and the others in bits 0 to 47
const (
	seVolatileMagic = 0xcafecafe
	seVersion       = 0x0000000200000001
	seGrain         = 8
	seTableSectors  = 64
	seTable         = 0x10000000
	// maxSEBytes bounds the extent to what there can be, so that positions in it can be counted.
	maxSEBytes = 64 << 40
)

// openSE reads a seSparse extent whose first sector is head.
func openSE(r io.ReaderAt, size int64, head []byte) (*sparse, error) {
	le := binary.LittleEndian
	word := func(off int) uint64 { return le.Uint64(head[off:]) }
	if string(head[:4]) != magicSE || word(0)>>32 != 0 {
		return nil, invalid(0, "a seSparse extent begins with %#x", word(0))
	}
	if word(8) != seVersion || word(24) != seGrain || word(32) != seTableSectors || word(40) != 0 ||
		len(bytes.Trim(head[48:80], "\x00")) > 0 || len(bytes.Trim(head[208:], "\x00")) > 0 {
		return nil, unsupported(8, "a seSparse extent of version %#x, with grains of %d sectors, tables of %d, flags %#x",
			word(8), word(24), word(32), word(40))
	}
	for _, off := range []int{16, 80, 128, 136, 144, 192} {
		if word(off) > maxSEBytes/sectorBytes {
			return nil, invalid(int64(off), "a seSparse extent with a position of %d sectors", word(off))
		}
	}
	volatile := make([]byte, sectorBytes)
	at := int64(word(80)) * sectorBytes
	if err := image.ReadPadded(r, size, volatile, at); err != nil {
		return nil, fmt.Errorf("read the volatile header at %#x: %w", at, err)
	}
	switch {
	case le.Uint64(volatile) != seVolatileMagic:
		return nil, invalid(at, "the volatile header begins with %#x", le.Uint64(volatile))
	case le.Uint64(volatile[24:]) != 0:
		return nil, unsupported(at, "a seSparse extent that was not closed, and whose journal is to be replayed,")
	}
	s := &sparse{r: r, size: size, pages: image.NewPages(r, size), se: true,
		capacity: int64(word(16)) * sectorBytes, grain: seGrain * sectorBytes, table: seTableSectors * sectorBytes / 8,
		tables: int64(word(136)) * sectorBytes / 8, tablesOff: int64(word(144)) * sectorBytes,
		grainsOff: int64(word(192)) * sectorBytes}
	if s.capacity == 0 || s.tables < s.needed() {
		return nil, invalid(136, "a directory of %d entries for %d bytes", s.tables, s.capacity)
	}
	if err := s.place(word(128), 0, false); err != nil {
		return nil, err
	}
	return s, nil
}

// seGrainAt decodes an entry of a table of a seSparse extent that is not 0.
func (s *sparse) seGrainAt(entry uint64) (off int64, kind image.Kind, bad string) {
	switch entry >> 60 {
	case 1, 2:
		return 0, image.Zero, ""
	case 3:
		number := entry>>48&0xfff | entry&0xffffffffffff<<12
		if number > maxSEBytes/uint64(s.grain) {
			return 0, 0, "there is no such grain"
		}
		return s.grainsOff + int64(number)*s.grain, image.Data, ""
	}
	return 0, 0, "there is no such kind of grain"
}
