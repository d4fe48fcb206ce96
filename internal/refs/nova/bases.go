// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
)

// Users finds the instances that a base may be for by its name, as Nova makes those (nova/virt/libvirt/imagecache.py,
// driver.py, _create_image):
//
//	SHA1           of an image, a kernel or a first file system: the digest of its name in Glance
//	SHA1_BYTES     the same, made larger (until 2012.2), and SHA1_sm
//	ephemeral_GIB_KIND, swap_MIB
//	ephemeral_NUMBER_GIB_KIND   (until 2012.2)
type Users struct {
	e  *Export
	by map[string][]int32
}

// Users gives those of all instances that are not deleted.
func (e *Export) Users() *Users {
	u := &Users{e: e, by: map[string][]int32{}}
	for i := range e.Instances {
		n := &e.Instances[i]
		if n.Deleted {
			continue
		}
		keys := map[string]bool{}
		for _, image := range append([]string{n.Image}, n.Images...) {
			if image != "" {
				keys[keyOf(image)] = true
			}
		}
		for _, size := range n.EphemeralGiB {
			keys[fmt.Sprintf("ephemeral_%d", size)] = true
		}
		for _, size := range n.SwapMiB {
			keys[fmt.Sprintf("swap_%d", size)] = true
		}
		for k := range keys {
			u.by[k] = append(u.by[k], int32(i))
		}
	}
	return u
}

// keyOf is what the names of all bases of an image have in common.
func keyOf(image string) string {
	sum := sha1.Sum([]byte(image))
	return hex.EncodeToString(sum[:])
}

// ImageOf gives the image of an instance that a base of that name may be of: the one that it was made of unless it is
// another.
func (n *Instance) ImageOf(base string) string {
	for _, image := range n.Images {
		if image != n.Image && keyOf(image) == key(base) {
			return image
		}
	}
	return n.Image
}

// Of gives the instances that a base of that name may be for, in the order of the export.
func (u *Users) Of(base string) []*Instance {
	var all []*Instance
	for _, i := range u.by[key(base)] {
		all = append(all, &u.e.Instances[i])
	}
	return all
}

// IsBase tells whether Nova calls a base like that which it made of an image: by a SHA-1, with what it was changed to
// behind that.
func IsBase(name string) bool {
	sum, _, _ := strings.Cut(name, "_")
	return len(sum) == hex.EncodedLen(sha1.Size) && strings.Trim(sum, "0123456789abcdef") == ""
}

// key is what the names of all bases of one image, or of one size, have in common.
func key(base string) string {
	parts := strings.Split(base, "_")
	switch {
	case parts[0] == "ephemeral" && len(parts) == 4 && isNumber(parts[2]):
		return "ephemeral_" + parts[2]
	case parts[0] == "ephemeral" && len(parts) > 1:
		return "ephemeral_" + parts[1]
	case parts[0] == "swap":
		return base
	}
	return parts[0]
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
