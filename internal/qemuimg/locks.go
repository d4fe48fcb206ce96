// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "github.com/shisa-vm/shisa/internal/diskio"

// qemu-img takes lock bytes on an image for as long as it reads it, and so can keep a machine from
// starting. Here they are only asked for: what qemu-img would have been refused is refused, with
// its words, and nobody is ever refused because of us.

// checkLocks asks whether somebody forbids us a consistent read, where read is set, or does one of
// the things that cannot go on while we read.
func (n *node) checkLocks(read bool, unshared ...diskio.Permission) *fault {
	for n.file != nil {
		n = n.file
	}
	if n.f == nil || !n.locking || !read && len(unshared) == 0 {
		return nil
	}
	n.readChecked = n.readChecked || read
	state, err := n.f.Locks()
	if err != nil {
		return errnoFault(err, "Failed to ask for the locks of '%s'", n.exact)
	}
	if read && (state.NotShared[diskio.PermConsistentRead] || state.Foreign != "") {
		return n.locked(`Failed to get "%s" lock`, diskio.PermConsistentRead)
	}
	if read && n.writable && state.NotShared[diskio.PermWrite] {
		return n.locked(`Failed to get "%s" lock`, diskio.PermWrite)
	}
	for _, p := range unshared {
		if state.Used[p] || state.Foreign != "" {
			return n.locked(`Failed to get shared "%s" lock`, p)
		}
	}
	return nil
}

func (n *node) locked(format string, p diskio.Permission) *fault {
	f := faultf(format, p)
	f.hint = "Is another process using the image [" + n.exact + "]?\n"
	return f
}

// checkWriters makes sure that an image that is to be changed was not declared read-only by the
// options of one of its nodes.
func (n *node) checkWriters() *fault {
	if !n.writable {
		return faultf("Block node is read-only")
	}
	for _, c := range n.children() {
		if c == n.backing {
			continue
		}
		if err := c.checkWriters(); err != nil {
			return err
		}
	}
	return nil
}

// checkReaders asks on behalf of the whole image, once all of it is open, for files that were not
// asked about yet.
func (n *node) checkReaders() *fault {
	if n.f != nil && !n.readChecked {
		if err := n.checkLocks(true); err != nil {
			return err
		}
	}
	for _, c := range n.children() {
		if err := c.checkReaders(); err != nil {
			return err
		}
	}
	return nil
}
