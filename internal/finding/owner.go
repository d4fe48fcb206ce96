// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

// Owner is what a part of the guest's disk is for: a file of the guest, something else of a file
// system, or nothing that is known.
type Owner struct {
	// Part is the name of the partition or volume, "" where it is in none; Kind is what fills that,
	// as "ext4".
	Part string `json:"part"`
	Kind string `json:"kind"`
	// Use is "data" (content of a file), "reserved" (its space that was never written),
	// "inode_metadata" (what tells where its content lies), "metadata", "journal" or "free" of the
	// file system, "outside" of every part, or "unknown". What says more.
	Use  string `json:"use"`
	What string `json:"what"`
	// Paths are the names of the file, PathsCut how many more it has. Inode is 0 where no file is
	// meant.
	Paths    []string `json:"paths"`
	PathsCut int64    `json:"paths_cut"`
	Inode    uint64   `json:"inode"`
	Size     int64    `json:"size_bytes"`
	Mtime    string   `json:"mtime"` // RFC 3339 in UTC with nanoseconds
	// Snapshot names the internal snapshot that is meant, "" for the present.
	Snapshot string `json:"snapshot"`
	// Codes are those of the findings that hurt it; none if ranges were asked for.
	Codes []string `json:"codes"`
	// Ranges are its parts of what was asked for, on the guest's disk, and Bytes their sum.
	Ranges []Range `json:"ranges"`
	Bytes  int64   `json:"bytes"`
}

// Harmless reports whether nothing of the guest is lost with it.
func (o *Owner) Harmless() bool { return o.Use == "free" || o.Use == "reserved" }
