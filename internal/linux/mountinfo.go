// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// maxMounts bounds one table of mounts; the kernel's own bound of a namespace is 100000
// (fs.mount-max).
const maxMounts = 1 << 20

// Mount is one line of a table of mounts, decoded (proc(5), /proc/pid/mountinfo):
//
//	36 35 98:0 /sub /mnt\040x rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=continue
//	|  |  |    |    |         |          |                   |    |         options of the superblock
//	|  |  |    |    |         |          peer groups         type source
//	|  |  |    |    |         options of the mount
//	|  |  |    |    where it is mounted
//	|  |  |    what of the file system is mounted
//	|  |  device of the file system
//	|  mount it is mounted on
//	number
type Mount struct {
	ID, Parent int
	Dev        uint64
	// Root is the directory of the file system that is mounted, Point where that is, as the process
	// sees it whose table it is.
	Root, Point string
	Options     string
	// Shared is the group of peers that it passes mounts to, Master the one that it gets them from;
	// 0 where there is none.
	Shared, Master int
	Type, Source   string
	// Super are the options of the file system.
	Super string
}

// ParseMounts reads a table of mounts. Lines that are not understood are counted in bad, and so is
// all that goes beyond the bound.
func ParseMounts(table []byte) (mounts []Mount, bad int) {
	for line := range bytes.Lines(table) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		m, ok := parseMount(strings.TrimSuffix(string(line), "\n"))
		if !ok || len(mounts) == maxMounts {
			bad++
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts, bad
}

func parseMount(line string) (m Mount, ok bool) {
	// The kernel writes blanks in names as \040, so that each blank ends a field.
	head, tail, found := strings.Cut(line, " - ")
	left, right := strings.Split(head, " "), strings.SplitN(tail, " ", 3)
	if !found || len(left) < 6 || len(right) < 3 {
		return m, false
	}
	var err error
	if m.ID, err = strconv.Atoi(left[0]); err != nil {
		return m, false
	}
	if m.Parent, err = strconv.Atoi(left[1]); err != nil {
		return m, false
	}
	if m.Dev, ok = parseDevice(left[2], 10); !ok {
		return m, false
	}
	m.Root, m.Point, m.Options = Decode(left[3]), Decode(left[4]), left[5]
	for _, tag := range left[6:] {
		name, value, _ := strings.Cut(tag, ":")
		n, err := strconv.Atoi(value)
		switch {
		case err != nil: // a tag without a group
		case name == "shared":
			m.Shared = n
		case name == "master":
			m.Master = n
		}
	}
	m.Type, m.Source, m.Super = Decode(right[0]), Decode(right[1]), right[2]
	return m, true
}

// parseDevice reads MAJOR:MINOR.
func parseDevice(text string, base int) (dev uint64, ok bool) {
	a, b, _ := strings.Cut(text, ":")
	major, err1 := strconv.ParseUint(a, base, 32)
	minor, err2 := strconv.ParseUint(b, base, 32)
	return unix.Mkdev(uint32(major), uint32(minor)), err1 == nil && err2 == nil
}

// Decode puts back the bytes that the kernel writes as a backslash and three octal digits.
func Decode(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+4 <= len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, text[i])
	}
	return string(out)
}

// Mounts gives the mounts that a process sees, in the kernel's order: of two on the same directory
// the later one may cover the other. pid 0 is this process. It waits no longer than the kernel's
// own lists may take.
func (h *Host) Mounts(ctx context.Context, pid int) ([]Mount, error) {
	who := "self"
	if pid > 0 {
		who = strconv.Itoa(pid)
	}
	path := h.root + "/proc/" + who + "/mountinfo"
	raw, err := diskio.WithinAt(ctx, path, processTimeout, func() ([]byte, error) {
		return readSome(path, maxMountBytes)
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("read the mounts of process %s: %w", who, err)
	}
	mounts, bad := ParseMounts(raw)
	if bad > 0 || len(raw) == maxMountBytes {
		return mounts, fmt.Errorf("read the mounts of process %s: %d lines are not understood or too many",
			who, max(bad, 1))
	}
	return mounts, nil
}
