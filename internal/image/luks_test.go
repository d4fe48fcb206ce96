// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image"
)

func luksHeader() []byte {
	p := make([]byte, image.LUKSHeaderBytes)
	be := binary.BigEndian
	copy(p, image.LUKSMagic+"\x00\x01aes")
	copy(p[40:], "xts-plain64")
	copy(p[72:], "sha256")
	be.PutUint32(p[104:], 4040)
	be.PutUint32(p[108:], 64)
	be.PutUint32(p[164:], 1000)
	copy(p[168:], "0b7f8f1e-0000-4000-8000-1d1d1d1d1d1d")
	for i := range image.LUKSSlots {
		s := p[208+48*i:]
		be.PutUint32(s, image.LUKSSlotInactive)
		be.PutUint32(s[40:], uint32(8+504*i))
		be.PutUint32(s[44:], 4000)
	}
	be.PutUint32(p[208+48:], image.LUKSSlotActive)
	be.PutUint32(p[208+48+4:], 7)
	return p
}

func TestParseLUKS(t *testing.T) {
	want := &image.LUKSHeader{Cipher: "aes", Mode: "xts-plain64", Hash: "sha256",
		UUID: "0b7f8f1e-0000-4000-8000-1d1d1d1d1d1d", PayloadSector: 4040, KeyBytes: 64, Iterations: 1000}
	for i := range want.Slots {
		want.Slots[i] = image.LUKSSlot{State: image.LUKSSlotInactive, KeySector: uint32(8 + 504*i), Stripes: 4000}
	}
	want.Slots[1].State, want.Slots[1].Iterations = image.LUKSSlotActive, 7
	got, err := image.ParseLUKS(luksHeader())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("ParseLUKS = %v (-want +got):\n%s", err, diff)
	}
	if !got.Slots[1].Active() || got.Slots[0].Active() {
		t.Error("Active: slot 1 is, slot 0 is not")
	}
	for off, field := range map[int]string{8: "cipher name", 40: "cipher mode", 72: "hash spec", 168: ""} {
		p := luksHeader()
		copy(p[off:], bytes.Repeat([]byte{'x'}, map[bool]int{true: 32, false: 40}[off < 168]))
		if h, err := image.ParseLUKS(p); err != nil || h.Unended != field {
			t.Errorf("ParseLUKS of a text without end at %d = %+v, %v, want %q", off, h, err, field)
		}
	}
}

func TestParseLUKSRefuses(t *testing.T) {
	v2 := luksHeader()
	v2[7] = 2
	var version *image.LUKSVersionError
	if _, err := image.ParseLUKS(v2); !errors.As(err, &version) || version.Version != 2 {
		t.Errorf("ParseLUKS of version 2 = %v, want a *LUKSVersionError", err)
	}
	for _, p := range [][]byte{nil, luksHeader()[:image.LUKSHeaderBytes-1], make([]byte, image.LUKSHeaderBytes)} {
		if _, err := image.ParseLUKS(p); !errors.Is(err, image.ErrNoLUKS) {
			t.Errorf("ParseLUKS of %d bytes = %v, want %v", len(p), err, image.ErrNoLUKS)
		}
	}
}
