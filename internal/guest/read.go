// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/shisa-vm/shisa/internal/finding"
)

// maxBlind bounds the list of what could not be read. One more says that there is more.
const maxBlind = 64

// source reads a disk, of which parts may be missing, and notes what could not be read.
type source struct {
	ctx   context.Context
	disk  io.ReaderAt
	size  int64
	blind []finding.Blind
}

// read gives n bytes at off, or nil, and notes the reason, if they cannot be read. What lies past
// the end of the disk is nil too, and no blind spot: it is not there.
func (s *source) read(off int64, n int, what string) []byte {
	if off < 0 || n <= 0 || int64(n) > s.size || off > s.size-int64(n) || s.ctx.Err() != nil {
		return nil
	}
	b := make([]byte, n)
	if got, err := s.disk.ReadAt(b, off); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		s.note(off, int64(n), what, err.Error())
		return nil
	}
	return b
}

// note writes down that n bytes at off were not examined.
func (s *source) note(off, n int64, what, reason string) {
	s.add(finding.Blind{Object: diskName, What: what, Reason: reason,
		Host: []finding.Range{}, Guest: []finding.Range{{Offset: off, Length: n}}})
}

// add adds a blind spot, if there are not too many.
func (s *source) add(b finding.Blind) {
	switch {
	case len(s.blind) > maxBlind:
		return
	case len(s.blind) == maxBlind:
		b.What = "more of the guest"
		b.Reason = fmt.Sprintf("only the first %d reasons are kept", maxBlind)
	}
	s.blind = append(s.blind, b)
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
func le64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
func be16(b []byte, off int) uint16 { return binary.BigEndian.Uint16(b[off:]) }
func be32(b []byte, off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
func be64(b []byte, off int) uint64 { return binary.BigEndian.Uint64(b[off:]) }

// uuidAt is the UUID at off of b.
func uuidAt(b []byte, off int) UUID { return UUID(b[off : off+16]) }

// powerOfTwo tells whether n is a power of two from low to high.
func powerOfTwo(n, low, high int64) bool {
	return n >= low && n <= high && bits.OnesCount64(uint64(n)) == 1
}

// zero tells whether b has no byte set.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// castagnoli gives the table of CRC32C; the library makes it once.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// crc32c is the CRC32C of b with the four bytes at hole taken for zeros, as xfs has it.
func crc32c(b []byte, hole int) uint32 {
	var none [4]byte
	c := crc32.Update(0, castagnoli(), b[:hole])
	c = crc32.Update(c, castagnoli(), none[:])
	return crc32.Update(c, castagnoli(), b[hole+4:])
}

// rawCRC goes on with a CRC32C that is not inverted at its beginning or end, as ext4 has it.
func rawCRC(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli(), b) }
