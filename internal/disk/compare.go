// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"fmt"
)

// CompareOptions say what counts as a difference.
type CompareOptions struct {
	// Strict: the sizes and what is allocated must be the same too.
	Strict bool
	// Workers read at once; 0 means one for each CPU.
	Workers int
	// Progress, if set, is told the bytes done and to do.
	Progress func(done, total int64)
}

// Outcome is how a comparison ended.
type Outcome string

// The outcomes, with the rules of qemu-img compare.
const (
	// Identical: the same bytes; a longer disk has only zeros beyond the end of the shorter.
	Identical Outcome = "identical"
	// ContentDiffers at Offset.
	ContentDiffers Outcome = "content_differs"
	// AllocationDiffers at Offset (strict only).
	AllocationDiffers Outcome = "allocation_differs"
	// SizeDiffers (strict only).
	SizeDiffers Outcome = "size_differs"
)

// Comparison is the result of comparing two disks.
type Comparison struct {
	Outcome Outcome
	// Offset is the first that differs, to the granularity of qemu-img compare; -1 if none does.
	Offset int64
	// SizeA and SizeB are the sizes of the disks. Passed: the common part was compared to its end
	// and is the same, so that a difference of the sizes mattered.
	SizeA, SizeB int64
	Passed       bool
}

// CompareError says that one of the disks could not be read.
type CompareError struct {
	// Disk is 0 for the first, 1 for the second.
	Disk int
	Path string
	// Mapping: its metadata could not be read; otherwise the data at Offset.
	Mapping bool
	Offset  int64
	Err     error
}

func (e *CompareError) Error() string {
	what := "read"
	if e.Mapping {
		what = "map"
	}
	return fmt.Sprintf("%s %s at %#x: %v", what, e.Path, e.Offset, e.Err)
}

// Unwrap gives the cause.
func (e *CompareError) Unwrap() error { return e.Err }

// Compare tells whether two disks hold the same. The error is a *CompareError or that of ctx.
func Compare(ctx context.Context, a, b *Chain, o CompareOptions) (Comparison, error) {
	return Comparison{}, ErrUnreadable
}
