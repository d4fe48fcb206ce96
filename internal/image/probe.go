// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Format is an image format, by the name that qemu gives it.
type Format string

// The formats that are recognised.
const (
	Raw       Format = "raw"
	Qcow2     Format = "qcow2"
	Qcow      Format = "qcow" // version 1
	VMDK      Format = "vmdk"
	VHDX      Format = "vhdx"
	VPC       Format = "vpc" // VHD
	VDI       Format = "vdi"
	QED       Format = "qed"
	LUKS      Format = "luks"
	Parallels Format = "parallels"
	Bochs     Format = "bochs"
	Cloop     Format = "cloop"
	DMG       Format = "dmg"
)

// probeBytes is what qemu looks at to tell the format.
const probeBytes = 512

// Probe tells the format of the file r of size bytes as qemu 7.2 does, by its first 512 bytes and,
// for dmg alone, by its name (which may be ""). What qemu does not recognise is raw. The error is
// that of reading.
//
// As in qemu a guest can make a raw image look like any other format by what it writes there: the
// format of an image should come from whoever made it where that is known.
func Probe(r io.ReaderAt, size int64, name string) (Format, error) {
	if size <= 0 {
		return Raw, nil
	}
	buf, err := readHead(r, size, 0, probeBytes)
	if err != nil {
		return "", fmt.Errorf("read the first %d bytes: %w", probeBytes, err)
	}
	return probe(buf, name), nil
}

// readHead reads n bytes at off; what the file does not have is zeros.
func readHead(r io.ReaderAt, size, off int64, n int) ([]byte, error) {
	buf := make([]byte, n)
	if off >= size {
		return buf, nil
	}
	_, err := r.ReadAt(buf[:min(int64(n), size-off)], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf, nil
}

const cloopMagic = "#!/bin/sh\n#V2.0 Format\n" +
	"modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"

func probe(buf []byte, name string) Format {
	le32 := func(off int) uint32 { return binary.LittleEndian.Uint32(buf[off:]) }
	be32 := func(off int) uint32 { return binary.BigEndian.Uint32(buf[off:]) }
	starts := func(magic string) bool { return bytes.HasPrefix(buf, []byte(magic)) }
	switch {
	case starts("QFI\xfb") && be32(4) == 1:
		return Qcow
	case starts("QFI\xfb") && be32(4) >= 2:
		return Qcow2
	case starts("KDMV"), starts("COWD"), isVMDKDescriptor(buf):
		return VMDK
	case starts("vhdxfile"):
		return VHDX
	case starts("conectix"):
		return VPC
	case le32(0x40) == 0xbeda107f:
		return VDI
	case starts("QED\x00"):
		return QED
	case starts("LUKS\xba\xbe") && binary.BigEndian.Uint16(buf[6:]) == 1:
		return LUKS
	case (starts("WithoutFreeSpace") || starts("WithouFreSpacExt")) && le32(16) == 2:
		return Parallels
	case starts("Bochs Virtual HD Image\x00") && bytes.HasPrefix(buf[32:], []byte("Redolog\x00")) &&
		bytes.HasPrefix(buf[48:], []byte("Growing\x00")) &&
		(le32(64) == 0x20000 || le32(64) == 0x10000):
		return Bochs
	// What follows scores less in qemu than all before.
	case starts(cloopMagic):
		return Cloop
	case len(name) > 4 && strings.HasSuffix(name, ".dmg"):
		return DMG
	}
	return Raw
}

// isVMDKDescriptor reports whether buf begins with the text of a VMDK descriptor: comments and
// blank lines of spaces, then a line with the version.
func isVMDKDescriptor(buf []byte) bool {
	for len(buf) > 0 {
		line, rest, whole := bytes.Cut(buf, []byte{'\n'})
		line = bytes.TrimSuffix(line, []byte{'\r'})
		switch {
		case len(buf) > 0 && buf[0] == '#':
			buf = rest
		case len(line) > 0 && line[0] == ' ' && len(bytes.Trim(line, " ")) == 0 && whole:
			buf = rest
		default:
			version := string(line)
			return whole && (version == "version=1" || version == "version=2" ||
				version == "version=3")
		}
	}
	return false
}

// Hint tells what a file that Probe calls raw seems to be all the same, as far as qemu does not
// look by itself: VPC for a fixed disk, which has its footer in the last sector, and LUKS for
// version 2 of that format. It is Raw otherwise.
func Hint(r io.ReaderAt, size int64) (Format, error) {
	if size < probeBytes {
		return Raw, nil
	}
	head, err := readHead(r, size, 0, probeBytes)
	if err != nil {
		return "", fmt.Errorf("read the first %d bytes: %w", probeBytes, err)
	}
	if bytes.HasPrefix(head, []byte("LUKS\xba\xbe")) && binary.BigEndian.Uint16(head[6:]) == 2 {
		return LUKS, nil
	}
	foot, err := readHead(r, size, size-probeBytes, probeBytes)
	if err != nil {
		return "", fmt.Errorf("read the last %d bytes: %w", probeBytes, err)
	}
	if bytes.HasPrefix(foot, []byte("conectix")) && binary.BigEndian.Uint32(foot[60:]) == vpcFixed {
		return VPC, nil
	}
	return Raw, nil
}
