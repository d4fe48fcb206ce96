// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// HeaderOptions are what the caller knows of an image whose header is lost. The zero value knows
// nothing.
type HeaderOptions struct {
	// Name is the object that blind spots speak of.
	Name string
	// ClusterBytes is the cluster size, SizeBytes that of the virtual disk; 0 means find them.
	ClusterBytes, SizeBytes int64
	// Version is 2 or 3; 0 means find it.
	Version int
	// L1Offset and ReftableOffset are where the tables lie in the file; 0 means find them.
	L1Offset, ReftableOffset int64
	// Backing is the name of the backing file, "" for none; nil means find it.
	Backing *string
	// BackingFormat and DataFile are as in the header; "" means find them.
	BackingFormat, DataFile string
	// Progress, if set, is told the bytes of the file looked at and to look at.
	Progress func(doneBytes, totalBytes int64)
}

// ErrHeaderOptions: what the caller says of the image is impossible.
var ErrHeaderOptions = errors.New("impossible for a qcow2 image")

// HeaderPlan is what a new header would be, with what each field rests on. The image itself is never
// changed by it: Writes are for a copy.
type HeaderPlan struct {
	// Fields are those of the header in its order, then the extensions.
	Fields []qcow2.Field `json:"fields"`
	// Missing are the names of the fields for which there is no evidence. While there are any, there
	// are no Writes.
	Missing []string `json:"missing"`
	// SizeLowBytes and SizeHighBytes are the bounds of the virtual size that the tables leave.
	SizeLowBytes  int64 `json:"size_low_bytes"`
	SizeHighBytes int64 `json:"size_high_bytes"`
	// Counts are those of a check of the image behind the new header, nil where none was possible.
	Counts *qcow2.Counts `json:"counts"`
	// Writes make a copy of the file an image again. The first sector is the last of them.
	Writes []plan.Write `json:"writes"`
	// Notes say in sentences what else is written.
	Notes []string        `json:"notes"`
	Blind []finding.Blind `json:"blind"`
	// Header is the header as it would be read; its size is a guess while the size is missing.
	Header *qcow2.Header `json:"-"`
}

// RebuildHeader finds out what the header of the image in src, a file of size bytes, was. It reads
// the data of the file once. The error is ErrHeaderOptions, qcow2.ErrNoEvidence, or that of ctx.
func RebuildHeader(ctx context.Context, src io.ReaderAt, size int64, opts HeaderOptions) (
	*HeaderPlan, error) {
	o, err := opts.qcow2()
	if err != nil {
		return nil, err
	}
	x, err := qcow2.Reconstruct(ctx, src, size, o)
	if err != nil {
		return nil, err
	}
	p := &HeaderPlan{Notes: []string{}, Missing: []string{}, Writes: []plan.Write{}}
	blind, err := askGuest(ctx, src, size, x, opts)
	if err != nil {
		return nil, err
	}
	p.Fields, p.Header = x.Fields, x.Header
	p.Missing = append(p.Missing, x.Missing()...)
	p.SizeLowBytes, p.SizeHighBytes = x.SizeLow, x.SizeHigh
	p.Blind = append(append([]finding.Blind{}, x.Blind...), blind...)
	if x.HeaderBytes == nil {
		return p, nil
	}
	if err := p.write(src, size, x); err != nil {
		return nil, err
	}
	return p, p.check(ctx, src, size, opts.Name)
}

// qcow2 gives the options for the search.
func (o *HeaderOptions) qcow2() (qcow2.ReconstructOptions, error) {
	q := qcow2.ReconstructOptions{Name: o.Name, Version: uint32(o.Version), SizeBytes: o.SizeBytes,
		L1Off: image.HostOff(o.L1Offset), ReftableOff: image.HostOff(o.ReftableOffset),
		Backing: o.Backing, BackingFormat: o.BackingFormat, DataFile: o.DataFile, Progress: o.Progress}
	for b := uint32(qcow2.MinClusterBits); b <= qcow2.MaxClusterBits && o.ClusterBytes != 0; b++ {
		if o.ClusterBytes == 1<<b {
			q.ClusterBits = b
		}
	}
	switch {
	case o.ClusterBytes != 0 && q.ClusterBits == 0:
		return q, fmt.Errorf("clusters of %d bytes: %w", o.ClusterBytes, ErrHeaderOptions)
	case o.SizeBytes < 0 || o.SizeBytes%plan.SectorBytes != 0:
		return q, fmt.Errorf("a disk of %d bytes: %w", o.SizeBytes, ErrHeaderOptions)
	case o.Version != 0 && o.Version != 2 && o.Version != 3:
		return q, fmt.Errorf("version %d: %w", o.Version, ErrHeaderOptions)
	case o.L1Offset < 0 || o.ReftableOffset < 0:
		return q, fmt.Errorf("a table at %d: %w", min(o.L1Offset, o.ReftableOffset), ErrHeaderOptions)
	case o.Backing != nil && len(*o.Backing) > qcow2.MaxBackingNameBytes:
		return q, fmt.Errorf("name of the backing file of %d bytes: %w", len(*o.Backing), ErrHeaderOptions)
	}
	return q, nil
}

// maxClaims bounds what the guest says that is listed.
const maxClaims = 8

// askGuest looks into the virtual disk for its size: partition tables and file systems know it.
func askGuest(ctx context.Context, src io.ReaderAt, size int64, x *qcow2.Reconstruction,
	opts HeaderOptions) ([]finding.Blind, error) {
	f := x.Field(qcow2.FieldSize)
	h := x.Header
	if opts.SizeBytes != 0 || f == nil || h.Crypt != qcow2.CryptNone || h.HasDataFile() ||
		x.L1Last < 0 {
		return nil, nil
	}
	open := *h
	open.SizeBytes, open.L1Entries = x.SizeHigh, x.L1Room
	disk, err := qcow2.NewDisk(src, size, &open, qcow2.DiskOptions{})
	if err != nil {
		return nil, nil // the disk cannot be shown, so the guest cannot be asked
	}
	claims, blind, err := guest.DiskSizes(ctx, disk, x.SizeHigh)
	if err != nil {
		return nil, err
	}
	if crypt := x.Field(qcow2.FieldCrypt); len(claims) > 0 && crypt != nil {
		crypt.Certainty, crypt.Alternatives = finding.Sure, []qcow2.Alternative{}
		crypt.Evidence = append(crypt.Evidence, finding.Evidence{Source: "guest", Offset: -1,
			Text: "the guest's partition table or file system can be read as it is"})
	}
	for i, c := range claims {
		if i < maxClaims {
			takeClaim(x, f, c)
		}
	}
	return blind, nil
}

// takeClaim holds what the guest says about the size against what is known.
func takeClaim(x *qcow2.Reconstruction, f *qcow2.Field, c guest.SizeClaim) {
	e := finding.Evidence{Source: "guest", Offset: -1, Value: fmt.Sprint(c.Bytes), Text: c.Text}
	same := !f.Missing && f.Value == fmt.Sprint(c.Bytes)
	switch {
	case same && c.Exact:
		f.Evidence = append(f.Evidence, e)
		f.Certainty = finding.Sure
	case c.Exact && c.Confirmed && f.Missing && x.SetSize(c.Bytes, finding.Likely, e):
	case !same:
		if !c.Exact && f.Missing && x.SizeLow < c.Bytes && c.Bytes <= x.SizeHigh {
			x.SizeLow = c.Bytes // the disk cannot have ended before what it held
		}
		text := c.Text
		if !c.Exact {
			text += "; the disk is at least as large"
		}
		f.Alternatives = append(f.Alternatives, qcow2.Alternative{Value: e.Value, Text: text})
		if !f.Missing && !f.Given && !c.Exact && f.Value != "" && c.Bytes > x.Header.SizeBytes {
			// The disk cannot have ended before what it held.
			f.Missing, f.Value, f.Certainty = true, "", ""
			x.HeaderBytes = nil
		}
	}
}

// write lists the bytes that change, the first sector last.
func (p *HeaderPlan) write(src io.ReaderAt, size int64, x *qcow2.Reconstruction) error {
	old := make([]byte, min(int64(len(x.HeaderBytes)), size))
	if n, err := src.ReadAt(old, 0); n < len(old) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read the old header cluster: %w", err)
	}
	// Only what differs: of a cluster of 2 MiB hardly more than the first sector does.
	for at := plan.SectorBytes; at < len(x.HeaderBytes); at += plan.SectorBytes {
		end := min(at+plan.SectorBytes, len(x.HeaderBytes))
		was := old[min(at, len(old)):min(end, len(old))]
		if bytes.Equal(was, x.HeaderBytes[at:end]) {
			continue
		}
		if n := len(p.Writes); n > 0 && p.Writes[n-1].End() == int64(at) {
			w := &p.Writes[n-1]
			w.Old, w.New = append(w.Old, was...), append(w.New, x.HeaderBytes[at:end]...)
			continue
		}
		p.Writes = append(p.Writes, plan.Write{Phase: plan.New, Offset: int64(at),
			Old: bytes.Clone(was), New: bytes.Clone(x.HeaderBytes[at:end])})
	}
	for _, patch := range x.Patches {
		p.Writes = append(p.Writes, plan.Write{Phase: plan.Point, Offset: patch.Offset,
			Old: patch.Old, New: patch.New})
		p.Notes = append(p.Notes, patch.Text)
	}
	p.Writes = append(p.Writes, plan.Write{Phase: plan.Switch, Offset: 0,
		Old: old[:min(plan.SectorBytes, len(old))], New: x.HeaderBytes[:plan.SectorBytes]})
	return nil
}

// check counts what a check of the image behind the new header finds.
func (p *HeaderPlan) check(ctx context.Context, src io.ReaderAt, size int64, name string) error {
	ov := newOverlay(src, size, DefaultMemoryBytes)
	for _, w := range p.Writes {
		if err := ov.write(w.Phase, w.New, w.Offset); err != nil {
			return err
		}
	}
	res, err := qcow2.Check(ctx, ov, ov.size, qcow2.CheckOptions{Name: name, DataFileBytes: -1})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("check behind the new header: %w", err)
	}
	p.Counts = &res.Counts
	return nil
}
