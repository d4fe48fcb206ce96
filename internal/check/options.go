// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Live says when an image is examined as one that a program writes to.
type Live string

// The ways to treat images that may be running.
const (
	// LiveAuto: where a lock, a process or a change while looking shows a writer.
	LiveAuto Live = ""
	// LiveAlways: all of them. For storage whose writers cannot be seen from this host.
	LiveAlways Live = "always"
)

const (
	// DefaultReadTimeout is how long no read of an image may complete before it is given up. A
	// disk's own retries take up to 30 s for each command, a path change of multipath up to 60 s.
	DefaultReadTimeout = 60 * time.Second
	// DefaultMemoryBytes bounds what all images that are examined at once take together.
	DefaultMemoryBytes = 1 << 30
)

// Options say how images are found and examined. The zero value is the safe and usual one.
type Options struct {
	// Follow opens backing files wherever they are, as qemu does. Without it only those in or
	// below the named directories, the image's own directory and Pools are opened.
	Follow bool
	// Pools are further directories whose files a header may make us open.
	Pools []string
	// Maybe are further files, which are examined if they look like images and are else left out
	// without a word, as files in a directory are.
	Maybe []string
	// Workers bounds how many tables are read and examined at once; 0 means one for each CPU.
	Workers int
	// MemoryBytes bounds the memory for all images that are examined at once; 0 means
	// DefaultMemoryBytes.
	MemoryBytes int64
	// Direct reads past the page cache where the file system can.
	Direct bool
	// IOLimit bounds the bytes read in a second; 0 is no bound.
	IOLimit int64
	// MaxRanges bounds the ranges listed in one finding; 0 means 20, less than 0 no bound, and all
	// that it rests on is listed too.
	MaxRanges int
	// Inflate unpacks every compressed cluster to see whether that can be done.
	Inflate bool
	Live    Live
	// ReadTimeout is how long no read of an image may complete before it is given up; 0 means
	// DefaultReadTimeout.
	ReadTimeout time.Duration
	// Remembered, if set, gives findings of QC25 and QC26 on a qcow2 image: what earlier changes left
	// behind in it. inUse says that a program may be writing to the image now. What it could not
	// read is told by the error, beside the findings. It is called by several goroutines.
	Remembered func(ctx context.Context, path string, inUse bool) ([]finding.Finding, error)
	// NotSeen are blind spots that the caller knows of and that belong to no image.
	NotSeen []finding.Blind
	// Progress, if set, is told how far the work is. It is called by several goroutines, at most
	// a few thousand times a second, and must return soon.
	Progress func(Progress)
	// Root is where /proc and /sys of the host are found; "" is "/".
	Root string
	// Now and Sleep replace the clock in tests; nil is the real one.
	Now   func() time.Time
	Sleep func(context.Context, time.Duration) error
}

// Progress is how far an examination is.
type Progress struct {
	// Walking: names are still being looked for, so the totals still grow.
	Walking bool
	// Files is how many names were looked at.
	Files int64
	// Images is how many images were found, ImagesDone how many of them are finished.
	Images, ImagesDone int64
	// Bytes is how much metadata there is to read in the images begun so far, BytesDone how much
	// of it was read.
	Bytes, BytesDone int64
}
