// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"io"
	"slices"
)

// scanned is what the first look at the L2 tables brought. It stays as it is, so that a check of the
// same tables can begin with it.
type scanned struct {
	geometry
	version uint32
	tables  []table
	data    *tally
	counts  Counts
	faults  entryFaults
	past    bool
	dataEnd uint64
}

// Again is Examine for an image that e knows. changed reports whether a range of the file may be
// different since. Where nothing that refers to guest data is, the L2 tables are not read again, as
// far as nothing else about them is in doubt.
func (e *Exam) Again(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions,
	changed func(off, length int64) bool,
) (*Exam, error) {
	c, err := newChecker(r, size, opts)
	if err != nil {
		return nil, err
	}
	c.before, c.changed = e.c.scan, changed
	return c.finishExam(ctx)
}

// rememberScan keeps what the first look brought, where all could be read and there is memory for it.
func (c *checker) rememberScan() {
	if len(c.blind) > 0 || c.unreadable > 0 || c.data == nil || 2*c.data.bytes > c.data.limit {
		return
	}
	c.scan = &scanned{geometry: c.geometry, version: c.h.Version, tables: c.tables, data: c.data.clone(),
		counts: c.counts, faults: c.faults, past: c.past, dataEnd: c.dataEnd}
}

// scannedBefore takes over what an earlier look at the L2 tables brought, and reports whether it
// could: they must be the same, and what names them.
func (c *checker) scannedBefore() bool {
	s := c.before
	if s == nil || !s.fits(c) {
		return false
	}
	for i := range c.tables {
		if c.changed(int64(c.tables[i].off), int64(c.cs)) {
			return false
		}
	}
	for i := range c.tables {
		t := &s.tables[i]
		c.tables[i].used, c.tables[i].bad, c.tables[i].past = t.used, t.bad, t.past
	}
	c.scan = s
	c.data = s.data.clone()
	c.faults, c.past, c.dataEnd = s.faults, s.past, s.dataEnd
	c.counts.AllocatedClusters = s.counts.AllocatedClusters
	c.counts.FragmentedClusters = s.counts.FragmentedClusters
	c.counts.CompressedClusters = s.counts.CompressedClusters
	return true
}

// fits reports whether a check of the same tables would count the same as s did.
func (s *scanned) fits(c *checker) bool {
	a, b := s.geometry, c.geometry
	same := a.h.ExtendedL2() == b.h.ExtendedL2() && s.version == b.h.Version
	a.h, b.h = nil, nil
	return same && a == b && slices.EqualFunc(s.tables, c.tables, func(x, y table) bool {
		return x.off == y.off && x.refs == y.refs && x.active == y.active
	})
}

// clone copies a tally that nothing waits in.
func (t *tally) clone() *tally {
	o := &tally{limit: t.limit, bytes: t.bytes}
	if t.flat == nil {
		o.far = make(map[int64]*chunk, len(t.far))
	} else {
		o.flat = make([]*chunk, len(t.flat))
	}
	_ = t.each(func(no int64, c *chunk) error { // fn returns no error
		o.setChunk(no, &chunk{runs: slices.Clone(c.runs), planes: c.planes.clone(o)})
		return nil
	})
	return o
}

func (p *planes) clone(t *tally) *planes {
	if p == nil {
		return nil
	}
	o := &planes{base: t.newBase(), plain: clonePlane(p.plain), multi: clonePlane(p.multi)}
	*o.base = *p.base
	for _, h := range p.high {
		o.high = append(o.high, clonePlane(h))
	}
	return o
}

func clonePlane(p *[chunkWords]uint64) *[chunkWords]uint64 {
	if p == nil {
		return nil
	}
	o := *p
	return &o
}
