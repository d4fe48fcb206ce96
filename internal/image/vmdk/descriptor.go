// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// A descriptor is text ("The Descriptor File"):
//
//	# Disk DescriptorFile
//	version=1
//	CID=fffffffe
//	parentCID=ffffffff
//	createType="twoGbMaxExtentSparse"
//	parentFileNameHint="base.vmdk"
//	# Extent description: access, sectors, type, file, and where in it a flat part begins
//	RW 4192256 SPARSE "test-s001.vmdk"
//	RW 1101824 FLAT "test-f002.vmdk" 0

const (
	// maxExtents bounds the files of a disk, each of which is kept open: 8 TiB in parts of 2 GiB.
	maxExtents = 4096
	// maxNameBytes bounds the name of an extent, as in qemu.
	maxNameBytes = 511
	// maxParentBytes bounds the name of the parent, as in qemu.
	maxParentBytes = 1023

	noParent = 0xffffffff // as a CID
)

// describe takes over what the descriptor text says, which stands at off; outside: other files hold the
// disk.
func (m *Image) describe(text []byte, off int64, outside bool) error {
	text, _, _ = bytes.Cut(text, []byte{0})
	keys := map[string]string{}
	var lines []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		access, _, _ := strings.Cut(line, " ")
		switch {
		case strings.HasPrefix(line, "#"):
		case access == "RW" || access == "RDONLY" || access == "NOACCESS":
			lines = append(lines, line)
		default:
			key, value, ok := strings.Cut(line, "=")
			if key = strings.TrimSpace(key); ok && keys[key] == "" {
				keys[key] = strings.TrimSpace(value)
			}
		}
	}
	for key, id := range map[string]*uint32{"CID": &m.CID, "parentCID": &m.ParentCID} {
		n, err := strconv.ParseUint(keys[key], 16, 32)
		if err != nil {
			switch {
			case len(keys) == 0 && !outside:
				return extentAlone(off)
			case keys["CID"] == "" && keys["createType"] == "":
				return invalid(off, "there is no descriptor")
			}
			return invalid(off, "the descriptor has %s=%q", key, cut(keys[key]))
		}
		*id = uint32(n)
	}
	m.CreateType = strings.Trim(keys["createType"], `"`)
	m.Parent = strings.Trim(keys["parentFileNameHint"], `"`)
	if len(m.Parent) > maxParentBytes {
		return invalid(off, "the name of the parent has %d bytes", len(m.Parent))
	}
	// Whoever made the image may have left out the name: it rests on a parent all the same.
	m.HasParent = m.Parent != "" || m.ParentCID != noParent
	if !outside {
		return nil
	}
	if !slices.Contains([]string{"monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse",
		"twoGbMaxExtentFlat"}, m.CreateType) {
		return unsupported(off, "an image of the type %q", cut(m.CreateType))
	}
	return m.extents(lines, off)
}

// extents reads the lines that describe the parts of the disk. Unlike qemu, which leaves out those that
// it does not know and so moves what follows to another place, it refuses them; read-only parts and such
// of zeros it reads.
func (m *Image) extents(lines []string, off int64) error {
	total := int64(0)
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) < 3 {
			return invalid(off, "the extent %q", cut(line))
		}
		sectors, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || sectors < 0 || sectors > maxSectors-total {
			return invalid(off, "the extent %q has %s sectors", cut(line), cut(f[1]))
		}
		if sectors == 0 {
			continue
		}
		total += sectors
		e := Extent{Type: f[2], Bytes: sectors * sectorBytes}
		switch {
		case f[0] == "NOACCESS":
			return unsupported(off, "the extent %q, to which there is no access,", cut(line))
		case e.Type == "ZERO":
		case !slices.Contains([]string{"FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"}, e.Type):
			return unsupported(off, "an extent of the type %q", cut(e.Type))
		case !e.name(line):
			return invalid(off, "the extent %q", cut(line))
		}
		if m.Extents = append(m.Extents, e); len(m.Extents) > maxExtents {
			return unsupported(off, "a disk of more than %d extents", maxExtents)
		}
	}
	if len(m.Extents) == 0 {
		return invalid(off, "the descriptor names no extents")
	}
	return nil
}

// name reads what stands behind the type: the name in quotes, and for a flat part the sector.
func (e *Extent) name(line string) bool {
	_, rest, ok := strings.Cut(line, `"`)
	if !ok {
		return false
	}
	name, rest, ok := strings.Cut(rest, `"`)
	if !ok || name == "" || len(name) > maxNameBytes {
		return false
	}
	e.Name = name
	rest = strings.TrimSpace(rest)
	if !e.Flat() || rest == "" && e.Type == "VMFS" {
		return e.Flat() || rest == ""
	}
	start, _, _ := strings.Cut(rest, " ")
	sector, err := strconv.ParseInt(start, 10, 64)
	if err != nil || sector < 0 || sector > maxSectors-e.Bytes/sectorBytes {
		return false
	}
	e.Start = sector * sectorBytes
	return true
}

// cut shortens text from a file for an error.
func cut(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
