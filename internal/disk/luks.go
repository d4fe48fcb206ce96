// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

// The header of LUKS, version 1 ("LUKS1 On-Disk Format Specification", version 1.2.3); all numbers
// are big-endian, texts end with a zero:
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
	"io"
	"strings"
)

const (
	luksHeaderBytes = 592
	luksSlots       = 8
	luksSlotBytes   = 48
	luksSector      = 512
	// Magic numbers that mark a slot.
	luksSlotActive = 0x00ac71f3
)

// Encrypted tells how guest data is encrypted.
type Encrypted struct {
	Format string `json:"format"` // "aes" or "luks"
	LUKS   *LUKS  `json:"luks"`   // nil for aes
}

// LUKS is what the LUKS header says. The key itself is not read.
type LUKS struct {
	// Cipher with the bits of its key, for example "aes-256", and CipherMode, for example "xts".
	Cipher     string `json:"cipher"`
	CipherMode string `json:"cipher_mode"`
	IVGen      string `json:"ivgen"`
	IVGenHash  string `json:"ivgen_hash"` // "" where it has none
	Hash       string `json:"hash"`
	UUID       string `json:"uuid"`
	// PayloadOffset is where the data begins, in bytes.
	PayloadOffset       int64     `json:"payload_offset"`
	MasterKeyIterations int64     `json:"master_key_iterations"`
	Slots               []KeySlot `json:"slots"`
}

// KeySlot is one of the key slots.
type KeySlot struct {
	Active     bool  `json:"active"`
	Iterations int64 `json:"iterations"`
	Stripes    int64 `json:"stripes"`
	KeyOffset  int64 `json:"key_offset"` // bytes
}

// luks reads the LUKS header in the n bytes at off of the file.
func (l *Layer) luks(info *Info, off, n int64) {
	p := make([]byte, luksHeaderBytes)
	err := errors.New("it is too short")
	if n >= luksHeaderBytes {
		if _, err = l.file.ReadAt(p, off); errors.Is(err, io.EOF) {
			err = errors.New("it lies past the end of the file")
		}
	}
	var k *LUKS
	if err == nil {
		k, err = parseLUKS(p)
	}
	if err != nil {
		l.blind(info, "LUKS header", fmt.Errorf("LUKS header at %#x: %w", off, err))
		return
	}
	info.Encryption = &Encrypted{Format: formatLUKS, LUKS: k}
}

func parseLUKS(p []byte) (*LUKS, error) {
	be := binary.BigEndian
	text := func(off, n int) string {
		s, _, _ := bytes.Cut(p[off:off+n], []byte{0})
		return string(s)
	}
	if !bytes.HasPrefix(p, []byte("LUKS\xba\xbe")) {
		return nil, fmt.Errorf("magic %q", p[:6])
	}
	if v := be.Uint16(p[6:]); v != 1 {
		return nil, fmt.Errorf("version %d is not supported", v)
	}
	mode, ivgen, _ := strings.Cut(text(40, 32), "-")
	ivgen, ivhash, _ := strings.Cut(ivgen, ":")
	keyBits := int64(be.Uint32(p[108:])) * 8
	if mode == "xts" {
		keyBits /= 2 // the other half is for the tweak
	}
	k := &LUKS{
		Cipher: fmt.Sprintf("%s-%d", text(8, 32), keyBits), CipherMode: mode, IVGen: ivgen, IVGenHash: ivhash,
		Hash: text(72, 32), UUID: text(168, 40), PayloadOffset: int64(be.Uint32(p[104:])) * luksSector,
		MasterKeyIterations: int64(be.Uint32(p[164:])),
	}
	for i := range luksSlots {
		s := p[208+i*luksSlotBytes:]
		k.Slots = append(k.Slots, KeySlot{
			Active: be.Uint32(s) == luksSlotActive, Iterations: int64(be.Uint32(s[4:])),
			KeyOffset: int64(be.Uint32(s[40:])) * luksSector, Stripes: int64(be.Uint32(s[44:])),
		})
	}
	return k, nil
}
