// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package lab makes disk images for tests, benchmarks and the demo, and breaks them on purpose.
//
// The metadata of an image that it makes is complete and exact: refcounts, COPIED flags, snapshot
// tables and bitmaps are what qemu would have written. Guest data is left out unless it is asked
// for: data clusters are holes, so an image of 1 TiB costs 160 MiB on disk. It is the one package
// below the commands that writes files, and it writes only where its caller says.
package lab

import (
	"errors"
	"fmt"
	"math"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// ErrSpec: no qcow2 image can be as the Spec wants it, for errors.Is.
var ErrSpec = errors.New("impossible image")

// Layout is the order in which data clusters lie in the file.
type Layout int

const (
	// Sequential: as a guest leaves them that filled its disk from front to back.
	Sequential Layout = 0
	// Random: every cluster anywhere.
	Random Layout = 1
)

// Runs is the layout in which runs of n clusters stayed together, and the runs lie anywhere.
func Runs(n int) Layout { return Layout(n) }

// Spec says what image to make. Its zero value, with VirtualBytes set, is what qemu-img create
// makes by default, with every guest cluster allocated in order.
type Spec struct {
	VirtualBytes int64
	ClusterBits  int // 9 to 21; 0 means 16
	RefcountBits int // 1, 2, 4 to 64; 0 means 16
	Version      int // 2 or 3; 0 means 3
	Layout       Layout
	Seed         uint64

	// Fill is the share of the guest clusters that are allocated; 0 means all, less than 0 none.
	Fill float64
	// Front allocates that share at the front of what each L2 table maps, not here and there.
	Front bool
	// EmptyTables is the share of L2 tables that do not exist.
	EmptyTables float64
	// Of the allocated clusters these shares are no plain data: zeros without and with space
	// reserved, and compressed.
	ZeroPlain, ZeroAlloc, Compressed float64
	// Zstd: compressed with zstd.
	Zstd bool

	// ExtendedL2: entries with subcluster bitmaps; Partial is the share of entries in which only
	// some subclusters are allocated.
	ExtendedL2 bool
	Partial    float64

	// Leaks are clusters with a refcount of 1 that nothing refers to, spread over the file;
	// TailLeaks lie at its end, as a crash leaves them.
	Leaks, TailLeaks int64
	// LeakPercent adds leaks for this percentage of the data clusters.
	LeakPercent float64
	// WrongPercent makes the refcounts of so many percent of the clusters wrong, spread over the file:
	// by turns one too low and one too high. Nothing else is wrong then.
	WrongPercent float64
	// Duplicates are guest clusters that share the host cluster of another, with a refcount that
	// says so. qemu takes such an image as clean.
	Duplicates int64

	// Snapshots is the number of internal snapshots. Rewrite is the share of the guest clusters
	// that the guest wrote again after each, so that the views differ; it keeps all L2 tables in
	// memory. VMState is the size of the machine state saved with each snapshot.
	Snapshots int
	Rewrite   float64
	VMState   int64

	// Bitmaps is the number of persistent bitmaps; BitmapInUse leaves the first as a crash does.
	Bitmaps     int
	BitmapInUse bool

	// DataFile is the name of an external data file as it stands in the image; the file is made
	// beside the image. RawDataFile promises that it reads as a raw image.
	DataFile    string
	RawDataFile bool
	// Backing and BackingFormat are written as they are; no such file is made.
	Backing, BackingFormat string

	Dirty, Corrupt, LazyRefcounts bool
	// FeatureNames adds the table of feature names that qemu writes.
	FeatureNames bool

	// AppendHole makes the file longer by so many bytes that nothing refers to.
	AppendHole int64
	// Data writes what the guest wrote: each data cluster holds what Content gives.
	Data bool
}

// Bounds of what is made: beyond them memory would grow without need.
const (
	// maxClusters bounds the refcounts in memory, one byte each: 32 TiB with the usual clusters.
	maxClusters = 1 << 29
	// maxRewriteClusters bounds images whose tables are all kept in memory.
	maxRewriteClusters = 1 << 22
	maxSnapshots       = 1000
	maxBitmaps         = 100
)

// refuse says why a Spec is impossible.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
}

// normal fills in the defaults and refuses what cannot be made.
func (s Spec) normal() (Spec, error) {
	if s.ClusterBits == 0 {
		s.ClusterBits = 16
	}
	if s.RefcountBits == 0 {
		s.RefcountBits = 16
	}
	if s.Version == 0 {
		s.Version = 3
	}
	if s.Fill == 0 {
		s.Fill = 1
	}
	for _, check := range []func() error{s.checkFormat, s.checkShares, s.checkFeatures} {
		if err := check(); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s Spec) checkFormat() error {
	switch {
	case s.ClusterBits < qcow2.MinClusterBits || s.ClusterBits > qcow2.MaxClusterBits:
		return refuse("clusters of 2^%d bytes", s.ClusterBits)
	case s.RefcountBits < 1 || s.RefcountBits > 64 || s.RefcountBits&(s.RefcountBits-1) != 0:
		return refuse("refcounts of %d bits", s.RefcountBits)
	case s.Version != 2 && s.Version != 3:
		return refuse("version %d", s.Version)
	case s.VirtualBytes < 0 || s.VirtualBytes%512 != 0:
		return refuse("virtual size %d", s.VirtualBytes)
	case s.ExtendedL2 && s.ClusterBits < 14:
		return refuse("subclusters in clusters of 2^%d bytes", s.ClusterBits)
	case s.Version == 2 && (s.RefcountBits != 16 || s.ExtendedL2 || s.Zstd || s.DataFile != "" ||
		s.ZeroPlain > 0 || s.ZeroAlloc > 0 || s.Bitmaps > 0 || s.FeatureNames ||
		s.Dirty || s.Corrupt || s.LazyRefcounts):
		return refuse("version 2 with a feature of version 3")
	case s.Layout < 0:
		return refuse("runs of %d clusters", s.Layout)
	case s.l1Entries()*8 > qcow2.MaxL1Bytes:
		return refuse("%d bytes need %d L1 entries", s.VirtualBytes, s.l1Entries())
	case s.AppendHole < 0 || s.AppendHole > math.MaxInt64/4:
		return refuse("a hole of %d bytes", s.AppendHole)
	}
	return nil
}

func (s Spec) checkShares() error {
	for _, f := range []float64{s.EmptyTables, s.ZeroPlain, s.ZeroAlloc, s.Compressed, s.Partial, s.Rewrite} {
		if math.IsNaN(f) || f < 0 || f > 1 {
			return refuse("a share of %v", f)
		}
	}
	switch {
	case math.IsNaN(s.Fill) || s.Fill > 1:
		return refuse("a share of %v", s.Fill)
	case s.ZeroPlain+s.ZeroAlloc+s.Compressed > 1:
		return refuse("shares of more than all clusters")
	case s.Partial > 0 && !s.ExtendedL2:
		return refuse("partly allocated clusters without subclusters")
	case s.Leaks < 0 || s.TailLeaks < 0 || s.Duplicates < 0 || s.VMState < 0:
		return refuse("a negative count")
	case math.IsNaN(s.LeakPercent) || s.LeakPercent < 0 || s.LeakPercent > 1000:
		return refuse("%v %% leaks", s.LeakPercent)
	case math.IsNaN(s.WrongPercent) || s.WrongPercent < 0 || s.WrongPercent > 100:
		return refuse("%v %% wrong refcounts", s.WrongPercent)
	case s.Snapshots < 0 || s.Snapshots > maxSnapshots:
		return refuse("%d snapshots", s.Snapshots)
	case s.Bitmaps < 0 || s.Bitmaps > maxBitmaps:
		return refuse("%d bitmaps", s.Bitmaps)
	}
	return nil
}

func (s Spec) checkFeatures() error {
	top := qcow2MaxRefcount(s.RefcountBits)
	switch {
	case uint64(s.Snapshots)+1 > top:
		return refuse("%d snapshots with refcounts of %d bits", s.Snapshots, s.RefcountBits)
	case s.Duplicates > 0 && top < 2*uint64(s.Snapshots+1):
		return refuse("shared clusters with refcounts of %d bits", s.RefcountBits)
	case (s.Rewrite > 0 || s.VMState > 0) && s.Snapshots == 0:
		return refuse("clusters rewritten after a snapshot, without snapshots")
	case s.Rewrite > 0 && s.VirtualBytes>>s.ClusterBits > maxRewriteClusters:
		return refuse("%d bytes with clusters rewritten after a snapshot", s.VirtualBytes)
	case s.DataFile != "" && (s.Snapshots > 0 || s.Compressed > 0 || s.Duplicates > 0 || s.Layout != Sequential):
		return refuse("an external data file with snapshots, compressed, shared or moved clusters")
	case s.RawDataFile && (s.DataFile == "" || s.Backing != ""):
		return refuse("a raw data file without a data file or with a backing file")
	case len(s.Backing) > qcow2.MaxBackingNameBytes || len(s.BackingFormat) > 15:
		return refuse("name of the backing file of %d bytes", len(s.Backing))
	case s.Bitmaps > 0 && s.VirtualBytes == 0:
		return refuse("bitmaps of an empty disk")
	case s.BitmapInUse && s.Bitmaps == 0:
		return refuse("a bitmap in use, without bitmaps")
	}
	return nil
}

func qcow2MaxRefcount(bits int) uint64 { return math.MaxUint64 >> (64 - bits) }

func (s Spec) clusterSize() int64 { return 1 << s.ClusterBits }

func (s Spec) entryBytes() int64 {
	if s.ExtendedL2 {
		return 16
	}
	return 8
}

// l2Entries is how many clusters an L2 table maps.
func (s Spec) l2Entries() int64 { return s.clusterSize() / s.entryBytes() }

// guestClusters is the size of the disk in clusters, rounded up.
func (s Spec) guestClusters() int64 { return ceil(s.VirtualBytes, s.clusterSize()) }

func (s Spec) l1Entries() int64 { return ceil(s.guestClusters(), s.l2Entries()) }

// refblockEntries is how many clusters a refcount block describes.
func (s Spec) refblockEntries() int64 { return s.clusterSize() * 8 / int64(s.RefcountBits) }

func ceil(a, b int64) int64 {
	n := a / b
	if a%b > 0 {
		n++
	}
	return n
}
