// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// maxFstab bounds the entries of one /etc/fstab.
const maxFstab = 10_000

// FstabEntry is a line of /etc/fstab, decoded (fstab(5)):
//
//	UUID=2c6f...  /srv\040data  ext4  defaults,nofail  0  2
//	source        point         type  options          |  when fsck looks at it
//	                                                   dump
type FstabEntry struct {
	Source, Point, Type string
	Options             []string
	Pass                int
	// Line is its number, from 1.
	Line int
}

// Has tells whether an option is set, alone or with a value.
func (e *FstabEntry) Has(option string) bool {
	return slices.ContainsFunc(e.Options, func(o string) bool {
		return o == option || strings.HasPrefix(o, option+"=")
	})
}

// Files tells whether it puts a file system with files of a disk or a server at a directory.
func (e *FstabEntry) Files() bool {
	return path.IsAbs(e.Point) && !slices.Contains(memoryTypes, e.Type)
}

// memoryTypes are file systems that no disk holds, and what is none.
var memoryTypes = []string{"proc", "sysfs", "tmpfs", "ramfs", "devtmpfs", "devpts", "swap", "cgroup", "cgroup2",
	"debugfs", "tracefs", "securityfs", "configfs", "fusectl", "hugetlbfs", "mqueue", "pstore", "bpf",
	"efivarfs", "binfmt_misc", "usbfs", "usbdevfs", "rpc_pipefs", "ignore", "none"}

// ParseFstab reads the lines of /etc/fstab. bad are the numbers of those that are none, which mount(8)
// passes over, and of what is beyond the bound.
func ParseFstab(text []byte) (all []FstabEntry, bad []int) {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		fields := strings.Fields(string(line))
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		// The last three may be left out.
		if len(fields) < 3 || len(all) == maxFstab {
			bad = append(bad, n)
			continue
		}
		e := FstabEntry{Source: Decode(fields[0]), Point: Decode(fields[1]), Type: fields[2], Line: n}
		if path.IsAbs(e.Point) {
			e.Point = path.Clean(e.Point)
		}
		if len(fields) > 3 {
			e.Options = strings.Split(fields[3], ",")
		}
		if len(fields) > 5 {
			e.Pass = count(fields[5])
		}
		all = append(all, e)
	}
	return all, bad
}
