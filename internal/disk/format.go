// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/image/raw"
	"github.com/shisa-vm/shisa/internal/image/vdi"
	"github.com/shisa-vm/shisa/internal/image/vhdx"
	"github.com/shisa-vm/shisa/internal/image/vmdk"
	"github.com/shisa-vm/shisa/internal/image/vpc"
)

// The formats that are treated apart.
const (
	formatRaw   = string(image.Raw)
	formatQcow2 = string(image.Qcow2)
	formatVMDK  = string(image.VMDK)
	formatVHDX  = string(image.VHDX)
	formatVPC   = string(image.VPC)
	formatVDI   = string(image.VDI)
	formatLUKS  = string(image.LUKS)
)

// driver is what is done with images of one format. This is the only place that tells formats apart.
type driver struct {
	// head reads the header: the size of the disk, and the names of other files. An image whose header
	// is broken can be described all the same if that is kept in Layer.broken.
	head func(*Layer) error
	// open makes the disk readable. It is not called for a layer that is broken.
	open func(*Layer, context.Context, Options) error
	// info describes what only this format has.
	info func(*Layer, *Info)
}

// driverOf gives the driver of a format. One that is known and cannot be read has no open.
func driverOf(format string) driver {
	d := driver{head: (*Layer).headSize, info: func(*Layer, *Info) {}}
	switch format {
	case formatRaw:
		d.head, d.open = (*Layer).headRaw, (*Layer).openRaw
	case formatQcow2:
		return driver{(*Layer).headQcow2, (*Layer).openQcow2, (*Layer).qcow2Info}
	case formatVMDK:
		return driver{(*Layer).headVMDK, (*Layer).openVMDK, (*Layer).vmdkInfo}
	case formatVHDX:
		return driver{(*Layer).headVHDX, (*Layer).openVHDX, (*Layer).vhdxInfo}
	case formatVPC:
		return driver{(*Layer).headVPC, (*Layer).openVPC, (*Layer).vpcInfo}
	case formatVDI:
		d.head, d.open = (*Layer).headVDI, (*Layer).openVDI
	case formatLUKS:
		d.info = (*Layer).luksInfo
	}
	return d
}

// knownFormat tells whether qemu has a format of that name.
func knownFormat(name string) bool {
	return slices.Contains([]image.Format{
		image.Raw, image.Qcow2, image.Qcow, image.VMDK, image.VHDX, image.VPC, image.VDI, image.QED,
		image.LUKS, image.Parallels, image.Bochs, image.Cloop, image.DMG,
	}, image.Format(name))
}

// plainFormat turns the names that stand for raw data into the one that is used here. Old images
// name the protocol as the format of their backing file.
func plainFormat(name string) string {
	if name = strings.TrimSpace(name); localProtocol(name) {
		return formatRaw
	}
	return name
}

// other is an image of a format that has one file or is put together of several, as its own package
// reads it.
type other struct {
	vmdk *vmdk.Image
	vhdx *vhdx.Disk
	vpc  *vpc.Disk
	vdi  *vdi.Disk
	// flat tells for each extent of a vmdk image whether its file holds the disk as it is.
	flat []bool
}

// headSize is for formats of which nothing is read but the size of the disk.
func (l *Layer) headSize() error {
	var err error
	l.SizeBytes, err = image.VirtualSize(l.file, l.file.Size(), image.Format(l.Format))
	return err
}

// keep notes why the header of an image is of no use, and what can be told of the size all the same.
// Not to be able to read it is an error.
func (l *Layer) keep(err error) error {
	var fe *image.FormatError
	if !errors.As(err, &fe) {
		return err
	}
	l.broken = err
	return l.headSize()
}

// headRaw takes the file for what it is named, and says if it looks like something that has nothing to
// be told by at its front.
func (l *Layer) headRaw() error {
	if l.FormatFrom == FormatProbed {
		// A last sector that cannot be read says so when it is wanted.
		if hint, err := image.Hint(l.file, l.file.Size()); err == nil && hint == image.VPC {
			l.Notes = append(l.Notes, "it ends like a fixed disk of the format vpc, whose last sector is not on the disk; "+
				"--format vpc takes it for one")
		}
	}
	return l.headSize()
}

func (l *Layer) openRaw(context.Context, Options) error {
	l.disk = raw.New(l.file, l.file.Size(), l.file)
	return nil
}

func (l *Layer) headQcow2() error {
	h, err := qcow2.ReadHeader(l.file, l.file.Size())
	if err != nil {
		return err
	}
	l.Header, l.SizeBytes, l.ClusterBytes = h, h.SizeBytes, h.ClusterSize()
	if h.HasBacking {
		l.backing = &named{h.Backing, h.BackingFormat}
	}
	return nil
}

func (l *Layer) openQcow2(ctx context.Context, o Options) error {
	var do qcow2.DiskOptions
	if l.Data != nil {
		f, err := l.openLink(ctx, o, l.Data, roleData)
		if err != nil {
			return err
		}
		l.data, do.Data, do.DataBytes = []*diskio.File{f}, f, f.Size()
	}
	if o.Snapshot != "" {
		s, err := l.snapshot(o.Snapshot)
		if err != nil {
			return err
		}
		do.Snapshot, l.snap = s, s.L1Off
	}
	d, err := qcow2.NewDisk(l.file, l.file.Size(), l.Header, do)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Path, err)
	}
	l.disk, l.rec, l.SizeBytes = d, l.newRecursion(), d.Size()
	return nil
}

// openLink opens the file that a link of l leads to.
func (l *Layer) openLink(ctx context.Context, o Options, link *Link, role string) (*diskio.File, error) {
	if err := link.Err(l.Path, role); err != nil {
		return nil, err
	}
	path, open := link.target(o)
	f, err := openFile(ctx, path, open)
	if err != nil && ctx.Err() == nil {
		*link = link.fail(err)
		return nil, link.Err(l.Path, role)
	}
	return f, err
}

func (l *Layer) headVMDK() error {
	m, err := vmdk.Open(l.file, l.file.Size())
	if err != nil {
		return l.keep(err)
	}
	l.vmdk, l.SizeBytes, l.ClusterBytes, l.Notes = m, m.Bytes(), m.GrainBytes(), m.Notes()
	if m.HasParent {
		l.backing = &named{m.Parent, formatVMDK}
	}
	return nil
}

func (l *Layer) openVMDK(ctx context.Context, o Options) error {
	files := make([]vmdk.File, len(l.Extents))
	l.data, l.flat = make([]*diskio.File, len(l.Extents)), make([]bool, len(l.Extents))
	for i := range l.Extents {
		if l.Extents[i].Name == "" {
			continue // zeros
		}
		f, err := l.openLink(ctx, o, l.dataLink(i), roleExtent)
		if err != nil {
			return err
		}
		l.data[i], files[i], l.flat[i] = f, vmdk.File{R: f, Size: f.Size()}, l.vmdk.Extents[i].Flat()
	}
	d, err := l.vmdk.Disk(files)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Path, err)
	}
	l.disk, l.SizeBytes, l.ClusterBytes = d, d.Size(), d.GrainBytes()
	l.Notes = append(l.Notes, d.Notes()...)
	if slices.Contains(l.flat, true) {
		l.rec = l.newRecursion()
	}
	return nil
}

// fits tells why next cannot be what the vmdk image l rests on: its CID changes whenever its disk does.
func (l *Layer) fits(next *Layer) error {
	switch {
	case l.vmdk == nil || next.broken != nil:
		return nil
	case next.vmdk == nil:
		return fmt.Errorf("it is no %s image", formatVMDK)
	case next.vmdk.CID != l.vmdk.ParentCID:
		return fmt.Errorf("it has the CID %08x, and the image rests on %08x: it was changed since, or is another one",
			next.vmdk.CID, l.vmdk.ParentCID)
	}
	return nil
}

func (l *Layer) headVHDX() error {
	d, err := vhdx.Open(l.file, l.file.Size())
	if err != nil {
		return l.keep(err)
	}
	l.vhdx, l.SizeBytes, l.ClusterBytes, l.Notes = d, d.Size(), d.BlockBytes(), d.Notes()
	if n := d.Log().Entries; n > 0 {
		l.Notes = append(l.Notes, fmt.Sprintf("it was not closed: what its log holds is shown as if it were in its place "+
			"(%d entries, %d sectors)", n, d.Log().Sectors))
	}
	return nil
}

func (l *Layer) openVHDX(context.Context, Options) error {
	l.disk = l.vhdx
	return nil
}

func (l *Layer) headVPC() error {
	d, err := vpc.Open(l.file, l.file.Size())
	if err != nil {
		return l.keep(err)
	}
	l.vpc, l.SizeBytes, l.ClusterBytes, l.Notes = d, d.Size(), d.BlockBytes(), d.Notes()
	return nil
}

func (l *Layer) openVPC(context.Context, Options) error {
	if l.disk = l.vpc; l.vpc.Kind() == vpc.Fixed {
		l.rec = l.newRecursion()
	}
	return nil
}

func (l *Layer) headVDI() error {
	d, err := vdi.Open(l.file, l.file.Size())
	if err != nil {
		return l.keep(err)
	}
	l.vdi, l.SizeBytes, l.ClusterBytes = d, d.Size(), d.BlockBytes()
	return nil
}

func (l *Layer) openVDI(context.Context, Options) error {
	if l.disk = l.vdi; l.vdi.Fixed() {
		l.rec = l.newRecursion()
	}
	return nil
}

// ready makes the layer readable.
func (l *Layer) ready(ctx context.Context, o Options) error {
	if b := l.Backing; b != nil && !o.Single {
		if err := b.Err(l.Path, roleBacking); err != nil {
			return err
		}
	}
	open := driverOf(l.Format).open
	switch {
	case o.Snapshot != "" && l.Format != formatQcow2:
		return fmt.Errorf("%s: %w %q: format %s has none", l.Path, ErrNoSnapshot, o.Snapshot, l.Format)
	case l.broken != nil:
		err := fmt.Errorf("%s: %w", l.Path, l.broken)
		if errors.Is(err, vmdk.ErrExtent) {
			return finding.WithHint(err, "name the descriptor of the disk, a text with the suffix .vmdk beside it")
		}
		return err
	case open == nil:
		return finding.WithHint(
			fmt.Errorf("%s: format %s is recognised, but its %w", l.Path, l.Format, ErrFormat),
			"qemu-img convert -O qcow2 makes an image that can be read")
	}
	return open(l, ctx, o)
}
