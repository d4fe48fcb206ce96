// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// A guest that finds a hole in a reader speaks with the child's voice. It can lie about what is in
// the guest, which is its own. What follows is that it can do no more than that: what the child says
// is of a form that nobody who uses it has to doubt again.

// sane tells whether a layout refers to what is there only.
func sane(l *volume.Layout, disks int) bool {
	below := func(i, least, n int) bool { return i >= least && i < n }
	for i, v := range l.Volumes {
		if v == nil || !below(v.Disk, -1, disks) || v.Start < -1 || v.Size < 0 ||
			slices.ContainsFunc(v.In, func(in int) bool { return !below(in, 0, i) }) {
			return false
		}
	}
	for _, t := range l.Tables {
		if !below(t.Disk, 0, disks) && t.In < 0 || !below(t.Disk, -1, disks) ||
			!below(t.In, -1, len(l.Volumes)) {
			return false
		}
		for _, n := range t.Ranges {
			if !inside(n.Offset, n.Length) {
				return false
			}
		}
	}
	for _, p := range l.Problems {
		if !below(p.Disk, -1, disks) {
			return false
		}
	}
	return true
}

// maxBlockBytes is the largest block of any file system that is read.
const maxBlockBytes = 64 << 10

// saneInfo tells whether sizes are sizes.
func saneInfo(i *files.Info) bool {
	return i.BlockBytes >= 0 && i.BlockBytes <= maxBlockBytes && i.SizeBytes >= 0 && i.Inodes >= 0 &&
		i.Record.Errors >= 0 && i.Record.ReservedBytes >= 0
}

// saneView tells whether a view has a state, and the one that its problems mean.
func saneView(v *files.View) bool {
	known := []files.State{files.Clean, files.Recovered, files.Incomplete}
	hides := slices.ContainsFunc(v.Problems, func(p files.Problem) bool { return p.Hides })
	return slices.Contains(known, v.State) && (!hides || v.State == files.Incomplete) &&
		len(v.Problems) <= files.MaxProblems && v.More >= 0
}
