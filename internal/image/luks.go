// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image

// The header of LUKS, version 1 ("LUKS1 On-Disk Format Specification", version 1.2.3, "The partition
// header"); all numbers are big-endian, texts end with a zero:
//
//	  0  magic "LUKS\xba\xbe"        6  version uint16
//	  8  cipher [32]                40  cipher mode [32]           72  hash [32]
//	104  payload: sector uint32    108  bytes of the key uint32   112  digest [20], salt [32]
//	164  iterations uint32         168  UUID [40]
//	208  8 key slots: {state uint32, iterations uint32, salt [32], key: sector uint32, stripes uint32}

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// LUKSHeaderBytes is how long the header is, LUKSSlots how many keys it has room for.
	LUKSHeaderBytes = 592
	LUKSSlots       = 8
	// LUKSMagic begins it.
	LUKSMagic = "LUKS\xba\xbe"
	// LUKSSlotActive and LUKSSlotInactive are the states of a key slot.
	LUKSSlotActive   = 0x00ac71f3
	LUKSSlotInactive = 0x0000dead
	// LUKSSector is the unit of its positions, in bytes.
	LUKSSector = 512

	luksSlotBytes = 48
)

// ErrNoLUKS: it does not begin with the magic, or is too short.
var ErrNoLUKS = errors.New("is no LUKS header")

// LUKSVersionError names the version of a header that cannot be read: another one than 1.
type LUKSVersionError struct{ Version uint16 }

func (e *LUKSVersionError) Error() string {
	return fmt.Sprintf("version %d is not supported", e.Version)
}

// LUKSHeader is what a header says, as it stands there: nothing is checked but magic and version. The
// key is not read.
type LUKSHeader struct {
	// Cipher, Mode and Hash are names; Unended is the first of "cipher name", "cipher mode" and "hash
	// spec" that has no zero behind it, "" if all have.
	Cipher, Mode, Hash, Unended string
	UUID                        string
	PayloadSector               uint32 // where the data begins
	KeyBytes                    uint32
	Iterations                  uint32 // of the key derivation
	Slots                       [LUKSSlots]LUKSSlot
}

// LUKSSlot is one of the key slots.
type LUKSSlot struct {
	State, Iterations, KeySector, Stripes uint32
}

// Active reports whether the slot holds a key.
func (s LUKSSlot) Active() bool { return s.State == LUKSSlotActive }

// ParseLUKS reads the header at the beginning of p, which has LUKSHeaderBytes. The errors are ErrNoLUKS
// and *LUKSVersionError.
func ParseLUKS(p []byte) (*LUKSHeader, error) {
	be := binary.BigEndian
	if len(p) < LUKSHeaderBytes || !bytes.HasPrefix(p, []byte(LUKSMagic)) {
		return nil, ErrNoLUKS
	}
	if v := be.Uint16(p[6:]); v != 1 {
		return nil, &LUKSVersionError{v}
	}
	h := &LUKSHeader{PayloadSector: be.Uint32(p[104:]), KeyBytes: be.Uint32(p[108:]), Iterations: be.Uint32(p[164:])}
	for _, f := range []struct {
		to      *string
		off, n  int
		checked string
	}{
		{&h.Cipher, 8, 32, "cipher name"}, {&h.Mode, 40, 32, "cipher mode"}, {&h.Hash, 72, 32, "hash spec"},
		{&h.UUID, 168, 40, ""},
	} {
		text, _, ended := bytes.Cut(p[f.off:f.off+f.n], []byte{0})
		*f.to = string(text)
		if !ended && h.Unended == "" {
			h.Unended = f.checked
		}
	}
	for i := range h.Slots {
		s := p[208+i*luksSlotBytes:]
		h.Slots[i] = LUKSSlot{State: be.Uint32(s), Iterations: be.Uint32(s[4:]),
			KeySector: be.Uint32(s[40:]), Stripes: be.Uint32(s[44:])}
	}
	return h, nil
}
