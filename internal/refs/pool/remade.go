// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"crypto/md5"
	"encoding/hex"
	"strconv"
	"strings"
)

// Swap is the kind of a base that is swap space.
const Swap = "swap"

// Remade is a base of Nova that held nothing of anybody's.
type Remade struct {
	// Kind is Swap, or a file system by its name for mkfs(8).
	Kind      string
	SizeBytes int64
}

// RemakeOf tells what a base was by its name (nova/virt/libvirt/driver.py, _create_images): swap_MIB, or
// ephemeral_GIB_KIND, where KIND begins the MD5 of the name of the file system (nova/privsep/fs.py,
// get_file_extension_for_os_type). It is not ok where the name says neither, or another command than mkfs made it.
func RemakeOf(name string) (Remade, bool) {
	if mib, ok := strings.CutPrefix(name, "swap_"); ok {
		size, ok := sizeOf(mib, 20)
		return Remade{Swap, size}, ok
	}
	rest, ok := strings.CutPrefix(name, "ephemeral_")
	gib, kind, both := strings.Cut(rest, "_")
	if !ok || !both {
		return Remade{}, false
	}
	size, ok := sizeOf(gib, 30)
	for _, fs := range []string{"ext4", "ext3", "ext2", "xfs", "vfat", "btrfs"} {
		if sum := md5.Sum([]byte(fs)); ok && hex.EncodeToString(sum[:])[:7] == kind {
			return Remade{fs, size}, true
		}
	}
	return Remade{}, false
}

// sizeOf gives a size in units of 1<<shift bytes.
func sizeOf(s string, shift int) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 62-shift)
	return int64(n << shift), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// Command is what Nova runs to fill such a base, with the path at its end (nova/privsep/fs.py, mkfs).
func (r *Remade) Command(path string) []string {
	switch r.Kind {
	case Swap:
		return []string{"mkswap", path}
	case "ext3", "ext4":
		return []string{"mkfs", "-t", r.Kind, "-F", "-L", "ephemeral0", path}
	case "vfat":
		return []string{"mkfs", "-t", r.Kind, "-n", "ephemeral0", path}
	}
	return []string{"mkfs", "-t", r.Kind, "-L", "ephemeral0", path}
}
