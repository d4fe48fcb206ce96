// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Where things are in the header of a kernel's file for x86: Linux, Documentation/x86/boot.rst, "The
// Real-Mode Kernel Header".
const (
	setupSectsAt     = 0x1f1 // sectors of code before the protected-mode part, less the first; 0 means 4
	bootMagicAt      = 0x202 // "HdrS"
	bootVersionAt    = 0x206
	payloadOffsetAt  = 0x248 // from the protected-mode part
	payloadLengthAt  = 0x24c
	bootHeaderBytes  = 0x250
	payloadVersion   = 0x0208 // the first with a payload
	sectorBytes      = 512
	defaultSetupSize = 4
)

// A kernel whose own code unpacks it takes QEMU's emulation many seconds; xz takes half of one.
var unpackers = []struct {
	magic   string
	command []string
	// sized: the kernel's build appends four bytes with the length.
	sized bool
}{
	{"\xfd7zXZ\x00", []string{"xz", "-dc"}, true},
	{"\x28\xb5\x2f\xfd", []string{"zstd", "-dcq"}, true},
	{"\x02\x21\x4c\x18", []string{"lz4", "-dcq"}, true},
	{"\x1f\x8b", []string{"gzip", "-dc"}, false},
}

// payload finds the packed kernel in a bzImage, and the command that unpacks it.
func payload(image []byte) (packed []byte, command []string, err error) {
	if len(image) < bootHeaderBytes || string(image[bootMagicAt:bootMagicAt+4]) != "HdrS" {
		return nil, nil, errors.New("no kernel for x86: it has no HdrS")
	}
	if v := binary.LittleEndian.Uint16(image[bootVersionAt:]); v < payloadVersion {
		return nil, nil, fmt.Errorf("the boot protocol is %#x, older than %#x", v, payloadVersion)
	}
	setup := int64(image[setupSectsAt])
	if setup == 0 {
		setup = defaultSetupSize
	}
	from := (setup+1)*sectorBytes + int64(binary.LittleEndian.Uint32(image[payloadOffsetAt:]))
	length := int64(binary.LittleEndian.Uint32(image[payloadLengthAt:]))
	if from+length > int64(len(image)) {
		return nil, nil, fmt.Errorf("the payload at %#x has %d bytes, past the end of the file (%d bytes)",
			from, length, len(image))
	}
	packed = image[from : from+length]
	for _, u := range unpackers {
		if !bytes.HasPrefix(packed, []byte(u.magic)) {
			continue
		}
		if u.sized && len(packed) >= len(u.magic)+4 {
			packed = packed[:len(packed)-4]
		}
		return packed, u.command, nil
	}
	return nil, nil, fmt.Errorf("the payload is packed in an unknown way: it begins with %x",
		packed[:min(len(packed), 8)])
}
