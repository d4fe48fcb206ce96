// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "github.com/shisa-vm/shisa/internal/diskio"

var rawOptions = map[string]optKind{"offset": optSize, "size": optSize}

// openRaw opens a raw image: its file, or the part of it that the options offset and size name.
func (g *graph) openRaw(n *node, opts *dict) *fault {
	vals, err := opts.absorb(rawOptions)
	if err != nil {
		return err
	}
	if n.file == nil {
		return noFile()
	}
	offset, size := vals.size("offset"), vals.size("size")
	_, hasSize := vals["size"]
	if offset != 0 || hasSize {
		// Only a part of it is ours, so its end must not move.
		if err := n.file.checkLocks(false, n.unshared(diskio.PermResize)...); err != nil {
			return err
		}
	}
	length := uint64(n.file.length)
	switch {
	case offset > length:
		return faultf("Offset (%d) cannot be greater than size of the containing file (%d)", offset, length)
	case hasSize && length-offset < size:
		return faultf("The sum of offset (%d) and size (%d) has to be smaller or equal to the "+
			" actual size of the containing file (%d)", offset, size, length)
	case hasSize && size%sector != 0:
		return faultf("Specified size is not multiple of %d", sector)
	case !hasSize:
		size = length - offset
	}
	// Both are at most the length of a file, which is an int64.
	if n.probed && n.writable {
		g.s.stderr("WARNING: Image format was not specified for '%s' and probing guessed raw.\n"+
			"         Automatically detecting the format is dangerous for raw images, write operations on "+
			"block 0 will be restricted.\n"+
			"         Specify the 'raw' format explicitly to remove the restrictions.\n", n.file.filename)
	}
	n.raw = rawState{int64(offset), int64(size), hasSize}
	n.length = roundUp(n.raw.size, sector)
	n.align = n.file.align
	if n.probed {
		n.align = sector
	}
	return nil
}

// unshared are the permissions that n does not let others have; none with --force-share.
func (n *node) unshared(perms ...diskio.Permission) []diskio.Permission {
	if n.forceShare {
		return nil
	}
	return perms
}

func noFile() *fault { return faultf(`A block device must be specified for "file"`) }
