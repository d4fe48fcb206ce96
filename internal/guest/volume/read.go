// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// bytesAt gives n bytes of v at off, nil if they cannot be read, which it notes. What lies past the
// end of v is nil too, and no blind spot: it is not there.
func (f *finder) bytesAt(v *Volume, off, n int64, what string) []byte {
	if off < 0 || n <= 0 || n > v.Size || off > v.Size-n || f.ctx.Err() != nil {
		return nil
	}
	if f.spent(v, off, n, what) {
		return nil
	}
	b := make([]byte, n)
	if _, err := v.ReadAt(b, off); err != nil {
		f.blind(v, off, n, what, err.Error())
		return nil
	}
	return b
}

// spent counts n bytes that are to be read, and notes it if that is more than may be read in all.
func (f *finder) spent(v *Volume, off, n int64, what string) bool {
	if f.read+n > maxReadBytes {
		f.blind(v, off, n, what,
			fmt.Sprintf("%d bytes were read in all, and more are not", int64(maxReadBytes)))
		return true
	}
	f.read += n
	return false
}

// blind notes that n bytes of v at off were not examined.
func (f *finder) blind(v *Volume, off, n int64, what, reason string) {
	b := finding.Blind{Object: f.object(v), What: what, Reason: reason,
		Host: []finding.Range{}, Guest: []finding.Range{}}
	if v.onDisk() {
		b.Guest = append(b.Guest, finding.Range{Offset: v.Start + off, Length: n})
	}
	l := f.layout
	switch {
	case slices.ContainsFunc(l.Blind, func(o finding.Blind) bool { return covers(o, b) }):
		return // read again
	case len(l.Blind) > maxBlind:
		return
	case len(l.Blind) == maxBlind:
		b.What, b.Reason = "more", fmt.Sprintf("only the first %d reasons are kept", maxBlind)
	}
	l.Blind = append(l.Blind, b)
}

// covers tells whether a says all that b says.
func covers(a, b finding.Blind) bool {
	return a.Object == b.Object && a.What == b.What && len(a.Guest) == len(b.Guest) &&
		(len(a.Guest) == 0 || a.Guest[0].Offset <= b.Guest[0].Offset && a.Guest[0].End() >= b.Guest[0].End())
}

// problem notes that something is wrong in n bytes of v at off.
func (f *finder) problem(v *Volume, off, n int64, what, text string) {
	p := Problem{Disk: v.Disk, Range: finding.Range{Offset: off, Length: n}, What: what, Text: text}
	if v.onDisk() {
		p.Offset += v.Start
	} else {
		p.In = v.Name
	}
	f.add(p)
}

// add adds a problem, if the list is not full.
func (f *finder) add(p Problem) {
	switch n := len(f.layout.Problems); {
	case n > maxProblems:
		return
	case n == maxProblems:
		p = Problem{Disk: -1, What: "problems",
			Text: fmt.Sprintf("only the first %d are kept", maxProblems)}
	}
	f.layout.Problems = append(f.layout.Problems, p)
}

// object names what v is in, for a message.
func (f *finder) object(v *Volume) string {
	if v.onDisk() {
		return f.layout.Disks[v.Disk].Name
	}
	return v.Name
}

// onDisk tells whether v is one run of bytes of a disk.
func (v *Volume) onDisk() bool {
	return v.Disk >= 0 && v.Part >= 0 && len(v.segments) == 1 && len(v.segments[0].legs) == 1 &&
		v.segments[0].legs[0].vol == nil
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
func le64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
func be16(b []byte, off int) uint16 { return binary.BigEndian.Uint16(b[off:]) }
func be32(b []byte, off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }

// zero tells whether b has no byte set.
func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// uuid gives the usual form of 16 bytes, 8-4-4-4-12 hex digits, and "" of zeros.
func uuid(b []byte) string {
	if zero(b[:16]) {
		return ""
	}
	s := hex.EncodeToString(b[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// text is b up to the first zero.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
