// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

// What qemu checks of a LUKS header, in its order and words (QEMU 7.2, crypto/block-luks.c). The header
// itself is read by image.ParseLUKS.

import (
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	luksHeaderBytes   = image.LUKSHeaderBytes
	luksSlots         = image.LUKSSlots
	luksStripes       = 4000
	luksHeaderSectors = 4096 / sector
)

// luksHeader is what can be told of an encrypted image without its key.
type luksHeader struct {
	cipher, mode, ivgen, ivHash, hash, uuid string
	payloadOff                              int64
	masterIters                             uint32
	slots                                   [luksSlots]luksSlot
}

type luksSlot struct {
	active             bool
	iters, keyOff, len uint32 // keyOff in sectors, len the stripes
}

// readLUKS reads a header that has room bytes; what the file lacks of them reads as zeros.
func readLUKS(r io.ReaderAt, room int64) (*luksHeader, *fault) {
	if room < luksHeaderBytes {
		return nil, faultf("Request for data outside of extension header")
	}
	p := make([]byte, luksHeaderBytes)
	if _, err := r.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, errnoFault(err, "Could not read encryption header")
	}
	raw, err := image.ParseLUKS(p)
	var version *image.LUKSVersionError
	switch {
	case errors.As(err, &version):
		return nil, faultf("LUKS version %d is not supported", version.Version)
	case err != nil:
		return nil, faultf("Volume is not in LUKS format")
	case raw.Unended != "":
		return nil, faultf("LUKS header %s is not NUL terminated", raw.Unended)
	}
	h := &luksHeader{payloadOff: int64(raw.PayloadSector) * sector, masterIters: raw.Iterations, uuid: raw.UUID}
	switch {
	case h.payloadOff < luksHeaderSectors*sector:
		return nil, faultf("LUKS payload is overlapping with the header")
	case h.masterIters == 0:
		return nil, faultf("LUKS key iteration count is zero")
	}
	if err := h.takeSlots(raw); err != nil {
		return nil, err
	}
	return h, h.parseNames(raw.Cipher, raw.Mode, raw.Hash, raw.KeyBytes)
}

// takeSlots takes over the key slots and checks that they do not overlap.
func (h *luksHeader) takeSlots(raw *image.LUKSHeader) *fault {
	keyBytes := raw.KeyBytes
	all := h.slots[:]
	for i, s := range raw.Slots {
		all[i] = luksSlot{active: s.Active(), iters: s.Iterations, keyOff: s.KeySector, len: s.Stripes}
	}
	payload := uint32(h.payloadOff / sector)
	for i, s := range all {
		length := keySectors(keyBytes, s.len)
		switch {
		case s.len != luksStripes:
			return faultf("Keyslot %d is corrupted (stripes %d != %d)", i, int32(s.len), luksStripes)
		case !s.active && raw.Slots[i].State != image.LUKSSlotInactive:
			return faultf("Keyslot %d state (active/disable) is corrupted", i)
		case s.active && s.iters == 0:
			return faultf("Keyslot %d iteration count is zero", i)
		case s.keyOff < luksHeaderSectors:
			return faultf("Keyslot %d is overlapping with the LUKS header", i)
		case s.keyOff+length > payload:
			return faultf("Keyslot %d is overlapping with the encrypted payload", i)
		}
		for j, t := range all[i+1:] {
			if s.keyOff+length > t.keyOff && t.keyOff+keySectors(keyBytes, t.len) > s.keyOff {
				return faultf("Keyslots %d and %d are overlapping in the header", i, i+1+j)
			}
		}
	}
	return nil
}

// keySectors is the room of a key slot, in qemu's arithmetic of 32 bits.
func keySectors(keyBytes, stripes uint32) uint32 {
	n := uint64(keyBytes * stripes)
	sectors := (n + sector - 1) / sector
	return uint32((sectors + luksHeaderSectors - 1) / luksHeaderSectors * luksHeaderSectors)
}

// parseNames makes qemu's words of the cipher's name and of its mode, which has the form
// mode-generator[:hash].
func (h *luksHeader) parseNames(cipher, mode, hash string, keyBytes uint32) *fault {
	short, ivgen, ok := strings.Cut(mode, "-")
	if !ok {
		return faultf("Unexpected cipher mode string format '%s'", mode)
	}
	ivgen, ivHash, hasHash := strings.Cut(ivgen, ":")
	if hasHash && !isHash(ivHash) {
		return faultf("Hash algorithm '%s' not supported", ivHash)
	}
	if !slices.Contains([]string{"ecb", "cbc", "xts", "ctr"}, short) {
		return faultf("Cipher mode '%s' not supported", short)
	}
	if short == "xts" {
		keyBytes /= 2
	}
	alg, err := cipherName(cipher, keyBytes)
	if err != nil {
		return err
	}
	if !isHash(hash) {
		return faultf("Hash algorithm '%s' not supported", hash)
	}
	if !slices.Contains([]string{"plain", "plain64", "essiv"}, ivgen) {
		return faultf("IV generator '%s' not supported", ivgen)
	}
	if ivgen == "essiv" {
		if !hasHash {
			return faultf("Missing IV generator hash specification")
		}
		if err := checkESSIV(cipher, ivHash, keyBytes); err != nil {
			return err
		}
	}
	h.cipher, h.mode, h.ivgen, h.ivHash, h.hash = alg, short, ivgen, ivHash, hash
	return nil
}

// digestBytes is the length of what a hash function gives, 0 for one that qemu does not know.
func digestBytes(name string) uint32 {
	return map[string]uint32{
		"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64, "ripemd160": 20,
	}[name]
}

func isHash(name string) bool { return digestBytes(name) != 0 }

// checkESSIV looks for the cipher that makes initialization vectors: its key is a digest.
func checkESSIV(cipher, hash string, keyBytes uint32) *fault {
	digest := digestBytes(hash)
	if digest == keyBytes || cipher != "cast5" && slices.Contains([]uint32{16, 24, 32}, digest) {
		return nil
	}
	switch cipher {
	case "aes":
		return faultf("No AES cipher with key size %d available", digest)
	case "serpent":
		return faultf("No Serpent cipher with key size %d available", digest)
	case "twofish":
		return faultf("No Twofish cipher with key size %d available", digest)
	}
	return faultf("Cipher cast5-128 not supported with essiv")
}

// cipherName is qemu's name of a cipher with a key of that many bytes.
func cipherName(name string, keyBytes uint32) (string, *fault) {
	sizes := map[string][]uint32{
		"aes": {16, 24, 32}, "cast5": {16}, "serpent": {16, 24, 32}, "twofish": {16, 24, 32},
	}[name]
	if !slices.Contains(sizes, keyBytes) {
		return "", faultf("Algorithm '%s' with key size %d bytes not supported", name, int32(keyBytes))
	}
	if name == "cast5" {
		return "cast5-128", nil
	}
	return name + map[uint32]string{16: "-128", 24: "-192", 32: "-256"}[keyBytes], nil
}

var luksOptions = map[string]optKind{"key-secret": optText}

// openLUKS opens an image of format luks. Its guest's data cannot be read here.
func (g *graph) openLUKS(n *node, opts *dict) *fault {
	if n.file == nil {
		return noFile()
	}
	if err := n.file.checkLocks(!n.noIO); err != nil {
		return err
	}
	vals, err := opts.absorb(luksOptions)
	if err != nil {
		return err
	}
	key := &dict{}
	if name, ok := vals["key-secret"]; ok {
		key.put("key-secret", name)
	}
	if err := g.unlock(key, "", n.noIO); err != nil {
		return err
	}
	r, size := n.file.bytes()
	if n.luks, err = readLUKS(r, max(size, luksHeaderBytes)); err != nil {
		return err
	}
	n.encrypted = true
	n.align = sector
	if n.file.length < n.luks.payloadOff {
		return errnoFault(syscall.EIO, "Could not refresh total sector count")
	}
	n.length = n.file.length - n.luks.payloadOff
	return nil
}

// info is what qemu-img info prints of the header.
func (h *luksHeader) info(d *dict) {
	d.put("cipher-alg", h.cipher)
	d.put("cipher-mode", h.mode)
	d.put("ivgen-alg", h.ivgen)
	if h.ivgen == "essiv" {
		d.put("ivgen-hash-alg", h.ivHash)
	}
	d.put("hash-alg", h.hash)
	d.put("payload-offset", h.payloadOff)
	d.put("master-key-iters", int64(h.masterIters))
	d.put("uuid", h.uuid)
	slots := []any{}
	for _, s := range h.slots {
		slot := &dict{}
		slot.put("active", s.active)
		if s.active {
			slot.put("iters", int64(s.iters))
			slot.put("stripes", int64(s.len))
		}
		slot.put("key-offset", int64(s.keyOff)*sector)
		slots = append(slots, slot)
	}
	d.put("slots", slots)
}
