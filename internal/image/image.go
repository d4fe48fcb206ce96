// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package image holds what the disk image formats have in common: positions with types, extents,
// and the recognition of a format by its magic.
package image

import (
	"context"
	"errors"
	"io"
)

// ErrOffset: a reader or a map was asked for a negative offset or length. For errors.Is.
var ErrOffset = errors.New("negative offset or length")

// GuestOff is a position on the virtual disk, in bytes.
type GuestOff int64

// HostOff is a position in an image file, in bytes.
type HostOff int64

// Cluster is the number of a host cluster: its offset divided by the cluster size.
type Cluster int64

// Kind says what stands behind a range of the virtual disk.
type Kind uint8

const (
	// Unallocated: this image says nothing; the backing file answers, or it reads as zeros.
	Unallocated Kind = iota
	// Zero: reads as zeros, whatever a backing file holds.
	Zero
	// Data: stored as it is at Extent.Host.
	Data
	// Compressed: stored compressed; Extent.Host is where the stream begins.
	Compressed
)

// Extent is a range of the virtual disk whose bytes are all stored in the same way.
type Extent struct {
	Guest  GuestOff
	Length int64 // bytes
	Kind   Kind
	// Host is the position in the file that holds the range. HasHost: the range has its own bytes
	// there. It is set for Data, and for Zero and Unallocated where space is reserved. Without it,
	// Host is where the stream begins for Compressed (the first of several), and 0 otherwise.
	Host    HostOff
	HasHost bool
	// InDataFile: Host is a position in an external data file, not in the image itself. Part is the
	// number of that file, where the image has several.
	InDataFile bool
	Part       int32
}

// Reader is the guest's view of one image, without its backing file: unallocated ranges read as
// zeros. It may be used by several goroutines at once.
type Reader interface {
	// ReadAt ends with io.EOF at the end of the disk only. Other errors say where they are; the
	// bytes before that place were read then.
	io.ReaderAt
	// Size is the size of the virtual disk in bytes.
	Size() int64
	// Map calls fn for the extents of [off, off+length) in ascending order, without gaps and
	// clipped to the range. Neighbouring extents that continue each other are joined. It ends with
	// the first error of fn or of reading the image.
	Map(ctx context.Context, off GuestOff, length int64, fn func(Extent) error) error
}
