// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Info describes one image of a chain.
type Info struct {
	Path       string     `json:"path"`
	Format     string     `json:"format"`
	FormatFrom FormatFrom `json:"format_from"`
	// Probed is the format that the content shows.
	Probed string `json:"probed_format"`
	// VirtualBytes is the size of the disk, -1 where it is not known; FileBytes the length of the
	// file, AllocatedBytes the space that it takes.
	VirtualBytes   int64      `json:"virtual_bytes"`
	FileBytes      int64      `json:"file_bytes"`
	AllocatedBytes int64      `json:"allocated_bytes"`
	ClusterBytes   int64      `json:"cluster_bytes"` // 0 where the format has none
	Modified       time.Time  `json:"modified"`
	Encrypted      bool       `json:"encrypted"`
	Encryption     *Encrypted `json:"encryption"` // nil without it, or where it could not be read
	// Use is what the locks of QEMU on the file say.
	Use Use `json:"use"`
	// Backing and DataFile are nil without one.
	Backing  *LinkInfo `json:"backing"`
	DataFile *LinkInfo `json:"data_file"`
	// What only images of one format have, nil for others.
	Qcow2     *Qcow2Info `json:"qcow2"`
	VMDK      *VMDKInfo  `json:"vmdk"`
	VHDX      *VHDXInfo  `json:"vhdx"`
	VPC       *VPCInfo   `json:"vpc"`
	Snapshots []Snapshot `json:"snapshots"`
	// Notes say what is not as it should be and did not hinder reading.
	Notes []string `json:"notes"`
	// Blind is what could not be read.
	Blind []finding.Blind `json:"blind"`

	// Header is nil unless the format is qcow2; Errs are the errors behind Blind.
	Header *qcow2.Header `json:"-"`
	Errs   []error       `json:"-"`
}

// LinkInfo describes a file that an image rests on.
type LinkInfo struct {
	// Name is as the header has it, FullName as qemu completes it; Path is the local file that it
	// means, "" if it does not mean one.
	Name     string `json:"name"`
	FullName string `json:"full_name"`
	Path     string `json:"path"`
	// Format is the one that the header or the name gives, "" if neither does.
	Format string    `json:"format"`
	State  LinkState `json:"state"`
	Reason string    `json:"reason"`

	Link Link `json:"-"`
}

// Qcow2Info is what only qcow2 images have.
type Qcow2Info struct {
	Version       int    `json:"version"`
	Compat        string `json:"compat"` // "0.10" or "1.1"
	Compression   string `json:"compression"`
	RefcountBits  int    `json:"refcount_bits"`
	LazyRefcounts bool   `json:"lazy_refcounts"`
	ExtendedL2    bool   `json:"extended_l2"`
	Dirty         bool   `json:"dirty"`
	Corrupt       bool   `json:"corrupt"`
	// DataFileRaw: the external data file reads like a raw image.
	DataFileRaw bool     `json:"data_file_raw"`
	Bitmaps     []Bitmap `json:"bitmaps"`
	// The feature bits as they stand.
	Incompatible string `json:"incompatible_features"`
	Compatible   string `json:"compatible_features"`
	Autoclear    string `json:"autoclear_features"`
}

// Bitmap is a persistent bitmap.
type Bitmap struct {
	Name             string `json:"name"`
	GranularityBytes int64  `json:"granularity_bytes"`
	InUse            bool   `json:"in_use"` // it was not stored, so it cannot be trusted
	Auto             bool   `json:"auto"`   // qemu goes on recording in it
}

// Snapshot is an internal snapshot.
type Snapshot struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Date         time.Time `json:"date"`
	VMStateBytes int64     `json:"vm_state_bytes"`
	VirtualBytes int64     `json:"virtual_bytes"`
	// VMClockNs is how long the machine had run, in nanoseconds.
	VMClockNs int64 `json:"vm_clock_ns"`
	// Icount is the number of instructions executed, -1 where it is not recorded.
	Icount int64 `json:"icount"`
}

// Use says whether a program has an image open, as far as its locks tell.
type Use string

// The kinds of use.
const (
	UseNone    Use = "none"
	UseRead    Use = "read"    // nobody may write
	UseWrite   Use = "write"   // a program may write
	UseUnknown Use = "unknown" // the file system does not say
)

func useOf(ctx context.Context, f *diskio.File) Use {
	locks, err := diskio.Within(ctx, answerTimeout, f.Locks, nil)
	switch {
	case err != nil:
		return UseUnknown
	case locks.Writer():
		return UseWrite
	case locks.Reader():
		return UseRead
	}
	return UseNone
}

// use tells by the locks of the image, and of the files that hold its disk, who uses it.
func (l *Layer) use(ctx context.Context, o Options) Use {
	use := useOf(ctx, l.file)
	for i := range l.Extents {
		if e := &l.Extents[i]; e.Name != "" && e.State == LinkOK {
			use = heavier(use, l.extentUse(ctx, o, &e.Link))
		}
	}
	return use
}

func (l *Layer) extentUse(ctx context.Context, o Options, link *Link) Use {
	f, err := l.openLink(ctx, o, link, roleExtent)
	if err != nil {
		return UseUnknown // the link says why
	}
	use := useOf(ctx, f)
	if f.Close() != nil {
		return UseUnknown
	}
	return use
}

// heavier is that of two uses that must not be overlooked.
func heavier(a, b Use) Use {
	for _, u := range []Use{UseWrite, UseUnknown, UseRead} {
		if a == u || b == u {
			return u
		}
	}
	return UseNone
}

// Inspect describes the image at path and, unless o.Single, those below it, as far as they can be
// followed: the Backing of the last one tells why it is the last. The error is for the image
// itself, or that of ctx.
func Inspect(ctx context.Context, path string, o Options) ([]Info, error) {
	layers, err := o.descend(ctx, path)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, len(layers))
	for i := range layers {
		// What cannot be opened for its locks is said of its link.
		use := layers[i].use(ctx, o)
		layers[i].info(&infos[i])
		infos[i].Use = use
	}
	return infos, closeAll(layers)
}

func (l *Layer) info(n *Info) {
	*n = Info{
		Path: l.Path, Format: l.Format, FormatFrom: l.FormatFrom, Probed: l.Probed,
		VirtualBytes: l.SizeBytes, FileBytes: l.Stat.SizeBytes, AllocatedBytes: l.Stat.AllocatedBytes,
		Modified: l.Stat.ModTime, Snapshots: []Snapshot{}, Blind: []finding.Blind{}, Header: l.Header,
		Backing: linkInfo(l.Backing), DataFile: linkInfo(l.Data),
	}
	n.ClusterBytes, n.Notes = l.ClusterBytes, slices.Concat([]string{}, l.Notes)
	if l.broken != nil {
		l.blind(n, "header", l.broken)
		return
	}
	driverOf(l.Format).info(l, n)
}

func (l *Layer) luksInfo(n *Info) {
	n.Encrypted = true
	l.luks(n, 0, l.file.Size())
}

func linkInfo(l *Link) *LinkInfo {
	if l == nil {
		return nil
	}
	return &LinkInfo{
		Name: l.Name, FullName: l.Full, Path: l.Path,
		Format: l.Format, State: l.State, Reason: l.Reason, Link: *l,
	}
}

func (l *Layer) qcow2Info(n *Info) {
	h := l.Header
	hex := func(bits uint64) string { return fmt.Sprintf("%#016x", bits) }
	q := &Qcow2Info{
		Version: int(h.Version), Compat: "0.10", Compression: h.Compression.String(), RefcountBits: h.RefcountBits(),
		LazyRefcounts: h.Compatible&qcow2.CompatLazyRefcounts != 0, ExtendedL2: h.ExtendedL2(),
		Dirty: h.Incompatible&qcow2.IncompatDirty != 0, Corrupt: h.Incompatible&qcow2.IncompatCorrupt != 0,
		DataFileRaw: h.RawDataFile(), Bitmaps: []Bitmap{},
		Incompatible: hex(h.Incompatible), Compatible: hex(h.Compatible), Autoclear: hex(h.Autoclear),
	}
	if h.Version >= 3 {
		q.Compat = "1.1"
	}
	n.Qcow2, n.Encrypted = q, l.encrypted()
	bitmaps, err := qcow2.ReadBitmaps(l.file, l.file.Size(), h)
	l.blind(n, "bitmap directory", err)
	for _, b := range bitmaps {
		q.Bitmaps = append(q.Bitmaps, Bitmap{b.Name, 1 << b.GranularityBits, b.InUse, b.Auto})
	}
	l.snapshots(n)
	switch h.Crypt {
	case qcow2.CryptAES:
		n.Encryption = &Encrypted{Format: "aes"}
	case qcow2.CryptLUKS:
		l.luks(n, int64(h.CryptOff), h.CryptLen)
	}
}

func (l *Layer) snapshots(n *Info) {
	t, err := qcow2.ReadSnapshots(l.file, l.file.Size(), l.Header)
	if l.blind(n, "snapshot table", err); err != nil {
		return
	}
	for _, s := range t.Snapshots {
		n.Snapshots = append(n.Snapshots, Snapshot{
			ID: s.ID, Name: s.Name, Date: s.Date, VMStateBytes: s.VMStateBytes, VirtualBytes: s.DiskBytes,
			VMClockNs: int64(s.VMClock), Icount: s.ICount,
		})
	}
	if t.Blank > 0 {
		l.blind(n, "snapshot table", fmt.Errorf("%d of %d entries lie past the end of the file", t.Blank, t.Len()))
	}
}

// blind notes what could not be read.
func (l *Layer) blind(n *Info, what string, err error) {
	if err == nil {
		return
	}
	n.Errs = append(n.Errs, err)
	b := finding.Blind{Object: l.Path, What: what, Reason: err.Error(), Host: []finding.Range{}, Guest: []finding.Range{}}
	var oe *qcow2.OpenError
	var fe *image.FormatError
	if errors.As(err, &oe) {
		b.Host = append(b.Host, finding.Range{Offset: int64(oe.Off)})
	} else if errors.As(err, &fe) {
		b.Host = append(b.Host, finding.Range{Offset: int64(fe.Off)})
	}
	n.Blind = append(n.Blind, b)
}
