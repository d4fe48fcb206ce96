// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Info is what an image holds, as qemu-img check counts it.
type Info struct {
	Allocated, Fragmented, Compressed int64
	Leaks                             int64
	Wrong                             int64 // refcounts
	// TotalClusters is the size of the disk in clusters, EndOffset the end of the last cluster in
	// use (leaks are in use), FileBytes the length of the file.
	TotalClusters, EndOffset, FileBytes int64
}

// Write makes the image at path, which must not exist. A Spec that no image can satisfy gives
// ErrSpec and no file.
func Write(path string, spec Spec) error {
	_, err := Build(path, spec)
	return err
}

// Build is Write, and says what the image holds.
func Build(path string, spec Spec) (Info, error) {
	spec, err := spec.normal()
	if err != nil {
		return Info{}, fmt.Errorf("make image %s: %w", path, err)
	}
	b := &builder{Spec: spec}
	if err := b.plan(); err != nil {
		return Info{}, fmt.Errorf("make image %s: %w", path, err)
	}
	if err := b.write(path); err != nil {
		return Info{}, fmt.Errorf("make image %s: %w", path, err)
	}
	return b.info, nil
}

// write makes the file, and the external data file if there is one.
func (b *builder) write(path string) (err error) {
	var made []string
	defer func() {
		for i, s := range []*sink{b.out, b.data} {
			if s == nil {
				continue
			}
			s.f.Close() // all was written before, and errors were seen
			if err != nil {
				os.Remove(made[i]) // a half-made image must not be taken for a good one
			}
		}
	}()
	create := func(path string) *sink {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
			return nil
		}
		made = append(made, path)
		return &sink{f: f}
	}
	if b.out = create(path); err != nil {
		return err
	}
	if b.DataFile != "" {
		data := b.DataFile
		if !filepath.IsAbs(data) {
			data = filepath.Join(filepath.Dir(path), data)
		}
		if b.data = create(data); err != nil {
			return err
		}
	}
	return b.build()
}

// builder lays an image out from front to back. Clusters are handed out in ascending order, and a
// refcount block lies in the first cluster that it describes, as in an image that grew.
type builder struct {
	Spec
	out  *sink
	data *sink // the external data file
	info Info

	// weight is how many references each L2 table and data cluster has: from the active L1 and
	// from each snapshot. 0 while they are not counted yet because views will differ.
	weight int64
	counts counts
	next   int64 // first free cluster

	reftable, reftableClusters int64 // cluster numbers here and below
	refblocks                  []int64
	l1, l1Len                  int64   // cluster and entries
	tables                     []int64 // L2 tables of the active L1, 0 where there is none
	kept                       [][]byte

	shares shares
	leaks  spread
	slot   int64 // clusters for data handed out so far

	// Where the data of the table at hand went, or, where clusters are shuffled, of all tables.
	hosts []uint32
	comp  []uint64

	packer    packer
	snaps     []snapshot
	snapTable int64
	bitmap    bitmapArea
	kinds     []kind // scratch
	l2        []byte // scratch
}

// plan counts what there will be, for the size of the refcount table.
func (b *builder) plan() error {
	b.weight = int64(b.Snapshots) + 1
	if b.Rewrite > 0 {
		b.weight = 0
	}
	b.l1Len = b.l1Entries() + ceil(ceil(b.VMState, b.clusterSize()), b.l2Entries())
	if b.l1Len*8 > qcow2.MaxL1Bytes {
		return refuse("%d L1 entries", b.l1Len)
	}
	b.tables = make([]int64, b.l1Entries())
	b.kinds = make([]kind, b.l2Entries())
	b.l2 = make([]byte, b.clusterSize())
	n := b.survey()
	if err := b.planShares(n); err != nil {
		return err
	}
	leaks := b.Leaks + int64(b.LeakPercent/100*float64(n.data))
	b.leaks = spread{n: leaks, over: n.data + n.zeroAlloc}
	b.info.Leaks = leaks + b.TailLeaks
	b.info.TotalClusters = b.guestClusters()
	total, err := b.bound(n, leaks+b.TailLeaks)
	if err != nil {
		return err
	}
	b.counts = counts{small: make([]uint8, total)}
	if b.Layout != Sequential {
		b.hosts = make([]uint32, 0, n.data+n.zeroAlloc)
	}
	if b.Compressed > 0 {
		return b.packer.init(b)
	}
	return nil
}

// bound is the highest number of clusters that the image can take. It sets the size of the
// refcount table, which must be known before anything behind it has a place.
func (b *builder) bound(n census, leaks int64) (int64, error) {
	cs := b.clusterSize()
	snaps := int64(b.Snapshots)
	total := 1 + ceil(b.l1Len*8, cs)*(1+snaps) + n.tables + n.compressed + leaks +
		ceil(snaps*maxSnapshotEntry, cs)
	if b.DataFile == "" {
		total += n.data + n.zeroAlloc
	}
	if b.Rewrite > 0 {
		total += snaps * (n.tables + n.tables*b.l2Entries())
	}
	vm := ceil(b.VMState, cs)
	total += snaps * (vm + ceil(vm, b.l2Entries()))
	total += int64(b.Bitmaps)*b.bitmapClusters() + ceil(int64(b.Bitmaps)*maxBitmapEntry, cs)
	for all := total; ; {
		blocks := ceil(all, b.refblockEntries())
		b.reftableClusters = max(1, ceil(blocks*8, cs))
		switch sum := total + blocks + b.reftableClusters; {
		case b.reftableClusters*cs > qcow2.MaxReftableBytes:
			return 0, refuse("%d clusters need a refcount table of %d bytes", sum, b.reftableClusters*cs)
		case sum > maxClusters:
			return 0, refuse("%d clusters, %d at most", sum, maxClusters)
		case sum == all:
			return all, nil
		default:
			all = sum
		}
	}
}

func (b *builder) build() error {
	b.reftable = b.extend(1+b.reftableClusters) + 1 // behind the header
	b.refblock()
	b.l1 = b.extend(ceil(b.l1Len*8, b.clusterSize()))
	b.placeAll()
	if b.Layout != Sequential {
		b.shuffle()
		b.fillAll()
	}
	b.takeSnapshots()
	b.placeBitmaps()
	for range b.leaks.left() + b.TailLeaks {
		b.alloc(1)
	}
	for b.covered() < b.next {
		b.refblock()
	}
	if b.next > int64(len(b.counts.small)) {
		return fmt.Errorf("%d clusters, counted on %d", b.next, len(b.counts.small))
	}
	b.writeRefcounts()
	b.writeL1()
	b.writeHeader()
	b.info.EndOffset = b.next << b.ClusterBits
	b.info.FileBytes = b.info.EndOffset + b.AppendHole
	if b.DataFile != "" {
		if err := b.data.close(b.VirtualBytes); err != nil {
			return err
		}
	}
	return b.out.close(b.info.FileBytes)
}

// covered is the first cluster without a refcount block.
func (b *builder) covered() int64 { return int64(len(b.refblocks)) * b.refblockEntries() }

// refblock places the next refcount block.
func (b *builder) refblock() {
	b.refblocks = append(b.refblocks, b.next)
	b.counts.add(b.next, 1)
	b.next++
}

// alloc hands out a cluster that n references point to.
func (b *builder) alloc(n int64) int64 {
	for b.next >= b.covered() {
		b.refblock()
	}
	c := b.next
	b.next++
	b.counts.add(c, n)
	return c
}

// extend hands out n clusters in a row. Refcount blocks that fall due in them come behind.
func (b *builder) extend(n int64) int64 {
	for b.next > 0 && b.next >= b.covered() {
		b.refblock()
	}
	c := b.next
	for i := range n {
		b.counts.add(c+i, 1)
	}
	b.next += n
	return c
}

// shuffle moves runs of data clusters; the last, shorter run stays.
func (b *builder) shuffle() {
	run := int(b.Layout)
	r := rand.New(rand.NewPCG(b.Seed, 0x5151))
	tmp := make([]uint32, run)
	r.Shuffle(len(b.hosts)/run, func(i, j int) {
		x, y := b.hosts[i*run:(i+1)*run], b.hosts[j*run:(j+1)*run]
		copy(tmp, x)
		copy(x, y)
		copy(y, tmp)
	})
}

// spread gives n events evenly over so many steps, the last one before the last step if there is
// room.
type spread struct{ n, over, done int64 }

// due says how many events fall on the step.
func (s *spread) due(step int64) int64 {
	if s.n == 0 || s.over == 0 {
		return 0
	}
	upTo := int64(float64(step+1) / float64(s.over) * float64(s.n+1))
	d := max(0, min(upTo, s.n)-s.done)
	s.done += d
	return d
}

func (s *spread) left() int64 {
	d := s.n - s.done
	s.done = s.n
	return d
}
