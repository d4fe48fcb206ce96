// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/image"
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
	p := make([]byte, image.LUKSHeaderBytes)
	err := errors.New("it is too short")
	if n >= image.LUKSHeaderBytes {
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
	h, err := image.ParseLUKS(p)
	if errors.Is(err, image.ErrNoLUKS) {
		return nil, fmt.Errorf("magic %q", p[:len(image.LUKSMagic)])
	} else if err != nil {
		return nil, err
	}
	mode, ivgen, _ := strings.Cut(h.Mode, "-")
	ivgen, ivhash, _ := strings.Cut(ivgen, ":")
	keyBits := int64(h.KeyBytes) * 8
	if mode == "xts" {
		keyBits /= 2 // the other half is for the tweak
	}
	k := &LUKS{
		Cipher: fmt.Sprintf("%s-%d", h.Cipher, keyBits), CipherMode: mode, IVGen: ivgen, IVGenHash: ivhash,
		Hash: h.Hash, UUID: h.UUID, PayloadOffset: int64(h.PayloadSector) * image.LUKSSector,
		MasterKeyIterations: int64(h.Iterations),
	}
	for _, s := range h.Slots {
		k.Slots = append(k.Slots, KeySlot{Active: s.Active(), Iterations: int64(s.Iterations),
			KeyOffset: int64(s.KeySector) * image.LUKSSector, Stripes: int64(s.Stripes)})
	}
	return k, nil
}
