// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interface of device mapper, version 4 (include/uapi/linux/dm-ioctl.h of Linux 6.12). All numbers are as
// the processor has them:
//
//	 0 version[3]   12 data_size   16 data_start   20 target_count
//	24 open_count   28 flags       32 event_nr     36 padding       40 dev (64 bits)
//	48 name[128]   176 uuid[129]  305 data[7]     312 end
//
// and behind that, from data_start on, for each target:
//
//	 0 sector_start (64 bits)   8 length (64 bits)  16 status  20 next, from data_start on
//	24 type[16]                40 text, with a 0 behind it
const (
	dmTableStatus = 0xc138fd0c // _IOWR(0xfd, 12, struct dm_ioctl)
	dmHeaderBytes = 312
	dmTargetBytes = 40
	// dmWantTable asks for the tables of targets instead of how they stand; dmNoFlush has nothing written for that,
	// which might wait; dmTooSmall says that the buffer was.
	dmWantTable = 1 << 4
	dmNoFlush   = 1 << 11
	dmTooSmall  = 1 << 8
	// maxMapperBytes bounds an answer: a target of a hundred paths has some KiB.
	maxMapperBytes = 1 << 20
)

// AskMapper gives the table and the status of the multipath target of a device, by the name that device mapper has
// for it, as dmsetup(8) prints them. It changes nothing; it may wait while others change devices. The kernel loads
// device mapper if it has not: call it only where there is such a device.
func AskMapper(name string) (table, status string, err error) {
	fd, err := unix.Open("/dev/mapper/control", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", "", fmt.Errorf("/dev/mapper/control: %w", err)
	}
	defer unix.Close(fd)
	if table, err = tableStatus(fd, name, dmWantTable); err == nil {
		status, err = tableStatus(fd, name, 0)
	}
	return table, status, err
}

// tableStatus is the ioctl DM_TABLE_STATUS.
func tableStatus(fd int, name string, flags uint32) (string, error) {
	if len(name) == 0 || len(name) > 127 {
		return "", fmt.Errorf("%q is no name of device mapper", name)
	}
	for size := 16 << 10; size <= maxMapperBytes; size *= 4 {
		b := make([]byte, size)
		for i, v := range []uint32{4, 0, 0, uint32(size), dmHeaderBytes, 0, 0, flags | dmNoFlush} {
			binary.NativeEndian.PutUint32(b[4*i:], v)
		}
		copy(b[48:], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), dmTableStatus, uintptr(unsafe.Pointer(&b[0])))
		runtime.KeepAlive(b)
		switch {
		case errno != 0:
			return "", fmt.Errorf("ask device mapper about %s: %w", name, errno)
		case binary.NativeEndian.Uint32(b[28:])&dmTooSmall == 0:
			return multipathIn(b)
		}
	}
	return "", fmt.Errorf("ask device mapper about %s: the answer has more than %d bytes", name, maxMapperBytes)
}

// errNoPaths: a device is said to have several paths, and has no such target.
var errNoPaths = errors.New("it has no multipath target")

// multipathIn finds the text of the multipath target in an answer.
func multipathIn(b []byte) (string, error) {
	if len(b) < dmHeaderBytes {
		return "", errNoPaths
	}
	start, count := int64(binary.NativeEndian.Uint32(b[16:])), binary.NativeEndian.Uint32(b[20:])
	at := start
	for range min(count, 1024) {
		if at < dmHeaderBytes || at+dmTargetBytes > int64(len(b)) {
			return "", errors.New("device mapper's answer leads out of itself")
		}
		kind, _, _ := bytes.Cut(b[at+24:at+40], []byte{0})
		if string(kind) == "multipath" {
			text, _, whole := bytes.Cut(b[at+dmTargetBytes:], []byte{0})
			if !whole {
				return "", errors.New("device mapper's answer has no end")
			}
			return strings.TrimSpace(string(text)), nil
		}
		next := start + int64(binary.NativeEndian.Uint32(b[at+20:]))
		if next <= at {
			return "", errors.New("device mapper's answer goes back")
		}
		at = next
	}
	return "", errNoPaths
}
