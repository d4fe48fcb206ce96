// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// Counts are the numbers that qemu-img check prints; on every image that both can check they are
// equal to those of qemu-img 7.2.
type Counts struct {
	CheckErrors        int64 `json:"check_errors"`
	Corruptions        int64 `json:"corruptions"`
	Leaks              int64 `json:"leaks"`
	AllocatedClusters  int64 `json:"allocated_clusters"`
	FragmentedClusters int64 `json:"fragmented_clusters"`
	CompressedClusters int64 `json:"compressed_clusters"`
	TotalClusters      int64 `json:"total_clusters"`
	// ImageEndOffset is the end of the last cluster in use, in bytes.
	ImageEndOffset int64 `json:"image_end_offset"`
}

// CheckOptions change how much work Check does, never what it finds.
type CheckOptions struct {
	// Name is the object that findings speak of.
	Name string
	// Workers is how many tables are scanned at once; 0 means one for each CPU, at most 4.
	Workers int
	// Readers is how many reads are under way at once; 0 means 8. More help where each read waits
	// long: past the page cache, or on a server.
	Readers int
	// MaxRanges bounds the ranges listed in one finding; 0 means 20, less than 0 no bound.
	MaxRanges int
	// AllEvidence: list every raw value that a finding rests on, not only the first few.
	AllEvidence bool
	// MemoryBytes bounds the memory for reference counts; 0 means DefaultMemoryBytes. A check that
	// needs more ends with a Blind spot.
	MemoryBytes int64
	// DataFileBytes is the length of the external data file, -1 if it is not known.
	DataFileBytes int64
	// Inflate: unpack every compressed cluster to see whether it can be. Reads all their data.
	Inflate bool
	// Running: a program may write to the image while it is checked. Leaks cannot be told then,
	// and an error is one only if it is found again a while later.
	Running bool
	// Progress, if set, is told the bytes of metadata done and to do. It is called by several
	// goroutines.
	Progress func(done, total int64)
}

// Result is what Check found.
type Result struct {
	Header   *Header
	Counts   Counts
	Findings []finding.Finding
	Blind    []finding.Blind
	// Suspects are the ranges of host clusters, ascending, whose refcounts are wrong, and how.
	Suspects []Suspect
}

// Suspect is a range of clusters whose refcounts do not match their references.
type Suspect struct {
	First      image.Cluster
	N          int64
	Refcount   uint64 // as it stands on disk
	References uint64 // as counted
}
