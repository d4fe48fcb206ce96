// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package tree reads the files of a Linux system, wherever they are: of the one that runs, of a copy
// in a directory, of a guest's disk, or of a bundle that was collected elsewhere. Who reads need not
// know which; what cannot be known from a copy is told apart from what is not there.
package tree

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"
)

// Kind is what a tree is.
type Kind string

// The kinds.
const (
	Live      Kind = "live"      // the running system
	Directory Kind = "directory" // a copy or a mounted system, below a directory
	Disk      Kind = "disk"      // a guest's disk, read without mounting it
	Bundle    Kind = "bundle"    // evidence that was collected elsewhere
)

// Errors for errors.Is. What is known not to be there is fs.ErrNotExist, what may not be read is
// fs.ErrPermission, what did not answer in time is diskio.ErrTimeout.
var (
	// ErrNotCollected: the tree does not have it, and nobody can tell whether the system had: a copy
	// without /proc, a bundle for which that was not asked.
	ErrNotCollected = errors.New("was not collected")
	// ErrTooLarge: there is more than was asked for. What was asked for is given all the same.
	ErrTooLarge = errors.New("is larger than what is read")
	// ErrAvoided: it was not touched, since it may not answer: it lies on a mount of a server, of FUSE or
	// of an automounter, or on one that did not answer before.
	ErrAvoided = errors.New("is not touched")
)

// Tree is where evidence is read. Names are absolute, with slashes, and clean. Symbolic links of
// directories are followed as on the system itself and never lead out of the tree. No method waits
// for storage that does not answer longer than some seconds. It may be used by several goroutines.
type Tree interface {
	Kind() Kind
	// Read gives a file, its first max bytes with ErrTooLarge if it has more.
	Read(ctx context.Context, name string, max int64) ([]byte, error)
	// Open opens a regular file that is read in parts, as a log.
	Open(ctx context.Context, name string) (File, error)
	// List gives what is in a directory, in the order of names.
	List(ctx context.Context, name string) ([]Entry, error)
	// Link gives the text of a symbolic link.
	Link(ctx context.Context, name string) (string, error)
}

// File is an open file of a tree.
type File interface {
	io.ReaderAt
	io.Closer
	// Size is in bytes, Mtime the time of its last change, both as of when it was opened.
	Size() int64
	Mtime() time.Time
}

// Born gives when an open file was made, as its file system keeps that: a copy of it is born when it was
// copied. It is the zero time where that is not known, as in a tree that is itself a copy, or in a bundle. It
// waits for storage as reading does.
func Born(f File) time.Time {
	if b, can := f.(interface{ Born() time.Time }); can {
		return b.Born()
	}
	return time.Time{}
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	// Type is the type alone: fs.ModeDir, fs.ModeSymlink, 0 for a regular file ...
	Type fs.FileMode
	Size int64
	// Mtime is the time of the last change.
	Mtime time.Time
}

// Missing tells whether an error only says that something is not there, as far as the tree is to know.
func Missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
